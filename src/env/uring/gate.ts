/** Holds receives back until the time that `Gathering` has given them is over, and lets them go together. */
import { performance } from "node:perf_hooks";
import { type Flow, Gathering } from "./gathering.ts";
import type { Request, Ring } from "./ring.ts";

/** Receives when the gate opens; it may have been closed meanwhile. */
export interface Held {
  goOn(): void;
}

export class Gate {
  readonly #ring: Ring;
  readonly #gathering = new Gathering(() => performance.now());
  #waiting: Held[] = [];
  #leaving: Held[] = [];
  readonly #timer: Request = { index: 0, complete: () => this.#open() };

  constructor(ring: Ring) {
    this.#ring = ring;
    ring.register(this.#timer);
  }

  /** Whether some are held back: then the lane knows what it is waiting for. */
  get isShut(): boolean {
    return this.#waiting.length > 0;
  }

  /** @param requests how many the last receive of this line has brought. Whether the next one should be held back. */
  choose(flow: Flow, requests: number): boolean {
    return this.#gathering.choose(flow, requests);
  }

  hold(one: Held): void {
    if (this.#waiting.length === 0) this.#ring.prepareTimeout(this.#timer, this.#gathering.begin());
    this.#waiting.push(one);
  }

  #open(): void {
    const leaving = this.#waiting;
    this.#waiting = this.#leaving;
    this.#leaving = leaving;
    for (let at = 0; at < leaving.length; at++) leaving[at]!.goOn();
    leaving.length = 0;
  }
}
