/**
 * The log of a version set: what the writes of one turn bring becomes one append, what waits for a flush shares one
 * fdatasync. It promises: groups reach the segments in the order of their numbers, one append at a time; an entry is
 * applied to the map when its append has succeeded and not before; what was appended before a flush was asked for is on
 * stable storage when the flush is answered; a failed fdatasync ends all writing until the set is opened again.
 *
 * It does not know what entries mean: `LogUser.apply` does.
 */

import { canary } from "#base/canary";
import { readU64, writeU64 } from "#base/layout";
import { Pieces } from "#base/memory";
import type { Status } from "#base/status";
import { type Effect, perform, start, type Task } from "#base/task";
import { BLOCK_BYTES, type Millis } from "#base/units";
import { type Alarm, type DiskFault, DiskOp, type Env, isDiskFault, Soon } from "#env/env";
import { BufferPool } from "./buffer-pool.ts";
import {
  ATOMIC_BLOCKS_MAX,
  COVERED_FROM,
  ENTRY,
  EntryKind,
  encodeGroup,
  GROUP,
  GROUP_BLOCKS_MAX,
  type GroupHead,
  HEAD_BLOCKS_MAX,
  headBlocksFor,
  headBytes,
  SEGMENT_HEADER,
  SEGMENT_MAGIC,
  STORE_FORMAT,
  SUMMARY,
  SUMMARY_MAGIC,
  summaryBlocks,
} from "./format.ts";
import type { Location } from "./map.ts";
import { blockOf, locationOf, type Segment, SegmentTable } from "./segment.ts";
import type { SegmentStore } from "./segment-store.ts";
import { Syncer } from "./syncer.ts";

/** One thing to log. It belongs to its owner, who may use it again once it was told the end. */
export class LogEntry {
  kind: EntryKind = EntryKind.DATA;
  version = 0;
  block = 0;
  count = 0;
  /** DATA, MOVE: where in memory the blocks lie. */
  at = 0;
  /** MOVE: where they lie in the log now. */
  from: Location = 0;
  /** COPY: the version and the block that it begins with. */
  fromVersion = 0;
  fromBlock = 0;
  /** CONTROL: the record. */
  control: Uint8Array | undefined;
  /** Blocks of it that are in a group already. */
  taken = 0;
  /** Blocks of it that have been applied. */
  applied = 0;
  /** Called once: "ok" when all of it has been applied. */
  readonly done: (entry: LogEntry, status: Status) => void;
  constructor(done: (entry: LogEntry, status: Status) => void) {
    this.done = done;
  }
}

export interface LogUser {
  /** `count` blocks of `entry`, from `entry.block + entry.applied` on, are now at `location` (DATA, MOVE). */
  apply(entry: LogEntry, count: number, location: Location): void;
  /**
   * The disk is full: gives space back if any can be had, and tells whether there was some. `metadata`: for a change that
   * frees space, the reserve may be used.
   */
  reclaim(metadata: boolean, done: (gained: boolean) => void): void;
  /** Keeps space for what must be written on a full disk; false when there is none. */
  keepReserve(): Task<boolean>;
  /** Data has to wait until space was given back, although there may be room for it: what frees space needs that room. */
  readonly lacksReserve: boolean;
  /** The log cannot be written any more. */
  onStopped(why: LogStop, detail: string): void;
}
/** "failed": a write or a sync failed; "fenced": another writer has extended the log; "closed": by ourselves. */
export type LogStop = "failed" | "fenced" | "closed";

/**
 * Where flushes are this small on average, in blocks, an append that comes to a place of its file that was never written
 * writes zeroes behind itself, so far ahead. The flushes that follow then find space that has been written once: they have
 * no metadata to write, which on ext4 halves them.
 */
const AHEAD_BELOW_BLOCKS = 32;
const AHEAD_BLOCKS = 64;
/** Zeroes are kept in a buffer of so many blocks, and written several times. */
const ZERO_BLOCKS = 4;
/** Weight of the newest flush in the average. */
const NEWEST_FLUSH = 1 / 16;
/** One gathered write takes 1024 pieces: each entry is at most one, and the head is one. */
const ENTRIES_MAX = Pieces.COUNT_MAX - 2;
/** A segment of a set that has only just begun is not given its whole space at once. */
const RESERVE_FROM_SEGMENTS = 1;
/** A set of so many segments keeps the space of a whole one besides, so that there is room to clean with. */
export const RESERVE_TO_CLEAN_FROM_SEGMENTS = 4;
/** The next segment is made when this part of the current one is full, or it will be, at its pace, in so many milliseconds. */
const MAKE_NEXT_AT = 0.75;
const MAKE_NEXT_BEFORE_MS = 60;
const MAKE_NEXT_FROM = 0.1;

/** First in, first out, without a move of all for each that leaves. */
class EntryQueue {
  /** Those from head to tail wait. Never cut: an array that is emptied gives its room back, and has to get it again. */
  readonly #entries: LogEntry[] = [];
  #head = 0;
  #tail = 0;

  get length(): number {
    return this.#tail - this.#head;
  }
  get first(): LogEntry | undefined {
    return this.#head === this.#tail ? undefined : this.#entries[this.#head];
  }
  push(entry: LogEntry): void {
    this.#entries[this.#tail++] = entry;
  }
  shift(): void {
    this.#head++;
    if (this.#head < this.#tail && this.#head <= 1024) return;
    this.#entries.copyWithin(0, this.#head, this.#tail);
    this.#tail -= this.#head;
    this.#head = 0;
  }
  /** Puts an entry back that was taken out, before all others. */
  unshift(entry: LogEntry): void {
    if (this.#head > 0) this.#entries[--this.#head] = entry;
    else {
      this.#entries.unshift(entry);
      this.#tail++;
    }
  }
  /** Takes all out. */
  drain(): LogEntry[] {
    const all = this.#entries.slice(this.#head, this.#tail);
    this.#head = this.#tail = 0;
    return all;
  }
  touches(version: number, block: number, count: number): boolean {
    for (let index = this.#head; index < this.#tail; index++)
      if (overlaps(this.#entries[index]!, version, block, count)) return true;
    return false;
  }
}

export class Log {
  readonly #env: Env;
  readonly #store: SegmentStore;
  readonly #user: LogUser;
  readonly segments = new SegmentTable();
  readonly segmentBlocks: number;
  /** A write of up to so many blocks is one group's. */
  readonly atomicBlocks: number;
  readonly #uuid: Uint8Array;
  /** Blocks of a segment that groups may fill; data leaves some of them to records that free space. */
  readonly #usableBlocks: number;
  readonly #metadataBlocks: number;

  current: Segment | undefined;
  #next: Segment | undefined;
  #making = false;
  /** Space is being given back; and it was, since something could last be written. */
  #reclaiming = false;
  #reclaimed = false;
  /** The last append failed for want of space, although the segment has room: its file has none. */
  #noRoomAtAll = false;
  /** Something waits for the segment that is being made. */
  #makeAwaited = false;
  /** Why the last attempt to make a segment that was waited for failed; "full" is tried again. */
  #makeFault: DiskFault | undefined;
  #lastSegment = 0;
  /** When the current segment began to be filled. */
  #rolledAt: Millis = 0;
  stopped: LogStop | undefined;
  #isSynced = true;

  readonly #queue = new EntryQueue();
  /** The cleaner's copies go first: they are few, and they make room. */
  readonly #moves = new EntryQueue();
  /**
   * The cleaner cannot keep up: for each block that they wrote hosts wait so long, so that dead data stays within its
   * bound, and a disk that is nearly full does not become one that is. 0: they need not.
   */
  holdMs: Millis = 0;
  #heldUntil = 0;
  readonly #heldAlarm: Alarm;
  /** Where the head of the group being appended lies; 0 between appends. */
  #headAt = 0;
  readonly #heads: BufferPool;
  #wantsHead = false;
  readonly #pieces = new Pieces();
  readonly #append: DiskOp;
  #appending = false;
  readonly #soon: Soon;
  /** Of the group being appended: how many entries, these, and how many blocks of each. */
  #groupCount = 0;
  #groupEntries: LogEntry[] = [];
  /** Takes turns with it: those who are told that they are done may submit, and begin a new group. */
  #finished: LogEntry[] = [];
  readonly #groupCounts: number[] = [];
  #groupBlocks = 0;
  /** Of its head, before rounding up to blocks. */
  #groupBytes = 0;
  #groupHeadBlocks = 0;
  #nextGroup = 1;
  #appendSegment: Segment | undefined;

  readonly syncer: Syncer;

  /** Counters since the set was opened. */
  readonly counters = { groups: 0, dataBlocks: 0, headBlocks: 0, zeroBlocks: 0 };
  /** Blocks per flush, on average; those appended since the last one. */
  #flushBlocks = 4 * AHEAD_BELOW_BLOCKS;
  #unflushedBlocks = 0;
  /** Up to here, in blocks, the file of the current segment has been written. */
  #writtenTo = 0;
  /** Zeroes behind the group that is being appended, in blocks. */
  #groupZeroes = 0;
  #zeroesAt = 0;
  /** Summaries being written: they may not outlive a close. */
  #summaries = 0;
  #applyWaiters: (() => void)[] = [];
  /** Who waits for the log to be at rest. */
  #restWaiters: (() => void)[] = [];

  constructor(env: Env, store: SegmentStore, user: LogUser, uuid: Uint8Array, segmentBlocks: number) {
    this.#env = env;
    this.#store = store;
    this.#user = user;
    this.#uuid = uuid;
    this.segmentBlocks = segmentBlocks;
    this.#usableBlocks = segmentBlocks - summaryBlocks(segmentBlocks);
    this.#metadataBlocks = Math.max(2, Math.min(16, Math.floor(segmentBlocks / 16)));
    // In an empty segment there must be room for it: its header, the group's head, and what is kept for metadata.
    const room = this.#usableBlocks - 1 - this.#metadataBlocks - 1;
    this.atomicBlocks = Math.max(0, Math.min(ATOMIC_BLOCKS_MAX, room));
    this.#heads = BufferPool.of(env, (HEAD_BLOCKS_MAX + 1) * BLOCK_BYTES);
    this.#append = new DiskOp(() => this.#onAppended());
    this.#soon = new Soon(() => this.#pump());
    this.syncer = new Syncer(
      env,
      store,
      (fault) => this.stop("failed", `fdatasync failed: ${fault}`),
      () => this.#told(),
    );
    this.#heldAlarm = env.clock.alarm(() => {
      // An alarm may ring a rounding error before its time.
      this.#heldUntil = 0;
      this.#pump();
    });
  }

  /**
   * Continues behind what replay found. `current` is given when its tail is clean, so that it can be filled up. Without
   * `isSynced`, what was found is not all on stable storage; then nothing may be appended, and a flush fails.
   */
  resume(lastSegment: number, nextGroup: number, current: Segment | undefined, isSynced: boolean): void {
    this.#isSynced = isSynced;
    this.#lastSegment = lastSegment;
    this.#nextGroup = nextGroup;
    this.syncer.resume(nextGroup - 1);
    this.current = current;
  }

  /** Groups up to this one have been applied. */
  get appliedGroup(): number {
    return this.syncer.appended;
  }
  get nextGroup(): number {
    return this.#nextGroup;
  }
  get lastSegment(): number {
    return this.#lastSegment;
  }
  /** Where the next group goes: a checkpoint's position. */
  get head(): { readonly segment: number; readonly block: number } {
    const segment = this.current ?? this.#next;
    return { segment: segment?.number ?? this.#lastSegment + 1, block: Math.max(segment?.used ?? 1, 1) };
  }
  /** Entries that are not applied yet. */
  get waiting(): number {
    return this.#queue.length + this.#moves.length + this.#groupCount;
  }

  /** True when a DATA or CLEAR entry that is not applied yet touches the range. */
  touches(version: number, block: number, count: number): boolean {
    if (this.#queue.touches(version, block, count)) return true;
    for (let each = 0; each < this.#groupCount; each++)
      if (overlaps(this.#groupEntries[each]!, version, block, count)) return true;
    return false;
  }

  /** Takes an entry in; its end is told through `entry.done`, never from within this call. */
  submit(entry: LogEntry): void {
    entry.taken = 0;
    entry.applied = 0;
    (entry.kind === EntryKind.MOVE ? this.#moves : this.#queue).push(entry);
    this.#env.turn.soon(this.#soon);
  }

  /** Answers when all that has been applied until now is on stable storage. May answer at once. */
  sync(done: (status: Status) => void): void {
    if (this.stopped !== undefined) return done(this.stopped === "closed" ? "gone" : this.stopped);
    if (!this.#isSynced) return done("failed");
    this.#flushBlocks += (this.#unflushedBlocks - this.#flushBlocks) * NEWEST_FLUSH;
    this.#unflushedBlocks = 0;
    this.syncer.sync(done);
  }

  /** As a step of a task: the next group has been applied. Only to be waited for while entries wait. */
  nextApply(): Effect<void> {
    return (resume) => this.#applyWaiters.push(resume);
  }

  /** True when a segment's file must stay open. */
  isBusy(segment: Segment): boolean {
    return segment === this.current || segment === this.#next || segment.pins > 0 || this.syncer.isDirty(segment);
  }

  /** As a step of a task: everything submitted so far has been applied (or refused). */
  rest(): Effect<void> {
    return (resume) => {
      if (this.waiting === 0 && !this.#appending) resume();
      else this.#restWaiters.push(() => resume());
    };
  }

  *flush(): Task<Status> {
    yield* perform(this.rest());
    return yield* perform<Status>((resume) => this.sync(resume));
  }

  /** Ends the log; entries that wait are refused. Call it when nobody submits any more. */
  *close(): Task<void> {
    this.stop("closed", "");
    this.#heldAlarm.at = Number.POSITIVE_INFINITY;
    yield* perform<void>((resume) => {
      const check = (): void => {
        if (
          !this.#appending &&
          !this.syncer.isBusy &&
          this.#summaries === 0 &&
          !this.#making &&
          !this.#wantsHead &&
          !this.#reclaiming
        )
          resume();
        else this.#restWaiters.push(check);
      };
      check();
    });
    if (this.#headAt !== 0) this.#heads.give(this.#headAt);
    if (this.#zeroesAt !== 0) this.#env.memory.free(this.#zeroesAt);
    for (const segment of this.segments.values())
      for (const file of segment.moreFiles.splice(0)) yield* perform(this.#store.close(file));
    if (this.#next !== undefined) {
      const next = this.#next;
      this.#next = undefined;
      this.segments.remove(next);
      yield* this.#store.retire(next.number, next.file, this.segmentBlocks * BLOCK_BYTES);
    }
  }

  stop(why: LogStop, detail: string): void {
    if (this.stopped !== undefined) return;
    this.stopped = why;
    this.#user.onStopped(why, detail);
    const status: Status = why === "closed" ? "gone" : why;
    if (!this.#appending) this.#refuseQueue(status);
    this.syncer.stop(status);
  }

  #refuseQueue(status: Status): void {
    for (const entry of [...this.#moves.drain(), ...this.#queue.drain()]) entry.done(entry, status);
    this.#told();
  }

  #told(): void {
    if (this.#applyWaiters.length > 0) {
      const waiters = this.#applyWaiters;
      this.#applyWaiters = [];
      for (const waiter of waiters) waiter();
    }
    if (this.#restWaiters.length === 0) return;
    const waiters = this.#restWaiters;
    this.#restWaiters = [];
    for (const waiter of waiters) {
      if (this.waiting === 0 && !this.#appending) waiter();
      else this.#restWaiters.push(waiter);
    }
  }

  /* ------------------------------------------------------------ appending */

  #pump(): void {
    while (!this.#appending) {
      // While space is being made, only the cleaner writes.
      const first = this.#moves.first ?? (this.#reclaiming ? undefined : this.#queue.first);
      if (first === undefined) return;
      if (this.stopped !== undefined) return this.#refuseQueue(this.stopped === "closed" ? "gone" : this.stopped);
      if (first.kind !== EntryKind.MOVE && this.#isHeld()) return;
      if (takesSpace(first) && this.#user.lacksReserve) {
        this.#onFull();
        continue;
      }
      const room = this.#room(first);
      if (room > 0) {
        if (!this.#takeHead()) return;
        this.#collect(room);
        this.#write();
        return;
      }
      if (this.#next !== undefined) {
        this.#roll();
        continue;
      }
      if (this.#makeFault === "full") {
        this.#makeFault = undefined;
        this.#onFull();
        continue;
      }
      this.#makeAwaited = true;
      this.#make();
      return;
    }
  }

  /** No space for the first entry. Once, what is dead is given back; if that was of no use, data is refused. */
  #onFull(): void {
    const { first } = this.#queue;
    // The cleaner gives up what it is at: whoever makes space must not wait for it.
    for (const move of this.#moves.drain()) move.done(move, "full");
    if (first === undefined || this.#reclaiming) return this.#told();
    if (this.#reclaimed) {
      this.#reclaimed = false;
      return this.#refuseData("full");
    }
    this.#reclaiming = true;
    this.#user.reclaim(!takesSpace(first), (gained) => {
      this.#reclaiming = false;
      // Whether there was a gain or not, the next attempt is the last one for what waits now.
      this.#reclaimed = true;
      if (!gained) this.#onFull();
      this.#pump();
    });
    this.#told();
  }

  /** True while hosts have to wait for the cleaner; the alarm is set for when they need not. */
  #isHeld(): boolean {
    if (this.holdMs === 0 || this.#env.clock.now() >= this.#heldUntil) return false;
    this.#heldAlarm.at = this.#heldUntil;
    return true;
  }

  /** Sees to a buffer for the head; false when it must be waited for. */
  #takeHead(): boolean {
    if (this.#headAt !== 0) return true;
    if (this.#wantsHead) return false;
    this.#headAt = this.#heads.tryTake();
    if (this.#headAt !== 0) return true;
    this.#wantsHead = true;
    this.#heads.takeThen((at) => {
      this.#wantsHead = false;
      this.#headAt = at;
      this.#env.turn.soon(this.#soon);
    });
    return false;
  }

  /**
   * Blocks that a group starting with this entry may take, head included; 0 when the segment is at its end for it. An
   * entry that would have to be cut waits for the next segment to be there, so that it is not done by half on a full disk.
   */
  #room(entry: LogEntry): number {
    const segment = this.current;
    if (segment === undefined || segment.sealed) return 0;
    const data = entry.kind === EntryKind.DATA || entry.kind === EntryKind.MOVE;
    const reserved = data || takesSpace(entry) ? this.#metadataBlocks : 0;
    const left = this.#usableBlocks - Math.max(segment.used, 1) - reserved;
    if (left < 2) return 0;
    if (!data) return left;
    const count = Math.min(entry.count - entry.taken, GROUP_BLOCKS_MAX);
    const heads = headBlocksFor(headBytes(1, count, 0));
    if (heads + count <= left) return left;
    return this.#next !== undefined && !this.#isAtomic(entry) ? left : 0;
  }

  /** The disk is full: data is refused; what frees space goes on in the blocks that were kept for it. */
  #refuseData(status: Status): void {
    const refused = this.#moves.drain();
    for (const entry of this.#queue.drain()) {
      if (!takesSpace(entry) && !this.#noRoomAtAll && this.#room(entry) > 0) this.#queue.push(entry);
      else refused.push(entry);
    }
    for (const entry of refused) entry.done(entry, status);
    this.#told();
  }

  /** Fills a group from the queues: entries, checksums, pieces. `room` is in blocks, the head included. */
  #collect(room: number): void {
    this.#groupCount = 0;
    this.#groupBlocks = 0;
    this.#groupBytes = GROUP.byteLength;
    if (this.#collectFrom(this.#moves, room) && !this.#holdsHosts()) {
      const copied = this.#groupBlocks;
      this.#collectFrom(this.#queue, room);
      if (this.holdMs > 0) this.#heldUntil = this.#env.clock.now() + this.holdMs * (this.#groupBlocks - copied);
    }
    this.#encode(this.#groupEntries[this.#groupCount - 1]!.control);
  }

  #holdsHosts(): boolean {
    return this.#reclaiming || (this.holdMs > 0 && this.#groupCount > 0);
  }

  /** False when the group is full. A control record is the last of its group. */
  #collectFrom(queue: EntryQueue, room: number): boolean {
    for (let entry = queue.first; entry !== undefined; entry = queue.first) {
      if (this.#groupCount === ENTRIES_MAX) return false;
      const isData = entry.kind === EntryKind.DATA || entry.kind === EntryKind.MOVE;
      let count = isData ? Math.min(entry.count - entry.taken, GROUP_BLOCKS_MAX - this.#groupBlocks) : 0;
      let bytes = this.#bytesWith(entry, count);
      // An entry that does not fit whole is cut; what is left goes into the next group.
      while (!this.#fits(bytes, count, room)) {
        // Nor is one cut that would not have its rest in a segment that is there already, or that is promised to be whole.
        if (count <= 1 || this.#isAtomic(entry)) return false;
        if (this.#groupCount > 0 && this.#next === undefined) return false;
        count = count > 64 ? count - 32 : count - 1;
        bytes = this.#bytesWith(entry, count);
      }
      if (isData && (count === 0 || (count < entry.count && this.#isAtomic(entry)))) return false;
      this.#groupEntries[this.#groupCount] = entry;
      this.#groupCounts[this.#groupCount++] = count;
      this.#groupBlocks += count;
      this.#groupBytes = bytes;
      entry.taken += count;
      if (isData && entry.taken < entry.count) return false;
      queue.shift();
      if (entry.control !== undefined) return false;
    }
    return true;
  }

  /** A write that is not to be cut: it is one group's, or the next one's. */
  #isAtomic(entry: LogEntry): boolean {
    return entry.kind === EntryKind.DATA && entry.count <= this.atomicBlocks;
  }

  /** Bytes of the head with `count` blocks of `entry` in the group too. */
  #bytesWith(entry: LogEntry, count: number): number {
    return this.#groupBytes + ENTRY.byteLength + count * 4 + (entry.control?.length ?? 0);
  }

  #fits(bytes: number, count: number, room: number): boolean {
    const heads = headBlocksFor(bytes);
    return heads <= HEAD_BLOCKS_MAX && heads + this.#groupBlocks + count <= room;
  }

  #encode(control: Uint8Array | undefined): void {
    const dataBlocks = this.#groupBlocks;
    const { memory } = this.#env;
    const { view } = memory;
    const segment = this.current!;
    const fresh = segment.used === 0;
    if (fresh) {
      this.#encodeSegmentHeader(segment);
      segment.sums ??= new Uint32Array(this.segmentBlocks);
    }
    const sums = segment.sums!;
    const entries = this.#groupEntries;
    const at = this.#headAt + BLOCK_BYTES;
    const total = this.#groupCount;
    const sumsAt = at + GROUP.byteLength + total * ENTRY.byteLength;
    const pieces = this.#pieces;
    pieces.clear();
    pieces.add(this.#headAt, 0);

    let entryAt = at + GROUP.byteLength;
    let index = 0;
    for (let each = 0; each < total; each++) {
      const entry = entries[each]!;
      const count = this.#groupCounts[each]!;
      const isData = entry.kind === EntryKind.DATA || entry.kind === EntryKind.MOVE;
      const done = isData ? entry.taken - count : 0;
      view.setUint32(entryAt + ENTRY.kind, entry.kind);
      view.setUint32(entryAt + ENTRY.version, entry.version);
      writeU64(view, entryAt + ENTRY.block, entry.block + done);
      view.setUint32(entryAt + ENTRY.count, isData ? count : entry.count);
      const isMove = entry.kind === EntryKind.MOVE;
      const isCopy = entry.kind === EntryKind.COPY;
      const fromBlock = isMove ? blockOf(entry.from) + done : isCopy ? entry.fromVersion : 0;
      view.setUint32(entryAt + ENTRY.fromBlock, fromBlock);
      const from = isMove ? this.segments.at(entry.from).number : isCopy ? entry.fromBlock : 0;
      writeU64(view, entryAt + ENTRY.fromSegment, from);
      entryAt += ENTRY.byteLength;
      if (!isData) continue;

      const dataAt = entry.at + done * BLOCK_BYTES;
      pieces.add(dataAt, count * BLOCK_BYTES);
      for (let block = 0; block < count; block++) {
        const checksum = memory.hash(dataAt + block * BLOCK_BYTES, BLOCK_BYTES);
        view.setUint32(sumsAt + (index + block) * 4, checksum);
      }
      index += count;
    }
    const bytes = headBytes(total, dataBlocks, control?.length ?? 0);
    const headBlocks = headBlocksFor(bytes);
    const controlAt = sumsAt + dataBlocks * 4;
    if (control !== undefined) memory.bytes.set(control, controlAt);
    memory.bytes.fill(0, at + bytes, at + headBlocks * BLOCK_BYTES);
    const head: GroupHead = {
      segment: segment.number,
      group: this.#nextGroup,
      synced: this.syncer.synced,
      headBlocks,
      dataBlocks,
      entries: total,
      controlBytes: control?.length ?? 0,
      block: Math.max(segment.used, 1),
    };
    encodeGroup(view, at, head);
    view.setUint32(at + GROUP.checksum, memory.hash(at + COVERED_FROM, headBlocks * BLOCK_BYTES - COVERED_FROM));

    const first = Math.max(segment.used, 1) + headBlocks;
    for (let block = 0; block < dataBlocks; block++) sums[first + block] = view.getUint32(sumsAt + block * 4);

    const startAt = fresh ? this.#headAt : at;
    pieces.at[0] = startAt;
    pieces.length[0] = at + headBlocks * BLOCK_BYTES - startAt;
    pieces.total += pieces.length[0]!;
    this.#groupHeadBlocks = headBlocks;
  }

  #encodeSegmentHeader(segment: Segment): void {
    const { memory } = this.#env;
    const { view } = memory;
    const at = this.#headAt;
    memory.bytes.fill(0, at, at + BLOCK_BYTES);
    segment.firstGroup = this.#nextGroup;
    view.setUint32(at + SEGMENT_HEADER.magic, SEGMENT_MAGIC);
    view.setUint32(at + SEGMENT_HEADER.format, STORE_FORMAT);
    view.setUint32(at + SEGMENT_HEADER.blocks, this.segmentBlocks);
    writeU64(view, at + SEGMENT_HEADER.segment, segment.number);
    writeU64(view, at + SEGMENT_HEADER.firstGroup, segment.firstGroup);
    memory.bytes.set(this.#uuid, at + SEGMENT_HEADER.uuid);
    view.setUint32(at + SEGMENT_HEADER.checksum, memory.hash(at + COVERED_FROM, BLOCK_BYTES - COVERED_FROM));
  }

  #write(): void {
    const segment = this.current!;
    const append = this.#append;
    append.kind = "write";
    append.file = segment.file!;
    append.position = segment.used * BLOCK_BYTES;
    append.pieces = this.#pieces;
    this.#groupZeroes = 0;
    const end = segment.used + this.#pieces.total / BLOCK_BYTES;
    if (this.#flushBlocks < AHEAD_BELOW_BLOCKS && end > this.#writtenTo) this.#addZeroes(end);
    append.length = this.#pieces.total;
    this.#appending = true;
    this.#appendSegment = segment;
    this.#env.disk.submit(append);
  }

  /** Adds zeroes to the append that ends at block `end`; see AHEAD_BLOCKS. */
  #addZeroes(end: number): void {
    const { memory } = this.#env;
    if (this.#zeroesAt === 0) {
      this.#zeroesAt = memory.allocate(ZERO_BLOCKS * BLOCK_BYTES);
      if (this.#zeroesAt === 0) return;
      memory.bytes.fill(0, this.#zeroesAt, this.#zeroesAt + ZERO_BLOCKS * BLOCK_BYTES);
    }
    // Not beyond where groups may stand: there is the summary.
    for (let left = Math.min(AHEAD_BLOCKS, this.#usableBlocks - end); left > 0; left -= ZERO_BLOCKS) {
      const blocks = Math.min(left, ZERO_BLOCKS);
      if (!this.#pieces.add(this.#zeroesAt, blocks * BLOCK_BYTES)) return;
      this.#groupZeroes += blocks;
    }
  }

  #onAppended(): void {
    this.#appending = false;
    this.#heads.give(this.#headAt);
    this.#headAt = 0;
    const segment = this.#appendSegment!;
    const { fault } = this.#append;
    const entries = this.#groupEntries;
    const counts = this.#groupCounts;
    if (fault !== undefined) {
      // Whatever reached the file is overwritten by the next group, which takes the same place and number.
      this.#putBack();
      if (fault === "full" && this.#groupZeroes > 0) {
        // There may be room for what has to be written.
        this.#writtenTo = this.segmentBlocks;
        this.#pump();
        return;
      }
      this.#noRoomAtAll = fault === "full";
      if (fault === "full") this.#onFull();
      else this.stop("failed", `cannot write ${this.#store.describe(segment.number)}: ${fault}`);
      this.#pump();
      this.#told();
      return;
    }
    this.#reclaimed = false;
    this.#noRoomAtAll = false;
    if (segment.used === 0) segment.used = 1;
    const first = segment.used + this.#groupHeadBlocks;
    segment.used = first + this.#groupBlocks;
    this.syncer.noteAppend(segment, this.#nextGroup++);
    this.counters.groups++;
    this.counters.dataBlocks += this.#groupBlocks;
    this.counters.headBlocks += this.#groupHeadBlocks;
    this.counters.zeroBlocks += this.#groupZeroes;
    this.#unflushedBlocks += this.#groupBlocks;
    this.#writtenTo = Math.max(this.#writtenTo, segment.used + this.#groupZeroes);

    let block = first;
    const total = this.#groupCount;
    for (let each = 0; each < total; each++) {
      const entry = entries[each]!;
      const count = counts[each]!;
      this.#user.apply(entry, count, count > 0 ? locationOf(segment, block) : 0);
      entry.applied += count;
      block += count;
    }
    // First all is applied, then all is told: who is told may submit, and must find the map as the log has it.
    const finished = this.#finished;
    this.#finished = this.#groupEntries;
    this.#groupEntries = finished;
    this.#groupCount = 0;
    for (let each = 0; each < total; each++) {
      const entry = entries[each]!;
      const isData = entry.kind === EntryKind.DATA || entry.kind === EntryKind.MOVE;
      if (!isData || entry.applied === entry.count) entry.done(entry, "ok");
    }
    if (this.#next === undefined && !this.#making && this.#isNextDue(segment)) this.#make();
    if (this.stopped !== undefined) this.#refuseQueue(this.stopped === "closed" ? "gone" : this.stopped);
    this.#pump();
    this.#told();
  }

  #isNextDue(segment: Segment): boolean {
    const filled = segment.used / this.segmentBlocks;
    if (filled < MAKE_NEXT_FROM || filled > MAKE_NEXT_AT) return filled > MAKE_NEXT_AT;
    const elapsed = this.#env.clock.now() - this.#rolledAt;
    return (elapsed / filled) * (1 - filled) < MAKE_NEXT_BEFORE_MS;
  }

  /** The entries of a group that could not be written wait again, in their order. */
  #putBack(): void {
    for (let each = this.#groupCount - 1; each >= 0; each--) {
      const entry = this.#groupEntries[each]!;
      const queue = entry.kind === EntryKind.MOVE ? this.#moves : this.#queue;
      entry.taken -= this.#groupCounts[each]!;
      // One that was cut is still there.
      if (queue.first !== entry) queue.unshift(entry);
    }
    this.#groupCount = 0;
  }

  /* ------------------------------------------------------------- segments */

  /** Makes the next segment, ahead of its use where possible. */
  #make(): void {
    if (this.#making || this.stopped !== undefined) return;
    this.#making = true;
    start(
      this.#makeNext(),
      (fault) => {
        this.#making = false;
        // Made ahead of its need, it may find a full disk that is not full any more when it is needed.
        this.#makeFault = this.#makeAwaited ? fault : undefined;
        this.#makeAwaited = false;
        if (fault !== undefined && fault !== "full") {
          const name = this.#store.describe(this.#lastSegment + 1);
          if (fault === "exists") this.stop("fenced", `another writer has made ${name}`);
          else this.stop("failed", `cannot make ${name}: ${fault}`);
        }
        this.#pump();
        this.#told();
      },
      (error) => {
        throw error;
      },
    );
  }

  /** The next segment is not for what frees space. */
  get #isForData(): boolean {
    const { first } = this.#queue;
    return this.#moves.first === undefined && (first === undefined || takesSpace(first));
  }

  *#makeNext(): Task<DiskFault | undefined> {
    const number = this.#lastSegment + 1;
    const bytes = this.segmentBlocks * BLOCK_BYTES;
    // Hosts may fill a disk before anybody sees to it that there is a reserve: it is taken before their data.
    if (!this.#reclaiming && !(yield* this.#user.keepReserve()) && this.#isForData) return "full";
    const made = yield* this.#store.create(number);
    if (made === "too-many-files") {
      // Like space, there may be some again: that is no reason to stop the set.
      this.#env.log.error({ file: this.#store.describe(number) }, "too many open files for another segment");
      return "full";
    }
    if (isDiskFault(made)) return made;
    const { file } = made;
    if (this.segments.count >= RESERVE_FROM_SEGMENTS) {
      const fault = yield* this.#store.reserve(made, bytes);
      // A change that frees space needs little of it, and goes on in a segment that has none yet. Copies of the cleaner's
      // need most of a segment: only a set that is too small to keep one for them tries without.
      const { first } = this.#queue;
      const frees =
        (first !== undefined && first.kind !== EntryKind.DATA && this.#reclaimed) ||
        (this.#moves.first !== undefined && this.segments.count < RESERVE_TO_CLEAN_FROM_SEGMENTS);
      const freesSpace = fault === "full" && frees;
      if (fault !== undefined && !freesSpace) {
        yield* this.#store.discard(number, file);
        return fault;
      }
    }
    this.#lastSegment = number;
    const segment = this.segments.add(number);
    segment.file = file;
    segment.rewritten = made.rewritten;
    this.#next = segment;
    return undefined;
  }

  #roll(): void {
    const full = this.current;
    if (full !== undefined && !full.sealed) {
      full.sealed = true;
      this.syncer.noteSealed(full);
      this.#summarise(full);
    }
    this.current = this.#next;
    this.#next = undefined;
    this.#writtenTo = this.current?.rewritten === true ? this.segmentBlocks : 0;
    this.#rolledAt = this.#env.clock.now();
    if (canary.armed === "reuse-segment-name") this.#lastSegment--;
  }

  /** Writes the checksums of a full segment to its end, in one piece. Failing it is harmless: the groups have them. */
  #summarise(segment: Segment): void {
    if (segment.damaged) return;
    const { memory } = this.#env;
    const blocks = summaryBlocks(this.segmentBlocks);
    const at = memory.allocate(blocks * BLOCK_BYTES);
    const sums = segment.sums;
    if (at === 0 || sums === undefined || segment.file === undefined) {
      if (at !== 0) memory.free(at);
      return;
    }
    encodeSummary(memory.view, memory.bytes, at, blocks, segment, sums);
    memory.view.setUint32(at + SUMMARY.checksum, memory.hash(at + COVERED_FROM, blocks * BLOCK_BYTES - COVERED_FROM));
    const op = new DiskOp(() => {
      memory.free(at);
      this.#summaries--;
      segment.pins--;
      if (op.fault === undefined) segment.summarised = true;
      this.#told();
    });
    op.kind = "write";
    op.file = segment.file;
    op.position = (this.segmentBlocks - blocks) * BLOCK_BYTES;
    op.at = at;
    op.length = blocks * BLOCK_BYTES;
    this.#summaries++;
    segment.pins++;
    this.#env.disk.submit(op);
  }
}

/** What a full disk refuses; all else frees space, or is the cleaner's. */
function takesSpace({ kind }: LogEntry): boolean {
  return kind === EntryKind.DATA || kind === EntryKind.COPY;
}

function overlaps(entry: LogEntry, version: number, block: number, count: number): boolean {
  if (entry.version !== version || entry.kind === EntryKind.CONTROL || entry.kind === EntryKind.MOVE) return false;
  return entry.block < block + count && block < entry.block + entry.count;
}

function encodeSummary(
  view: DataView,
  bytes: Uint8Array,
  at: number,
  blocks: number,
  segment: Segment,
  sums: Uint32Array,
): void {
  bytes.fill(0, at, at + blocks * BLOCK_BYTES);
  view.setUint32(at + SUMMARY.magic, SUMMARY_MAGIC);
  writeU64(view, at + SUMMARY.segment, segment.number);
  view.setUint32(at + SUMMARY.usedBlocks, segment.used);
  let to = at + SUMMARY.byteLength;
  for (let block = 0; block < sums.length; block++, to += 4) view.setUint32(to, sums[block]!);
}

/** Reads a summary into `sums`; false when it is not one of this segment, or damaged. */
export function decodeSummary(
  view: DataView,
  _bytes: Uint8Array,
  hash: (at: number, length: number) => number,
  at: number,
  blocks: number,
  segment: number,
  sums: Uint32Array,
): boolean {
  if (view.getUint32(at + SUMMARY.magic) !== SUMMARY_MAGIC) return false;
  if (readU64(view, at + SUMMARY.segment) !== segment) return false;
  if (view.getUint32(at + SUMMARY.checksum) !== hash(at + COVERED_FROM, blocks * BLOCK_BYTES - COVERED_FROM))
    return false;
  let from = at + SUMMARY.byteLength;
  for (let block = 0; block < sums.length; block++, from += 4) sums[block] = view.getUint32(from);
  return true;
}
