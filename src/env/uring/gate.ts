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
  #next: Receiver[] = [];
  #held: Receiver[] = [];
  /** An empty list, to take the place of one whose receivers go on. */
  #spare: Receiver[] = [];
  readonly #timer: Request = { index: 0, complete: () => this.#open() };

  constructor(ring: Ring) {
    this.#ring = ring;
    ring.register(this.#timer);
  }

  /** Whether some are held back: then the lane knows what it is waiting for. */
  get isShut(): boolean {
    return this.#held.length > 0;
  }

  /** @param requests how many the last receive of this line has brought. Whether the next one should be held back. */
  choose(flow: Flow, requests: number): boolean {
    return this.#gathering.choose(flow, requests);
  }

  hold(one: Receiver): void {
    if (this.#held.length === 0) this.#ring.prepareTimeout(this.#timer, this.#gathering.begin());
    this.#held.push(one);
  }
  next(one: Receiver): void {
    this.#next.push(one);
  }

  /** The round has prepared what it sends. */
  goOn(): void {
    const next = this.#next;
    if (next.length === 0) return;
    this.#next = this.#spare;
    this.#spare = next;
    for (let at = 0; at < next.length; at++) next[at]!.goOn();
    next.length = 0;
  }

  #open(): void {
    const held = this.#held;
    for (let at = 0; at < held.length; at++) this.#next.push(held[at]!);
    held.length = 0;
  }
}
