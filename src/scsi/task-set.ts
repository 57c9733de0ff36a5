/**
 * Which commands of a unit may run: SAM-5 §8. A SIMPLE one waits only for ORDERED and HEAD OF QUEUE ones before it, an
 * ORDERED one for everything before it, a HEAD OF QUEUE one for nothing. One set serves all nexuses (TST 000b).
 */
import type { ScsiTask } from "./task.ts";

/** A list that runs through the tasks themselves: of the thousands of units that a host may have, each has little to fetch. */
export class TaskSet {
  #first: ScsiTask | undefined = undefined;
  #last: ScsiTask | undefined = undefined;
  #size = 0;
  /** ORDERED and HEAD OF QUEUE tasks that have not ended: while there are none, and nobody waits, all is simple. */
  #barriers = 0;
  #order = 0;
  /** Those that wait, in order of arrival; undefined while nobody does. */
  #dormant: ScsiTask[] | undefined = undefined;

  get size(): number {
    return this.#size;
  }

  /** Takes a task in. True when it may run at once. */
  enter(task: ScsiTask): boolean {
    task.order = ++this.#order;
    this.#append(task);
    if (task.attribute !== "simple") this.#barriers++;
    else if (this.#barriers === 0) return true;
    if (this.#mayRun(task)) return true;
    task.stage = "dormant";
    (this.#dormant ??= []).push(task);
    return false;
  }

  /** Removes an ended task, and returns those that may run because of it. */
  leave(task: ScsiTask): readonly ScsiTask[] {
    if (task.taskSet !== this) return NOBODY;
    this.#remove(task);
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
    const dormant = this.#dormant;
    if (dormant === undefined) return NOBODY;
    const woken: ScsiTask[] = [];
    for (let index = 0; index < dormant.length; ) {
      const waiting = dormant[index]!;
      if (waiting === task) dormant.splice(index, 1);
      else if (this.#mayRun(waiting)) {
        dormant.splice(index, 1);
        woken.push(waiting);
      } else index++;
    }
    if (dormant.length === 0) this.#dormant = undefined;
    return woken;
  }

  /** In order of arrival. */
  *[Symbol.iterator](): Generator<ScsiTask> {
    for (let task = this.#first; task !== undefined; task = task.nextInSet) yield task;
  }

  #append(task: ScsiTask): void {
    task.taskSet = this;
    task.previousInSet = this.#last;
    if (this.#last === undefined) this.#first = task;
    else this.#last.nextInSet = task;
    this.#last = task;
    this.#size++;
  }

  #remove(task: ScsiTask): void {
    const { previousInSet: previous, nextInSet: next } = task;
    if (previous === undefined) this.#first = next;
    else previous.nextInSet = next;
    if (next === undefined) this.#last = previous;
    else next.previousInSet = previous;
    task.taskSet = task.previousInSet = task.nextInSet = undefined;
    this.#size--;
  }

  #mayRun(task: ScsiTask): boolean {
    if (task.attribute === "head-of-queue") return true;
    for (let other = this.#first; other !== undefined; other = other.nextInSet) {
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
