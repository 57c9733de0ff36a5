/**
 * Data that tells where it belongs: every logical block that a simulated host writes carries the write's stamp and its own
 * place, and all of its words depend on both. Stamp 0 is a block of zeroes.
 */

/** What `stampOf` answers for a block that no write can have made: torn, misplaced or damaged. */
export const GARBLED = -1;

const STAMP_FACTOR = 0x9e3779b1;
const WORD_FACTOR = 0x85ebca6b;

/** Fills `length` bytes at `at` with what the write `stamp` puts into the blocks from `block` on. */
export function fillPattern(
  words: Int32Array,
  at: number,
  length: number,
  blockSize: number,
  block: number,
  stamp: number,
): void {
  const perBlock = blockSize / 4;
  const first = at / 4;
  if (stamp === 0) {
    words.fill(0, first, first + length / 4);
    return;
  }
  for (let start = first; start < first + length / 4; start += perBlock, block++) {
    words[start] = stamp;
    words[start + 1] = block | 0;
    let value = Math.imul(stamp, STAMP_FACTOR) ^ Math.imul(block, WORD_FACTOR);
    for (let word = start + 2; word < start + perBlock; word++) {
      words[word] = value;
      value = (value + STAMP_FACTOR) | 0;
    }
  }
}

/** The stamp of the block whose content lies at `at`, or GARBLED. */
export function stampOf(words: Int32Array, at: number, blockSize: number, block: number): number {
  const start = at / 4;
  const end = start + blockSize / 4;
  const stamp = words[start]!;
  if (stamp === 0) {
    for (let word = start; word < end; word++) if (words[word] !== 0) return GARBLED;
    return 0;
  }
  if (words[start + 1] !== (block | 0)) return GARBLED;
  let value = Math.imul(stamp, STAMP_FACTOR) ^ Math.imul(block, WORD_FACTOR);
  for (let word = start + 2; word < end; word++) {
    if (words[word] !== value) return GARBLED;
    value = (value + STAMP_FACTOR) | 0;
  }
  return stamp;
}
