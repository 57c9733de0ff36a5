/**
 * What a volume may contain: for each of its logical blocks a register, with every value that a read may return now, and
 * every value that may come back in a power cut. Values are stamps: each write has its own, 0 is zeroes.
 *
 * The rules, with "before" meaning "answered before the other was asked":
 * - A value may be read until a write that was asked after it was answered is itself answered (`dead`).
 * - A read that returns one value rules out all that were answered before that read was asked.
 * - A flush makes everything that was answered before it was asked durable; a durable value rules out, for ever, what it
 *   has superseded.
 * - A power cut brings back everything that is not ruled out for ever, and what is read after it stays.
 */

/** Order of everything that is asked and answered in a world. */
export class Ticks {
  now = 0;
  next(): number {
    return ++this.now;
  }
}

const NEVER = Number.POSITIVE_INFINITY;

/** One write's value in one block. */
export class Mark {
  /** 0: zeroes. */
  readonly stamp: number;
  /** Instead of a stamp: the value is that of a frozen block (a clone's or a rolled back volume's origin). */
  readonly origin: FrozenBlock | undefined;
  readonly asked: number;
  /** NEVER while it is not answered. */
  answered = NEVER;
  /** From when on no read may return it. */
  dead = NEVER;
  deadBy: Mark | undefined;
  durable = false;
  /** It failed on its way to the disk, and may turn out to be there when the store is opened again, whatever is read till then. */
  lingers = false;

  constructor(stamp: number, origin: FrozenBlock | undefined, asked: number) {
    this.stamp = stamp;
    this.origin = origin;
    this.asked = asked;
  }

  allows(stamp: number): boolean {
    return this.origin === undefined ? this.stamp === stamp : this.origin.allows(stamp);
  }

  /** True when something durable came after it: it can never be seen again, not even after a power cut. */
  get isGone(): boolean {
    for (let by = this.deadBy; by !== undefined; by = by.deadBy) if (by.durable) return true;
    return false;
  }
}

interface Option {
  readonly mark: Mark;
  /** The frozen state was taken after `first` and before `final`, if this is its value. */
  readonly first: number;
  readonly final: number;
}

/** A block of a snapshot: one value for ever, perhaps not known yet. */
export class FrozenBlock {
  #options: Option[];
  readonly #moment: Moment;

  constructor(options: Option[], moment: Moment) {
    this.#options = options;
    this.#moment = moment;
  }

  allows(stamp: number): boolean {
    return this.#options.some((option) => option.mark.allows(stamp));
  }

  /** It was seen to be `stamp`. False when that contradicts what was seen before. */
  settle(stamp: number): boolean {
    const possible = this.#options.filter((option) => option.mark.allows(stamp));
    if (possible.length === 0) return false;
    this.#options = possible;
    // Only when there is no other way to explain what was seen is it known what the origin has.
    if (possible.length === 1 && possible[0]!.mark.origin?.settle(stamp) === false) return false;
    const first = Math.min(...this.#options.map((option) => option.first));
    const final = Math.max(...this.#options.map((option) => option.final));
    return this.#moment.narrow(first, final);
  }

  /** One of the values it may have. */
  get likely(): number {
    const { mark } = this.#options[this.#options.length - 1]!;
    return mark.origin === undefined ? mark.stamp : mark.origin.likely;
  }

  get stamps(): string {
    return this.#options.map((option) => describeMark(option.mark)).join(" or ");
  }
}

/** When a snapshot was taken: one moment for all of its blocks, known ever more exactly. */
class Moment {
  first: number;
  final: number;
  constructor(first: number, final: number) {
    this.first = first;
    this.final = final;
  }
  narrow(first: number, final: number): boolean {
    this.first = Math.max(this.first, first);
    this.final = Math.min(this.final, final);
    return this.first <= this.final;
  }
}

/** What a snapshot contains. */
export class FrozenHistory {
  readonly #blocks: Map<number, FrozenBlock>;
  readonly #base: FrozenHistory | undefined;
  readonly #zero: FrozenBlock;

  constructor(blocks: Map<number, FrozenBlock>, base: FrozenHistory | undefined) {
    this.#blocks = blocks;
    this.#base = base;
    const mark = new Mark(0, undefined, 0);
    this.#zero = new FrozenBlock([{ mark, first: -1, final: NEVER }], new Moment(-1, NEVER));
  }

  block(index: number): FrozenBlock {
    return this.#blocks.get(index) ?? this.#base?.block(index) ?? this.#zero;
  }

  /** Blocks that may differ from zeroes. */
  touched(into: Set<number> = new Set()): Set<number> {
    for (const index of this.#blocks.keys()) into.add(index);
    return this.#base?.touched(into) ?? into;
  }
}

/** What a volume contains, and what it may contain after a power cut. */
export class History {
  readonly #ticks: Ticks;
  readonly #blocks = new Map<number, Mark[]>();
  readonly #base: FrozenHistory | undefined;
  /** Answered writes that no flush has made durable. */
  #undurable: Mark[] = [];
  /** When the reads (and snapshots) in flight were asked. */
  readonly #readers: number[] = [];

  constructor(ticks: Ticks, base?: FrozenHistory) {
    this.#ticks = ticks;
    this.#base = base;
  }

  /* -------------------------------------------------------------- writes */

  /** Something is written to blocks [first, first + count): stamp 0 for zeroes. Returns its marks, to be answered. */
  write(first: number, count: number, stamp: number): Mark[] {
    const asked = this.#ticks.next();
    const marks: Mark[] = [];
    for (let index = first; index < first + count; index++) {
      const mark = new Mark(stamp, undefined, asked);
      this.#at(index).push(mark);
      marks.push(mark);
    }
    return marks;
  }

  /** Blocks [first, first + count) become what `source` has there. As `write`. */
  copy(first: number, count: number, source: FrozenHistory): Mark[] {
    const asked = this.#ticks.next();
    const marks: Mark[] = [];
    for (let index = first; index < first + count; index++) {
      const mark = new Mark(0, source.block(index), asked);
      this.#at(index).push(mark);
      marks.push(mark);
    }
    return marks;
  }

  /** The write was answered as done; with `durable` it is on stable storage (FUA). */
  written(first: number, marks: readonly Mark[], durable: boolean): void {
    const now = this.#ticks.next();
    for (let i = 0; i < marks.length; i++) {
      const mark = marks[i]!;
      mark.answered = now;
      mark.durable = durable;
      if (!durable) this.#undurable.push(mark);
      const block = this.#at(first + i);
      for (const other of block)
        if (other !== mark && other.answered < mark.asked && other.dead === NEVER && !other.lingers) {
          other.dead = now;
          other.deadBy = mark;
        }
      this.#forget(block);
    }
  }

  /** The write was answered with an error and may have happened, up to now but not later; if it `lingers`, also later. */
  unknown(marks: readonly Mark[], lingers = false): void {
    const now = this.#ticks.next();
    for (const mark of marks) {
      mark.answered = now;
      mark.lingers = lingers;
      this.#undurable.push(mark);
    }
  }

  /** The write was answered as not done: nothing of it may ever be seen. */
  refused(first: number, marks: readonly Mark[]): void {
    for (let i = 0; i < marks.length; i++) {
      const block = this.#at(first + i);
      const index = block.indexOf(marks[i]!);
      if (index >= 0) block.splice(index, 1);
    }
  }

  /** The flush that was asked at `asked` (a tick) is answered. */
  flushed(asked: number): void {
    const waiting: Mark[] = [];
    for (const mark of this.#undurable)
      if (mark.answered < asked && !mark.lingers) mark.durable = true;
      else waiting.push(mark);
    this.#undurable = waiting;
  }

  /* --------------------------------------------------------------- reads */

  /** A read, or a snapshot, is asked: what may be returned now stays known until it is answered. */
  ask(): number {
    const asked = this.#ticks.next();
    this.#readers.push(asked);
    return asked;
  }
  answer(asked: number): void {
    const index = this.#readers.indexOf(asked);
    if (index >= 0) this.#readers.splice(index, 1);
  }

  /** True when a read asked at `asked` may find `stamp` in block `index`. */
  allows(index: number, stamp: number, asked: number): boolean {
    return this.#at(index).some((mark) => mark.dead > asked && mark.allows(stamp));
  }

  /** A read asked at `asked` has found `stamp`. False when it may not. */
  read(index: number, stamp: number, asked: number): boolean {
    const block = this.#at(index);
    const [first] = block;
    // Mostly there is one value that it may have.
    if (block.length === 1 && first!.origin === undefined) return first!.dead > asked && first!.stamp === stamp;
    const seen = block.filter((mark) => mark.dead > asked && mark.allows(stamp));
    if (seen.length === 0) return false;
    const [only] = seen;
    if (seen.length === 1 && only!.origin !== undefined && !only!.origin.settle(stamp)) return false;
    const now = this.#ticks.next();
    for (const mark of block)
      if (mark.answered < asked && mark.dead === NEVER && !mark.lingers && !seen.includes(mark)) {
        mark.dead = now;
        mark.deadBy = seen.length === 1 ? only : undefined;
      }
    this.#forget(block);
    return true;
  }

  /** One of the values that block `index` may have now: the last one written. */
  likely(index: number): number {
    const block = this.#at(index);
    const mark = block[block.length - 1]!;
    return mark.origin === undefined ? mark.stamp : mark.origin.likely;
  }

  /** True when block `index` certainly contains `stamp` for a read asked at `asked`. */
  isCertain(index: number, stamp: number, asked: number): boolean {
    return this.#at(index).every((mark) => mark.dead <= asked || mark.allows(stamp));
  }

  /** True when nothing was ever written to block `index`, nor to its origin: no space may be taken for it. */
  isPristine(index: number): boolean {
    if (this.#base !== undefined) return false;
    const block = this.#blocks.get(index);
    return block === undefined || (block.length === 1 && block[0]!.asked < 0);
  }

  describe(index: number): string {
    return this.#at(index).map(describeMark).join(", ");
  }

  /** Blocks that may differ from zeroes, or have. */
  touched(): Set<number> {
    const touched = this.#base?.touched() ?? new Set<number>();
    for (const index of this.#blocks.keys()) touched.add(index);
    return touched;
  }

  /* ---------------------------------------------------- freezes and ends */

  /** The state at one moment after `asked`. */
  freeze(asked: number): FrozenHistory {
    const now = this.#ticks.next();
    const moment = new Moment(asked, now);
    const blocks = new Map<number, FrozenBlock>();
    for (const [index, block] of this.#blocks) {
      const options: Option[] = [];
      for (const mark of block)
        if (mark.dead > asked) options.push({ mark, first: mark.asked, final: mark.dead === NEVER ? now : mark.dead });
      blocks.set(index, new FrozenBlock(options, moment));
    }
    return new FrozenHistory(blocks, this.#base);
  }

  /** The volume may have become what `frozen` is, some time before now; nobody knows. */
  mayBe(frozen: FrozenHistory): void {
    const now = this.#ticks.next();
    for (const index of frozen.touched(this.touched())) {
      const mark = new Mark(0, frozen.block(index), now);
      mark.answered = now;
      this.#at(index).push(mark);
      this.#undurable.push(mark);
    }
  }

  /** The process that served the volume has died; what it had not answered may have happened. Nothing durable is lost. */
  killed(): void {
    const now = this.#ticks.next();
    this.#readers.length = 0;
    for (const block of this.#blocks.values())
      for (const mark of block) {
        mark.lingers = false;
        if (mark.answered === NEVER) {
          mark.answered = now;
          this.#undurable.push(mark);
        }
      }
  }

  /** The power was cut: what is not durable may be lost, and what came before it may be back. */
  powerCut(): void {
    this.killed();
    for (const block of this.#blocks.values()) {
      const possible = block.filter((mark) => !mark.isGone);
      block.splice(0, block.length, ...possible);
      for (const mark of block) {
        mark.dead = NEVER;
        mark.deadBy = undefined;
      }
    }
    // Whichever of them is there now has been on the disk; it does not go away again.
    for (const mark of this.#undurable) mark.durable = true;
    this.#undurable = [];
  }

  /**
   * The power was cut under hosts that repeat whatever was answered, so that nothing of that is lost. A read may have seen
   * what was not, and is not there until it is repeated: what it had superseded may be seen again.
   */
  unansweredLost(): void {
    for (const block of this.#blocks.values())
      for (const mark of block)
        if (mark.deadBy?.answered === NEVER) {
          mark.dead = NEVER;
          mark.deadBy = undefined;
        }
  }

  #at(index: number): Mark[] {
    let block = this.#blocks.get(index);
    if (block === undefined) {
      const mark = new Mark(0, this.#base?.block(index), -1);
      mark.answered = 0;
      mark.durable = true;
      block = [mark];
      this.#blocks.set(index, block);
    }
    return block;
  }

  /** Forgets what can neither be read nor come back. */
  #forget(block: Mark[]): void {
    if (block.length < 2) return;
    const oldest = this.#readers.length === 0 ? NEVER : this.#readers[0]!;
    for (let i = block.length - 1; i >= 0; i--) {
      const mark = block[i]!;
      if (mark.dead < oldest && mark.isGone) block.splice(i, 1);
    }
  }
}

function describeMark(mark: Mark): string {
  const value = mark.origin === undefined ? `${mark.stamp}` : `(${mark.origin.stamps})`;
  const life = mark.dead === NEVER ? "" : ` dead ${mark.dead}`;
  return `${value} [${mark.asked}..${mark.answered}${life}${mark.durable ? " durable" : ""}]`;
}
