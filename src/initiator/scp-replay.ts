/**
 * What a restarted server is to get again: the kept changes of all units, those of one unit in their order where they
 * overlap. It says which is next, and knows when all have been done.
 */
import type { Status } from "#base/status";
import type { ScpUnit } from "./scp-unit.ts";
import type { KeptWrite } from "./unflushed.ts";

/** On their way at a time. */
const WINDOW = 32;

interface Item {
  readonly unit: ScpUnit;
  readonly kept: KeptWrite;
}

export class Replay {
  readonly length: number;
  readonly #waiting: Item[];
  readonly #flying = new Set<Item>();
  /** Gone, with changes on their way whose data must stay until they have come back. */
  readonly #retired = new Set<ScpUnit>();

  constructor(units: readonly ScpUnit[]) {
    this.#waiting = units.flatMap((unit) => unit.kept.forgotten().map((kept) => ({ unit, kept })));
    this.length = this.#waiting.length;
  }

  get isDone(): boolean {
    return this.#waiting.length === 0 && this.#flying.size === 0;
  }

  /** The next one that may leave now. */
  next(): Item | undefined {
    const [first] = this.#waiting;
    if (first === undefined || this.#flying.size >= WINDOW) return undefined;
    for (const other of this.#flying) if (overlap(first, other)) return undefined;
    this.#waiting.shift();
    this.#flying.add(first);
    return first;
  }

  done(item: Item, status: Status): void {
    this.#flying.delete(item);
    const { unit } = item;
    // The server that is to have it may be gone, too: then it is repeated anew.
    if (status !== "ok" && status !== "away") unit.kept.lose();
    if (this.#retired.has(unit) && !this.#isFlying(unit)) unit.kept.unflushed.drop(Number.POSITIVE_INFINITY);
  }

  /** The unit is gone. True: its data is still in use, and is given up when it is not. */
  retire(unit: ScpUnit): boolean {
    const left = this.#waiting.filter((item) => item.unit !== unit);
    this.#waiting.splice(0, this.#waiting.length, ...left);
    if (!this.#isFlying(unit)) return false;
    this.#retired.add(unit);
    return true;
  }

  #isFlying(unit: ScpUnit): boolean {
    for (const item of this.#flying) if (item.unit === unit) return true;
    return false;
  }
}

const overlap = (one: Item, other: Item): boolean =>
  one.unit === other.unit &&
  one.kept.offset < other.kept.offset + other.kept.length &&
  other.kept.offset < one.kept.offset + one.kept.length;
