/**
 * How much is begun at a time. Reads of all connections of a front together begin in rounds of about so many bytes: what
 * they bring leaves before more is begun, while it is in the processor's cache, its memory is used again, and clients have
 * something to do meanwhile.
 */
import { type Bytes, KIB } from "#base/units";
import { Soon, type Turn } from "#env/env";

const ROUND_BYTES: Bytes = 512 * KIB;
/** What a read costs besides its bytes, in bytes: a round is some eighteen reads of 4 KiB. */
const READ_BYTES: Bytes = 24 * KIB;

/** Goes on with what it has received. */
export interface Resting {
  goOn(): void;
}

export class Rounds {
  readonly #turn: Turn;
  #begun: Bytes = 0;
  /**
   * Those that have more to begin, in the order in which they came: a ring of `#count` from `#first` on. Its size is a power
   * of two. (Moving what waits to the front of an array takes a fifth of a lane's time with 500 connections.)
   */
  #waiting: (Resting | undefined)[] = new Array(64).fill(undefined);
  #first = 0;
  #count = 0;
  readonly #soon = new Soon(() => this.#round());

  constructor(turn: Turn) {
    this.#turn = turn;
  }

  /** A read of so many bytes is begun. True when that was enough for this round: then whoever it is rests. */
  begin(bytes: Bytes): boolean {
    if (this.#begun === 0) this.#turn.soon(this.#soon);
    this.#begun += bytes + READ_BYTES;
    return this.#begun >= ROUND_BYTES;
  }
  /** Nothing more is to be begun in this round. */
  get isFull(): boolean {
    return this.#begun >= ROUND_BYTES;
  }
  /** Has `one` go on in the next round, or the one after that. */
  rest(one: Resting): void {
    if (this.#count === this.#waiting.length) this.#grow();
    this.#waiting[(this.#first + this.#count++) & (this.#waiting.length - 1)] = one;
    this.#turn.soon(this.#soon);
  }

  #round(): void {
    this.#begun = 0;
    // Who rests again meanwhile comes after those who wait already, and is not asked twice.
    for (let left = this.#count; left > 0 && !this.isFull; left--) {
      const one = this.#waiting[this.#first]!;
      this.#waiting[this.#first] = undefined;
      this.#first = (this.#first + 1) & (this.#waiting.length - 1);
      this.#count--;
      one.goOn();
    }
    if (this.#count > 0) this.#turn.soon(this.#soon);
  }

  #grow(): void {
    const { length } = this.#waiting;
    const larger: (Resting | undefined)[] = new Array(2 * length).fill(undefined);
    for (let at = 0; at < length; at++) larger[at] = this.#waiting[(this.#first + at) & (length - 1)];
    this.#waiting = larger;
    this.#first = 0;
  }
}
