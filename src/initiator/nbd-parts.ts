/** What an operation of a device becomes on the wire: an `NbdJob` per operation, and a part per request. Both are reused. */
import type { Status } from "#base/status";
import type { BlockOp, OpKind } from "#device/device";
import type { KeptWrite } from "./unflushed.ts";

export class NbdJob {
  op!: BlockOp;
  /** What is sent for it: zeroes may have to go as writes. */
  kind: OpKind = "read";
  /** Bytes of it for which parts have been made. */
  taken = 0;
  /** Parts that are not done. */
  open = 0;
  /** Everything has been made into parts. */
  isWhole = false;
  status: Status = "ok";
  result = 0;
  /** Its writes are done, and a flush must follow, since the server knows no FUA. */
  needsFlush = false;
}

export class NbdPart {
  /** Undefined for what the client does for itself: flushes, and writes that are repeated. */
  job: NbdJob | undefined = undefined;
  kind: OpKind = "read";
  offset = 0;
  length = 0;
  at = 0;
  fua = false;
  noHole = false;
  kept: KeptWrite | undefined = undefined;
  /** Of a flush: the number up to which it covers what was acknowledged. */
  mark = 0;
  /** Of a flush: which connections were there when it was sent. */
  epoch = 0;
  /** Connections that were lost while it was in flight. */
  attempts = 0;
  /** When the first of them was. */
  lostAt = 0;
  purpose: "host" | "flush" | "replay" = "host";
}

/** Objects of one class that are taken and given back. */
export class Pool<T> {
  readonly #make: () => T;
  readonly #spare: T[] = [];
  constructor(make: () => T) {
    this.#make = make;
  }
  take(): T {
    return this.#spare.pop() ?? this.#make();
  }
  give(thing: T): void {
    this.#spare.push(thing);
  }
}

/** First in, first out, without moving the rest at each step. */
export class Fifo<T> {
  #items: (T | undefined)[] = [];
  #head = 0;
  get length(): number {
    return this.#items.length - this.#head;
  }
  get first(): T | undefined {
    return this.#items[this.#head];
  }
  push(item: T): void {
    this.#items.push(item);
  }
  shift(): T | undefined {
    const item = this.#items[this.#head];
    if (item === undefined) return undefined;
    this.#items[this.#head++] = undefined;
    if (this.#head > 512 && this.#head * 2 > this.#items.length) {
      this.#items = this.#items.slice(this.#head);
      this.#head = 0;
    } else if (this.#head === this.#items.length) this.#items.length = this.#head = 0;
    return item;
  }
}
