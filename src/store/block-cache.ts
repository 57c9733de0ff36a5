/**
 * Blocks that were read lately, in the lane's memory: a hit costs one copy, where the page cache costs a system call, the
 * same copy and a checksum. It stands before the page cache and not in its place: what it has not is read there.
 *
 * A block is known by its segment and its place in that, not by volume and offset. A place in a segment is written once, so
 * nothing in here is ever out of date: who writes a block gives it another place, and nobody asks for the old one again.
 * Snapshots and clones share here what they share on the disk. A segment is given a number here, never used twice, so that
 * what is left of one that is gone is nobody else's.
 *
 * Eight ways per set; of those that were used since the hand came by last, each has a second chance (CLOCK). Neighbours lie in
 * neighbouring sets, so that a volume of the size of the cache fills all of them alike. A set that has room takes
 * everything. One that is full takes only what it has refused a short while ago: who reads everything once does not empty it.
 */
import { canary } from "#base/canary";
import type { Memory } from "#base/memory";
import { BLOCK_BYTES, type Bytes } from "#base/units";
import { SLOT_BLOCKS } from "./format.ts";
import type { Segment } from "./segment.ts";

const WAYS = 8;
/** A set in the table: the keys of its ways, then their places in memory. Together they are a line of the processor's cache. */
const SET_WORDS = 2 * WAYS;
/** So many blocks that it refused last a set remembers. */
const REFUSED = 4;
/** Numbers of segments that a key of 32 bits tells apart. */
const NUMBERS = 2 ** 32 / SLOT_BLOCKS;

export interface BlockCacheFacts {
  readonly size: Bytes;
  readonly used: Bytes;
  /** Blocks that were asked for, and were here or were not, since the lane began. */
  readonly hits: number;
  readonly misses: number;
}

export class BlockCache {
  readonly #memory: Memory;
  readonly #sets: number;
  /** Keys and places from 1 on, 0 where there is none. A way gets its place when it is first used, and keeps it. */
  readonly #table: Int32Array;
  readonly #refused: Int32Array;
  /** A bit for each way of a set that was used since the hand came by. */
  readonly #used: Uint8Array;
  /** Which way the hand of each set points to, and which refusal is the oldest. */
  readonly #hand: Uint8Array;
  readonly #oldest: Uint8Array;
  /** Places given to ways: memory is touched in order, so that it grows with what is here. */
  #places = 0;
  /** The numbers of segments that count: smaller ones are from before the table was emptied. */
  #firstNumber = 1;
  #lastNumber = 0;
  #hits = 0;
  #misses = 0;

  /** @param memory `cacheBytes` of it are the cache's. */
  constructor(memory: Memory) {
    this.#memory = memory;
    const sets = Math.floor(memory.cacheBytes / (WAYS * BLOCK_BYTES));
    // An odd number: strides of powers of two, which hosts have, then meet all sets.
    this.#sets = sets === 0 ? 0 : sets - 1 + (sets % 2);
    this.#table = new Int32Array(this.#sets * SET_WORDS);
    this.#refused = new Int32Array(this.#sets * REFUSED);
    this.#used = new Uint8Array(this.#sets);
    this.#hand = new Uint8Array(this.#sets);
    this.#oldest = new Uint8Array(this.#sets);
  }

  get facts(): BlockCacheFacts {
    return {
      size: this.#sets * WAYS * BLOCK_BYTES,
      used: this.#places * BLOCK_BYTES,
      hits: this.#hits,
      misses: this.#misses,
    };
  }

  /** Copies up to `count` blocks of a segment from `block` on to memory at `at`, up to the first that is not here; how many. */
  read(segment: Segment, block: number, count: number, at: number): number {
    if (segment.cacheNumber < this.#firstNumber) {
      this.#misses++;
      return 0;
    }
    const { bytes } = this.#memory;
    for (let done = 0; done < count; done++) {
      const place = this.#find(keyOf(segment, block + done));
      if (place === 0) {
        this.#misses++;
        return done;
      }
      const from = this.#addressOf(place);
      bytes.copyWithin(at + done * BLOCK_BYTES, from, from + BLOCK_BYTES);
      this.#hits++;
    }
    return count;
  }

  /** The place of a block, or 0. */
  #find(key: number): number {
    const set = (key >>> 0) % this.#sets;
    const first = set * SET_WORDS;
    for (let way = 0; way < WAYS; way++)
      if (this.#table[first + way] === key) {
        this.#used[set]! |= 1 << way;
        return this.#table[first + WAYS + way]!;
      }
    return 0;
  }

  /** `count` blocks of a segment from `block` on lie at `at`, read from the disk and found right: they may be kept. */
  offer(segment: Segment, block: number, count: number, at: number): void {
    if (this.#sets === 0) return;
    if (segment.cacheNumber < this.#firstNumber) this.#number(segment);
    for (let each = 0; each < count; each++) this.#offer(keyOf(segment, block + each), at + each * BLOCK_BYTES);
  }

  #offer(key: number, at: number): void {
    const set = (key >>> 0) % this.#sets;
    const way = this.#wayFor(key, set);
    if (way < 0) return;
    const index = set * SET_WORDS + way;
    this.#table[index] = key;
    if (this.#table[index + WAYS] === 0) this.#table[index + WAYS] = ++this.#places;
    this.#memory.bytes.copyWithin(this.#addressOf(this.#table[index + WAYS]!), at, at + BLOCK_BYTES);
  }

  /** Which way of its set a block is to have; -1 if none. */
  #wayFor(key: number, set: number): number {
    const first = set * SET_WORDS;
    let free = -1;
    for (let way = WAYS - 1; way >= 0; way--) {
      const there = this.#table[first + way];
      // Somebody else has read it at the same time.
      if (there === key) return -1;
      if (there === 0) free = way;
    }
    if (free >= 0) return free;
    if (!this.#wasRefused(key, set)) return -1;
    let way = this.#hand[set]!;
    while ((this.#used[set]! & (1 << way)) !== 0) {
      this.#used[set]! &= ~(1 << way);
      way = (way + 1) % WAYS;
    }
    this.#hand[set] = (way + 1) % WAYS;
    return way;
  }

  /** Whether a set has refused a block lately; if not, it does so now. */
  #wasRefused(key: number, set: number): boolean {
    const first = set * REFUSED;
    for (let each = 0; each < REFUSED; each++)
      if (this.#refused[first + each] === key) {
        this.#refused[first + each] = 0;
        return true;
      }
    const oldest = this.#oldest[set]!;
    this.#refused[first + oldest] = key;
    this.#oldest[set] = (oldest + 1) % REFUSED;
    return false;
  }

  /** Gives a segment its number. When there are no more of them, everything is forgotten: after 16 TiB of segments. */
  #number(segment: Segment): void {
    this.#lastNumber++;
    if (this.#lastNumber - this.#firstNumber >= NUMBERS) {
      this.#table.fill(0);
      this.#refused.fill(0);
      this.#places = 0;
      this.#firstNumber = this.#lastNumber;
    }
    segment.cacheNumber = canary.armed === "cache-number-reused" ? segment.slot : this.#lastNumber;
  }

  #addressOf(place: number): number {
    return this.#memory.cacheAt + (place - 1) * BLOCK_BYTES;
  }
}

/** Never 0: block 0 of a segment is its header, which no version maps. */
const keyOf = (segment: Segment, block: number): number => (Math.imul(segment.cacheNumber, SLOT_BLOCKS) + block) | 0;
