/**
 * Work of several steps without promises: a generator that yields effects and is resumed with their results, at once
 * and in order, so that a simulated world needs no microtasks. Control operations of the store (open, snapshot,
 * clean, scrub) are tasks; reads and writes are not, they are `BlockOp`s.
 */

/** Something that will answer once, through `resume`; it may do so before it returns. */
export type Effect<T> = (resume: (value: T) => void) => void;

// biome-ignore lint/suspicious/noExplicitAny: a generator has one type for all that is sent into it; `perform` restores it
export type Task<T> = Generator<Effect<any>, T, any>;

/** Waits for one effect: `const file = yield* perform(disk.open(path, "read"))`. */
export function* perform<T>(effect: Effect<T>): Task<T> {
  return (yield effect) as T;
}

/** Runs a task to its end. Exactly one of `done` and `failed` is called, possibly before `start` returns. */
export function start<T>(task: Task<T>, done: (value: T) => void, failed: (error: unknown) => void): void {
  let value: unknown;
  let answered = false;
  let looping = false;

  const resume = (given: unknown): void => {
    value = given;
    answered = true;
    if (!looping) loop();
  };

  // An effect that answers at once is a turn of this loop, not a deeper call: a thousand of them cost no stack.
  const loop = (): void => {
    looping = true;
    do {
      answered = false;
      let step: IteratorResult<Effect<unknown>, T>;
      try {
        step = task.next(value);
      } catch (error) {
        looping = false;
        failed(error);
        return;
      }
      if (step.done === true) {
        looping = false;
        done(step.value);
        return;
      }
      let once = false;
      step.value((given) => {
        if (once) throw new Error("an effect answered twice");
        once = true;
        resume(given);
      });
    } while (answered);
    looping = false;
  };
  loop();
}

/** A task as a promise, for the edges of the product (admin API, library, tests). */
export function promiseOf<T>(task: Task<T>): Promise<T> {
  return new Promise((resolve, reject) => start(task, resolve, reject));
}

/** Runs tasks one at a time in the order of arrival: the lock of an owner with several slow operations. */
export class TaskQueue {
  #busy = false;
  readonly #waiting: (() => void)[] = [];

  /** The task that waits for its turn, runs `task`, and lets the next one in, also when `task` throws. */
  *run<T>(task: Task<T>): Task<T> {
    if (this.#busy) yield* perform<void>((resume) => this.#waiting.push(resume));
    this.#busy = true;
    try {
      return yield* task;
    } finally {
      const next = this.#waiting.shift();
      if (next === undefined) this.#busy = false;
      else next();
    }
  }
}
