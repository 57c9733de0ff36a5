/** Pieces that wait for an agent: first in, first out, and what must be repeated comes first. */
import type { ScpPiece } from "./scp-work.ts";

export class PieceQueue {
  #items: (ScpPiece | undefined)[] = [];
  #head = 0;

  get length(): number {
    return this.#items.length - this.#head;
  }

  push(piece: ScpPiece): void {
    this.#items.push(piece);
  }

  /** Puts a piece before all others. */
  unshift(piece: ScpPiece): void {
    if (this.#head > 0) this.#items[--this.#head] = piece;
    else this.#items.unshift(piece);
  }

  peek(): ScpPiece | undefined {
    return this.#items[this.#head];
  }

  shift(): ScpPiece | undefined {
    const piece = this.#items[this.#head];
    if (piece === undefined) return undefined;
    this.#items[this.#head++] = undefined;
    if (this.#head === this.#items.length) {
      this.#items.length = 0;
      this.#head = 0;
    } else if (this.#head >= 1024 && this.#head * 2 > this.#items.length) {
      this.#items = this.#items.slice(this.#head);
      this.#head = 0;
    }
    return piece;
  }

  /** Takes out all pieces for which `which` is true. */
  take(which: (piece: ScpPiece) => boolean): ScpPiece[] {
    const taken: ScpPiece[] = [];
    const kept: ScpPiece[] = [];
    for (let at = this.#head; at < this.#items.length; at++) {
      const piece = this.#items[at]!;
      if (which(piece)) taken.push(piece);
      else kept.push(piece);
    }
    if (taken.length > 0) {
      this.#items = kept;
      this.#head = 0;
    }
    return taken;
  }
}
