/**
 * Has the kernel provide memory for the cache of blocks before the lane touches it: in huge pages, by a thread of its own,
 * some of them ahead. By hand, on a virtual machine: 0.3 µs for 4 KiB, where a first touch of the lane's own was 12; but 7
 * where the hypervisor had taken the memory back, and much more where a full page cache had to make room for a huge page, so
 * that a lane which did that itself served a tenth of its reads. Where it is not quick enough, blocks are not kept yet.
 */
import { performance } from "node:perf_hooks";
import { type Bytes, MIB, type Millis } from "#base/units";
import { ADVICE, ERRNO, OP } from "./abi.ts";
import type { UringCore } from "./core.ts";
import type { Request } from "./ring.ts";

/** What is provided at a time, a huge page: other threads that map memory may wait as long as this takes. */
const STEP_BYTES = 2 * MIB;
/** For each moment that it took, so many of rest: it takes the processor and the memory's pace from those who read. */
const REST = 3;

export class CacheProvider implements Request {
  index = 0;
  readonly #core: UringCore;
  #busy = false;
  #began: Millis = 0;
  /** Up to where it is being provided. */
  #target: Bytes = 0;

  constructor(core: UringCore) {
    this.#core = core;
    core.ring.register(this);
    core.memory.cacheReady = 0;
    core.memory.provideCache = () => this.#provide();
  }

  #provide(): void {
    const { memory, ring, turn, base } = this.#core;
    if (this.#busy || memory.cacheReady === memory.cacheBytes) return;
    this.#busy = true;
    this.#began = performance.now();
    const from = base + memory.cacheAt + memory.cacheReady;
    // Up to where a huge page may begin.
    const length = Math.min(STEP_BYTES - (from % STEP_BYTES), memory.cacheBytes - memory.cacheReady);
    this.#target = memory.cacheReady + length;
    ring.prepare(this, OP.MADVISE, -1, from, length, 0, ADVICE.POPULATE_WRITE);
    turn.kick();
  }

  complete(result: number): void {
    const { memory } = this.#core;
    // A kernel before 5.14 does not know the advice: then the lane touches what it uses.
    if (result === -ERRNO.EINVAL) memory.cacheReady = memory.cacheBytes;
    else if (result >= 0) memory.cacheReady = this.#target;
    setTimeout(this.#onRested, REST * (performance.now() - this.#began)).unref();
  }

  readonly #onRested = (): void => {
    this.#busy = false;
  };
}
