/**
 * A few seconds of real I/O on real data, with figures: what `npm start` shows. Each block that is written names itself
 * and its generation, and each block that is read is checked against what was written last. It overwrites what is in
 * the device.
 */
import { Histogram, quantile } from "#base/histogram";
import type { Memory } from "#base/memory";
import { Refusal } from "#base/refusal";
import { perform, type Task } from "#base/task";
import { BLOCK_BYTES, type Bytes, KIB, MIB, type Millis } from "#base/units";
import { type BlockDevice, BlockOp, type OpKind } from "#device/device";
import type { Env } from "#env/env";

export interface DemoOptions {
  /** For the whole of it, less the last flush. Default 4 s. */
  readonly forMs?: Millis;
  /** Operations in flight. Default 32. */
  readonly depth?: number;
  /** Of the device's start, how much is used. Default 64 MiB. */
  readonly spanBytes?: Bytes;
  /** Told when a phase begins. */
  readonly onPhase?: (phase: DemoPhase["name"]) => void;
}

export interface DemoPhase {
  readonly name: "sequential write" | "random write" | "random read" | "sequential read";
  readonly requestBytes: Bytes;
  readonly requests: number;
  readonly perSecond: number;
  readonly bytesPerSecond: Bytes;
  readonly latencyMsMedian: Millis;
  readonly latencyMs99: Millis;
}

export interface DemoFigures {
  readonly phases: readonly DemoPhase[];
  readonly flushMs: Millis;
  /** Blocks of 4 KiB that were read and were as they had been written; it is all of them, or the demo refuses. */
  readonly blocksVerified: number;
}

const SPAN_BYTES_DEFAULT = 64 * MIB;
const LARGE_BYTES = 128 * KIB;
const DEPTH_MAX = 256;
const WORDS = BLOCK_BYTES / 4;

type PhaseShape = Pick<DemoPhase, "name" | "requestBytes"> & { kind: "read" | "write"; isRandom: boolean };
const PHASES: readonly PhaseShape[] = [
  { name: "sequential write", requestBytes: LARGE_BYTES, kind: "write", isRandom: false },
  { name: "random write", requestBytes: BLOCK_BYTES, kind: "write", isRandom: true },
  { name: "random read", requestBytes: BLOCK_BYTES, kind: "read", isRandom: true },
  { name: "sequential read", requestBytes: LARGE_BYTES, kind: "read", isRandom: false },
];

/** Runs the demonstration. Throws a `Refusal`: "damaged" if anything reads other than it was written. */
export function* demonstrate(env: Env, device: BlockDevice, options: DemoOptions = {}): Task<DemoFigures> {
  const span = Math.min(options.spanBytes ?? SPAN_BYTES_DEFAULT, device.size - (device.size % LARGE_BYTES));
  if (span < LARGE_BYTES) throw new Refusal("bad-request", "The volume is too small for a demonstration");
  const demo = new Demo(env, device, span, Math.min(options.depth ?? 32, DEPTH_MAX));
  try {
    const phases: DemoPhase[] = [];
    let flushMs = 0;
    for (const shape of PHASES) {
      options.onPhase?.(shape.name);
      phases.push(yield* demo.run(shape, (options.forMs ?? 4_000) / PHASES.length));
      if (shape.kind === "write") flushMs = yield* demo.flush();
    }
    return { phases, flushMs, blocksVerified: demo.verified };
  } finally {
    demo.end();
  }
}

/** Uint32 words that no other block and no other generation has. */
function fill(words: Uint32Array, from: number, block: number, generation: number): void {
  let value = (Math.imul(block + 1, 0x9e3779b1) ^ Math.imul(generation, 0x85ebca77)) >>> 0;
  for (let index = 0; index < WORDS; index++) {
    words[from + index] = value;
    value = (Math.imul(value, 0x01000193) + block) >>> 0;
  }
}

function differs(words: Uint32Array, from: number, block: number, generation: number): boolean {
  let value = (Math.imul(block + 1, 0x9e3779b1) ^ Math.imul(generation, 0x85ebca77)) >>> 0;
  for (let index = 0; index < WORDS; index++) {
    if (words[from + index] !== value) return true;
    value = (Math.imul(value, 0x01000193) + block) >>> 0;
  }
  return false;
}

class Worker {
  readonly op: BlockOp;
  at = 0;
  sentAt: Millis = 0;
  constructor(done: (worker: Worker) => void) {
    this.op = new BlockOp(() => done(this));
  }
}

class Demo {
  readonly #env: Env;
  readonly #device: BlockDevice;
  readonly #span: Bytes;
  readonly #words: Uint32Array;
  readonly #generations: Uint32Array;
  /** Blocks of requests that are in flight: they are left alone until those are done. */
  readonly #busy: Uint8Array;
  readonly #workers: Worker[] = [];
  readonly #memory: Memory;
  verified = 0;
  #shape: PhaseShape = PHASES[0]!;
  #latency = new Histogram();
  #requests = 0;
  #position = 0;
  #until: Millis = 0;
  #flying = 0;
  #problem: Refusal | undefined = undefined;
  #resume: (() => void) | undefined = undefined;

  constructor(env: Env, device: BlockDevice, span: Bytes, depth: number) {
    this.#env = env;
    this.#device = device;
    this.#span = span;
    this.#memory = env.memory;
    this.#words = new Uint32Array(env.memory.bytes.buffer);
    this.#generations = new Uint32Array(span / BLOCK_BYTES);
    this.#busy = new Uint8Array(span / BLOCK_BYTES);
    for (let index = 0; index < depth; index++) {
      const worker = new Worker((worker) => this.#done(worker));
      worker.at = env.memory.allocate(LARGE_BYTES);
      if (worker.at === 0) break;
      this.#workers.push(worker);
    }
    if (this.#workers.length === 0) throw new Refusal("full", "There is no memory for a demonstration");
  }

  *run(shape: PhaseShape, forMs: Millis): Task<DemoPhase> {
    this.#shape = shape;
    this.#latency = new Histogram();
    this.#requests = this.#position = 0;
    const begun = this.#env.clock.now();
    this.#until = begun + forMs;
    yield* perform<void>((resume) => {
      this.#resume = resume;
      this.#flying = this.#workers.length;
      for (const worker of this.#workers) this.#next(worker);
    });
    if (this.#problem !== undefined) throw this.#problem;
    const seconds = Math.max(this.#env.clock.now() - begun, 0.001) / 1000;
    return {
      name: shape.name,
      requestBytes: shape.requestBytes,
      requests: this.#requests,
      perSecond: this.#requests / seconds,
      bytesPerSecond: (this.#requests * shape.requestBytes) / seconds,
      latencyMsMedian: quantile(this.#latency.counts, 0.5),
      latencyMs99: quantile(this.#latency.counts, 0.99),
    };
  }

  *flush(): Task<Millis> {
    const begun = this.#env.clock.now();
    const status = yield* perform<string>((resume) => {
      const op = new BlockOp((op) => resume(op.status));
      op.kind = "flush";
      this.#device.submit(op);
    });
    if (status !== "ok") throw failed("flush", 0, status);
    return this.#env.clock.now() - begun;
  }

  end(): void {
    for (const worker of this.#workers) this.#memory.free(worker.at);
  }

  /** Gives the worker its next operation, or lets it rest when the phase is over. */
  #next(worker: Worker): void {
    const { requestBytes, kind } = this.#shape;
    const now = this.#env.clock.now();
    const offset = now >= this.#until || this.#problem !== undefined ? -1 : this.#place();
    if (offset < 0) {
      if (--this.#flying === 0) this.#resume!();
      return;
    }
    const first = offset / BLOCK_BYTES;
    const count = requestBytes / BLOCK_BYTES;
    this.#busy.fill(1, first, first + count);
    if (kind === "write")
      for (let index = 0; index < count; index++)
        fill(this.#words, worker.at / 4 + index * WORDS, first + index, ++this.#generations[first + index]!);
    const { op } = worker;
    op.kind = kind;
    op.offset = offset;
    op.length = requestBytes;
    op.at = worker.at;
    worker.sentAt = now;
    this.#device.submit(op);
  }

  /** Where the next request goes: to blocks of which none is in flight. -1 when there are none. */
  #place(): Bytes {
    const { requestBytes, isRandom } = this.#shape;
    const places = this.#span / requestBytes;
    const count = requestBytes / BLOCK_BYTES;
    for (let tries = 0; tries <= this.#workers.length * 4; tries++) {
      const place = isRandom ? this.#env.random.below(places) : this.#position++ % places;
      const first = place * count;
      if (!this.#busy.subarray(first, first + count).includes(1)) return place * requestBytes;
    }
    return -1;
  }

  #done(worker: Worker): void {
    const { op } = worker;
    const first = op.offset / BLOCK_BYTES;
    const count = op.length / BLOCK_BYTES;
    this.#latency.observe(this.#env.clock.now() - worker.sentAt);
    this.#requests++;
    this.#busy.fill(0, first, first + count);
    if (op.status !== "ok") this.#problem ??= failed(op.kind, op.offset, op.status);
    else if (op.kind === "read")
      for (let index = 0; index < count; index++) {
        // What the device held before is not ours to judge.
        if (this.#generations[first + index] === 0) continue;
        if (differs(this.#words, worker.at / 4 + index * WORDS, first + index, this.#generations[first + index]!))
          this.#problem ??= new Refusal("damaged", `Byte ${op.offset + index * BLOCK_BYTES} reads other than written`);
        this.verified++;
      }
    this.#next(worker);
  }
}

const failed = (kind: OpKind, offset: Bytes, status: string): Refusal =>
  new Refusal("storage-failed", `A ${kind} at ${offset} failed (${status})`);
