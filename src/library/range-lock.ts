/**
 * Keeps a read-modify-write of part of a block from undoing a write of another part of the same block. Plain writes do
 * not hinder each other; a "modify" hinders, and waits for, everything that overlaps it.
 */
interface Held {
  readonly start: number;
  readonly end: number;
  readonly modify: boolean;
}

export class RangeLock {
  readonly #held = new Set<Held>();
  #waiting: (() => void)[] = [];

  /** Waits until nothing stands in the way of [start, end); returns how to let go of it. */
  async take(start: number, end: number, modify: boolean): Promise<() => void> {
    while (this.#hindered(start, end, modify)) await new Promise<void>((resolve) => this.#waiting.push(resolve));
    const held: Held = { start, end, modify };
    this.#held.add(held);
    return () => {
      this.#held.delete(held);
      for (const wake of this.#waiting.splice(0)) wake();
    };
  }

  #hindered(start: number, end: number, modify: boolean): boolean {
    for (const held of this.#held) if ((modify || held.modify) && held.start < end && start < held.end) return true;
    return false;
  }
}
