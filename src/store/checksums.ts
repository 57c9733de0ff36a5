/**
 * Checksums of segments, in memory as long as there is room: 35 KiB for 32 MiB of data. Those of the segment being
 * written are always here; others are read from the segment's summary, or gathered from its groups, when first needed.
 */

import { canary } from "#base/canary";
import type { Memory } from "#base/memory";
import { start, type Task } from "#base/task";
import { BLOCK_BYTES } from "#base/units";
import { type Env, isDiskFault } from "#env/env";
import { BufferPool } from "./buffer-pool.ts";
import { COVERED_FROM, decodeGroup, ENTRY, GROUP, HEAD_BLOCKS_MAX, summaryBlocks } from "./format.ts";
import { decodeSummary, type Log } from "./log.ts";
import type { Segment } from "./segment.ts";
import { type SegmentStore, transfer } from "./segment-store.ts";

/** Segments whose checksums a set keeps in memory: 64 MiB for 58 GiB of data. */
const CACHED_SEGMENTS_MAX = 1872;
/** Files of segments that a set keeps open. */
const OPEN_FILES_MAX = 2048;

export class Checksums {
  readonly #env: Env;
  readonly #store: SegmentStore;
  readonly #log: Log;
  /**
   * Memory for loading, which must not fail: who reads holds memory while it waits for checksums, and would be told that its data
   * is damaged.
   */
  readonly #buffers: BufferPool;
  #clock = 0;
  #cached = 0;
  #open = 0;
  readonly #loading = new Map<Segment, ((ok: boolean) => void)[]>();

  constructor(env: Env, store: SegmentStore, log: Log) {
    this.#env = env;
    this.#store = store;
    this.#log = log;
    const blocks = Math.max(HEAD_BLOCKS_MAX + 1, summaryBlocks(log.segmentBlocks));
    this.#buffers = BufferPool.of(env, blocks * BLOCK_BYTES);
  }

  /** Notes that a segment is in use, for the choice of what to forget. */
  touch(segment: Segment): void {
    segment.usedAt = ++this.#clock;
  }

  /**
   * Makes file and checksums of a segment available. `done(false)` when they cannot be read: the segment is damaged, or
   * there are too many open files or too little memory for it now. May call back at once.
   */
  load(segment: Segment, done: (ok: boolean) => void): void {
    if (segment.file !== undefined && segment.sums !== undefined) return done(true);
    const waiting = this.#loading.get(segment);
    if (waiting !== undefined) {
      waiting.push(done);
      return;
    }
    const waiters = [done];
    this.#loading.set(segment, waiters);
    segment.pins++;
    const finish = (ok: boolean): void => {
      segment.pins--;
      this.#loading.delete(segment);
      for (const waiter of waiters) waiter(ok);
    };
    start(this.#load(segment), finish, (error) => {
      this.#env.log.error({ error: String(error), segment: segment.number }, "loading checksums failed");
      finish(false);
    });
  }

  *#load(segment: Segment): Task<boolean> {
    this.touch(segment);
    if (segment.file === undefined) {
      yield* this.#makeRoomForFile();
      let file = yield* this.#store.open(segment.number);
      if (file === "too-many-files" && (yield* this.#closeFiles(64)) > 0)
        file = yield* this.#store.open(segment.number);
      if (isDiskFault(file)) {
        this.#env.log.error({ file: this.#store.describe(segment.number), fault: file }, "a segment cannot be opened");
        segment.damaged = file !== "too-many-files";
        return false;
      }
      segment.file = file;
      this.#open++;
    }
    if (segment.sums !== undefined) return true;
    this.#makeRoom();
    const { segmentBlocks } = this.#log;
    const sums = new Uint32Array(segmentBlocks);
    if (!(yield* this.#fromSummary(segment, sums)) && !(yield* this.#fromGroups(segment, sums))) return false;
    segment.sums = sums;
    this.#cached++;
    return true;
  }

  *#fromSummary(segment: Segment, sums: Uint32Array): Task<boolean> {
    if (!segment.summarised) return false;
    const { memory, disk } = this.#env;
    const { segmentBlocks } = this.#log;
    const blocks = summaryBlocks(segmentBlocks);
    const at = yield* this.#buffers.take();
    const position = (segmentBlocks - blocks) * BLOCK_BYTES;
    const fault = yield* transfer(disk, "read", segment.file!, position, at, blocks * BLOCK_BYTES);
    const hash = (from: number, length: number): number => memory.hash(from, length);
    const ok = fault === undefined && decodeSummary(memory.view, memory.bytes, hash, at, blocks, segment.number, sums);
    this.#buffers.give(at);
    if (!ok) this.#env.log.warn({ file: this.#store.describe(segment.number) }, "a segment's summary is damaged");
    return ok;
  }

  /** Walks the groups of a segment. What lies behind a damaged head stays without checksums, and is found damaged. */
  *#fromGroups(segment: Segment, sums: Uint32Array): Task<boolean> {
    const { memory, disk } = this.#env;
    const at = yield* this.#buffers.take();
    const { view } = memory;
    for (let block = 1; block < segment.used; ) {
      const length = Math.min(HEAD_BLOCKS_MAX, segment.used - block) * BLOCK_BYTES;
      const fault = yield* transfer(disk, "read", segment.file!, block * BLOCK_BYTES, at, length);
      // What cannot be read may be data behind a head of one block, as nearly all are.
      if (fault !== undefined) {
        memory.bytes.fill(0, at, at + length);
        yield* transfer(disk, "read", segment.file!, block * BLOCK_BYTES, at, BLOCK_BYTES);
      }
      const head = decodeGroup(view, at, segment.number, block, segment.used - block);
      const covered = (head?.headBlocks ?? 0) * BLOCK_BYTES - COVERED_FROM;
      if (head === undefined || view.getUint32(at + GROUP.checksum) !== memory.hash(at + COVERED_FROM, covered)) {
        if (!segment.damaged)
          this.#env.log.error({ file: this.#store.describe(segment.number), block }, "a group's head is damaged");
        segment.damaged = true;
        // The next head may still be found; the blocks between have no checksum that could vouch for them.
        block++;
        continue;
      }
      const first = block + head.headBlocks;
      const sumsAt = at + GROUP.byteLength + head.entries * ENTRY.byteLength;
      for (let each = 0; each < head.dataBlocks; each++) sums[first + each] = view.getUint32(sumsAt + each * 4);
      block = first + head.dataBlocks;
    }
    this.#buffers.give(at);
    return true;
  }

  /** Forgets what was not used for longest, once there is too much; a tenth at a time, so that this is rare. */
  #makeRoom(): void {
    if (this.#cached < CACHED_SEGMENTS_MAX) return;
    const idle = [...this.#log.segments.values()]
      .filter((segment) => segment.sums !== undefined && segment.sealed && segment.pins === 0)
      .sort((a, b) => a.usedAt - b.usedAt);
    for (const segment of idle.slice(0, CACHED_SEGMENTS_MAX / 10)) segment.sums = undefined;
    this.#cached = [...this.#log.segments.values()].filter((segment) => segment.sums !== undefined).length;
  }

  *#makeRoomForFile(): Task<void> {
    if (this.#open >= OPEN_FILES_MAX) yield* this.#closeFiles(OPEN_FILES_MAX / 10);
  }

  /** Closes up to `count` files that nobody has used for longest; says how many. */
  *#closeFiles(count: number): Task<number> {
    const idle = [...this.#log.segments.values()]
      .filter((segment) => segment.file !== undefined && segment.sealed && !this.#log.isBusy(segment))
      .sort((a, b) => a.usedAt - b.usedAt)
      .slice(0, count);
    for (const segment of idle) {
      const file = segment.file!;
      segment.file = undefined;
      yield (resume: (value: unknown) => void) => this.#store.close(file)(resume);
    }
    this.#open = [...this.#log.segments.values()].filter((segment) => segment.file !== undefined).length;
    return idle.length;
  }
}

/** Compares blocks in memory with their segment's checksums, which are there: how many from the first on are right. */
export function rightBlocks(memory: Memory, segment: Segment, block: number, count: number, at: number): number {
  const sums = segment.sums!;
  if (canary.armed === "skip-checksum") return count;
  let index = 0;
  while (index < count) {
    if (memory.hash(at + index * BLOCK_BYTES, BLOCK_BYTES) !== sums[block + index]) return index;
    index++;
  }
  return count;
}
