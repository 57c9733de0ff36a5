/**
 * What the server has acknowledged of a unit's changes and may still forget: until a flush, a copy of each is kept, within
 * a budget. A server whose machine has lost its power gets them again, in order, before anything else; so a host's device
 * loses nothing that it has acknowledged. When more was written since the last flush than the budget holds, nothing is kept, and
 * after such a loss the next flush fails, since it would lie.
 */
import { canary } from "#base/canary";
import type { Memory } from "#base/memory";
import type { Bytes } from "#base/units";
import { type KeptKind, type KeptWrite, Unflushed } from "./unflushed.ts";

export class ScpKept {
  readonly unflushed: Unflushed;
  /** Changes acknowledged so far; and the last one of those that were not kept. */
  #acknowledged = 0;
  #unkept = 0;
  /** Something that was acknowledged is gone for good: the next flush says so. */
  #isLost = false;

  constructor(memory: Memory, budget: Bytes) {
    this.unflushed = new Unflushed(memory, budget);
  }

  /** A flush that is sent now covers what this stands for. */
  get mark(): number {
    return this.#acknowledged;
  }
  get isEmpty(): boolean {
    return this.unflushed.count === 0;
  }

  /** The server has done it; its data, if it has any, is still at `from`. */
  acknowledge(kind: KeptKind, offset: Bytes, length: Bytes, from: number, noHole: boolean): void {
    this.#acknowledged++;
    if (canary.armed === "scp-forget-unflushed") return;
    const isKeeping = this.#unkept === 0;
    const kept = isKeeping ? this.unflushed.reserve(kind, offset, length, from, noHole) : undefined;
    if (kept !== undefined) {
      this.unflushed.keep(kept);
      return;
    }
    this.unflushed.drop(Number.POSITIVE_INFINITY);
    this.#unkept = this.#acknowledged;
  }

  /** A flush that was sent when `mark` was the mark has been done. False: something is lost that it should have covered. */
  flushed(mark: number): boolean {
    const wasLost = this.#isLost;
    this.#isLost = false;
    const isKeeping = this.#unkept === 0;
    // Kept changes are numbered as they are acknowledged, as long as all of them are kept.
    if (isKeeping) this.unflushed.drop(mark - this.#acknowledged + this.unflushed.mark);
    else if (mark >= this.#unkept) this.#unkept = 0;
    return !wasLost;
  }

  /** The server may have forgotten everything since the last flush. Returns what it is to get again, in order. */
  forgotten(): KeptWrite[] {
    if (this.#unkept > 0) {
      this.#isLost = true;
      this.#unkept = 0;
    }
    const all: KeptWrite[] = [];
    for (let number = this.unflushed.firstNumber; ; number++) {
      const kept = this.unflushed.at(number);
      if (kept === undefined) return all;
      all.push(kept);
    }
  }

  /** It could not be repeated. */
  lose(): void {
    this.#isLost = true;
  }
}
