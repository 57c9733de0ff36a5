/**
 * Whether files answer at once, from the page cache. Then a system call of the lane's own is a fraction of what it costs
 * to have a thread make it; but a lane must not wait for a disk. So calls are made directly until some in a row took
 * longer than the cache takes (one alone may have lost the processor to somebody), and by threads for a while after.
 */
// Imported, since the global one is a getter: with it, looking at the clock takes half as long again.
import { performance } from "node:perf_hooks";
import type { Bytes, Millis } from "#base/units";

/** Calls of more than this are left to threads: they copy for too long. */
export const DIRECT_BYTES_MAX = 512 * 1024;
const SLOW_COUNT = 3;
const AVOID_MS = 50;
/** The cache copies 1 GB/s, whatever else goes on. */
const MS_PER_BYTE = 1e-6;

export class Promptness {
  readonly #slowMs: Millis;
  #slow = 0;
  #avoidUntil: Millis = 0;
  #began: Millis = 0;

  /** A call that took longer than `slowMs`, not counting the time to copy, has waited for something. */
  constructor(slowMs: Millis) {
    this.#slowMs = slowMs;
  }

  /** True when a call of so many bytes may be made directly; then `end` must be called after it. */
  begin(bytes: Bytes): boolean {
    if (bytes === 0 || bytes > DIRECT_BYTES_MAX) return false;
    this.#began = performance.now();
    return this.#began >= this.#avoidUntil;
  }

  end(bytes: Bytes): void {
    const now = performance.now();
    this.#slow = now - this.#began > this.#slowMs + bytes * MS_PER_BYTE ? this.#slow + 1 : 0;
    if (this.#slow >= SLOW_COUNT) this.#avoidUntil = now + AVOID_MS;
  }
}

/** A write to the cache waits only when there are too many dirty pages. */
export const WRITE_SLOW_MS = 3;
/** A read from the quickest disks takes about this much. */
export const READ_SLOW_MS = 0.05;
