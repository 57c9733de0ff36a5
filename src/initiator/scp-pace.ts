/**
 * How long a network's answers take, and so how long its sockets may be silent before they are given up. It is kept by
 * address, over sessions. Two things make it longer: round trips that take long, and sockets that were given up too
 * early, which shows when the same network takes a new one at once. A network that was really cut does not.
 */
import type { Millis } from "#base/units";

/** A new socket so soon after one was given up: the network was slow, and not dead. */
const TOO_EARLY_MS = 500;
/** A connection whose first packet was lost is there soon after the system has sent it again. */
const SYN_AGAIN_MS = 1_000;
const SYN_ANSWERED_MS = 1_300;
/** Weight of the newest round trip in the average, and how many of them a silence may last. */
const ROUND_TRIP_WEIGHT = 0.25;
const ROUND_TRIPS = 2;
/** Doubled at most once in the first of these, up to the third, and halved after the second. */
const STEP_MS = 100;
const CALM_MS = 10_000;
const FACTOR_MAX = 128;

export class Pace {
  /** Of dials and pings, averaged; 0 until one was seen. */
  roundTripMs: Millis = 0;
  #factor = 1;
  #factorSince: Millis = Number.NEGATIVE_INFINITY;
  #givenUpAt: Millis = Number.NEGATIVE_INFINITY;
  /** The last dial took as long as one whose first packet was lost. */
  #wasLost = false;

  /** `wait`, as this network needs it, and at most `longest`. */
  stretch(wait: Millis, longest: Millis, now: Millis): Millis {
    while (this.#factor > 1 && now - this.#factorSince > CALM_MS) {
      this.#factor /= 2;
      this.#factorSince += CALM_MS;
    }
    return Math.min((wait + ROUND_TRIPS * this.roundTripMs) * this.#factor, longest);
  }

  /** A ping was answered after `took`. */
  answered(took: Millis): void {
    this.#wasLost = false;
    this.roundTripMs = this.roundTripMs === 0 ? took : this.roundTripMs + ROUND_TRIP_WEIGHT * (took - this.roundTripMs);
  }

  /** A socket was closed because it said nothing. */
  givenUp(now: Millis): void {
    this.#givenUpAt = now;
  }

  /** A socket was opened, and that took so long. */
  opened(now: Millis, took: Millis): void {
    const since = now - this.#givenUpAt;
    this.#givenUpAt = Number.NEGATIVE_INFINITY;
    // Twice in a row, without an answer in between, it is the network that takes so long.
    if (took >= SYN_AGAIN_MS && took < SYN_ANSWERED_MS && !this.#wasLost) {
      this.#wasLost = true;
      return;
    }
    this.answered(took);
    if (since > TOO_EARLY_MS || now - this.#factorSince < STEP_MS) return;
    this.#factor = Math.min(2 * this.#factor, FACTOR_MAX);
    this.#factorSince = now;
  }
}
