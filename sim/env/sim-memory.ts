/**
 * A process's `Memory` that finds misuse: reading or writing what is not allocated, freeing twice, relying on the content
 * of what was freed. It is kept for the next process when its own has died, since a WebAssembly memory is dear to make.
 */
import { Memory, type MemoryWaiter, type Pieces } from "#base/memory";
import { KIB, MIB } from "#base/units";

const UNIT_BYTES = 512;
const POISON = 0xd5;
/** Three sets of eight blocks: most of what is kept is soon driven out. */
const CACHE_BYTES = 128 * KIB;
/** More would cost more than it finds. */
const POISON_BYTES_MAX = 16 * 1024;

export class SimMemory extends Memory {
  /** Allocated length of each buffer by its position. */
  readonly #live = new Map<number, number>();
  /** Which units of 512 bytes belong to an allocated buffer. */
  readonly #owned: Uint8Array;
  #waiting: MemoryWaiter[] = [];
  /** Bytes that may be allocated: a world can make memory scarce. */
  limit = Number.POSITIVE_INFINITY;

  constructor(size: number) {
    super(size, CACHE_BYTES);
    this.#owned = new Uint8Array(this.size / UNIT_BYTES);
  }

  override allocate(length: number): number {
    if (this.used + length > this.limit && this.#live.size > 0) return 0;
    const at = super.allocate(length);
    if (at === 0) return 0;
    this.#live.set(at, length);
    this.#owned.fill(1, at / UNIT_BYTES, Math.ceil((at + length) / UNIT_BYTES));
    return at;
  }

  override free(at: number): void {
    const length = this.#live.get(at);
    if (length === undefined) throw new Error(`memory at ${at} is freed, but is not allocated`);
    this.#live.delete(at);
    this.#owned.fill(0, at / UNIT_BYTES, Math.ceil((at + length) / UNIT_BYTES));
    this.bytes.fill(POISON, at, at + Math.min(length, POISON_BYTES_MAX));
    super.free(at);
    if (this.#waiting.length > 0) for (const waiter of this.#waiting.splice(0)) waiter.onMemory();
  }

  override whenFreed(waiter: MemoryWaiter): void {
    if (!this.#waiting.includes(waiter)) this.#waiting.push(waiter);
  }

  /** Throws unless all of the range lies in allocated buffers. */
  assertOwned(at: number, length: number, who: string): void {
    const final = Math.ceil((at + length) / UNIT_BYTES);
    for (let unit = Math.floor(at / UNIT_BYTES); unit < final; unit++)
      if (this.#owned[unit] !== 1) throw new Error(`${who} uses memory at ${at} + ${length} that is not allocated`);
  }

  assertOwnedPieces(pieces: Pieces, who: string): void {
    for (let i = 0; i < pieces.count; i++) this.assertOwned(pieces.at[i]!, pieces.length[i]!, who);
  }

  /** Lengths of the buffers that are allocated now. */
  get liveLengths(): number[] {
    return [...this.#live.values()];
  }

  /** Frees everything, for the next process. */
  reset(): void {
    this.#waiting = [];
    this.limit = Number.POSITIVE_INFINITY;
    this.cacheBytes = CACHE_BYTES;
    for (const at of [...this.#live.keys()]) this.free(at);
  }
}

/** Memories to take and give back; shared by all worlds of a run. */
export class MemoryPool {
  readonly #idle: SimMemory[] = [];
  readonly size: number;
  constructor(size: number = 64 * MIB) {
    this.size = size;
  }
  take(): SimMemory {
    return this.#idle.pop() ?? new SimMemory(this.size);
  }
  giveBack(memory: SimMemory): void {
    memory.reset();
    this.#idle.push(memory);
  }
}
