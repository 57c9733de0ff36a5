/**
 * A block device for people: promises, byte offsets, `Uint8Array`s of one's own. It is made over any `BlockDevice` and
 * the memory it does its I/O in. Any offset and length will do: where the device wants whole blocks, the ends of a
 * write are read, changed and written back under a lock.
 */
import type { Memory } from "#base/memory";
import { MIB } from "#base/units";
import { type BlockDevice, BlockOp, type DeviceChange, ExtentFlag, Extents } from "#device/device";
import { DeviceError } from "./device-error.ts";
import { RangeLock } from "./range-lock.ts";

/** Longer reads and writes are done in slices of this size, so that one request cannot take all the memory. */
const SLICE_BYTES_MAX = MIB;
/** Slices of one call that are in flight together. */
const SLICES_AT_ONCE = 8;
const EXTENTS_PER_QUESTION = 1024;

export interface WriteOptions {
  /** Be on stable storage when the promise resolves. */
  readonly fua?: boolean;
}
export interface ZeroOptions extends WriteOptions {
  /** Keep the space allocated rather than make a hole. */
  readonly noHole?: boolean;
  /** Fail with "unsupported" if it would be no faster than writing zeroes. */
  readonly fastOnly?: boolean;
}

/** A run of one kind. */
export interface ExtentInfo {
  readonly offset: number;
  readonly length: number;
  /** No space is taken. */
  readonly hole: boolean;
  readonly zero: boolean;
  /** 1: the device's own data; 2, 3, …: inherited from the versions it descends from; 0: nobody has written it. */
  readonly depth: number;
}

export class DeviceHandle {
  readonly device: BlockDevice;
  readonly memory: Memory;
  /** Reads and writes of the device are in multiples of this many bytes. */
  readonly grainBytes: number;
  readonly #closeDevice: () => Promise<void>;
  readonly #lock = new RangeLock();
  /** Counts changes, at their begin and at their end; and up to which count they have been flushed. */
  #changes = 0;
  #flushed = 0;
  #closing: Promise<void> | undefined;
  /** Calls that have not resolved; `close` waits for them. */
  readonly #calls = new Set<Promise<unknown>>();

  /** @param grainBytes of the device, where it takes finer requests than its `blockSize` says. */
  constructor(device: BlockDevice, memory: Memory, close: () => Promise<void>, grainBytes = device.blockSize) {
    this.device = device;
    this.memory = memory;
    this.grainBytes = grainBytes;
    this.#closeDevice = close;
  }

  /** Bytes. It may grow while the handle is open. */
  get size(): number {
    return this.device.size;
  }
  get readOnly(): boolean {
    return this.device.readOnly;
  }
  /** What writes are best aligned to, in bytes. */
  get preferredBlockSize(): number {
    return this.device.preferredBlockSize;
  }

  /** Reads `length` bytes at `offset`. Rejects with a `DeviceError`. */
  read(offset: number, length: number): Promise<Uint8Array<ArrayBuffer>> {
    return this.#call("read", offset, length, () => this.#read(offset, length));
  }
  async #read(offset: number, length: number): Promise<Uint8Array<ArrayBuffer>> {
    const into = new Uint8Array(length);
    await this.#inSlices(offset, length, async (at, start, end) => {
      await this.#submit("read", start, end - start, { at });
      const from = Math.max(start, offset);
      const to = Math.min(end, offset + length);
      into.set(this.memory.bytes.subarray(at + from - start, at + to - start), from - offset);
    });
    return into;
  }

  /** Writes `data` at `offset`. When it resolves, readers see the data; after the next `flush` no power cut undoes it. */
  write(offset: number, data: Uint8Array, options: WriteOptions = {}): Promise<void> {
    return this.#call("write", offset, data.length, () => this.#write(offset, data, options));
  }
  async #write(offset: number, data: Uint8Array, options: WriteOptions): Promise<void> {
    this.#changes++;
    const fua = options.fua ?? false;
    const finish = offset + data.length;
    await this.#inSlices(offset, data.length, async (at, start, end) => {
      const from = Math.max(start, offset);
      const to = Math.min(end, finish);
      const whole = from === start && to === end;
      const release = this.grainBytes === 1 ? undefined : await this.#lock.take(start, end, !whole);
      try {
        if (!whole) await this.#submit("read", start, end - start, { at });
        this.memory.bytes.set(data.subarray(from - offset, to - offset), at + from - start);
        await this.#submit("write", start, end - start, { at, fua });
      } finally {
        release?.();
      }
    });
    this.#changes++;
  }

  /** Waits until every write that has resolved is on stable storage. */
  flush(): Promise<void> {
    return this.#call("flush", 0, 0, () => this.#flush());
  }
  async #flush(): Promise<void> {
    const covered = this.#changes;
    await this.#submit("flush", 0, 0, {});
    this.#flushed = Math.max(this.#flushed, covered);
  }

  /** Says that the range's data is not needed any more. Blocks that lie only partly in the range are left alone. */
  trim(offset: number, length: number, options: WriteOptions = {}): Promise<void> {
    return this.#call("trim", offset, length, () => this.#trim(offset, length, options));
  }
  async #trim(offset: number, length: number, options: WriteOptions): Promise<void> {
    const start = Math.ceil(offset / this.grainBytes) * this.grainBytes;
    const end = Math.floor((offset + length) / this.grainBytes) * this.grainBytes;
    if (end <= start) return;
    await this.#submit("trim", start, end - start, { fua: options.fua ?? false });
    this.#changes++;
  }

  /** Makes the range read as zeroes, without sending them. */
  zero(offset: number, length: number, options: ZeroOptions = {}): Promise<void> {
    return this.#call("zero", offset, length, () => this.#zero(offset, length, options));
  }
  async #zero(offset: number, length: number, options: ZeroOptions): Promise<void> {
    if (length === 0) return;
    const { fua = false, noHole = false, fastOnly = false } = options;
    const start = Math.ceil(offset / this.grainBytes) * this.grainBytes;
    const end = Math.floor((offset + length) / this.grainBytes) * this.grainBytes;
    if (end <= start) return this.#write(offset, new Uint8Array(length), { fua });
    this.#changes++;
    const release = this.grainBytes === 1 ? undefined : await this.#lock.take(start, end, false);
    try {
      await this.#submit("zero", start, end - start, { fua, noHole, fastOnly });
    } finally {
      release?.();
    }
    this.#changes++;
    if (start > offset) await this.#write(offset, new Uint8Array(start - offset), { fua });
    if (end < offset + length) await this.#write(end, new Uint8Array(offset + length - end), { fua });
  }

  /** Brings the range into the server's cache, where it has one. */
  cache(offset: number, length: number): Promise<void> {
    return this.#call("cache", offset, length, () => this.#cache(offset, length));
  }
  async #cache(offset: number, length: number): Promise<void> {
    const start = this.#down(offset);
    const end = this.#up(offset + length);
    if (end > start) await this.#submit("cache", start, end - start, {});
  }

  /** What the range consists of, in order and without gaps. A device that cannot tell says that all of it is data. */
  status(offset = 0, length = this.size - offset): Promise<ExtentInfo[]> {
    return this.#call("status", offset, length, () => this.#status(offset, length));
  }
  async #status(offset: number, length: number): Promise<ExtentInfo[]> {
    const found: ExtentInfo[] = [];
    const finish = offset + length;
    for (let position = this.#down(offset), end = this.#up(finish); position < end; ) {
      const extents = new Extents(EXTENTS_PER_QUESTION);
      const status = await this.#try("status", position, end - position, { extents });
      if (status === "unsupported") extents.add(end - position, 0, 1);
      else if (status !== "ok" || extents.count === 0)
        throw new DeviceError(status, "status", position, end - position);
      for (let index = 0; index < extents.count && position < end; index++) {
        const next = position + extents.length[index]!;
        const from = Math.max(position, offset);
        const to = Math.min(next, finish);
        const flags = extents.flags[index]!;
        const hole = (flags & ExtentFlag.HOLE) !== 0;
        const zero = (flags & ExtentFlag.ZERO) !== 0;
        const depth = extents.depth[index]!;
        const last = found.at(-1);
        if (last !== undefined && last.hole === hole && last.zero === zero && last.depth === depth)
          found[found.length - 1] = { ...last, length: to - last.offset };
        else found.push({ offset: from, length: to - from, hole, zero, depth });
        position = next;
      }
    }
    return found;
  }

  /** Calls `watcher` when the size or the rights change, or when the device is gone. Returns how to stop it. */
  watch(watcher: (change: DeviceChange) => void): () => void {
    return this.device.watch(watcher);
  }

  /** Flushes what was written, waits for what is in flight, and closes. Rejects if the flush fails; it closes anyway. */
  close(): Promise<void> {
    // What was called before this has not begun yet, perhaps: it is let in first.
    this.#closing ??= Promise.resolve().then(() => this.#close());
    return this.#closing;
  }

  async #close(): Promise<void> {
    await Promise.allSettled(this.#calls);
    try {
      if (this.#changes > this.#flushed) await this.#flush();
    } finally {
      await this.#closeDevice();
    }
  }

  /** So that `await using disk = await connect(…)` closes it. */
  async [Symbol.asyncDispose](): Promise<void> {
    await this.close();
  }

  /** Lets `work` begin if the range makes sense and the handle is open. */
  async #call<T>(kind: BlockOp["kind"], offset: number, length: number, work: () => Promise<T>): Promise<T> {
    if (!Number.isSafeInteger(offset) || offset < 0 || !Number.isSafeInteger(length) || length < 0)
      throw new RangeError(`A ${kind} of ${length} bytes at ${offset}: both are whole numbers and not negative`);
    if (this.#closing !== undefined) throw new DeviceError("aborted", kind, offset, length);
    if (offset + length > this.size) throw new DeviceError("range", kind, offset, length);
    const call = work();
    this.#calls.add(call);
    try {
      return await call;
    } finally {
      this.#calls.delete(call);
    }
  }

  #down(offset: number): number {
    return offset - (offset % this.grainBytes);
  }
  #up(offset: number): number {
    return Math.ceil(offset / this.grainBytes) * this.grainBytes;
  }

  /** Calls `work` for each slice of [offset, offset + length), widened to whole grains, with memory for it. */
  async #inSlices(
    offset: number,
    length: number,
    work: (at: number, start: number, end: number) => Promise<void>,
  ): Promise<void> {
    if (length === 0) return;
    const finish = this.#up(offset + length);
    const slice = Math.max(SLICE_BYTES_MAX, this.grainBytes);
    let position = this.#down(offset);
    let failed = false;
    const worker = async (): Promise<void> => {
      while (position < finish && !failed) {
        const start = position;
        // Slices end at multiples of the slice, so that only the ends of the whole are read and changed.
        const end = Math.min(finish, start - (start % slice) + slice);
        position = end;
        const at = await allocate(this.memory, end - start);
        try {
          await work(at, start, end);
        } catch (error) {
          failed = true;
          throw error;
        } finally {
          this.memory.free(at);
        }
      }
    };
    if (finish - position <= slice - (position % slice)) return worker();
    const results = await Promise.allSettled(Array.from({ length: SLICES_AT_ONCE }, worker));
    const rejected = results.find((result) => result.status === "rejected");
    if (rejected !== undefined) throw rejected.reason;
  }

  async #submit(kind: BlockOp["kind"], offset: number, length: number, rest: Partial<BlockOp>): Promise<void> {
    const status = await this.#try(kind, offset, length, rest);
    if (status !== "ok") throw new DeviceError(status, kind, offset, length);
  }

  #try(kind: BlockOp["kind"], offset: number, length: number, rest: Partial<BlockOp>): Promise<BlockOp["status"]> {
    return submit(this.device, Object.assign({ kind, offset, length }, rest));
  }
}

/** One operation as a promise of its status. It never rejects. */
export function submit(device: BlockDevice, what: Partial<BlockOp>): Promise<BlockOp["status"]> {
  return new Promise((resolve) => {
    const op = new BlockOp((op) => resolve(op.status));
    device.submit(Object.assign(op, what));
  });
}

/** A buffer in `memory`, waited for if there is none free. Rejects if it is larger than the memory will ever have. */
export async function allocate(memory: Memory, length: number): Promise<number> {
  if (length > memory.size / 2)
    throw new RangeError(`${length} bytes are too many at once for a memory of ${memory.size} bytes`);
  for (;;) {
    const at = memory.allocate(length);
    if (at !== 0) return at;
    await new Promise<void>((resolve) => memory.whenFreed({ onMemory: resolve }));
  }
}
