/**
 * Blocks of a segment that were copied without being moved. Beyond inheritance, a copy is the only way in which a block of
 * the log comes to be mapped twice: at another block, or in a version that is no neighbour of those that have it.
 *
 * Versions that have a location at the same block and are connected in the tree are one *holder* of it (see `node.ts`);
 * a location is dead when its last holder has given it up. Most have one holder, and nothing is kept for them.
 */
import { SLOT_BLOCKS } from "./format.ts";

/** So many holders are not counted any more: the location lives until it is counted again, when the set is opened. */
const UNCOUNTED = 0xffff;
/** Places are looked through again when there are so many more of them. */
const PLACES_MIN = 1024;

export class Sharing {
  /** Per block of the segment: its holders beyond the first. */
  readonly #more = new Uint16Array(SLOT_BLOCKS);
  /** Runs of the segment and the blocks of versions where they may be mapped, besides where they were written. */
  #places: { readonly from: number; readonly count: number; readonly block: number }[] = [];
  #pruneAt = PLACES_MIN;

  holdersBeyondFirst(block: number): number {
    return this.#more[block]!;
  }

  /** Another holder has a run. */
  add(block: number, count: number): void {
    for (let at = block; at < block + count; at++) if (this.#more[at]! < UNCOUNTED) this.#more[at]! += 1;
  }

  /** A holder has given up a run. Returns how many blocks of it are dead. */
  drop(block: number, count: number): number {
    let dead = 0;
    for (let at = block; at < block + count; at++) {
      const more = this.#more[at]!;
      if (more === 0) dead++;
      else if (more < UNCOUNTED) this.#more[at] = more - 1;
    }
    return dead;
  }

  /** A block was copied to another segment, for all its holders. */
  moveHolders(block: number, to: Sharing, toBlock: number): void {
    to.#more[toBlock] = this.#more[block]!;
    this.#more[block] = 0;
  }

  clearHolders(): Uint16Array {
    const before = this.#more.slice();
    this.#more.fill(0);
    return before;
  }
  restoreHolders(before: Uint16Array): void {
    this.#more.set(before);
  }

  /** A run may be mapped from `block` on. `isThere` tells whether some version has it there still. */
  addPlace(
    from: number,
    count: number,
    block: number,
    isThere: (from: number, count: number, block: number) => boolean,
  ): void {
    const last = this.#places[this.#places.length - 1];
    if (last !== undefined && last.from + last.count === from && last.block + last.count === block)
      this.#places[this.#places.length - 1] = { ...last, count: last.count + count };
    else this.#places.push({ from, count, block });
    if (this.#places.length < this.#pruneAt) return;
    const unique = new Map(this.#places.map((place) => [`${place.from} ${place.count} ${place.block}`, place]));
    this.#places = [...unique.values()].filter((place) => isThere(place.from, place.count, place.block));
    this.#pruneAt = Math.max(PLACES_MIN, this.#places.length * 2);
  }

  /** Calls with each part of a run of the segment and where it may be mapped. */
  forEachPlace(from: number, count: number, visit: (from: number, count: number, block: number) => void): void {
    for (const place of this.#places) {
      const start = Math.max(from, place.from);
      const end = Math.min(from + count, place.from + place.count);
      if (start < end) visit(start, end - start, place.block + (start - place.from));
    }
  }
}
