/**
 * Decides whether a line's next receive is held back for some tens of microseconds, and for how long.
 *
 * A lane that is faster than its clients finds one request each time it looks, with every one it gives one answer, and
 * both sides pay for calls, packets and wakings as if they had nothing else in flight. Held back a little, receives bring
 * several requests each, which are answered together, and a client that keeps many in flight goes on with the answers it
 * has meanwhile. Nobody tells how many it keeps. So a receive is held back now and then to see what it brings; lines where
 * that is company are "deep". What holding their receives does to the rate depends on the depth, on the client and on what
 * it costs this machine to sleep and to wake: both ways are tried in turn, for some milliseconds each and the other way
 * seldom, and the rates are compared with those just before and after. As many with holding is better, since it takes less
 * of the processor.
 */
import type { Millis } from "#base/units";

/**
 * Receives until the first trial of a line, and the rarest: a client with one request in flight must not find it in its
 * 99th percentile.
 */
export const TRIAL_FIRST = 64;
const TRIAL_LAST = 4096;
/** So many requests in one receive are company. */
const COMPANY = 3;
const POOR_MAX = 3;

/** What a hold should bring from a line, and from all: the processor's cache holds what they bring. */
const WANTED_OF_LINE = 14;
const WANTED_MAX = 40;
/** How long a hold may be, in microseconds, how long the first one is, and how much longer or shorter the next at most. */
const MICROS_MIN = 20;
const MICROS_MAX = 150;
export const MICROS_FIRST = 80;
const STEP = 1.25;

/** Receives between two looks at the clock, and the time over which a rate is counted. */
const LOOK_EVERY = 16;
const EPOCH_MS = 30;
/** Below this rate, per millisecond, the lane has time for each request: nothing is held back. */
const RATE_MIN = 20;
/** The other way is tried for one epoch in so many; twice as many each time that it is not better, most where that is clear. */
const EPOCHS_FIRST = 4;
const EPOCHS_LAST = 24;
const EPOCHS_LAST_CLEAR = 64;
const CLEAR = 0.15;
/** Weight of the newest comparison, and what rate with holding is as good as without: it spares a third of the processor. */
const NEWEST = 1 / 6;
const AS_GOOD = 0.95;

/** What is known of one line. */
export class Flow {
  /** Its last receive was held back. */
  held = false;
  /** It has kept several requests in flight so far. */
  deep = false;
  /** Receives until one is held back to see what it brings, and how many it will be after that one. */
  trialIn = TRIAL_FIRST;
  trialEvery = TRIAL_FIRST;
  /** Held receives in a row that brought little. */
  poor = 0;
}

export class Gathering {
  readonly #now: () => Millis;
  #micros = MICROS_FIRST;
  /** What deep lines have brought since the last hold began, and how many they were. */
  #came = 0;
  #lines = 0;

  /** Whether there is so much to do that it matters; then, whether deep lines are held back, but for epochs of trial. */
  #busy = false;
  #holds = true;
  /** Their rate with holding, as a part of that without. */
  #gain = 1;
  /** "after" is the epoch that completes the comparison with a trial. */
  #phase: "usual" | "trial" | "after" = "usual";
  #trialIn = EPOCHS_FIRST;
  #trialEvery = EPOCHS_FIRST;
  /** Requests and receives of this epoch, whether one of them was a deep line's, and when it began. */
  #requests = 0;
  #receives = 0;
  #deep = false;
  #began: Millis = 0;
  /** Rates of the last two epochs, 0 where they said nothing. */
  #last = 0;
  #beforeLast = 0;

  constructor(now: () => Millis) {
    this.#now = now;
  }

  /** @param requests how many came with the last receive of `flow`. Whether its next one is to be held back. */
  choose(flow: Flow, requests: number): boolean {
    this.#requests += requests;
    if (++this.#receives % LOOK_EVERY === 0) this.#look();
    if (flow.held) this.#note(flow, requests);
    if (flow.deep) {
      this.#deep = true;
      flow.held = this.#busy && this.#holds !== (this.#phase === "trial");
    } else {
      flow.held = --flow.trialIn <= 0;
    }
    return flow.held;
  }

  /** A hold begins. For how many microseconds? */
  begin(): number {
    if (this.#came > 0) {
      const change = Math.min(WANTED_MAX, WANTED_OF_LINE * this.#lines) / this.#came;
      const micros = this.#micros * Math.min(STEP, Math.max(1 / STEP, change));
      this.#micros = Math.min(MICROS_MAX, Math.max(MICROS_MIN, micros));
      this.#came = this.#lines = 0;
    }
    return this.#micros;
  }

  #note(flow: Flow, requests: number): void {
    if (requests >= COMPANY) {
      flow.deep = true;
      flow.poor = 0;
      flow.trialEvery = TRIAL_FIRST;
    } else if (!flow.deep || ++flow.poor === POOR_MAX) {
      flow.deep = false;
      flow.poor = 0;
      flow.trialIn = flow.trialEvery;
      flow.trialEvery = Math.min(TRIAL_LAST, flow.trialEvery * 2);
    }
    if (!flow.deep) return;
    this.#came += requests;
    this.#lines++;
  }

  #look(): void {
    const now = this.#now();
    const passed = now - this.#began;
    if (passed < EPOCH_MS) return;
    const rate = this.#requests / passed;
    // Too long: there was nothing to do for a while, and this was no epoch.
    this.#endEpoch(this.#deep && passed < 2 * EPOCH_MS && rate >= RATE_MIN ? rate : 0);
    this.#began = now;
    this.#requests = 0;
    this.#receives = 0;
    this.#deep = false;
  }

  /** @param rate of the epoch, 0 if it says nothing. */
  #endEpoch(rate: number): void {
    this.#busy = rate > 0;
    if (this.#phase === "trial") {
      this.#phase = "after";
    } else if (this.#phase === "after") {
      this.#phase = "usual";
      this.#trialIn = this.#trialEvery;
      if (rate > 0 && this.#last > 0 && this.#beforeLast > 0)
        this.#compare((2 * this.#last) / (this.#beforeLast + rate));
    } else if (--this.#trialIn <= 0 && rate > 0) {
      this.#phase = "trial";
    }
    this.#beforeLast = this.#last;
    this.#last = rate;
  }

  /** @param ratio of the rate of a trial to that of the epochs around it. */
  #compare(ratio: number): void {
    this.#gain += ((this.#holds ? 1 / ratio : ratio) - this.#gain) * NEWEST;
    const holds = this.#gain >= AS_GOOD;
    const last = Math.abs(this.#gain - 1) > CLEAR ? EPOCHS_LAST_CLEAR : EPOCHS_LAST;
    this.#trialEvery = holds === this.#holds ? Math.min(last, this.#trialEvery * 2) : EPOCHS_FIRST;
    this.#trialIn = this.#trialEvery;
    this.#holds = holds;
  }
}
