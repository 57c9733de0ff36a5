/** Seeded chance: sfc32, a small generator that passes PractRand, filled from the seed by splitmix32. Not for secrets. */
export class Chance {
  #a: number;
  #b: number;
  #c: number;
  #d = 1;

  /** @param seed any whole number; its low 53 bits count. */
  constructor(seed: number) {
    let state = (Math.floor(seed / 0x1_0000_0000) ^ Math.imul(seed | 0, 0x9e3779b1)) | 0;
    const split = (): number => {
      state = (state + 0x9e3779b9) | 0;
      let mixed = Math.imul(state ^ (state >>> 16), 0x21f0aaad);
      mixed = Math.imul(mixed ^ (mixed >>> 15), 0x735a2d97);
      return mixed ^ (mixed >>> 15);
    };
    this.#a = split();
    this.#b = split();
    this.#c = split();
    for (let i = 0; i < 12; i++) this.next();
  }

  /** 32 random bits. */
  next(): number {
    const sum = (this.#a + this.#b + this.#d) | 0;
    this.#d = (this.#d + 1) | 0;
    this.#a = this.#b ^ (this.#b >>> 9);
    this.#b = (this.#c + (this.#c << 3)) | 0;
    this.#c = (((this.#c << 21) | (this.#c >>> 11)) + sum) | 0;
    return sum >>> 0;
  }

  /** A whole number from 0 to `limit - 1`; `limit` from 1 to 2^32. */
  below(limit: number): number {
    return Math.floor((this.next() / 0x1_0000_0000) * limit);
  }

  /** A whole number from `first` to `final`, both included. */
  between(first: number, final: number): number {
    return first + this.below(final - first + 1);
  }

  /** A number from 0 (included) to 1 (excluded). */
  fraction(): number {
    return this.next() / 0x1_0000_0000;
  }

  /** True with `probability` from 0 to 1. Zero and one draw nothing, so a fault that is switched off costs no chance. */
  often(probability: number): boolean {
    if (probability <= 0) return false;
    return probability >= 1 || this.fraction() < probability;
  }

  pick<T>(from: readonly T[]): T {
    return from[this.below(from.length)]!;
  }

  /** A span that is mostly near `typical` and now and then ten times as long. */
  span(typical: number): number {
    const stretched = this.below(16) === 0 ? 10 : 1;
    return typical * stretched * (0.5 + this.fraction());
  }

  fill(to: Uint8Array): void {
    for (let i = 0; i < to.length; i++) to[i] = this.next() & 0xff;
  }

  /** A generator of its own, so that what one part draws does not shift what another part sees. */
  fork(): Chance {
    return new Chance(this.next() * 0x20_0000 + (this.next() >>> 11));
  }
}
