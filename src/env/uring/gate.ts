/**
 * When receives begin: behind whatever the round sends, since an answer on its way is worth more than an early look at a
 * socket; or, where `Gathering` says so, together after some time.
 */
import { performance } from "node:perf_hooks";
import { type Flow, Gathering } from "./gathering.ts";
import type { Request, Ring } from "./ring.ts";

/** A line that has been asked to receive; it may have been closed by the time that it may. */
export interface Receiver {
  goOn(): void;
}

export class Gate {
  readonly #ring: Ring;
  readonly #gathering = new Gathering(() => performance.now());
  /** The first so many of a list count: one that is cut gives its room back, and has to get it again. */
  readonly #next: Receiver[] = [];
  #nextCount = 0;
  readonly #held: Receiver[] = [];
  #heldCount = 0;
  readonly #timer: Request = { index: 0, complete: () => this.#open() };

  constructor(ring: Ring) {
    this.#ring = ring;
    ring.register(this.#timer);
  }

  /** Whether some are held back: then the lane knows what it is waiting for. */
  get isShut(): boolean {
    return this.#heldCount > 0;
  }

  /** @param requests how many the last receive of this line has brought. Whether the next one should be held back. */
  choose(flow: Flow, requests: number): boolean {
    return this.#gathering.choose(flow, requests);
  }

  hold(one: Receiver): void {
    if (this.#heldCount === 0) this.#ring.prepareTimeout(this.#timer, this.#gathering.begin());
    this.#held[this.#heldCount++] = one;
  }
  next(one: Receiver): void {
    this.#next[this.#nextCount++] = one;
  }

  /** The round has prepared what it sends. Receivers only prepare: none is added meanwhile. */
  goOn(): void {
    for (let at = 0; at < this.#nextCount; at++) this.#next[at]!.goOn();
    this.#nextCount = 0;
  }

  #open(): void {
    for (let at = 0; at < this.#heldCount; at++) this.next(this.#held[at]!);
    this.#heldCount = 0;
  }
}
