/** Chance from the operating system, fetched in handfuls. */
import { randomFillSync } from "node:crypto";
import type { Random } from "../env.ts";

const POOL_WORDS = 256;

export class NodeRandom implements Random {
  readonly #pool = new Uint32Array(POOL_WORDS);
  #next = POOL_WORDS;

  below(limit: number): number {
    // What lies above the last whole multiple of the limit would favour the small numbers.
    const fair = 2 ** 32 - (2 ** 32 % limit);
    for (;;) {
      if (this.#next === POOL_WORDS) {
        randomFillSync(this.#pool);
        this.#next = 0;
      }
      const word = this.#pool[this.#next++]!;
      if (word < fair) return word % limit;
    }
  }

  fill(to: Uint8Array): void {
    randomFillSync(to);
  }
}
