/**
 * A BlockDevice in RAM, with holes: chunks are made when they are first written, and dropped when they are trimmed.
 * For tests, for measuring a front without a disk behind it, and as a scratch volume. Operations are done at once,
 * within `submit`, or when `auto` is off, one at a time as the test says. Nothing survives the process.
 */
import type { Memory } from "#base/memory";
import type { Status } from "#base/status";
import { BLOCK_BYTES, type Bytes } from "#base/units";
import {
  type BlockDevice,
  type BlockOp,
  checkRange,
  type DeviceChange,
  type DeviceWatcher,
  ExtentFlag,
} from "./device.ts";

const CHUNK_BYTES = 64 * 1024;
const BLOCKS_PER_CHUNK = CHUNK_BYTES / BLOCK_BYTES;

/** What a block is. */
const HOLE = 0;
/** Takes space and reads as zeroes (NO_HOLE). */
const ZERO = 1;
const DATA = 2;

interface Chunk {
  readonly bytes: Uint8Array;
  /** HOLE, ZERO or DATA per 4 KiB block. */
  readonly kinds: Uint8Array;
}

export interface MemoryDeviceOptions {
  readonly blockSize?: 512 | 4096;
  readonly readOnly?: boolean;
  readonly uuid?: string;
  /** What lies under this one: holes read from it, one level deeper. Never written. */
  readonly parent?: MemoryDevice;
}

export class MemoryDevice implements BlockDevice {
  readonly blockSize: number;
  readonly preferredBlockSize = BLOCK_BYTES;
  /** Every write is done within `submit`, and nothing survives a crash. */
  readonly atomicWriteBytes = Number.MAX_SAFE_INTEGER;
  readonly uuid: string;
  readonly #memory: Memory;
  readonly #parent: MemoryDevice | undefined;
  readonly #chunks: (Chunk | undefined)[] = [];
  readonly #watchers = new Set<DeviceWatcher>();
  readonly #held: BlockOp[] = [];
  #size: Bytes;
  #readOnly: boolean;
  /** Off: operations wait for `release`. */
  auto = true;
  /** What the next operations of a kind answer instead of being done; for tests of errors. */
  fault: ((op: BlockOp) => Status | undefined) | undefined = undefined;
  /** How many flushes, and operations with FUA, there were. */
  flushes = 0;
  fuas = 0;
  submitted = 0;

  /** @param size bytes; a multiple of the block size. */
  constructor(memory: Memory, size: Bytes, options: MemoryDeviceOptions = {}) {
    this.#memory = memory;
    this.#size = size;
    this.blockSize = options.blockSize ?? 512;
    this.#readOnly = options.readOnly ?? false;
    this.uuid = options.uuid ?? "0000000000000000000000006d656d00";
    this.#parent = options.parent;
    if (size % this.blockSize !== 0) throw new RangeError(`${size} is not a multiple of the block size`);
  }

  get size(): Bytes {
    return this.#size;
  }
  get readOnly(): boolean {
    return this.#readOnly;
  }
  /** Operations that wait for `release`. */
  get held(): readonly BlockOp[] {
    return this.#held;
  }

  submit(op: BlockOp): void {
    this.submitted++;
    if (this.auto) this.#finish(op);
    else this.#held.push(op);
  }

  /** Does the waiting operation at `index`, by default the oldest. */
  release(index = 0): void {
    const op = this.#held.splice(index, 1)[0];
    if (op !== undefined) this.#finish(op);
  }

  watch(watcher: DeviceWatcher): () => void {
    this.#watchers.add(watcher);
    return () => this.#watchers.delete(watcher);
  }

  resize(size: Bytes): void {
    this.#size = size;
    this.#tell("resized");
  }
  makeReadOnly(): void {
    this.#readOnly = true;
    this.#tell("read-only");
  }
  /** As when a volume is deleted under its users. */
  vanish(): void {
    this.fault = () => "gone";
    this.#tell("gone");
  }

  /** For tests and for filling a device: the bytes as a reader would see them. */
  peek(offset: Bytes, length: Bytes): Uint8Array {
    const out = new Uint8Array(length);
    for (let done = 0; done < length; ) {
      const part = Math.min(length - done, BLOCK_BYTES - ((offset + done) % BLOCK_BYTES));
      const source = this.#find(offset + done);
      if (source !== undefined) out.set(source.subarray(0, part), done);
      done += part;
    }
    return out;
  }

  poke(offset: Bytes, bytes: Uint8Array): void {
    this.#write(offset, bytes, 0, bytes.length);
  }

  #tell(change: DeviceChange): void {
    for (const watcher of [...this.#watchers]) watcher(change);
  }

  #finish(op: BlockOp): void {
    op.result = 0;
    op.status = this.fault?.(op) ?? checkRange(this, op) ?? this.#perform(op);
    op.done(op);
  }

  #perform(op: BlockOp): Status {
    const writes = op.kind === "write" || op.kind === "zero" || op.kind === "trim" || op.kind === "compare-write";
    if (writes && this.#readOnly) return "denied";
    if (writes && op.fua) this.fuas++;
    switch (op.kind) {
      case "read":
        this.#read(op);
        return "ok";
      case "write":
        this.#write(op.offset, this.#memory.bytes, op.at, op.length);
        return "ok";
      case "flush":
        this.flushes++;
        return "ok";
      case "trim":
        this.#clear(op.offset, op.length, HOLE);
        return "ok";
      case "zero":
        this.#clear(op.offset, op.length, op.noHole ? ZERO : HOLE);
        return "ok";
      case "compare-write":
        return this.#compareWrite(op);
      case "status":
        return this.#status(op);
      case "cache":
        return "ok";
    }
  }

  #read(op: BlockOp): void {
    const { bytes } = this.#memory;
    for (let done = 0; done < op.length; ) {
      const offset = op.offset + done;
      const part = Math.min(op.length - done, BLOCK_BYTES - (offset % BLOCK_BYTES));
      const source = this.#find(offset);
      const at = op.at + done;
      if (source === undefined) bytes.fill(0, at, at + part);
      else if (part === source.length) bytes.set(source, at);
      else bytes.set(source.subarray(0, part), at);
      done += part;
    }
  }

  /** The bytes from `offset` to the end of its block, or undefined when they are zeroes. */
  #find(offset: Bytes): Uint8Array | undefined {
    const chunk = this.#chunks[Math.floor(offset / CHUNK_BYTES)];
    const within = offset % CHUNK_BYTES;
    const kind = chunk?.kinds[Math.floor(within / BLOCK_BYTES)] ?? HOLE;
    if (kind === HOLE)
      return this.#parent === undefined || offset >= this.#parent.size ? undefined : this.#parent.#find(offset);
    if (kind === ZERO) return undefined;
    return chunk!.bytes.subarray(within, within - (within % BLOCK_BYTES) + BLOCK_BYTES);
  }

  /** The block that `offset` lies in, made to hold data: what it showed before is copied into it first. */
  #own(offset: Bytes): Uint8Array {
    const index = Math.floor(offset / CHUNK_BYTES);
    const chunk = (this.#chunks[index] ??= {
      bytes: new Uint8Array(CHUNK_BYTES),
      kinds: new Uint8Array(BLOCKS_PER_CHUNK),
    });
    const block = Math.floor((offset % CHUNK_BYTES) / BLOCK_BYTES);
    const bytes = chunk.bytes.subarray(block * BLOCK_BYTES, (block + 1) * BLOCK_BYTES);
    if (chunk.kinds[block] !== DATA) {
      const before = this.#find(offset - (offset % BLOCK_BYTES));
      if (before === undefined) bytes.fill(0);
      else bytes.set(before);
      chunk.kinds[block] = DATA;
    }
    return bytes;
  }

  #write(offset: Bytes, from: Uint8Array, at: number, length: number): void {
    for (let done = 0; done < length; ) {
      const within = (offset + done) % BLOCK_BYTES;
      const part = Math.min(length - done, BLOCK_BYTES - within);
      this.#own(offset + done).set(from.subarray(at + done, at + done + part), within);
      done += part;
    }
  }

  #clear(offset: Bytes, length: Bytes, kind: number): void {
    for (let done = 0; done < length; ) {
      const at = offset + done;
      const within = at % BLOCK_BYTES;
      const part = Math.min(length - done, BLOCK_BYTES - within);
      // Over a parent a hole would show what is below, so that there a cleared block is one that holds zeroes.
      if (part === BLOCK_BYTES) this.#setKind(at, this.#parent === undefined ? kind : ZERO);
      else if (this.#find(at) !== undefined) this.#own(at).fill(0, within, within + part);
      done += part;
    }
  }

  #setKind(offset: Bytes, kind: number): void {
    const index = Math.floor(offset / CHUNK_BYTES);
    if (this.#chunks[index] === undefined && kind === HOLE) return;
    const chunk = (this.#chunks[index] ??= {
      bytes: new Uint8Array(CHUNK_BYTES),
      kinds: new Uint8Array(BLOCKS_PER_CHUNK),
    });
    chunk.kinds[Math.floor((offset % CHUNK_BYTES) / BLOCK_BYTES)] = kind;
    if (kind === HOLE && chunk.kinds.every((each) => each === HOLE)) this.#chunks[index] = undefined;
  }

  #compareWrite(op: BlockOp): Status {
    const now = this.peek(op.offset, op.length);
    for (let i = 0; i < op.length; i++) {
      if (now[i] !== this.#memory.bytes[op.at + i]) {
        op.result = i;
        return "miscompare";
      }
    }
    this.#write(op.offset, this.#memory.bytes, op.at + op.length, op.length);
    return "ok";
  }

  #status(op: BlockOp): Status {
    const { extents } = op;
    if (extents === undefined) return "invalid";
    extents.clear();
    for (let done = 0; done < op.length; ) {
      const offset = op.offset + done;
      const part = Math.min(op.length - done, BLOCK_BYTES - (offset % BLOCK_BYTES));
      let depth = 1;
      let device: MemoryDevice | undefined = this;
      let kind = HOLE;
      for (; device !== undefined && offset < device.size; device = device.#parent, depth++) {
        kind =
          device.#chunks[Math.floor(offset / CHUNK_BYTES)]?.kinds[Math.floor((offset % CHUNK_BYTES) / BLOCK_BYTES)] ??
          HOLE;
        if (kind !== HOLE) break;
      }
      const flags = kind === DATA ? 0 : kind === ZERO ? ExtentFlag.ZERO : ExtentFlag.ZERO | ExtentFlag.HOLE;
      if (!extents.add(part, flags, kind === HOLE ? 0 : depth)) break;
      done += part;
    }
    return "ok";
  }
}
