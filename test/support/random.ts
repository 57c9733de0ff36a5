/** Chance from a seed: the same seed, the same test. A failing test prints the seed that it was given. */
export class Chance {
  readonly seed: number;
  #state: number;

  constructor(seed: number) {
    this.seed = seed;
    this.#state = seed >>> 0;
  }

  /** A whole number from 0 to `limit - 1`. (Mulberry32: 32 bits of state are plenty for a test.) */
  below(limit: number): number {
    this.#state = (this.#state + 0x6d2b79f5) >>> 0;
    let z = this.#state;
    z = Math.imul(z ^ (z >>> 15), z | 1);
    z ^= z + Math.imul(z ^ (z >>> 7), z | 61);
    return Math.floor((((z ^ (z >>> 14)) >>> 0) / 0x1_0000_0000) * limit);
  }

  pick<T>(choices: readonly T[]): T {
    return choices[this.below(choices.length)]!;
  }

  /** True once in `times` on average. */
  oneIn(times: number): boolean {
    return this.below(times) === 0;
  }
}

/** The seed of a run: `ASHLAR_SEED`, or a new one; told, so that a failure can be had again. */
export function chance(tell: (line: string) => void): Chance {
  const given = process.env["ASHLAR_SEED"];
  const seed = given === undefined ? Math.floor(Math.random() * 0x1_0000_0000) : Number(given);
  tell(`ASHLAR_SEED=${seed}`);
  return new Chance(seed);
}
