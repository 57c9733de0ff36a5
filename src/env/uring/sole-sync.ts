/**
 * Decides who makes a sync. The ring gives it to a thread of the kernel's, so that the lane can go on meanwhile; but that
 * thread must be woken, mostly on another processor, and the lane after it: of the 500 µs that a write and a flush of one
 * client take on a virtual machine with a good disk, that is 100. A client that writes, flushes and waits leaves the lane
 * nothing to go on with. So when nothing else came during the last few syncs, and all of them were quick, the lane makes
 * the next one itself, once it has nothing more to do; and when something has come meanwhile, or it took long, it does not
 * for the next few.
 */
import type { Millis } from "#base/units";

/** So many syncs in a row must have been quick and alone. */
const SOLE_SYNCS = 16;
/** A sync that takes longer than this waits for something else than a good disk, or for much data. */
const QUICK_MS = 2;

export class SoleSync {
  #sole = 0;

  /** Whether the lane may wait for the next sync. */
  get mayBlock(): boolean {
    return this.#sole >= SOLE_SYNCS;
  }

  /** A sync took so long, and nothing else has `come` meanwhile, or something has. */
  note(took: Millis, come: boolean): void {
    this.#sole = come || took > QUICK_MS ? 0 : this.#sole + 1;
  }
}
