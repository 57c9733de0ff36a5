/**
 * Flushes of a log: all that wait share one `fdatasync`, and whoever comes while one is running waits for the next, unless
 * the running one began after everything it promises. A failed `fdatasync` is never repeated: the kernel may have dropped
 * the pages that it could not write, and what a second attempt says is worth nothing.
 */
import { canary } from "#base/canary";
import type { Status } from "#base/status";
import type { Millis } from "#base/units";
import { type DiskFault, DiskOp, type Env } from "#env/env";
import type { Segment } from "./segment.ts";

class Waiter {
  group = 0;
  done: (status: Status) => void = () => {};
}

export class Syncer {
  readonly #env: Env;
  readonly #onFault: (fault: DiskFault) => void;
  readonly #onIdle: () => void;
  /** Groups up to these have been appended, or are on stable storage. */
  appended = 0;
  synced = 0;
  /** Segments with appended groups that are not synced. */
  readonly #dirty: Segment[] = [];
  /** Those of the sync that is running. */
  readonly #syncing: Segment[] = [];
  #pending = 0;
  #target = 0;
  #fault: DiskFault | undefined;
  #startedAt: Millis = 0;
  readonly #ops: DiskOp[] = [];
  #waiters: Waiter[] = [];
  readonly #spares: Waiter[] = [];
  #stopped = false;
  /** Since the set was opened. */
  count = 0;
  msMax: Millis = 0;

  /** `onFault` is told of a sync that failed; then nothing is synced any more. `onIdle` follows the end of each sync. */
  constructor(env: Env, onFault: (fault: DiskFault) => void, onIdle: () => void) {
    this.#env = env;
    this.#onFault = onFault;
    this.#onIdle = onIdle;
  }

  /** All up to `group` has been there, and was synced, before this run. */
  resume(group: number): void {
    this.appended = group;
    this.synced = group;
  }

  /** A group has been appended to a segment. */
  noteAppend(segment: Segment, group: number): void {
    this.appended = group;
    if (!this.#dirty.includes(segment)) this.#dirty.push(segment);
  }

  get isBusy(): boolean {
    return this.#pending > 0;
  }

  isDirty(segment: Segment): boolean {
    return this.#dirty.includes(segment);
  }

  /** Answers when all that has been appended until now is on stable storage; at once if it is. */
  sync(done: (status: Status) => void): void {
    if (canary.armed === "ack-before-sync" || this.synced >= this.appended) {
      done("ok");
      return;
    }
    const waiter = this.#spares.pop() ?? new Waiter();
    waiter.group = this.appended;
    waiter.done = done;
    this.#waiters.push(waiter);
    if (this.#pending === 0) this.#start();
  }

  /** Nothing more is promised: whoever waits is answered with `status`. */
  stop(status: Status): void {
    this.#stopped = true;
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const waiter of waiters) waiter.done(status);
  }

  #start(): void {
    this.#target = this.appended;
    this.#fault = undefined;
    this.#startedAt = this.#env.clock.now();
    this.#pending = this.#dirty.length;
    this.count++;
    for (const segment of this.#dirty) {
      const op = this.#ops.pop() ?? new DiskOp((ended) => this.#onSynced(ended));
      op.kind = "sync";
      op.file = segment.file!;
      segment.pins++;
      this.#syncing.push(segment);
      this.#env.disk.submit(op);
    }
    this.#dirty.length = 0;
  }

  #onSynced(op: DiskOp): void {
    if (op.fault !== undefined) this.#fault = op.fault;
    this.#ops.push(op);
    if (--this.#pending > 0) return;
    for (const segment of this.#syncing) segment.pins--;
    this.#syncing.length = 0;
    this.msMax = Math.max(this.msMax, this.#env.clock.now() - this.#startedAt);
    if (this.#fault !== undefined && canary.armed !== "retry-failed-sync") {
      this.#onFault(this.#fault);
      this.#onIdle();
      return;
    }
    if (this.#target > this.synced) this.synced = this.#target;
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const waiter of waiters) {
      if (waiter.group > this.synced) {
        this.#waiters.push(waiter);
        continue;
      }
      waiter.done("ok");
      this.#spares.push(waiter);
    }
    if (this.#waiters.length > 0 && this.#pending === 0 && !this.#stopped) this.#start();
    this.#onIdle();
  }
}
