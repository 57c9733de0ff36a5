/**
 * The content oracle: what each block of a volume may contain. Every write stamps its blocks with volume, block and a
 * generation of its own, all through the block, so that whatever comes back says where it belongs and when it was
 * written, and a block that is half one write and half another is seen. The model keeps for each block what has been
 * acknowledged and what is still in flight; there is at most one write in flight per block.
 */
import type { Chance } from "./random.ts";

export const BLOCK_BYTES = 4096;
const WORDS = BLOCK_BYTES / 4;
/** The generation of a block that reads as zeroes: never written, trimmed, or zeroed. */
const ZERO = 0;
const NONE = -1;

export class Oracle {
  readonly volume: number;
  readonly blockCount: number;
  /** What is acknowledged, and what may be there instead since its write never was; NONE if nothing is in flight. */
  readonly #certain: Int32Array;
  readonly #maybe: Int32Array;
  #generation = 1;

  constructor(volume: number, blockCount: number) {
    this.volume = volume;
    this.blockCount = blockCount;
    this.#certain = new Int32Array(blockCount);
    this.#maybe = new Int32Array(blockCount).fill(NONE);
  }

  /** The same blocks with the same content, for a snapshot or a clone taken at rest. */
  copy(): Oracle {
    const other = new Oracle(this.volume, this.blockCount);
    other.#certain.set(this.#certain);
    other.#maybe.set(this.#maybe);
    // Clones share the stamp of their volume; their generations must not.
    other.#generation = this.#generation + 0x100_0000;
    return other;
  }

  /** A range of up to `countMax` blocks none of which is being written, or undefined when it finds none quickly. */
  freeRange(chance: Chance, countMax: number): { first: number; count: number } | undefined {
    for (let attempt = 0; attempt < 20; attempt++) {
      const first = chance.below(this.blockCount);
      const count = Math.min(1 + chance.below(countMax), this.blockCount - first);
      if (this.#maybe.subarray(first, first + count).every((generation) => generation === NONE))
        return { first, count };
    }
    return undefined;
  }

  /** A write of these blocks begins; returns its data. */
  beginWrite(first: number, count: number): Uint8Array {
    const generation = this.#generation++;
    this.#maybe.fill(generation, first, first + count);
    const words = new Uint32Array(count * WORDS);
    for (let block = 0; block < count; block++)
      stamp(words.subarray(block * WORDS, (block + 1) * WORDS), this.volume, first + block, generation);
    return new Uint8Array(words.buffer);
  }

  /** A trim or a zeroing of these blocks begins. */
  beginZero(first: number, count: number): void {
    this.#maybe.fill(ZERO, first, first + count);
  }

  /** What was begun has been acknowledged. */
  acknowledge(first: number, count: number): void {
    for (let block = first; block < first + count; block++) {
      this.#certain[block] = this.#maybe[block]!;
      this.#maybe[block] = NONE;
    }
  }

  /** What was begun has been refused, and must have changed nothing. */
  refuse(first: number, count: number): void {
    this.#maybe.fill(NONE, first, first + count);
  }

  /**
   * Checks blocks that were read while nothing was being written to them. Returns what is wrong with the first one that
   * is wrong. What was in flight is settled by it: from now on it is what has been seen.
   */
  check(first: number, data: Uint8Array): string | undefined {
    const words = new Uint32Array(data.buffer, data.byteOffset, data.byteLength / 4);
    for (let index = 0; index < words.length / WORDS; index++) {
      const block = first + index;
      const found = generationOf(words.subarray(index * WORDS, (index + 1) * WORDS), this.volume, block);
      if (typeof found === "string") return `block ${block} ${found}; ${this.#expected(block)}`;
      if (found !== this.#certain[block] && (this.#maybe[block] === NONE || found !== this.#maybe[block]))
        return `block ${block} has generation ${found}; ${this.#expected(block)}`;
      this.#certain[block] = found;
      this.#maybe[block] = NONE;
    }
    return undefined;
  }

  #expected(block: number): string {
    const maybe = this.#maybe[block] === NONE ? "" : ` or ${this.#maybe[block]} (in flight)`;
    return `expected ${this.#certain[block]}${maybe}`;
  }
}

function stamp(words: Uint32Array, volume: number, block: number, generation: number): void {
  for (let at = 0; at < WORDS; at += 4) {
    words[at] = volume;
    words[at + 1] = block;
    words[at + 2] = generation;
    words[at + 3] = Math.imul(at ^ block ^ Math.imul(generation, 0x9e3779b1), 0x85ebca77);
  }
}

/** The generation of a whole block, or what is wrong with it. */
function generationOf(words: Uint32Array, volume: number, block: number): number | string {
  const generation = words[2]!;
  if (generation === ZERO) {
    const at = words.findIndex((word) => word !== 0);
    return at < 0 ? ZERO : `begins with zeroes, and has data at byte ${at * 4}`;
  }
  const whole = new Uint32Array(WORDS);
  stamp(whole, volume, block, generation);
  const at = whole.findIndex((word, index) => word !== words[index]);
  if (at < 0) return generation;
  if (at < 2) return `has the stamp of volume ${words[0]}, block ${words[1]}, generation ${generation}`;
  return `is of generation ${generation} up to byte ${at * 4}, then something else (${words[(at & ~3) + 2]})`;
}
