/**
 * A volume or a snapshot as a BlockDevice: splits operations into runs of the map and entries of the log, verifies what
 * it reads, and keeps writes of parts of a block, and compare-and-write, apart from whatever else touches those blocks.
 */
import { canary } from "#base/canary";
import type { Status } from "#base/status";
import { perform, start, type Task } from "#base/task";
import { BLOCK_BYTES, GIB, KIB } from "#base/units";
import {
  type BlockDevice,
  type BlockOp,
  checkRange,
  type DeviceChange,
  type DeviceWatcher,
  ExtentFlag,
} from "#device/device";
import { EntryKind } from "./format.ts";
import { LogEntry } from "./log.ts";
import { LEAF_BLOCKS, type Location } from "./map.ts";
import { type Node, parentAt } from "./node.ts";
import { type Reader, Reading, Reads } from "./reads.ts";
import type { Segment, SegmentTable } from "./segment.ts";
import type { VersionSet } from "./version-set.ts";

/** Parts of blocks are read and merged in buffers of this size at most; longer unaligned operations go step by step. */
export const BOUNCE_BYTES = 64 * KIB;
/** Reads of parts of blocks of up to so many bytes go in one step, through a buffer of their own, while there is memory. */
const PARTS_BYTES_MAX = 256 * KIB;
/** One copy that shares takes no longer than this takes. */
export const COPY_BYTES_MAX = GIB;

/** A whole-block write or clear in progress; waits for its entry, and with FUA for a sync. */
class Writing {
  op!: BlockOp;
  readonly entry: LogEntry;
  readonly onSynced: (status: Status) => void;
  constructor(owner: Version) {
    this.entry = new LogEntry((_, status) => owner.onWritten(this, status));
    this.onSynced = (status) => owner.finishWriting(this, status);
  }
}

/** A flush in progress. */
class Flushing {
  op!: BlockOp;
  readonly onSynced: (status: Status) => void;
  constructor(owner: Version) {
    this.onSynced = (status) => owner.finishFlushing(this, status);
  }
}

/** A claim on blocks: nobody else writes them meanwhile. */
class Claim {
  readonly block: number;
  readonly count: number;
  active = false;
  readonly run: () => void;
  constructor(block: number, count: number, run: () => void) {
    this.block = block;
    this.count = count;
    this.run = run;
  }
  overlaps(block: number, count: number): boolean {
    return this.block < block + count && block < this.block + this.count;
  }
}

export class Version implements BlockDevice, Reader {
  // What a read needs stands first, so that it lies in one or two lines of the processor's cache.
  readonly node: Node;
  gone = false;
  /** Operations in progress; a set is closed when there are none. */
  busy = 0;
  readonly #reads: Reads;
  readonly #segments: SegmentTable;
  readonly #set: VersionSet;
  readonly preferredBlockSize = BLOCK_BYTES;
  /** For writes in whole blocks of the engine. */
  get atomicWriteBytes(): number {
    return this.#set.log.atomicBlocks * BLOCK_BYTES;
  }
  readonly #watchers = new Set<DeviceWatcher>();
  readonly #writings: Writing[] = [];
  readonly #flushings: Flushing[] = [];
  /** In order of arrival: active ones, and those that wait for them. */
  #claims: Claim[] = [];

  constructor(set: VersionSet, node: Node) {
    this.node = node;
    this.#reads = Reads.of(set.env);
    this.#segments = set.log.segments;
    this.#set = set;
  }

  get name(): string {
    return this.node.name;
  }
  get uuid(): string {
    return this.node.uuid;
  }
  get size(): number {
    return this.node.size;
  }
  get blockSize(): number {
    return this.node.blockSize;
  }
  get readOnly(): boolean {
    return this.node.kind === "snapshot" || this.#set.readOnly !== undefined;
  }
  get kind(): "volume" | "snapshot" {
    return this.node.kind;
  }
  get createdAt(): number {
    return this.node.createdAt;
  }

  watch(watcher: DeviceWatcher): () => void {
    this.#watchers.add(watcher);
    return () => this.#watchers.delete(watcher);
  }

  /** Shares the data of whole blocks with another version of the set, or with itself elsewhere. */
  copyFrom(op: BlockOp, source: BlockDevice, from: number): void {
    const isOurs = source instanceof Version && source.#set === this.#set;
    if (!isOurs || [op.offset, op.length, from].some((bytes) => bytes % BLOCK_BYTES !== 0))
      return end(op, "unsupported");
    const status = this.gone || source.gone ? "gone" : checkRange(this, op);
    if (status !== undefined) return end(op, status);
    if (from < 0 || from + op.length > source.size) return end(op, "range");
    if (op.length > COPY_BYTES_MAX) return end(op, "invalid");
    const refused = this.node.kind === "snapshot" ? "denied" : this.#set.refusesWrites();
    if (refused !== undefined) return end(op, refused);
    this.busy++;
    const block = op.offset / BLOCK_BYTES;
    const count = op.length / BLOCK_BYTES;
    this.#claim(block, count, (release) => {
      start(
        this.#copyBlocks(op, source, from / BLOCK_BYTES, block, count),
        (copied) => this.#endChange(op, copied),
        this.#set.onBug,
      );
      // From here on the order of the log is the order of the writes.
      release();
    });
  }

  *#copyBlocks(op: BlockOp, source: Version, from: number, block: number, count: number): Task<Status> {
    const status = yield* perform<Status>((resume) => {
      const entry = new LogEntry((_, ended) => resume(ended));
      entry.kind = EntryKind.COPY;
      entry.version = this.node.id;
      entry.block = block;
      entry.count = count;
      entry.fromVersion = source.node.id;
      entry.fromBlock = from;
      this.#set.log.submit(entry);
    });
    if (status === "ok" && source.gone) return "gone";
    return status === "ok" && op.fua ? yield* perform<Status>((resume) => this.#set.log.sync(resume)) : status;
  }

  changed(change: DeviceChange): void {
    if (change === "gone") this.gone = true;
    for (const watcher of [...this.#watchers]) watcher(change);
  }

  submit(op: BlockOp): void {
    const status = this.gone ? "gone" : checkRange(this, op);
    if (status !== undefined) return end(op, status);
    switch (op.kind) {
      case "read":
        this.busy++;
        return this.#read(op);
      case "flush":
        if (this.node.kind === "snapshot") return end(op, "ok");
        return this.#flush(op);
      case "status":
        return this.#status(op);
      case "cache":
        return end(op, "ok");
      default:
        return this.#change(op);
    }
  }

  #flush(op: BlockOp): void {
    const flushing = this.#flushings.pop() ?? new Flushing(this);
    flushing.op = op;
    this.busy++;
    this.#set.log.sync(flushing.onSynced);
  }

  finishFlushing(flushing: Flushing, status: Status): void {
    const { op } = flushing;
    this.#flushings.push(flushing);
    this.busy--;
    end(op, status);
  }

  /* ------------------------------------------------------------------ reads */

  #read(op: BlockOp): void {
    const into = op.offset % BLOCK_BYTES;
    if (into !== 0 || op.length % BLOCK_BYTES !== 0) return this.#readUnaligned(op, into);
    const reading = this.#reads.take();
    reading.op = op;
    reading.reader = this;
    reading.done = endReading;
    this.#readBlocks(reading, op.offset / BLOCK_BYTES, op.length / BLOCK_BYTES, op.at);
  }

  #readUnaligned(op: BlockOp, into: number): void {
    const blocks = Math.ceil((into + op.length) / BLOCK_BYTES);
    const bytes = blocks * BLOCK_BYTES;
    const buffer = bytes <= PARTS_BYTES_MAX ? this.#set.env.memory.allocate(bytes) : 0;
    if (buffer === 0) return start(this.#readParts(op), (status) => this.endRead(op, status), this.#set.onBug);
    const reading = this.#reads.take();
    reading.op = op;
    reading.reader = this;
    reading.done = this.#onPartsRead;
    this.#readBlocks(reading, (op.offset - into) / BLOCK_BYTES, blocks, buffer);
  }

  #readBlocks(reading: Reading, block: number, count: number, at: number): void {
    this.#reads.begin(reading, this.node.map, this.#segments, block, count, at);
  }

  /** Of `Reader`: whole blocks lie where they were wanted. */
  onReading(reading: Reading): void {
    const { op, status } = reading;
    op.result = reading.badAt;
    this.#reads.give(reading);
    this.endRead(op, status);
  }

  /** Whole blocks lie in a buffer of their own: what was asked for of them goes where it belongs. */
  readonly #onPartsRead = (reading: Reading): void => {
    const { op, at, badAt, status } = reading;
    const { memory } = this.#set.env;
    const into = op.offset % BLOCK_BYTES;
    if (status === "ok") memory.bytes.copyWithin(op.at, at + into, at + into + op.length);
    memory.free(at);
    op.result = Math.max(0, badAt - into);
    this.#reads.give(reading);
    // Removed meanwhile: its map is empty, and what that says is not what the volume had.
    this.endRead(op, this.gone ? "gone" : status);
  };

  endRead(op: BlockOp, status: Status): void {
    this.busy--;
    end(op, status);
  }

  /** Of `Reader`. */
  loadSegment(segment: Segment, done: (ok: boolean) => void): void {
    this.#set.checksums.load(segment, done);
  }
  foundDamage(block: number, segment: Segment, inSegment: number, why: string): void {
    this.#set.onDamage(this.node, block, segment, inSegment, why);
  }

  /** Whole blocks into memory, as a step of a task; with `fromDisk`, past the cache of blocks. */
  *readWhole(
    block: number,
    count: number,
    at: number,
    fromDisk = false,
  ): Task<{ readonly status: Status; readonly badAt: number }> {
    return yield* perform((resume) => {
      const reading = new Reading();
      reading.fromDisk = fromDisk;
      reading.reader = this;
      reading.done = () => resume({ status: reading.status, badAt: reading.badAt });
      this.#readBlocks(reading, block, count, at);
    });
  }

  *#readParts(op: BlockOp): Task<Status> {
    const { memory } = this.#set.env;
    const bounce = yield* this.#set.bounce.take();
    let status: Status = "ok";
    for (let done = 0; done < op.length && status === "ok"; ) {
      const offset = op.offset + done;
      const into = offset % BLOCK_BYTES;
      const part = Math.min(op.length - done, BOUNCE_BYTES - into);
      const blocks = Math.ceil((into + part) / BLOCK_BYTES);
      const read = yield* this.readWhole((offset - into) / BLOCK_BYTES, blocks, bounce);
      // Removed meanwhile: its map is empty, and what that says is not what the volume had.
      status = this.gone ? "gone" : read.status;
      op.result = done + Math.max(0, read.badAt - into);
      memory.bytes.copyWithin(op.at + done, bounce + into, bounce + into + part);
      done += part;
    }
    this.#set.bounce.give(bounce);
    return status;
  }

  /* ---------------------------------------------------------------- changes */

  #change(op: BlockOp): void {
    const refused = this.node.kind === "snapshot" ? "denied" : this.#set.refusesWrites();
    if (refused !== undefined) return end(op, refused);
    if (op.kind === "zero" && op.fastOnly && op.noHole) return end(op, "unsupported");
    if (op.kind === "compare-write" && op.length > BOUNCE_BYTES - BLOCK_BYTES) return end(op, "invalid");
    this.busy++;

    const into = op.offset % BLOCK_BYTES;
    const first = (op.offset - into) / BLOCK_BYTES;
    const blocks = Math.ceil((into + op.length) / BLOCK_BYTES);
    const aligned = into === 0 && op.length % BLOCK_BYTES === 0;
    const simple = aligned && op.kind !== "compare-write" && !(op.kind === "zero" && op.noHole);
    if (simple) {
      if (this.#claims.length === 0) return this.#submitWhole(op, first, blocks);
      return this.#claim(first, blocks, (release) => {
        this.#submitWhole(op, first, blocks);
        // From here on the order of the log is the order of the writes.
        release();
      });
    }
    this.#claim(first, blocks, (release) => {
      start(
        this.#changeParts(op, first, blocks, into),
        (status) => {
          release();
          this.#endChange(op, status);
        },
        this.#set.onBug,
      );
    });
  }

  #endChange(op: BlockOp, status: Status): void {
    this.busy--;
    end(op, status);
  }

  #submitWhole(op: BlockOp, block: number, count: number): void {
    const writing = this.#writings.pop() ?? new Writing(this);
    writing.op = op;
    const { entry } = writing;
    entry.version = this.node.id;
    entry.block = block;
    entry.count = count;
    if (op.kind === "write") {
      entry.kind = EntryKind.DATA;
      entry.at = op.at;
    } else {
      entry.kind = EntryKind.CLEAR;
      if (this.#isUnmapped(block, count)) return this.onWritten(writing, "ok");
    }
    this.#set.log.submit(entry);
  }

  /** True when clearing the range would change nothing, now and after all that is on its way. */
  #isUnmapped(block: number, count: number): boolean {
    const { map } = this.node;
    map.find(block, count);
    return map.location === 0 && map.length >= count && !this.#set.log.touches(this.node.id, block, count);
  }

  onWritten(writing: Writing, status: Status): void {
    if (status === "ok" && writing.op.fua) this.#set.log.sync(writing.onSynced);
    else this.finishWriting(writing, status);
  }

  finishWriting(writing: Writing, status: Status): void {
    const { op } = writing;
    this.#writings.push(writing);
    this.#endChange(op, status);
  }

  /** Parts of blocks, compare-and-write, and zeroes that keep their space: under a claim on all blocks they touch. */
  *#changeParts(op: BlockOp, first: number, blocks: number, into: number): Task<Status> {
    const { log } = this.#set;
    if (op.kind === "compare-write") return yield* this.#compareWrite(op, first, blocks, into);
    const end = into + op.length;
    const tail = end % BLOCK_BYTES;
    const wholeFrom = into === 0 ? 0 : 1;
    const wholeTo = tail === 0 ? blocks : blocks - 1;
    let status: Status = "ok";
    const bounce = yield* this.#set.bounce.take();
    if (into !== 0) status = yield* this.#mergeBlock(op, first, into, Math.min(end, BLOCK_BYTES), bounce);
    if (status === "ok" && wholeTo > wholeFrom) {
      const count = wholeTo - wholeFrom;
      const skip = wholeFrom * BLOCK_BYTES - into;
      if (op.kind === "write") status = yield* this.#logBlocks(EntryKind.DATA, first + wholeFrom, count, op.at + skip);
      else if (!op.noHole) status = yield* this.#logBlocks(EntryKind.CLEAR, first + wholeFrom, count, 0);
      else status = yield* this.#logZeroes(first + wholeFrom, count, bounce);
    }
    if (status === "ok" && tail !== 0 && (blocks > 1 || into === 0))
      status = yield* this.#mergeBlock(op, first + blocks - 1, 0, tail, bounce);
    this.#set.bounce.give(bounce);
    if (status === "ok" && op.fua) status = yield* perform<Status>((resume) => log.sync(resume));
    return status;
  }

  /** Zeroes as data. What one entry may hold is written as one, so that a full disk refuses all of it. */
  *#logZeroes(block: number, count: number, bounce: number): Task<Status> {
    const { memory } = this.#set.env;
    const bytes = Math.min(count * BLOCK_BYTES, this.atomicWriteBytes);
    const own = bytes > BOUNCE_BYTES ? memory.allocate(bytes) : 0;
    const at = own === 0 ? bounce : own;
    const step = Math.floor((own === 0 ? BOUNCE_BYTES : bytes) / BLOCK_BYTES);
    memory.bytes.fill(0, at, at + step * BLOCK_BYTES);
    let status: Status = "ok";
    for (let done = 0; done < count && status === "ok"; done += step)
      status = yield* this.#logBlocks(EntryKind.DATA, block + done, Math.min(step, count - done), at);
    if (own !== 0) memory.free(own);
    return status;
  }

  /** Replaces bytes [from, to) of a block by the operation's data, or by zeroes. */
  *#mergeBlock(op: BlockOp, block: number, from: number, to: number, bounce: number): Task<Status> {
    const { bytes } = this.#set.env.memory;
    // What is not mapped reads as zeroes already.
    if (op.kind !== "write" && !op.noHole && this.#isUnmapped(block, 1)) return "ok";
    const { status } = yield* this.readWhole(block, 1, bounce);
    if (status !== "ok") return status;
    const source = op.at + (block * BLOCK_BYTES + from - op.offset);
    if (op.kind === "write") bytes.copyWithin(bounce + from, source, source + (to - from));
    else bytes.fill(0, bounce + from, bounce + to);
    const logged = yield* this.#logBlocks(EntryKind.DATA, block, 1, bounce);
    // A trim takes no space: where there is none, it leaves alone what it covers only in part.
    return op.kind === "trim" && logged === "full" ? "ok" : logged;
  }

  *#compareWrite(op: BlockOp, first: number, blocks: number, into: number): Task<Status> {
    const { bytes } = this.#set.env.memory;
    const bounce = yield* this.#set.bounce.take();
    let { status } = yield* this.readWhole(first, blocks, bounce);
    if (status === "ok") {
      for (let index = 0; index < op.length; index++)
        if (bytes[bounce + into + index] !== bytes[op.at + index]) {
          status = "miscompare";
          op.result = index;
          break;
        }
    }
    if (status === "ok") {
      bytes.copyWithin(bounce + into, op.at + op.length, op.at + 2 * op.length);
      status = yield* this.#logBlocks(EntryKind.DATA, first, blocks, bounce);
    }
    this.#set.bounce.give(bounce);
    if (status === "ok" && op.fua) status = yield* perform<Status>((resume) => this.#set.log.sync(resume));
    return status;
  }

  *#logBlocks(kind: EntryKind, block: number, count: number, at: number): Task<Status> {
    return yield* perform<Status>((resume) => {
      const entry = new LogEntry((_, status) => resume(status));
      entry.kind = kind;
      entry.version = this.node.id;
      entry.block = block;
      entry.count = count;
      entry.at = at;
      this.#set.log.submit(entry);
    });
  }

  /* ----------------------------------------------------------------- claims */

  /** Runs `work` when nobody who came before touches these blocks any more. */
  #claim(block: number, count: number, work: (release: () => void) => void): void {
    const claim: Claim = new Claim(block, count, () => {
      claim.active = true;
      start(this.#settled(block, count), () => work(() => this.#release(claim)), this.#set.onBug);
    });
    const free = !this.#claims.some((other) => other.overlaps(block, count));
    this.#claims.push(claim);
    if (free) claim.run();
  }

  /** Waits until nothing in the log's queue touches the blocks. */
  *#settled(block: number, count: number): Task<void> {
    const { log } = this.#set;
    while (log.touches(this.node.id, block, count)) yield* perform<void>(log.nextApply());
  }

  #release(claim: Claim): void {
    this.#claims = this.#claims.filter((other) => other !== claim);
    for (let index = 0; index < this.#claims.length; index++) {
      const waiting = this.#claims[index]!;
      if (waiting.active) continue;
      const blocked = this.#claims.slice(0, index).some((other) => other.overlaps(waiting.block, waiting.count));
      if (!blocked) waiting.run();
    }
  }

  /* ----------------------------------------------------------------- status */

  #status(op: BlockOp): void {
    const extents = op.extents!;
    const { node } = this;
    const { map } = node;
    extents.clear();
    const endBytes = op.offset + op.length;
    let block = Math.floor(op.offset / BLOCK_BYTES);
    let at = op.offset;
    while (at < endBytes) {
      const left = Math.ceil(endBytes / BLOCK_BYTES) - block;
      map.find(block, left);
      let { length } = map;
      const { location } = map;
      let depth = 0;
      if (location !== 0) {
        depth = 1;
        for (let above = parentAt(node, Math.floor(block / LEAF_BLOCKS)); above !== undefined; ) {
          // Within one leaf: who the parent is, and what it has, is then the same for the whole run.
          length = Math.min(length, LEAF_BLOCKS - (block % LEAF_BLOCKS));
          above.map.find(block, length);
          const same = above.map.location === location;
          length = above.map.length;
          if (!same) break;
          if (!above.ghost) depth++;
          above = parentAt(above, Math.floor(block / LEAF_BLOCKS));
        }
      }
      const to = Math.min(endBytes, (block + length) * BLOCK_BYTES);
      const flags = location === 0 && canary.armed !== "hole-is-data" ? ExtentFlag.HOLE | ExtentFlag.ZERO : 0;
      if (!extents.add(to - at, flags, depth)) break;
      at = to;
      block += length;
    }
    end(op, "ok");
  }

  /** Where a block lies, for the cleaner and for tests. */
  locationOf(block: number): Location {
    this.node.map.find(block, 1);
    return this.node.map.location;
  }
}

/** One for all versions: a function of each one's own would be one more thing to fetch. */
const endReading = (reading: Reading): void => reading.reader.onReading(reading);

function end(op: BlockOp, status: Status): void {
  op.status = status;
  op.done(op);
}
