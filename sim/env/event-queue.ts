/** What will happen, in order of time; events of one instant in the order in which they were planned. A binary heap. */
import type { Millis } from "#base/units";
import type { SimProcess } from "./sim-process.ts";

export interface Happening {
  at: Millis;
  order: number;
  /** Whose it is: it does not happen when that process is dead, and waits while it is paused. */
  readonly owner: SimProcess | undefined;
  readonly what: () => void;
  /** Taken back: it will not happen. */
  off: boolean;
}

export class EventQueue {
  readonly #heap: Happening[] = [];

  get length(): number {
    return this.#heap.length;
  }

  push(happening: Happening): void {
    const heap = this.#heap;
    let index = heap.length;
    heap.push(happening);
    while (index > 0) {
      const parent = (index - 1) >> 1;
      if (!isBefore(happening, heap[parent]!)) break;
      heap[index] = heap[parent]!;
      index = parent;
    }
    heap[index] = happening;
  }

  /** When the next one is due; Infinity when there is none. One that was taken back counts. */
  get dueAt(): Millis {
    return this.#heap[0]?.at ?? Number.POSITIVE_INFINITY;
  }

  pop(): Happening | undefined {
    const heap = this.#heap;
    const first = heap[0];
    const last = heap.pop();
    if (first === undefined || last === undefined || heap.length === 0) return first;
    let index = 0;
    for (;;) {
      let child = 2 * index + 1;
      if (child >= heap.length) break;
      if (child + 1 < heap.length && isBefore(heap[child + 1]!, heap[child]!)) child++;
      if (!isBefore(heap[child]!, last)) break;
      heap[index] = heap[child]!;
      index = child;
    }
    heap[index] = last;
    return first;
  }
}

function isBefore(one: Happening, other: Happening): boolean {
  return one.at < other.at || (one.at === other.at && one.order < other.order);
}
