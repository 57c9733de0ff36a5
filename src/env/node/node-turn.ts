/**
 * Turns on Node's loop: the poll phase tells completions, `setImmediate` ends the turn. What arrived in one poll is thus
 * answered together.
 */
import type { Soon, Turn } from "../env.ts";

/** Soons that ask for soons are served in the same turn this many times over, then the loop goes round once. */
const ROUNDS_MAX = 8;

export class NodeTurn implements Turn {
  #queue: Soon[] = [];
  #running: Soon[] = [];
  #armed = false;

  soon(soon: Soon): void {
    if (soon.queued) return;
    soon.queued = true;
    this.#queue.push(soon);
    if (this.#armed) return;
    this.#armed = true;
    setImmediate(this.#end);
  }

  readonly #end = (): void => {
    for (let round = 0; this.#queue.length > 0 && round < ROUNDS_MAX; round++) {
      const running = this.#queue;
      this.#queue = this.#running;
      this.#running = running;
      for (let at = 0; at < running.length; at++) {
        const soon = running[at]!;
        soon.queued = false;
        soon.run();
      }
      running.length = 0;
    }
    this.#armed = this.#queue.length > 0;
    if (this.#armed) setImmediate(this.#end);
  };
}
