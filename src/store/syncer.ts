/**
 * Flushes of a log. All that wait share one `fdatasync`. One that promises more than those that are running need not wait
 * for their end: some may run at once, since a disk serves several in the time of one, and a slow one then holds up nobody
 * who asked later. Each covers everything that is not on stable storage yet, whatever others are at, so that the end of a
 * later one answers for the earlier ones too.
 *
 * A failed `fdatasync` is never repeated: the kernel may have dropped the pages that it could not write, and what a second
 * attempt says is worth nothing. For the same reason those that run at once have a descriptor each: an error is told once
 * per descriptor, and of two on the same one, the other would be told that all is well.
 */
import { canary } from "#base/canary";
import type { Status } from "#base/status";
import { start } from "#base/task";
import type { Millis } from "#base/units";
import { type DiskFault, DiskOp, type Env, isDiskFault } from "#env/env";
import type { Segment } from "./segment.ts";
import type { SegmentStore } from "./segment-store.ts";

/** So many run at once. */
const SYNCS_MAX = 4;

class Waiter {
  group = 0;
  done: (status: Status) => void = () => {};
}

/** One `fdatasync` of all that is dirty: of one segment, or of several. */
class Sync {
  /** Which of the descriptors of a segment it uses. */
  readonly place: number;
  readonly #ops: DiskOp[] = [];
  readonly #ended: (op: DiskOp) => void;
  readonly segments: Segment[] = [];
  /** Of its segments, so many have not been synced yet. 0: it does not run. */
  pending = 0;
  /** Groups up to this one will be on stable storage. */
  target = 0;
  startedAt: Millis = 0;

  /** `failed` is told of a fault at once, also while other segments are still being synced. */
  constructor(place: number, failed: (fault: DiskFault) => void, ended: (sync: Sync) => void) {
    this.place = place;
    this.#ended = (op) => {
      if (op.fault !== undefined) failed(op.fault);
      this.#ops.push(op);
      if (--this.pending === 0) ended(this);
    };
  }

  takeOp(): DiskOp {
    return this.#ops.pop() ?? new DiskOp(this.#ended);
  }
}

export class Syncer {
  readonly #env: Env;
  readonly #store: SegmentStore;
  readonly #onFault: (fault: DiskFault) => void;
  readonly #onIdle: () => void;
  /** Groups up to these have been appended, or are on stable storage. */
  appended = 0;
  synced = 0;
  /** Segments with appended groups that are not synced. */
  readonly #dirty: Segment[] = [];
  readonly #syncs: Sync[] = [];
  #running = 0;
  /** The greatest of those that run: what has been asked for beyond it needs another one. */
  #target = 0;
  #wanted = 0;
  #opening = 0;
  /** The segment of which no more descriptors could be had. */
  #refused: Segment | undefined;
  /** Those who wait, and a list to take turns with it: whoever is told may ask again. */
  #waiters: Waiter[] = [];
  #told: Waiter[] = [];
  readonly #spares: Waiter[] = [];
  #stopped = false;
  /** What was to be synced may be lost, and with it what another sync that still runs says is there. */
  #failed = false;
  /** Since the set was opened. */
  count = 0;
  msMax: Millis = 0;

  /** `onFault` is told of a sync that failed; then nothing is synced any more. `onIdle` follows the end of each sync. */
  constructor(env: Env, store: SegmentStore, onFault: (fault: DiskFault) => void, onIdle: () => void) {
    this.#env = env;
    this.#store = store;
    this.#onFault = onFault;
    this.#onIdle = onIdle;
    for (let place = 0; place < SYNCS_MAX; place++)
      this.#syncs.push(
        new Sync(
          place,
          (fault) => this.#onFailed(fault),
          (sync) => this.#onEnded(sync),
        ),
      );
  }

  /** All up to `group` has been there, and was synced, before this run. */
  resume(group: number): void {
    this.appended = this.synced = this.#target = group;
  }

  /** A group has been appended to a segment. */
  noteAppend(segment: Segment, group: number): void {
    this.appended = segment.lastGroup = group;
    if (!this.#dirty.includes(segment)) this.#dirty.push(segment);
  }

  /** Nothing more is appended to a segment. */
  noteSealed(segment: Segment): void {
    this.#closeMore(segment);
  }

  get isBusy(): boolean {
    return this.#running > 0 || this.#opening > 0;
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
    waiter.group = this.#wanted = this.appended;
    waiter.done = done;
    this.#waiters.push(waiter);
    this.#startOne();
  }

  /** Nothing more is promised: whoever waits is answered with `status`. */
  stop(status: Status): void {
    this.#stopped = true;
    const waiters = this.#waiters;
    this.#waiters = [];
    for (const waiter of waiters) waiter.done(status);
  }

  /** Starts another one, if what is asked for needs it and there are descriptors for it. */
  #startOne(): void {
    if (this.#stopped || this.#wanted <= this.#target) return;
    let idle: Sync | undefined;
    for (const sync of this.#syncs) {
      if (sync.pending > 0) continue;
      if (this.#hasFiles(sync.place)) return this.#start(sync);
      idle ??= sync;
    }
    if (idle !== undefined) this.#openMore();
  }

  #hasFiles(place: number): boolean {
    for (const segment of this.#dirty) if (place > segment.moreFiles.length) return false;
    return true;
  }

  #start(sync: Sync): void {
    sync.target = this.#target = this.appended;
    sync.startedAt = this.#env.clock.now();
    sync.pending = this.#dirty.length;
    this.#running++;
    this.count++;
    for (const segment of this.#dirty) {
      const op = sync.takeOp();
      op.kind = "sync";
      op.file = sync.place === 0 ? segment.file! : segment.moreFiles[sync.place - 1]!;
      segment.pins++;
      segment.syncs++;
      sync.segments.push(segment);
      this.#env.disk.submit(op);
    }
  }

  #onFailed(fault: DiskFault): void {
    if (this.#failed || canary.armed === "retry-failed-sync") return;
    this.#failed = true;
    this.#onFault(fault);
  }

  #onEnded(sync: Sync): void {
    this.#running--;
    for (const segment of sync.segments) {
      segment.pins--;
      segment.syncs--;
    }
    this.msMax = Math.max(this.msMax, this.#env.clock.now() - sync.startedAt);
    if (this.#failed) {
      sync.segments.length = 0;
      this.#onIdle();
      return;
    }
    if (sync.target > this.synced) this.synced = sync.target;
    let kept = 0;
    for (const segment of this.#dirty) if (segment.lastGroup > this.synced) this.#dirty[kept++] = segment;
    this.#dirty.length = kept;
    for (const segment of sync.segments) if (segment.sealed) this.#closeMore(segment);
    sync.segments.length = 0;
    const waiters = this.#waiters;
    this.#waiters = this.#told;
    this.#told = waiters;
    for (const waiter of waiters) {
      if (waiter.group > this.synced) {
        this.#waiters.push(waiter);
        continue;
      }
      waiter.done("ok");
      this.#spares.push(waiter);
    }
    waiters.length = 0;
    this.#startOne();
    this.#onIdle();
  }

  /** Opens the segment that is being written once more, so that another sync can run. */
  #openMore(): void {
    const segment = this.#dirty[this.#dirty.length - 1]!;
    if (this.#opening > 0 || segment.sealed || segment === this.#refused) return;
    if (segment.moreFiles.length === SYNCS_MAX - 1) return;
    this.#opening++;
    segment.pins++;
    start(
      this.#store.open(segment.number),
      (file) => {
        this.#opening--;
        segment.pins--;
        if (isDiskFault(file)) this.#refused = segment;
        else segment.moreFiles.push(file);
        if (segment.sealed) this.#closeMore(segment);
        this.#startOne();
        this.#onIdle();
      },
      (error) => {
        throw error;
      },
    );
  }

  /** Closes the further descriptors of a segment that needs no sync any more. */
  #closeMore(segment: Segment): void {
    if (segment.moreFiles.length === 0 || segment.syncs > 0 || this.isDirty(segment)) return;
    for (const file of segment.moreFiles.splice(0)) {
      this.#opening++;
      this.#store.close(file)(() => {
        this.#opening--;
        this.#onIdle();
      });
    }
  }
}
