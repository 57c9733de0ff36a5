/**
 * Zero before first access: which chunks of a partition have been zeroed, durably. A chunk is zeroed on its drive,
 * synced, and only then marked in the map, whose file has one byte per chunk; so whatever happens, what the drive held
 * before is never shown, and what the host wrote is never zeroed. The rest is zeroed in the background.
 */

import { canary } from "#base/canary";
import { ZERO_SIZE_MULTIPLE } from "#base/drives";
import type { Status } from "#base/status";
import type { Bytes, Millis } from "#base/units";
import { type Alarm, DiskOp, type Env, type File } from "#env/env";
import { type Slice, STATUS_OF_FAULT } from "./drive-partition.ts";

/** Zeroed at a time. The size of a partition that asks for it is a multiple of this, so that a chunk never grows. */
export const ZERO_CHUNK_BYTES = ZERO_SIZE_MULTIPLE;
/** The background leaves the disk alone for so long after each chunk. */
const REST_MS: Millis = 5;
const DONE = 1;

type Answer = (status: Status) => void;

export class ZeroMap {
  readonly #env: Env;
  readonly #file: File;
  #marks: Uint8Array;
  readonly #slices: () => readonly Slice[];
  readonly #size: () => Bytes;
  readonly #onSyncFailed: (file: File) => void;
  readonly #alarm: Alarm;
  /** Chunk to those who wait for it. */
  readonly #waiting = new Map<number, Answer[]>();
  readonly #queue: number[] = [];
  #busy = false;
  #left: number;
  /** Marks set so far, and how many of them are on stable storage. */
  #marked: number;
  #synced = 0;
  #failed = false;
  #stopped = false;

  /**
   * @param marks what the file says: one byte per chunk
   * @param onSyncFailed a sync of one of the drives has failed
   */
  constructor(
    env: Env,
    file: File,
    marks: Uint8Array,
    size: () => Bytes,
    slices: () => readonly Slice[],
    onSyncFailed: (file: File) => void,
  ) {
    this.#env = env;
    this.#onSyncFailed = onSyncFailed;
    this.#file = file;
    this.#marks = marks;
    this.#size = size;
    this.#slices = slices;
    this.#left = marks.filter((mark) => mark !== DONE).length;
    // A former server may have been killed before it synced what is read here.
    this.#marked = marks.length - this.#left;
    this.#alarm = env.clock.alarm(() => this.#background());
    if (this.#left > 0) this.#alarm.at = env.clock.now() + REST_MS;
  }

  /** Bytes that are still to be zeroed, rounded up to chunks. */
  get left(): Bytes {
    return this.#left * ZERO_CHUNK_BYTES;
  }

  /** Answers once every chunk of the range has been zeroed; at once when they all have been. */
  prepare(offset: Bytes, length: Bytes, answer: Answer): void {
    if (this.#left === 0) {
      answer("ok");
      return;
    }
    const first = Math.floor(offset / ZERO_CHUNK_BYTES);
    const last = Math.floor((offset + length - 1) / ZERO_CHUNK_BYTES);
    let missing = 0;
    let worst: Status = "ok";
    const arrived = (status: Status): void => {
      if (status !== "ok") worst = status;
      if (--missing === 0) answer(worst);
    };
    missing = 1;
    for (let chunk = first; chunk <= last; chunk++) {
      if (this.#marks[chunk] === DONE) continue;
      missing++;
      this.#ask(chunk, arrived);
    }
    arrived("ok");
  }

  /** Makes the marks durable; part of every flush. A failed sync is not repeated: what it had to write is lost. */
  sync(answer: Answer): void {
    if (this.#failed) return answer("failed");
    const marked = this.#marked;
    if (this.#synced >= marked || canary.armed === "drive-forget-marks") return answer("ok");
    const op = new DiskOp(({ fault }) => {
      if (fault !== undefined) this.#failed = true;
      else this.#synced = Math.max(this.#synced, marked);
      answer(this.#failed ? "failed" : "ok");
    });
    op.kind = "sync";
    op.file = this.#file;
    this.#env.disk.submit(op);
  }

  /** The partition has grown: what is new has not been zeroed. */
  grow(): void {
    const count = Math.ceil(this.#size() / ZERO_CHUNK_BYTES);
    const marks = new Uint8Array(count);
    marks.set(this.#marks);
    this.#marks = marks;
    this.#left = marks.filter((mark) => mark !== DONE).length;
    if (!this.#stopped) this.#alarm.at = this.#env.clock.now() + REST_MS;
  }

  stop(): void {
    this.#stopped = true;
    this.#alarm.at = Number.POSITIVE_INFINITY;
  }
  get file(): File {
    return this.#file;
  }
  /** Calls once it does not use any file: after `stop`, that stays so. */
  whenIdle(call: () => void): void {
    if (this.#busy) this.#idle.push(call);
    else call();
  }
  readonly #idle: (() => void)[] = [];

  #ask(chunk: number, answer: Answer): void {
    const waiting = this.#waiting.get(chunk);
    if (waiting !== undefined) {
      waiting.push(answer);
      return;
    }
    this.#waiting.set(chunk, [answer]);
    this.#queue.push(chunk);
    this.#next();
  }

  #background(): void {
    this.#alarm.at = Number.POSITIVE_INFINITY;
    if (this.#stopped || this.#left === 0) return;
    if (!this.#busy) {
      const chunk = this.#marks.indexOf(0);
      if (chunk >= 0) this.#ask(chunk, () => {});
    }
    this.#alarm.at = this.#env.clock.now() + REST_MS;
  }

  #next(): void {
    if (this.#busy) return;
    const chunk = this.#queue.shift();
    if (chunk === undefined) {
      for (const call of this.#idle.splice(0)) call();
      return;
    }
    this.#busy = true;
    this.#zero(chunk, (status) => {
      this.#busy = false;
      const answers = this.#waiting.get(chunk) ?? [];
      this.#waiting.delete(chunk);
      for (const answer of answers) answer(status);
      this.#next();
    });
  }

  /** Zeroes on the drives, syncs them, marks. */
  #zero(chunk: number, answer: Answer): void {
    const { memory, disk } = this.#env;
    const from = chunk * ZERO_CHUNK_BYTES;
    const length = Math.min(ZERO_CHUNK_BYTES, this.#size() - from);
    const at = memory.allocate(ZERO_CHUNK_BYTES);
    if (at === 0) {
      answer("busy");
      return;
    }
    memory.bytes.fill(0, at, at + length);
    const touched: File[] = [];
    let done = 0;
    let marking = false;
    const finish = (status: Status): void => {
      memory.free(at);
      answer(status);
    };
    const op = new DiskOp(({ fault }) => {
      if (fault === undefined) step();
      else {
        if (op.kind === "sync") this.#onSyncFailed(op.file);
        finish(op.kind === "sync" ? "failed" : STATUS_OF_FAULT[fault]);
      }
    });
    if (canary.armed === "drive-show-old") done = length;
    const step = (): void => {
      if (marking) {
        this.#marks[chunk] = DONE;
        this.#left--;
        this.#marked++;
        finish("ok");
        return;
      }
      if (done < length) {
        let offset = from + done;
        for (const slice of this.#slices()) {
          if (offset >= slice.length) {
            offset -= slice.length;
            continue;
          }
          op.kind = "write";
          op.file = slice.file;
          op.position = slice.position + offset;
          op.at = at;
          op.length = Math.min(length - done, slice.length - offset);
          done += op.length;
          if (!touched.includes(slice.file)) touched.push(slice.file);
          disk.submit(op);
          return;
        }
      }
      const file = touched.pop();
      if (file !== undefined) {
        op.kind = "sync";
        op.file = file;
      } else {
        marking = true;
        memory.bytes[at] = DONE;
        op.kind = "write";
        op.file = this.#file;
        op.position = chunk;
        op.at = at;
        op.length = 1;
      }
      disk.submit(op);
    };
    step();
  }
}
