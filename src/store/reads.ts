/**
 * Reads in progress, of all versions of a lane: whole blocks come from segments into memory and are compared with their
 * checksums, if the lane's cache of blocks has them not. What a read needs besides its version's map and its segment is the
 * lane's, and so are the records of those in progress: the one that ended last is used next, whosever it was. With a
 * thousand volumes in use, each of which had records of its own, they would be in no cache when they are needed.
 */
import type { Memory } from "#base/memory";
import type { Status } from "#base/status";
import { BLOCK_BYTES } from "#base/units";
import type { BlockOp } from "#device/device";
import { type Disk, DiskOp, type Env } from "#env/env";
import { BlockCache, CACHED_BLOCKS_MAX } from "./block-cache.ts";
import { rightBlocks } from "./checksums.ts";
import type { VersionMap } from "./map.ts";
import { blockOf, type Segment, type SegmentTable } from "./segment.ts";

/** A read longer than this is several reads of the disk, so that the first pieces are verified while others come. */
const FETCH_BLOCKS_MAX = 256;

/** Whose blocks are read. */
export interface Reader {
  onReading(reading: Reading): void;
  /** Makes file and checksums of a segment available; as `Checksums.load`. */
  loadSegment(segment: Segment, done: (ok: boolean) => void): void;
  /** A block of the version cannot be read, or is not what was written. */
  foundDamage(block: number, segment: Segment, inSegment: number, why: string): void;
}

/** A read in progress. */
export class Reading {
  status: Status = "ok";
  /** Bytes from the first block to the first damaged one. */
  badAt = 0;
  op!: BlockOp;
  reader!: Reader;
  /** Where block 0 of the reading goes: `at` may be a bounce buffer. */
  at = 0;
  firstBlock = 0;
  /** Past the cache of blocks: what matters is what the disk has. */
  fromDisk = false;
  /** Reads of the disk that have not ended. */
  pending = 0;
  done!: (reading: Reading) => void;
}

/** One read of the disk for a part of a reading. */
class Fetch {
  reading!: Reading;
  segment!: Segment;
  block = 0;
  count = 0;
  at = 0;
  readonly op: DiskOp;
  constructor(owner: Reads) {
    this.op = new DiskOp(() => owner.onFetched(this));
  }
}

const ofEnv = new WeakMap<Env, Reads>();

export class Reads {
  readonly #disk: Disk;
  readonly #memory: Memory;
  readonly cache: BlockCache;
  readonly #readings: Reading[] = [];
  readonly #fetches: Fetch[] = [];

  /** The lane's. */
  static of(env: Env): Reads {
    let reads = ofEnv.get(env);
    if (reads === undefined) ofEnv.set(env, (reads = new Reads(env)));
    return reads;
  }

  private constructor(env: Env) {
    this.#disk = env.disk;
    this.#memory = env.memory;
    this.cache = new BlockCache(env.memory);
  }

  /** A record for a read, to be given back when it is done. `op`, `reader` and `done` are to be set. */
  take(): Reading {
    const reading = this.#readings.pop() ?? new Reading();
    reading.status = "ok";
    reading.badAt = 0;
    reading.fromDisk = false;
    return reading;
  }
  give(reading: Reading): void {
    this.#readings.push(reading);
  }

  /** Reads `count` blocks from `block` on into memory at `at`, as `map` has them; `done` once all have come, or have failed. */
  begin(reading: Reading, map: VersionMap, segments: SegmentTable, block: number, count: number, at: number): void {
    reading.at = at;
    reading.firstBlock = block;
    // One more than there are, so that the last of the reads that end at once does not end the reading.
    reading.pending = 1;
    while (count > 0) {
      map.find(block, count);
      const { location } = map;
      const part = location === 0 ? map.length : Math.min(map.length, FETCH_BLOCKS_MAX);
      if (location === 0) this.#memory.bytes.fill(0, at, at + part * BLOCK_BYTES);
      else this.#bring(reading, segments.at(location), blockOf(location), part, at);
      block += part;
      count -= part;
      at += part * BLOCK_BYTES;
    }
    this.#endFetch(reading);
  }

  /** Brings blocks of a segment from the cache, and what it has not from the disk. */
  #bring(reading: Reading, segment: Segment, block: number, count: number, at: number): void {
    const cached = reading.fromDisk || count > CACHED_BLOCKS_MAX ? 0 : this.cache.read(segment, block, count, at);
    if (cached < count) this.#fetch(reading, segment, block + cached, count - cached, at + cached * BLOCK_BYTES);
  }

  #fetch(reading: Reading, segment: Segment, block: number, count: number, at: number): void {
    const fetch = this.#fetches.pop() ?? new Fetch(this);
    fetch.reading = reading;
    fetch.segment = segment;
    fetch.block = block;
    fetch.count = count;
    fetch.at = at;
    segment.pins++;
    reading.pending++;
    if (segment.file !== undefined) return this.#submit(fetch);
    reading.reader.loadSegment(segment, (ok) => {
      if (ok) this.#submit(fetch);
      else this.#failLoad(fetch, "cannot be opened");
    });
  }

  #submit(fetch: Fetch): void {
    const { op } = fetch;
    op.kind = "read";
    op.file = fetch.segment.file!;
    op.position = fetch.block * BLOCK_BYTES;
    op.at = fetch.at;
    op.length = fetch.count * BLOCK_BYTES;
    this.#disk.submit(op);
  }

  onFetched(fetch: Fetch): void {
    const { op, segment } = fetch;
    if (op.fault !== undefined || op.count < op.length) {
      const good = op.fault === undefined ? Math.floor(op.count / BLOCK_BYTES) : 0;
      return this.#fail(fetch, good, op.fault ?? "ends early");
    }
    if (segment.sums !== undefined) return this.#verify(fetch);
    fetch.reading.reader.loadSegment(segment, (ok) => {
      if (ok) this.#verify(fetch);
      else this.#failLoad(fetch, "has no readable checksums");
    });
  }

  #verify(fetch: Fetch): void {
    const { segment, block, count, at } = fetch;
    const right = rightBlocks(this.#memory, segment, block, count, at);
    if (right < count) return this.#fail(fetch, right, "does not match its checksum");
    if (count <= CACHED_BLOCKS_MAX && !fetch.reading.fromDisk) this.cache.offer(segment, block, count, at);
    this.#release(fetch);
  }

  /** What has no file or memory left for it is there all the same: that is no damage. */
  #failLoad(fetch: Fetch, why: string): void {
    if (fetch.segment.damaged) return this.#fail(fetch, 0, why);
    if (fetch.reading.status === "ok") fetch.reading.status = "busy";
    this.#release(fetch);
  }

  #fail(fetch: Fetch, good: number, why: string): void {
    const { reading, segment } = fetch;
    const index = (fetch.at - reading.at) / BLOCK_BYTES + good;
    const badAt = index * BLOCK_BYTES;
    if (reading.status === "ok" || badAt < reading.badAt) reading.badAt = badAt;
    reading.status = "medium";
    reading.reader.foundDamage(reading.firstBlock + index, segment, fetch.block + good, why);
    this.#release(fetch);
  }

  #release(fetch: Fetch): void {
    const { reading, segment } = fetch;
    segment.pins--;
    this.#fetches.push(fetch);
    this.#endFetch(reading);
  }

  #endFetch(reading: Reading): void {
    if (--reading.pending === 0) reading.done(reading);
  }
}
