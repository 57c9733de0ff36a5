/** A segment as the engine knows it, and the table that gives each one a slot, the short name used in locations. */
import type { File } from "#env/env";
import { SLOT_BLOCKS } from "./format.ts";
import type { Location } from "./map.ts";
import type { Sharing } from "./sharing.ts";

export class Segment {
  // What a read needs stands first, so that it lies in one line of the processor's cache.
  /** Open while in use; opened again when needed. */
  file: File | undefined = undefined;
  /** The checksum of each of its blocks (0 for heads), when they are in memory. */
  sums: Uint32Array | undefined = undefined;
  /** Reads in flight: its file may not be used for anything else. */
  pins = 0;
  /** What the cache of blocks calls it; 0 before that was offered one of its blocks. */
  cacheNumber = 0;
  /** Its number in the log: never used twice. */
  readonly number: number;
  /** Its place in the table, 1 and up; used again after the segment is gone. */
  readonly slot: number;
  /** The same file opened again, for syncs that run at once; see `Syncer`. */
  readonly moreFiles: File[] = [];
  /** Syncs in flight. */
  syncs = 0;
  /** Blocks written, header included: the next group goes there. */
  used = 0;
  /** Its file was another segment's: all blocks of it have been written before. */
  rewritten = false;
  firstGroup = 0;
  /** The last one that was appended in this run. */
  lastGroup = 0;
  /** Nothing is appended any more. */
  sealed = false;
  /** Its summary stands at its end. */
  summarised = false;
  /** Blocks that some version maps. */
  live = 0;
  /** Of blocks that were copied without being moved; undefined while there were none. */
  sharing: Sharing | undefined;
  /** The checkpoint being current when its last live block died; it may be retired two checkpoints later. */
  deadSince = -1;
  /** Something in it could not be read or did not match its checksum: it is never cleaned, so that nothing is lost. */
  damaged = false;
  /** For the cache of checksums: when it was last asked for. */
  usedAt = 0;

  constructor(number: number, slot: number) {
    this.number = number;
    this.slot = slot;
  }
}

export class SegmentTable {
  readonly #bySlot: (Segment | undefined)[] = [undefined];
  readonly #byNumber = new Map<number, Segment>();
  readonly #freeSlots: number[] = [];

  get count(): number {
    return this.#byNumber.size;
  }

  add(number: number): Segment {
    const slot = this.#freeSlots.pop() ?? this.#bySlot.length;
    const segment = new Segment(number, slot);
    this.#bySlot[slot] = segment;
    this.#byNumber.set(number, segment);
    return segment;
  }

  /** Gives segments the slots that they had: the table must be empty. */
  restore(facts: Iterable<{ readonly number: number; readonly slot: number }>): void {
    for (const { number, slot } of facts) {
      while (this.#bySlot.length < slot) {
        this.#freeSlots.push(this.#bySlot.length);
        this.#bySlot.push(undefined);
      }
      const segment = new Segment(number, slot);
      this.#bySlot[slot] = segment;
      this.#byNumber.set(number, segment);
    }
  }

  remove(segment: Segment): void {
    this.#bySlot[segment.slot] = undefined;
    this.#byNumber.delete(segment.number);
    this.#freeSlots.push(segment.slot);
  }

  at(location: Location): Segment {
    return this.#bySlot[Math.floor(location / SLOT_BLOCKS)]!;
  }

  byNumber(number: number): Segment | undefined {
    return this.#byNumber.get(number);
  }

  values(): IterableIterator<Segment> {
    return this.#byNumber.values();
  }
}

export const blockOf = (location: Location): number => location & (SLOT_BLOCKS - 1);
export const locationOf = (segment: Segment, block: number): Location => segment.slot * SLOT_BLOCKS + block;
