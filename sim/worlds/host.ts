/**
 * A simulated host: it sends operations to devices, several at a time, with data that tells where it belongs, and holds
 * every answer against the history of what was written. It does not know what is behind the device: the engine itself, or
 * a protocol with a server at its other end.
 */
import type { Status } from "#base/status";
import { BLOCK_BYTES } from "#base/units";
import { type BlockDevice, BlockOp, ExtentFlag, Extents, type OpKind } from "#device/device";
import { CHANGES } from "#device/guard";
import type { SimProcess } from "../env/sim-process.ts";
import type { FrozenHistory, History, Mark, Ticks } from "../oracle/history.ts";
import { fillPattern, GARBLED, stampOf } from "../oracle/pattern.ts";
import { Violation } from "../violation.ts";

/** A device, and what it should contain. */
export interface Target {
  readonly name: string;
  readonly device: BlockDevice;
  /** One of both: what a volume, or a snapshot, contains. In units of `device.blockSize`. */
  readonly history: History | undefined;
  readonly frozen: FrozenHistory | undefined;
}

/**
 * What an operation that was not done means for its data: nothing of it happened; it may have happened until now; or it
 * may also turn out to have happened later.
 */
export type Meaning = "refused" | "unknown" | "lingers";

export interface Io {
  readonly kind: OpKind;
  /** In logical blocks of the device. */
  readonly block: number;
  readonly count: number;
  readonly fua?: boolean;
  readonly noHole?: boolean;
  readonly fastOnly?: boolean;
  /** Compare-write: expect something that is not there. */
  readonly mismatch?: boolean;
  /** Write: the same range of this snapshot instead of data, by sharing. */
  readonly source?: Target;
}

const EXTENTS_MAX = 64;

class Request {
  readonly io: Io;
  readonly target: Target;
  readonly op: BlockOp;
  at = 0;
  asked = 0;
  marks: Mark[] = [];
  expected: number[] = [];
  stamp = 0;
  readonly onDone: ((status: Status) => void) | undefined;

  constructor(io: Io, target: Target, done: (request: Request) => void, onDone?: (status: Status) => void) {
    this.io = io;
    this.target = target;
    this.onDone = onDone;
    this.op = new BlockOp(() => done(this));
  }
}

/** Blocks of one read of an audit. */
const RUN_BLOCKS_MAX = 64;

/** Blocks as runs of neighbours, in order. */
export function* runsOf(of: Iterable<number>): Generator<{ readonly block: number; readonly count: number }> {
  const blocks = [...of].sort((a, b) => a - b);
  for (let i = 0; i < blocks.length; ) {
    let end = i + 1;
    while (end < blocks.length && blocks[end] === blocks[end - 1]! + 1 && end - i < RUN_BLOCKS_MAX) end++;
    yield { block: blocks[i]!, count: end - i };
    i = end;
  }
}

export class Host {
  readonly #process: SimProcess;
  readonly #words: Int32Array;
  readonly #ticks: Ticks;
  /** Decides what a status other than "ok" means; throws a `Violation` when nothing explains it. */
  readonly #explain: (status: Status, io: Io, target: Target) => Meaning;
  readonly #stamps: { next: number };
  readonly #inFlight = new Set<Request>();
  /** Operations that were answered. */
  answered = 0;
  /** The product has said that a part of its log is damaged: what it returns may be old, but still not garbage. */
  isLenient = false;

  constructor(
    process: SimProcess,
    ticks: Ticks,
    stamps: { next: number },
    explain: (status: Status, io: Io, target: Target) => Meaning,
  ) {
    this.#process = process;
    this.#words = new Int32Array(process.memory.bytes.buffer);
    this.#ticks = ticks;
    this.#stamps = stamps;
    this.#explain = explain;
  }

  get inFlight(): number {
    return this.#inFlight.size;
  }
  inFlightOf(name: string): number {
    let count = 0;
    for (const { target } of this.#inFlight) if (target.name === name) count++;
    return count;
  }
  /** Something in flight changes a part of this range. */
  isChanging(history: History, block: number, count: number): boolean {
    for (const { io, target } of this.#inFlight)
      if (target.history === history && CHANGES[io.kind] && io.block < block + count && block < io.block + io.count)
        return true;
    return false;
  }
  /** What is in flight, for a message. */
  get waitingFor(): string {
    return [...this.#inFlight].map((request) => describeIo(request.io, request.target)).join(", ");
  }

  /** Sends one operation. False when there was no memory for it. */
  submit(target: Target, io: Io, onDone?: (status: Status) => void): boolean {
    const { memory } = this.#process;
    const { blockSize } = target.device;
    const request = new Request(io, target, (done) => this.#onDone(done), onDone);
    const length = io.count * blockSize;
    const carriesData = io.kind === "read" || (io.kind === "write" && io.source === undefined);
    const buffer = io.kind === "compare-write" ? 2 * length : carriesData ? length : 0;
    if (buffer > 0) {
      request.at = memory.allocate(buffer);
      if (request.at === 0) return false;
    }
    const { op } = request;
    op.kind = io.kind;
    op.offset = io.block * blockSize;
    op.length = io.kind === "flush" ? 0 : length;
    op.at = request.at;
    op.fua = io.fua === true;
    op.noHole = io.noHole === true;
    op.fastOnly = io.fastOnly === true;
    op.result = 0;
    this.#begin(request, blockSize, length);
    this.#inFlight.add(request);
    if (io.source === undefined) target.device.submit(op);
    else target.device.copyFrom!(op, io.source.device, op.offset);
    return true;
  }

  /** Reads all of a volume that may differ from zeroes, or has. */
  audit(target: Target): void {
    for (const run of runsOf(target.history!.touched())) this.submit(target, { kind: "read", ...run });
  }

  /** Reads one block and judges nothing: `seen` gets what it is. */
  look(target: Target, block: number, seen: (status: Status, stamp: number) => void): void {
    const { memory } = this.#process;
    const { blockSize } = target.device;
    const at = memory.allocate(blockSize);
    const op = new BlockOp(() => {
      const stamp = stampOf(this.#words, at, blockSize, block);
      memory.free(at);
      seen(op.status, stamp);
    });
    op.kind = "read";
    op.offset = block * blockSize;
    op.length = blockSize;
    op.at = at;
    target.device.submit(op);
  }

  /** What was in flight will never be answered: its process or its path is dead. Marks stay in flight for the history. */
  abandon(): void {
    this.#inFlight.clear();
  }

  /** This host has died while its server lives on: what it had in flight may still happen, now or later. */
  died(): void {
    for (const { target, marks, asked } of this.#inFlight) {
      target.history?.answer(asked);
      target.history?.unknown(marks, true);
    }
    this.#inFlight.clear();
  }

  #begin(request: Request, blockSize: number, length: number): void {
    const { io, target } = request;
    const { history } = target;
    switch (io.kind) {
      case "write":
        if (io.source !== undefined) {
          if (history !== undefined) request.marks = history.copy(io.block, io.count, io.source.frozen!);
          return;
        }
        request.stamp = this.#stamps.next++;
        fillPattern(this.#words, request.at, length, blockSize, io.block, request.stamp);
        if (history !== undefined) request.marks = history.write(io.block, io.count, request.stamp);
        return;
      case "zero":
      case "trim":
        if (history !== undefined) request.marks = history.write(io.block, io.count, 0);
        return;
      case "compare-write": {
        request.stamp = this.#stamps.next++;
        request.asked = history?.ask() ?? 0;
        for (let i = 0; i < io.count; i++) {
          const likely = history?.likely(io.block + i) ?? 0;
          const stamp = io.mismatch === true && i === io.count - 1 ? likely + 1_000_000_000 : likely;
          request.expected.push(stamp);
          fillPattern(this.#words, request.at + i * blockSize, blockSize, blockSize, io.block + i, stamp);
        }
        fillPattern(this.#words, request.at + length, length, blockSize, io.block, request.stamp);
        if (history !== undefined) request.marks = history.write(io.block, io.count, request.stamp);
        return;
      }
      case "status":
        request.op.extents = new Extents(EXTENTS_MAX);
        request.asked = history?.ask() ?? this.#ticks.next();
        return;
      default:
        request.asked = history?.ask() ?? this.#ticks.next();
    }
  }

  #onDone(request: Request): void {
    // Answers to a dead host's requests: the path was given up before.
    if (!this.#inFlight.delete(request)) return;
    this.answered++;
    const { io, target, op } = request;
    const { world } = this.#process;
    if (world.onLine !== undefined) world.say(this.#process, `${describeIo(io, target)}: ${op.status}`);
    try {
      if (op.status === "ok") this.#judge(request);
      else this.#judgeFailure(request, op.status);
    } finally {
      target.history?.answer(request.asked);
      if (request.at !== 0) this.#process.memory.free(request.at);
    }
    request.onDone?.(op.status);
  }

  #judge(request: Request): void {
    const { io, target } = request;
    const { history } = target;
    switch (io.kind) {
      case "read":
        return this.#judgeRead(request);
      case "write":
      case "zero":
        history?.written(io.block, request.marks, io.fua === true);
        return;
      case "trim":
        return this.#judgeTrim(request);
      case "flush":
        history?.flushed(request.asked);
        return;
      case "compare-write":
        for (let i = 0; i < io.count; i++)
          if (!this.isLenient && history?.read(io.block + i, request.expected[i]!, request.asked) === false)
            throw new Violation(
              `${describeIo(io, target)} has found ${request.expected[i]} in block ${io.block + i}, which may have: ${history.describe(io.block + i)}`,
            );
        history?.written(io.block, request.marks, io.fua === true);
        return;
      case "status":
        return this.#judgeStatus(request);
      default:
        return;
    }
  }

  #judgeRead(request: Request): void {
    const { io, target, at } = request;
    const { blockSize } = target.device;
    for (let i = 0; i < io.count; i++) {
      const block = io.block + i;
      const stamp = stampOf(this.#words, at + i * blockSize, blockSize, block);
      const isRight =
        stamp !== GARBLED &&
        (this.isLenient ||
          (target.history?.read(block, stamp, request.asked) ?? target.frozen?.block(block).settle(stamp) ?? true));
      if (isRight) continue;
      const found = stamp === GARBLED ? `garbage (${this.#peek(at + i * blockSize)})` : `${stamp}`;
      const may = target.history?.describe(block) ?? target.frozen?.block(block).stamps ?? "nothing";
      throw new Violation(`${describeIo(io, target)}: block ${block} is ${found}, and may be: ${may}`);
    }
  }

  /** A trim clears what it covers; blocks of the store that it covers in part may keep their data. */
  #judgeTrim(request: Request): void {
    const { io, target, marks } = request;
    const { history } = target;
    if (history === undefined) return;
    const { blockSize } = target.device;
    const per = Math.max(1, BLOCK_BYTES / blockSize);
    const from = Math.ceil(io.block / per) * per;
    const to = Math.max(from, Math.floor((io.block + io.count) / per) * per);
    const isWhole = (i: number): boolean => io.block + i >= from && io.block + i < to;
    history.unknown(marks.filter((_, i) => !isWhole(i)));
    const whole = marks.filter((_, i) => isWhole(i));
    if (whole.length > 0) history.written(from, whole, io.fua === true);
  }

  #judgeStatus(request: Request): void {
    const { io, target, op } = request;
    const { blockSize } = target.device;
    const extents = op.extents!;
    if (extents.count === 0) throw new Violation(`${describeIo(io, target)} answers nothing`);
    let offset = op.offset;
    for (let i = 0; i < extents.count; i++) {
      const end = offset + extents.length[i]!;
      if (end <= offset) throw new Violation(`${describeIo(io, target)} has an empty extent`);
      if (extents.flags[i]! & (ExtentFlag.HOLE | ExtentFlag.ZERO))
        for (let block = io.block; block < io.block + io.count; block++) {
          if (block * blockSize < offset || (block + 1) * blockSize > end) continue;
          const may = target.history?.allows(block, 0, request.asked) ?? target.frozen?.block(block).allows(0) ?? true;
          if (!may && !this.isLenient)
            throw new Violation(`${describeIo(io, target)} calls block ${block} a hole, and it has data`);
        }
      else this.#judgeData(request, offset, end);
      offset = end;
    }
  }

  /** What is called data must have been written once, or lie in a block of the store that was. */
  #judgeData(request: Request, from: number, to: number): void {
    const { io, target } = request;
    const { history, device } = target;
    if (history === undefined || this.isLenient) return;
    const per = Math.max(1, BLOCK_BYTES / device.blockSize);
    for (let block = io.block; block < io.block + io.count; block++) {
      if (block * device.blockSize < from || (block + 1) * device.blockSize > to) continue;
      const first = Math.floor(block / per) * per;
      let isPristine = true;
      for (let other = first; other < first + per; other++) isPristine &&= history.isPristine(other);
      if (isPristine)
        throw new Violation(`${describeIo(io, target)} calls block ${block} data, and nothing was ever there`);
    }
  }

  #judgeFailure(request: Request, status: Status): void {
    const { io, target, op } = request;
    const { history } = target;
    if (io.kind === "compare-write" && status === "miscompare") {
      const index = Math.floor(op.result / target.device.blockSize);
      if (history?.isCertain(io.block + index, request.expected[index]!, request.asked) === true && !this.isLenient)
        throw new Violation(
          `${describeIo(io, target)}: block ${io.block + index} is what was expected, and is refused`,
        );
      history?.refused(io.block, request.marks);
      return;
    }
    const meaning = this.#explain(status, io, target);
    if (request.marks.length === 0) return;
    if (meaning === "refused") history?.refused(io.block, request.marks);
    else history?.unknown(request.marks, meaning === "lingers");
  }

  #peek(at: number): string {
    const first = at / 4;
    return [...this.#words.subarray(first, first + 3)].map((word) => (word >>> 0).toString(16)).join(" ");
  }
}

export function describeIo(io: Io, target: { readonly name: string }): string {
  if (io.kind === "flush") return `flush ${target.name}`;
  const flags = [io.fua ? " fua" : "", io.noHole ? " no-hole" : "", io.fastOnly ? " fast" : ""].join("");
  if (io.source !== undefined) return `copy${flags} ${io.source.name} to ${target.name} ${io.block} + ${io.count}`;
  return `${io.kind}${flags} ${target.name} ${io.block} + ${io.count}`;
}
