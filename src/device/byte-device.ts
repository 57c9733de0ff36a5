/**
 * A device for hosts that were never told its block size: it takes any offset and length, and passes what is aligned
 * on as it is. A block that is written in part is read, changed and put back with compare-and-write, again until nobody
 * has changed it in between: a write next to it, by whichever path or protocol, is never undone. The device below must
 * be able to compare and write; if not, such a write is "unsupported", and everything else works.
 */
import type { Memory } from "#base/memory";
import type { Status } from "#base/status";
import type { Bytes } from "#base/units";
import { type BlockDevice, BlockOp, checkRange, type DeviceWatcher, type Extents } from "./device.ts";

/** A block that others change as often as this while we try is answered with "busy". Those of one device take turns. */
const ATTEMPTS_MAX = 100;

export class ByteDevice implements BlockDevice {
  readonly blockSize = 1;
  readonly preferredBlockSize: number;
  readonly uuid: string;
  readonly #device: BlockDevice;
  readonly #memory: Memory;
  readonly #spare: Job[] = [];
  readonly #turns = new Turns();

  constructor(device: BlockDevice, memory: Memory) {
    this.#device = device;
    this.#memory = memory;
    this.preferredBlockSize = device.preferredBlockSize;
    this.uuid = device.uuid;
  }

  get size(): Bytes {
    return this.#device.size;
  }
  get readOnly(): boolean {
    return this.#device.readOnly;
  }
  watch(watcher: DeviceWatcher): () => void {
    return this.#device.watch(watcher);
  }

  submit(op: BlockOp): void {
    const { blockSize } = this.#device;
    if (op.kind === "flush" || (op.offset % blockSize === 0 && op.length % blockSize === 0)) {
      this.#device.submit(op);
      return;
    }
    const fault = checkRange(this, op) ?? refusalOf(op);
    if (fault !== undefined) {
      op.status = fault;
      op.done(op);
      return;
    }
    const job = this.#spare.pop() ?? new Job(this.#device, this.#memory, this.#turns, (done) => this.#spare.push(done));
    job.run(op);
  }
}

/**
 * Who may change a block in part, by its offset: those of one device take turns. Compare-and-write would keep them apart
 * as well, but of many at the same block only one gets on each time.
 */
class Turns {
  readonly #waiting = new Map<Bytes, Edge[]>();
  /** Blocks whose turn has ended, while that is dealt with. */
  readonly #given: Bytes[] = [];

  /** Starts `edge` when it is its turn at the block. */
  take(block: Bytes, edge: Edge): void {
    const waiting = this.#waiting.get(block);
    if (waiting !== undefined) {
      waiting.push(edge);
      return;
    }
    this.#waiting.set(block, []);
    edge.start();
  }

  /** Ends a turn at the block; whoever is next starts, and may be done at once. */
  give(block: Bytes): void {
    this.#given.push(block);
    if (this.#given.length > 1) return;
    // A loop and not a call within a call: a device that fails answers thousands of them at once.
    for (let index = 0; index < this.#given.length; index++) {
      const next = this.#waiting.get(this.#given[index]!)?.shift();
      if (next === undefined) this.#waiting.delete(this.#given[index]!);
      else next.start();
    }
    this.#given.length = 0;
  }
}

/** What cannot be done to parts of blocks at all. */
function refusalOf(op: BlockOp): Status | undefined {
  if (op.kind === "compare-write") return "invalid";
  // Reading and writing back a block is no faster than writing zeroes.
  return op.kind === "zero" && op.fastOnly ? "unsupported" : undefined;
}

/** One unaligned operation: whole blocks in the middle, and a part of a block at one end or both. */
class Job {
  readonly #device: BlockDevice;
  readonly #over: (job: Job) => void;
  readonly #head: Edge;
  readonly #tail: Edge;
  readonly #middle = new BlockOp(() => this.partDone(this.#middle.status));
  #op!: BlockOp;
  #pending = 0;
  #status: Status = "ok";

  constructor(device: BlockDevice, memory: Memory, turns: Turns, over: (job: Job) => void) {
    this.#device = device;
    this.#over = over;
    this.#head = new Edge(device, memory, turns, this);
    this.#tail = new Edge(device, memory, turns, this);
  }

  run(op: BlockOp): void {
    this.#op = op;
    this.#status = "ok";
    // Held open until everything has been submitted: parts may be done at once.
    this.#pending = 1;
    if (op.kind === "status" || op.kind === "cache" || op.kind === "trim") this.#runRounded(op);
    else this.#runParts(op);
    this.partDone("ok");
  }

  /** Status and cache tell or do more than they were asked for, trim less. */
  #runRounded(op: BlockOp): void {
    const size = this.#device.blockSize;
    const inward = op.kind === "trim";
    const first = (inward ? Math.ceil : Math.floor)(op.offset / size) * size;
    const final = (inward ? Math.floor : Math.ceil)((op.offset + op.length) / size) * size;
    if (final > first) this.#submitMiddle(op, first, final);
  }

  #runParts(op: BlockOp): void {
    const size = this.#device.blockSize;
    const end = op.offset + op.length;
    const first = Math.ceil(op.offset / size) * size;
    const final = Math.floor(end / size) * size;
    // Within one block, the head is all there is.
    const headEnd = Math.min(first, end);
    if (op.offset < first) this.#submitEdge(this.#head, op, op.offset, headEnd);
    if (final > first) this.#submitMiddle(op, first, final);
    if (end > final && final >= first) this.#submitEdge(this.#tail, op, final, end);
  }

  #submitMiddle(op: BlockOp, first: Bytes, final: Bytes): void {
    const middle = this.#middle;
    middle.kind = op.kind;
    middle.offset = first;
    middle.length = final - first;
    middle.at = op.at + first - op.offset;
    middle.fua = op.fua;
    middle.noHole = op.noHole;
    middle.fastOnly = false;
    middle.extents = op.extents;
    middle.result = 0;
    this.#pending++;
    this.#device.submit(middle);
  }

  #submitEdge(edge: Edge, op: BlockOp, from: Bytes, to: Bytes): void {
    this.#pending++;
    edge.run(op, from, to);
  }

  partDone(status: Status): void {
    if (this.#status === "ok") this.#status = status;
    if (--this.#pending > 0) return;
    const op = this.#op;
    op.status = this.#status;
    op.result = 0;
    if (op.kind === "status" && this.#status === "ok") cutFront(op.extents!, op.offset % this.#device.blockSize);
    this.#over(this);
    op.done(op);
  }
}

/** A part of one block: read and copied out, or read, changed and put back. */
class Edge {
  readonly #device: BlockDevice;
  readonly #memory: Memory;
  readonly #turns: Turns;
  readonly #job: Job;
  readonly #op = new BlockOp(() => this.#next());
  #original!: BlockOp;
  #from: Bytes = 0;
  #to: Bytes = 0;
  #attempts = 0;

  constructor(device: BlockDevice, memory: Memory, turns: Turns, job: Job) {
    this.#device = device;
    this.#memory = memory;
    this.#turns = turns;
    this.#job = job;
  }

  run(original: BlockOp, from: Bytes, to: Bytes): void {
    this.#original = original;
    this.#from = from;
    this.#to = to;
    this.#attempts = 0;
    const op = this.#op;
    op.offset = Math.floor(from / this.#device.blockSize) * this.#device.blockSize;
    op.length = this.#device.blockSize;
    op.at = 0;
    if (original.kind === "read") this.start();
    else this.#turns.take(op.offset, this);
  }

  /** Reads the block: the first step, and the next one when somebody else has changed it. */
  start(): void {
    const op = this.#op;
    // Room for two blocks: the one that is there, and after it the one that is to be.
    if (op.at === 0) op.at = this.#memory.allocate(2 * op.length);
    if (op.at === 0) {
      this.#end("busy");
      return;
    }
    op.kind = "read";
    op.fua = false;
    this.#device.submit(op);
  }

  #next(): void {
    const op = this.#op;
    const original = this.#original;
    if (op.kind === "compare-write" && op.status === "miscompare") {
      if (++this.#attempts < ATTEMPTS_MAX) this.start();
      else this.#end("busy");
      return;
    }
    if (op.kind !== "read" || op.status !== "ok") {
      this.#end(op.status);
      return;
    }
    const { bytes } = this.#memory;
    const within = this.#from - op.offset;
    const length = this.#to - this.#from;
    const dataAt = original.at + this.#from - original.offset;
    if (original.kind === "read") {
      bytes.copyWithin(dataAt, op.at + within, op.at + within + length);
      this.#end("ok");
      return;
    }
    const changedAt = op.at + op.length;
    bytes.copyWithin(changedAt, op.at, op.at + op.length);
    if (original.kind === "zero") bytes.fill(0, changedAt + within, changedAt + within + length);
    else bytes.copyWithin(changedAt + within, dataAt, dataAt + length);
    op.kind = "compare-write";
    op.fua = original.fua;
    this.#device.submit(op);
  }

  #end(status: Status): void {
    if (this.#op.at !== 0) this.#memory.free(this.#op.at);
    this.#op.at = 0;
    // First the turn, then the word: the job, and with it this edge, may be in use again as soon as it is told.
    const block = this.#op.offset;
    if (this.#original.kind !== "read") this.#turns.give(block);
    this.#job.partDone(status);
  }
}

/** Takes `count` bytes off the beginning of an answer to block status. */
function cutFront(extents: Extents, count: Bytes): void {
  let gone = 0;
  while (gone < extents.count && extents.length[gone]! <= count) count -= extents.length[gone++]!;
  if (gone < extents.count) extents.length[gone]! -= count;
  for (let index = gone; index < extents.count && gone > 0; index++) {
    extents.length[index - gone] = extents.length[index]!;
    extents.flags[index - gone] = extents.flags[index]!;
    extents.depth[index - gone] = extents.depth[index]!;
  }
  extents.count -= gone;
}
