/**
 * Data that tells where it belongs: every logical block that a simulated host writes carries the write's stamp and its own
 * place, and then a stretch of random words that depends on both. Stamp 0 is a block of zeroes.
 */
import { Chance } from "../env/chance.ts";

/** What `stampOf` answers for a block that no write can have made: torn, misplaced or damaged. */
export const GARBLED = -1;

const STAMP_FACTOR = 0x9e3779b1;
const BLOCK_FACTOR = 0x85ebca6b;
const BLOCK_WORDS_MAX = 1024;
const HEAD_WORDS = 2;

/** Blocks are stretches of this, so that filling and comparing them is a copy and a comparison of memory. */
const STRETCHES = 65_536;
const noise = new Int32Array(STRETCHES + BLOCK_WORDS_MAX);
const noiseBytes = Buffer.from(noise.buffer);
new Chance(1).fill(noiseBytes);

/** Byte of the noise where the stretch of a block begins. */
function stretchAt(stamp: number, block: number): number {
  const mixed = Math.imul(stamp, STAMP_FACTOR) ^ Math.imul(block, BLOCK_FACTOR);
  return ((mixed ^ (mixed >>> 15)) & (STRETCHES - 1)) * 4;
}

/** Fills `length` bytes at `at` with what the write `stamp` puts into the blocks from `block` on. */
export function fillPattern(
  words: Int32Array,
  at: number,
  length: number,
  blockSize: number,
  block: number,
  stamp: number,
): void {
  if (stamp === 0) {
    words.fill(0, at / 4, (at + length) / 4);
    return;
  }
  const perBlock = blockSize / 4;
  for (let start = at / 4; start < (at + length) / 4; start += perBlock, block++) {
    const from = stretchAt(stamp, block) / 4;
    words.set(noise.subarray(from, from + perBlock - HEAD_WORDS), start + HEAD_WORDS);
    words[start] = stamp;
    words[start + 1] = block | 0;
  }
}

/** The stamp of the block whose content lies at `at`, or GARBLED. */
export function stampOf(words: Int32Array, at: number, blockSize: number, block: number): number {
  const start = at / 4;
  const stamp = words[start]!;
  if (stamp === 0) {
    for (let word = start; word < start + blockSize / 4; word++) if (words[word] !== 0) return GARBLED;
    return 0;
  }
  if (words[start + 1] !== (block | 0)) return GARBLED;
  const from = stretchAt(stamp, block);
  const body = new Uint8Array(words.buffer, words.byteOffset + at + HEAD_WORDS * 4, blockSize - HEAD_WORDS * 4);
  return noiseBytes.compare(body, 0, body.length, from, from + body.length) === 0 ? stamp : GARBLED;
}
