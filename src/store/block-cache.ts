/**
 * Blocks that were read lately, in the lane's memory: a hit costs one copy, where the page cache costs a system call, the
 * same copy and a checksum. It stands before the page cache and not in its place: what it has not is read there.
 *
 * A block is known by its segment and its place in that, not by volume and offset. A place in a segment is written once, so
 * nothing in here is ever out of date: who writes a block gives it another place, and nobody asks for the old one again. Its
 * way is free for another then, and the new block comes when it is read; only what the cleaner moves is carried along.
 * Snapshots and clones share here what they share on the disk. A segment is given a number here, never used twice, so that
 * what is left of one that is gone is nobody else's.
 *
 * Eight ways per set; of those that were used since the hand came by last, each has a second chance (CLOCK). Neighbours lie in
 * neighbouring sets, so that a volume of the size of the cache fills all of them alike. A set that has room takes
 * everything. One that is full takes only what it has refused a short while ago: who reads everything once does not empty it.
 */
import { canary } from "#base/canary";
import type { Memory } from "#base/memory";
import { BLOCK_BYTES, type Bytes, MIB } from "#base/units";
import { SLOT_BLOCKS } from "./format.ts";
import type { Segment } from "./segment.ts";

/** Longer runs are neither looked for here nor offered: per block, the disk's way costs them little. */
export const CACHED_BLOCKS_MAX = 8;
/** Memory for new places is asked for while there is still so much. */
const AHEAD_BYTES = 4 * MIB;
/** As many as the longest write has. */
const FORGOTTEN_BLOCKS_MAX = 256;
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
    const index = this.#indexOf(key, set);
    if (index < 0) return 0;
    this.#used[set]! |= 1 << (index % SET_WORDS);
    return this.#table[index + WAYS]!;
  }

  /** Where in the table a block stands, or -1. */
  #indexOf(key: number, set: number): number {
    const first = set * SET_WORDS;
    for (let index = first; index < first + WAYS; index++) if (this.#table[index] === key) return index;
    return -1;
  }

  /** `count` blocks of a segment from `block` on lie at `at`, read from the disk and found right: they may be kept. */
  offer(segment: Segment, block: number, count: number, at: number): void {
    if (this.#sets === 0) return;
    if (segment.cacheNumber < this.#firstNumber) this.#number(segment);
    for (let each = 0; each < count; each++) {
      const key = keyOf(segment, block + each);
      const set = (key >>> 0) % this.#sets;
      // It is there when somebody else has read it at the same time.
      if (this.#indexOf(key, set) >= 0) continue;
      if (this.#indexOf(0, set) < 0 && !this.#wasRefused(key, set)) continue;
      const place = this.#put(key, set);
      if (place !== 0) this.#copyIn(at + each * BLOCK_BYTES, place);
    }
  }

  /** Blocks have been moved, and lie at `at`: those of them that are here have another name now. */
  carry(from: Segment, fromBlock: number, to: Segment, toBlock: number, count: number, at: number): void {
    if (from.cacheNumber < this.#firstNumber) return;
    for (let each = 0; each < count; each++) {
      if (!this.#forget(keyOf(from, fromBlock + each))) continue;
      if (to.cacheNumber < this.#firstNumber) this.#number(to);
      const key = keyOf(to, toBlock + each);
      const place = this.#put(key, (key >>> 0) % this.#sets);
      if (place !== 0) this.#copyIn(canary.armed === "cache-carries-other" ? at : at + each * BLOCK_BYTES, place);
    }
  }

  /** Nobody will ask for these any more: their ways are free, or will be driven out where they are too many to look for. */
  forget(segment: Segment, block: number, count: number): void {
    if (segment.cacheNumber < this.#firstNumber || count > FORGOTTEN_BLOCKS_MAX) return;
    for (let each = 0; each < count; each++) this.#forget(keyOf(segment, block + each));
  }

  #forget(key: number): boolean {
    const index = this.#indexOf(key, (key >>> 0) % this.#sets);
    if (index < 0) return false;
    this.#table[index] = 0;
    return true;
  }

  /**
   * Gives a block a way of its set that is free, or that of one which was not used lately. Its place; 0, and it has no way,
   * when memory for one more is still to come.
   */
  #put(key: number, set: number): number {
    let index = this.#indexOf(0, set);
    if (index < 0) index = set * SET_WORDS + this.#victim(set);
    const place = this.#table[index + WAYS]! || this.#newPlace();
    if (place === 0) return 0;
    this.#table[index] = key;
    this.#table[index + WAYS] = place;
    return place;
  }

  #newPlace(): number {
    const memory = this.#memory;
    const needed = (this.#places + 1) * BLOCK_BYTES;
    if (needed > memory.cacheReady - AHEAD_BYTES) memory.provideCache?.();
    return needed > memory.cacheReady ? 0 : ++this.#places;
  }

  #copyIn(at: number, place: number): void {
    this.#memory.bytes.copyWithin(this.#addressOf(place), at, at + BLOCK_BYTES);
  }

  #victim(set: number): number {
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
    segment.cacheNumber = canary.armed === "cache-number-shared" ? this.#firstNumber : this.#lastNumber;
  }

  #addressOf(place: number): number {
    return this.#memory.cacheAt + (place - 1) * BLOCK_BYTES;
  }
}

/** Never 0: block 0 of a segment is its header, which no version maps. */
const keyOf = (segment: Segment, block: number): number => (Math.imul(segment.cacheNumber, SLOT_BLOCKS) + block) | 0;
