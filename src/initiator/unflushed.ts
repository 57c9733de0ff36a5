/**
 * What a server has acknowledged and may still forget: writes since the last flush, in the order of their
 * acknowledgement. When the server could have been restarted, they are written again before anything else happens, so
 * that the next flush tells the truth. A copy of the data is kept in the lane's memory, within a budget.
 *
 * Everything that changes data is kept, also what was asked to be durable at once: or a write that is repeated could
 * come back over a newer one.
 */
import { canary } from "#base/canary";
import type { Memory } from "#base/memory";
import type { Bytes } from "#base/units";

export type KeptKind = "write" | "zero" | "trim";

/** Records without data cost memory too. */
const KEPT_COUNT_MAX = 65_536;

export class KeptWrite {
  kind: KeptKind = "write";
  offset: Bytes = 0;
  length: Bytes = 0;
  noHole = false;
  /** Where the copy of the data is; 0 for zero and trim. */
  at = 0;
}

export class Unflushed {
  readonly #memory: Memory;
  readonly #budget: Bytes;
  /** From `#first` on, in order of acknowledgement. */
  #kept: KeptWrite[] = [];
  #first = 0;
  /** How many were dropped before `#kept[#first]`, so that every record has a number of its own for ever. */
  #dropped = 0;
  readonly #spare: KeptWrite[] = [];
  #used: Bytes = 0;
  #reserved = 0;

  constructor(memory: Memory, budget: Bytes) {
    this.#memory = memory;
    this.#budget = budget;
  }

  /** Acknowledged and not flushed. */
  get count(): number {
    return this.#kept.length - this.#first;
  }
  /** Bytes of data kept, also of writes that are still in flight. */
  get bytes(): Bytes {
    return this.#used;
  }
  /** The number that the next acknowledged write gets: a flush sent now covers all numbers below. */
  get mark(): number {
    return this.#dropped + this.count;
  }
  /** Time to flush, before writers have to wait for it. */
  get isHalfFull(): boolean {
    return this.#used * 2 > this.#budget || this.count * 2 > KEPT_COUNT_MAX;
  }
  /** Nothing is kept, and nothing in flight is going to be. */
  get isEmpty(): boolean {
    return this.count === 0 && this.#reserved === 0;
  }

  /** Copies what is about to be sent. Undefined when there is no room: then a flush makes some. */
  reserve(kind: KeptKind, offset: Bytes, length: Bytes, from: number, noHole: boolean): KeptWrite | undefined {
    if (this.count + this.#reserved >= KEPT_COUNT_MAX) return undefined;
    let at = 0;
    if (kind === "write") {
      if (this.#used + length > this.#budget) return undefined;
      at = this.#memory.allocate(length);
      if (at === 0) return undefined;
      this.#memory.bytes.copyWithin(at, from, from + length);
      this.#used += length;
    }
    const kept = this.#spare.pop() ?? new KeptWrite();
    kept.kind = kind;
    kept.offset = offset;
    kept.length = length;
    kept.noHole = noHole;
    kept.at = at;
    this.#reserved++;
    return kept;
  }

  /** The server has acknowledged it. */
  keep(kept: KeptWrite): void {
    if (canary.armed === "nbd-forget-unflushed") return this.release(kept);
    this.#reserved--;
    this.#kept.push(kept);
  }

  /** The server has refused it: whatever it did, nothing was promised. */
  release(kept: KeptWrite): void {
    this.#reserved--;
    this.#forget(kept);
  }

  /** The kept write with the smallest number not below `number`, for writing them again in order. */
  at(number: number): KeptWrite | undefined {
    return this.#kept[this.#first + number - this.#dropped];
  }
  get firstNumber(): number {
    return this.#dropped;
  }

  /** All with numbers below `mark` are on stable storage. */
  drop(mark: number): void {
    while (this.#dropped < mark && this.#first < this.#kept.length) {
      this.#forget(this.#kept[this.#first++]!);
      this.#dropped++;
    }
    if (this.#first === this.#kept.length) this.#kept.length = this.#first = 0;
    else if (this.#first > 1024 && this.#first * 2 > this.#kept.length) {
      this.#kept = this.#kept.slice(this.#first);
      this.#first = 0;
    }
  }

  #forget(kept: KeptWrite): void {
    if (kept.at !== 0) {
      this.#memory.free(kept.at);
      this.#used -= kept.length;
    }
    this.#spare.push(kept);
  }
}
