/**
 * The data plane's memory: one fixed region per lane in which every buffer that a disk or a socket touches lies.
 * A buffer is a position in it, a plain number: no object per buffer, nothing for the garbage collector, and a kernel
 * address by one addition. The region is a WebAssembly memory, so that the checksum (XXH3, in WebAssembly) reads it in
 * place. Its size is the limit on all data in flight; the operating system provides pages only as they are touched.
 *
 * Behind them there may be room for blocks that are kept beyond the requests that brought them: see `BlockCache`.
 *
 * Spans of 1 MiB are cut into equal pieces of a size class, or handed out whole and in runs. The classes are powers of
 * two plus 512 bytes, since the common request is a power of two of data with a protocol header in front of it.
 */
import { KIB, MIB } from "./units.ts";
import { Hasher } from "./xxh3.ts";

const SPAN_BYTES = MIB;
/** Positions are of 31 bits. */
const SPANS_MAX = 2047;
/** What a WebAssembly memory comes in. */
const CACHE_PAGE_BYTES = 64 * KIB;
/** From this length on, a call out of JavaScript costs less than what is done faster there. */
const LONG_HASH_BYTES = 512;
/** Position and length of what a long hash is tried with: odd ones, and those around a block (1024) of XXH3. */
const LONG_HASH_TRIALS = [
  [4096, LONG_HASH_BYTES],
  [4097, 1023],
  [4099, 1024],
  [5000, 1025],
  [8192, 4096],
  [4096, 16 * KIB - 1],
] as const;
/** Sizes of pieces in bytes; above the last one, whole spans. All are multiples of 512. */
const CLASS_BYTES = [512, 1536, 2560, 4608, 8704, 16896, 33280, 66048, 131584, 262656] as const;
const FREE = 0xff;
const RUN = 0xfe;
const RUN_TAIL = 0xfd;

export type LongHash = (at: number, length: number) => number;

/** Asked once memory has been freed after an `allocate` that failed; called from within `free`, so only plan work in it. */
export interface MemoryWaiter {
  onMemory(): void;
}

export class Memory {
  readonly bytes: Uint8Array<ArrayBuffer>;
  readonly view: DataView<ArrayBuffer>;
  /** Of the buffers. */
  readonly size: number;
  /** Where the cache of blocks lies, and how much there is of it: whoever makes one asks once. */
  readonly cacheAt: number;
  cacheBytes: number;
  /** So much of it can be touched at once: what the system has not provided yet would have to be waited for. */
  cacheReady: number;
  /** Has more of it provided, in the background, if there is any. Where nobody does, all of it counts as ready. */
  provideCache: (() => void) | undefined = undefined;
  readonly #hasher: Hasher;
  #longHash: LongHash | undefined;
  /** What each span is cut into: a class, RUN, RUN_TAIL or FREE. */
  readonly #spanClass: Uint8Array;
  /** Pieces in use per span; for the first span of a run, its length in spans. */
  readonly #spanUsed: Uint32Array;
  readonly #freePieces: number[][] = CLASS_BYTES.map(() => []);
  readonly #waiters: MemoryWaiter[] = [];
  #used = 0;
  #peak = 0;

  /**
   * @param size bytes for buffers, rounded up to whole MiB; at least 2 MiB, at most 2047 MiB.
   * @param cacheBytes bytes behind them, rounded down to whole pages of 64 KiB; with the buffers, at most 2047 MiB.
   */
  constructor(size: number, cacheBytes = 0) {
    const spans = Math.min(Math.max(Math.ceil(size / SPAN_BYTES), 2), SPANS_MAX);
    this.size = spans * SPAN_BYTES;
    this.cacheAt = this.size;
    const room = Math.min(cacheBytes, SPANS_MAX * SPAN_BYTES - this.size);
    this.cacheBytes = Math.floor(room / CACHE_PAGE_BYTES) * CACHE_PAGE_BYTES;
    this.cacheReady = this.cacheBytes;
    this.#hasher = new Hasher(this.size + this.cacheBytes);
    this.bytes = new Uint8Array(this.#hasher.buffer);
    this.view = new DataView(this.#hasher.buffer);
    this.#spanClass = new Uint8Array(spans).fill(FREE);
    this.#spanUsed = new Uint32Array(spans);
    // The first span belongs to the hasher's tables; position 0 can thus mean "none".
    this.#spanClass[0] = RUN;
    this.#spanUsed[0] = 1;
  }

  /** Bytes handed out now, rounded up to their classes; and the most there ever were. */
  get used(): number {
    return this.#used;
  }
  get peak(): number {
    return this.#peak;
  }

  /** A buffer of at least `length` bytes, or 0 when there is none: then wait with `whenFreed`. Its content is arbitrary. */
  allocate(length: number): number {
    const kind = classOf(length);
    const at = kind === CLASS_BYTES.length ? this.#takeRun(Math.ceil(length / SPAN_BYTES)) : this.#takePiece(kind);
    if (at !== 0) {
      this.#used += this.#sizeAt(at);
      if (this.#used > this.#peak) this.#peak = this.#used;
    }
    return at;
  }

  /** Gives back what `allocate` returned. */
  free(at: number): void {
    const span = Math.floor(at / SPAN_BYTES);
    const kind = this.#spanClass[span]!;
    if (at <= 0 || kind === FREE || kind === RUN_TAIL)
      throw new Error(`memory at ${at} is freed, but was not allocated`);
    this.#used -= this.#sizeAt(at);
    if (kind === RUN) {
      this.#spanClass.fill(FREE, span, span + this.#spanUsed[span]!);
      this.#spanUsed[span] = 0;
    } else {
      this.#spanUsed[span]! -= 1;
      this.#freePieces[kind]!.push(at);
    }
    if (this.#waiters.length > 0) for (const waiter of this.#waiters.splice(0)) waiter.onMemory();
  }

  /** Tells `waiter` once, as soon as something has been freed. */
  whenFreed(waiter: MemoryWaiter): void {
    if (!this.#waiters.includes(waiter)) this.#waiters.push(waiter);
  }

  /** The low 32 bits of XXH3-64 over `length` bytes at `at`. */
  hash(at: number, length: number): number {
    if (length >= LONG_HASH_BYTES && this.#longHash !== undefined) return this.#longHash(at, length);
    return this.#hasher.hash(at, length);
  }

  /**
   * Takes a faster function for what is long, with the meaning of `hash`. False, and it is not used, when it computes
   * something else: what it would write could not be read elsewhere.
   */
  useLongHash(hash: LongHash): boolean {
    // The hasher's tables are as good as random, and they are there before anything else is.
    for (const [at, length] of LONG_HASH_TRIALS) if (hash(at, length) !== this.#hasher.hash(at, length)) return false;
    this.#longHash = hash;
    return true;
  }

  /** CRC32C over `length` bytes at `at`; `crc` is that of the bytes before them. */
  crc32c(at: number, length: number, crc = 0): number {
    return this.#hasher.crc32c(at, length, crc);
  }

  /** A view of a buffer, for the edges: it is an allocation, so not for the hot path. */
  slice(at: number, length: number): Uint8Array<ArrayBuffer> {
    return this.bytes.subarray(at, at + length);
  }

  #sizeAt(at: number): number {
    const span = Math.floor(at / SPAN_BYTES);
    const kind = this.#spanClass[span]!;
    return kind === RUN ? this.#spanUsed[span]! * SPAN_BYTES : CLASS_BYTES[kind]!;
  }

  #takePiece(kind: number): number {
    const free = this.#freePieces[kind]!;
    if (free.length === 0) {
      let span = this.#findSpans(1);
      if (span < 0 && this.#reclaim()) span = this.#findSpans(1);
      if (span < 0) return 0;
      this.#spanClass[span] = kind;
      const size = CLASS_BYTES[kind]!;
      // The lowest piece is taken first, so that a mostly idle process touches few pages.
      for (let at = Math.floor(SPAN_BYTES / size) - 1; at >= 0; at--) free.push(span * SPAN_BYTES + at * size);
    }
    const at = free.pop()!;
    this.#spanUsed[Math.floor(at / SPAN_BYTES)]! += 1;
    return at;
  }

  #takeRun(spans: number): number {
    let first = this.#findSpans(spans);
    if (first < 0 && this.#reclaim()) first = this.#findSpans(spans);
    if (first < 0) return 0;
    this.#spanClass.fill(RUN_TAIL, first, first + spans);
    this.#spanClass[first] = RUN;
    this.#spanUsed[first] = spans;
    return first * SPAN_BYTES;
  }

  #findSpans(count: number): number {
    let run = 0;
    for (let span = 1; span < this.#spanClass.length; span++) {
      run = this.#spanClass[span] === FREE ? run + 1 : 0;
      if (run === count) return span - count + 1;
    }
    return -1;
  }

  /** Takes spans of which no piece is in use away from their classes. True if there were any. */
  #reclaim(): boolean {
    let found = false;
    for (let span = 1; span < this.#spanClass.length; span++) {
      if (this.#spanClass[span]! < CLASS_BYTES.length && this.#spanUsed[span] === 0) {
        const kind = this.#spanClass[span]!;
        this.#freePieces[kind] = this.#freePieces[kind]!.filter((at) => Math.floor(at / SPAN_BYTES) !== span);
        this.#spanClass[span] = FREE;
        found = true;
      }
    }
    return found;
  }
}

function classOf(length: number): number {
  if (length > 262656) return CLASS_BYTES.length;
  let kind = 0;
  while (CLASS_BYTES[kind]! < length) kind++;
  return kind;
}

/** Up to `COUNT_MAX` buffers that a socket or a disk reads or writes as if they lay one after another. Reused. */
export class Pieces {
  /** The kernel's own limit is 1024 per call (UIO_MAXIOV). */
  static readonly COUNT_MAX = 1024;
  readonly at = new Int32Array(Pieces.COUNT_MAX);
  readonly length = new Int32Array(Pieces.COUNT_MAX);
  count = 0;
  /** Bytes of all pieces together. */
  total = 0;

  /** Adds a buffer; one that continues the last piece makes that longer. False when there is no room. */
  add(at: number, length: number): boolean {
    const last = this.count - 1;
    if (last >= 0 && this.at[last]! + this.length[last]! === at) {
      this.length[last]! += length;
    } else {
      if (this.count === Pieces.COUNT_MAX) return false;
      this.at[this.count] = at;
      this.length[this.count] = length;
      this.count++;
    }
    this.total += length;
    return true;
  }

  clear(): void {
    this.count = 0;
    this.total = 0;
  }
}

/** The default size of a server's data-plane memory, over all its lanes. */
export const MEMORY_BYTES_DEFAULT = 512 * MIB;
/** What a lane's memory can be at most, buffers and cache of blocks together. */
export const LANE_BYTES_MAX = SPANS_MAX * SPAN_BYTES;
export const HEADER_ROOM_BYTES = KIB / 2;
