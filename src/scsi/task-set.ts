/**
 * Which commands of a unit may run: SAM-5 §8. A SIMPLE one waits only for ORDERED and HEAD OF QUEUE ones before it, an
 * ORDERED one for everything before it, a HEAD OF QUEUE one for nothing. One set serves all nexuses (TST 000b).
 */
import type { ScsiTask } from "./task.ts";

export class TaskSet {
  readonly #tasks = new Set<ScsiTask>();
  readonly #dormant: ScsiTask[] = [];
  /** ORDERED and HEAD OF QUEUE tasks that have not ended: while there are none, and nobody waits, all is simple. */
  #barriers = 0;
  #order = 0;

  get size(): number {
    return this.#tasks.size;
  }

  /** Takes a task in. True when it may run at once. */
  enter(task: ScsiTask): boolean {
    task.order = ++this.#order;
    this.#tasks.add(task);
    if (task.attribute !== "simple") this.#barriers++;
    else if (this.#barriers === 0) return true;
    if (this.#mayRun(task)) return true;
    task.stage = "dormant";
    this.#dormant.push(task);
    return false;
  }

  /** Removes an ended task, and returns those that may run because of it. */
  leave(task: ScsiTask): readonly ScsiTask[] {
    if (!this.#tasks.delete(task)) return NOBODY;
    if (task.attribute !== "simple") this.#barriers--;
    return this.#wake(task);
  }

  /** A task that goes on in the background lets those behind it pass. Returns those that may run because of it. */
  relax(task: ScsiTask): readonly ScsiTask[] {
    if (task.attribute === "simple") return NOBODY;
    task.attribute = "simple";
    this.#barriers--;
    return this.#wake(task);
  }

  #wake(task: ScsiTask): readonly ScsiTask[] {
    if (this.#dormant.length === 0) return NOBODY;
    const woken: ScsiTask[] = [];
    for (let index = 0; index < this.#dormant.length; ) {
      const waiting = this.#dormant[index]!;
      if (waiting === task) this.#dormant.splice(index, 1);
      else if (this.#mayRun(waiting)) {
        this.#dormant.splice(index, 1);
        woken.push(waiting);
      } else index++;
    }
    return woken;
  }

  [Symbol.iterator](): Iterator<ScsiTask> {
    return this.#tasks[Symbol.iterator]();
  }

  #mayRun(task: ScsiTask): boolean {
    if (task.attribute === "head-of-queue") return true;
    for (const other of this.#tasks) {
      if (other.order >= task.order) {
        // A HEAD OF QUEUE task that came later still goes first.
        if (other.attribute !== "head-of-queue") continue;
      } else if (task.attribute === "simple" && other.attribute === "simple") continue;
      if (other !== task) return false;
    }
    return true;
  }
}
const NOBODY: readonly ScsiTask[] = [];
