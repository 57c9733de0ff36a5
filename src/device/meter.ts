/**
 * What one front did with its devices: operations, bytes, how long they took, how they ended. The front notes every
 * operation when its answer is handed to the line; the control plane reads it for metrics and `ashlar top`.
 */
import { BUCKET_COUNT, bucketOf } from "#base/histogram";
import type { Status } from "#base/status";
import type { Bytes, Millis } from "#base/units";
import type { OpKind } from "./device.ts";

/** A row: a count for each bucket of latency, then these. */
const SUM = BUCKET_COUNT;
const BYTES = BUCKET_COUNT + 1;
/** Whole lines of the processor's cache. */
const ROW_CELLS = 104;
const PAGE_ROWS = 32;

const KINDS = {
  read: 0,
  write: 1,
  flush: 2,
  trim: 3,
  zero: 4,
  "compare-write": 5,
  status: 6,
  cache: 7,
} as const satisfies Record<OpKind, number>;

/** Operations of one kind; times in milliseconds, `counts` as in `Histogram.counts`. */
export interface Measured {
  readonly count: number;
  readonly sum: Millis;
  readonly counts: Float64Array;
  readonly bytes: Bytes;
}

/**
 * The meters of a front, by the name of the device. Their numbers lie in pages of rows that all of them share, one list
 * of pages for each kind of operation: with thousands of devices, noting an operation touches two cache lines that
 * nobody else has just used, and no objects but the meter.
 */
export class Meters {
  readonly #byName = new Map<string, Meter>();
  readonly #pages: readonly Float64Array[][] = Object.keys(KINDS).map(() => []);

  get byName(): ReadonlyMap<string, Meter> {
    return this.#byName;
  }

  /** That of a device; made when it is asked for the first time. */
  of(name: string): Meter {
    let meter = this.#byName.get(name);
    if (meter === undefined) this.#byName.set(name, (meter = new Meter(this, this.#byName.size)));
    return meter;
  }

  /** The page with row `number` of a kind, if there is one. */
  pageOf(kind: number, number: number): Float64Array | undefined {
    return this.#pages[kind]![Math.floor(number / PAGE_ROWS)];
  }

  /** Makes that page. */
  addPage(kind: number, number: number): Float64Array {
    const page = new Float64Array(PAGE_ROWS * ROW_CELLS);
    const pages = this.#pages[kind]!;
    const index = Math.floor(number / PAGE_ROWS);
    // Without holes: the first operations may be those of the last device.
    while (pages.length < index) pages.push(NO_ROWS);
    pages[index] = page;
    return page;
  }
}
const NO_ROWS = new Float64Array(0);

export class Meter {
  readonly #table: Meters;
  /** Its row in each page list. */
  readonly #number: number;
  /** Connections that have the device open now. */
  connections = 0;
  /** Operations that ended with anything but "ok". */
  readonly errors: Partial<Record<Status, number>> = {};

  constructor(table: Meters, number: number) {
    this.#table = table;
    this.#number = number;
  }

  /** @param took from the arrival of the request's last header byte to the answer. */
  note(kind: OpKind, length: Bytes, took: Millis, status: Status): void {
    const number = this.#number;
    let page = this.#table.pageOf(KINDS[kind], number);
    if (page === undefined || page.length === 0) page = this.#table.addPage(KINDS[kind], number);
    const row = (number % PAGE_ROWS) * ROW_CELLS;
    page[row + bucketOf(took)]! += 1;
    page[row + SUM]! += took;
    if (status === "ok") page[row + BYTES]! += length;
    else this.errors[status] = (this.errors[status] ?? 0) + 1;
  }

  /** What was noted of a kind of operation; undefined when it has not occurred. */
  measured(kind: OpKind): Measured | undefined {
    const page = this.#table.pageOf(KINDS[kind], this.#number);
    if (page === undefined || page.length === 0) return undefined;
    const row = (this.#number % PAGE_ROWS) * ROW_CELLS;
    const counts = page.slice(row, row + BUCKET_COUNT);
    const count = counts.reduce((sum, one) => sum + one, 0);
    return count === 0 ? undefined : { count, sum: page[row + SUM]!, counts, bytes: page[row + BYTES]! };
  }

  /** The same of each kind that has occurred. */
  operations(): Partial<Record<OpKind, Measured>> {
    const found: Partial<Record<OpKind, Measured>> = {};
    for (const kind of Object.keys(KINDS) as OpKind[]) {
      const measured = this.measured(kind);
      if (measured !== undefined) found[kind] = measured;
    }
    return found;
  }
}
