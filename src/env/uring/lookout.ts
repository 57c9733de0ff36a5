/**
 * Decides whether a lane that waits for its next completion stays awake for some tens of microseconds and looks for it,
 * or lets the kernel wake it. Looking saves the waking, which on an idle machine is most of a request's latency; but on a
 * busy one it takes the processor from the very client that is to send the next request, and wears out the thread's credit
 * with the scheduler. So it does not look while the scheduler takes the processor away from it; otherwise both are tried:
 * now and then a few waits are done the other way, and what has waited less is kept.
 */
import type { Millis } from "#base/units";

/** How long it looks. */
export const LOOK_MS = 0.08;
/** Completions per turn up to which requests come one by one; with more, company is worth more than haste. */
const CROWD_MAX = 3.5;
/** Of so many waits, the last few are done the other way: well under one in a hundred, or they would be the 99th percentile. */
const ROUND = 2048;
const TRIAL = 12;
/** Longer waits say nothing about how to wait. */
const WAIT_MS_MAX = 4 * LOOK_MS;
/** Looking costs, so it must save at least a fifth of the wait. */
const WORTH = 0.8;
/** Losing the processor more than `ROBBED_MAX` times between two checks means that others want it: no looking then. */
const CHECK_MS = 50;
const ROBBED_MAX = 20;
const NO_LOOK_MS = 1000;
/** Weight of the newest in the averages; of the few waits of a trial each says more. */
const NEWEST = 1 / 16;
const NEWEST_OF_TRIAL = 1 / 4;

export class Lookout {
  /** Averages: how long waits were when we slept and when we looked, and how many completions a turn has told. */
  #sleptMs: Millis = WAIT_MS_MAX;
  #lookedMs: Millis = WAIT_MS_MAX;
  #crowd = 0;
  #count = 0;
  #looks = false;
  #tries = false;
  readonly #preemptions: () => number;
  #preempted = 0;
  #checkAt: Millis = 0;
  #lookAgainAt: Millis = 0;

  /** @param preemptions how often the processor has been taken from this thread so far. */
  constructor(preemptions: () => number) {
    this.#preemptions = preemptions;
  }

  /** Whether to look this time. */
  choose(now: Millis): boolean {
    if (now >= this.#checkAt) this.#check(now);
    this.#count = (this.#count + 1) % ROUND;
    this.#tries = this.#count >= ROUND - TRIAL;
    const looking = this.#lookedMs < this.#sleptMs * WORTH;
    this.#looks = this.#crowd <= CROWD_MAX && now >= this.#lookAgainAt && looking !== this.#tries;
    return this.#looks;
  }

  #check(now: Millis): void {
    const preempted = this.#preemptions();
    if (preempted - this.#preempted > ROBBED_MAX) this.#lookAgainAt = now + NO_LOOK_MS;
    this.#preempted = preempted;
    this.#checkAt = now + CHECK_MS;
  }

  /** How long the wait was that `choose` was asked about. */
  noteWait(waited: Millis): void {
    const wait = Math.min(waited, WAIT_MS_MAX);
    const weight = this.#tries ? NEWEST_OF_TRIAL : NEWEST;
    if (this.#looks) this.#lookedMs += (wait - this.#lookedMs) * weight;
    else this.#sleptMs += (wait - this.#sleptMs) * weight;
  }

  noteCompletions(count: number): void {
    if (count > 0) this.#crowd += (count - this.#crowd) * NEWEST;
  }
}
