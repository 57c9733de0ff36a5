/** What a lane wants of the other lanes, and waits for: the control plane passes it on, and brings the answer. */
import type { Effect } from "#base/task";
import type { FromLane, LaneWish, LaneWishes } from "./messages.ts";

export class Wishes {
  readonly #tell: (message: FromLane) => void;
  readonly #waiting = new Map<number, (answer: never) => void>();
  #lastId = 0;

  constructor(tell: (message: FromLane) => void) {
    this.#tell = tell;
  }

  ask<Wish extends LaneWish>(wish: Wish, given: LaneWishes[Wish]["given"]): Effect<LaneWishes[Wish]["answer"]> {
    return (resume) => {
      const id = ++this.#lastId;
      this.#waiting.set(id, resume);
      this.#tell({ type: "wish", id, wish, given });
    };
  }

  answer(id: number, answer: unknown): void {
    const resume = this.#waiting.get(id);
    this.#waiting.delete(id);
    resume?.(answer as never);
  }
}
