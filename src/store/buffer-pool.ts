/**
 * Buffers that all sets of a lane share, for what must be able to go on however full the lane's memory is: merging parts
 * of blocks, and the heads of groups. One is taken at the start; more are made while there is memory; whoever finds none
 * waits for one, in order.
 */
import type { Memory } from "#base/memory";
import { perform, type Task } from "#base/task";
import type { Env } from "#env/env";

const pools = new WeakMap<Env, Map<number, BufferPool>>();

export class BufferPool {
  static readonly COUNT_MAX = 16;
  readonly #memory: Memory;
  readonly #bytes: number;
  readonly #free: number[] = [];
  readonly #waiting: ((at: number) => void)[] = [];
  #made = 1;

  /** The lane's pool of buffers of this size in bytes. */
  static of(env: Env, bytes: number): BufferPool {
    let bySize = pools.get(env);
    if (bySize === undefined) {
      bySize = new Map();
      pools.set(env, bySize);
    }
    let pool = bySize.get(bytes);
    if (pool === undefined) {
      pool = new BufferPool(env.memory, bytes);
      bySize.set(bytes, pool);
    }
    return pool;
  }

  private constructor(memory: Memory, bytes: number) {
    this.#memory = memory;
    this.#bytes = bytes;
    const first = memory.allocate(bytes);
    if (first === 0) throw new Error(`no memory for a single buffer of ${bytes} bytes`);
    this.#free.push(first);
  }

  /** A buffer, or 0 when there is none at the moment. */
  tryTake(): number {
    const at = this.#free.pop();
    if (at !== undefined) return at;
    if (this.#made === BufferPool.COUNT_MAX) return 0;
    const made = this.#memory.allocate(this.#bytes);
    if (made !== 0) this.#made++;
    return made;
  }

  /** Calls back with a buffer as soon as there is one; possibly at once. */
  takeThen(use: (at: number) => void): void {
    const at = this.tryTake();
    if (at !== 0) use(at);
    else this.#waiting.push(use);
  }

  *take(): Task<number> {
    return yield* perform<number>((resume) => this.takeThen(resume));
  }

  give(at: number): void {
    const next = this.#waiting.shift();
    if (next !== undefined) next(at);
    else this.#free.push(at);
  }
}
