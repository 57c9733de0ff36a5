/**
 * The waist of the product: everything that stores is a BlockDevice (log volume, snapshot, drive partition, remote
 * volume, memory), and every layer (guard, limit, fault injection, cache, path set) wraps one.
 */
import type { Status } from "#base/status";
import type { Bytes } from "#base/units";

export type OpKind =
  | "read"
  | "write"
  /** Everything completed before it was submitted is on stable storage when it is done. */
  | "flush"
  /** The range need not keep its data; on volumes of the log engine it reads as zeroes afterwards. */
  | "trim"
  /** The range reads as zeroes afterwards. */
  | "zero"
  /** Atomically: if the range equals the first `length` bytes of the buffer, write the `length` bytes after them. */
  | "compare-write"
  /** Block status of the range, into `extents`. */
  | "status"
  /** Brings the range into the cache, if there is one. */
  | "cache";

/**
 * One operation on a device. It lives in a slot of its owner and is used again and again. `done` may be called before
 * `submit` returns: owners change their own state before they submit, and answer "soon" rather than from within.
 */
export class BlockOp {
  kind: OpKind = "read";
  offset: Bytes = 0;
  length: Bytes = 0;
  /** Where in the lane's memory the data lies or goes; the device may use it until `done`. */
  at = 0;
  /** Write, zero, trim, compare-write: be on stable storage when done. */
  fua = false;
  /** Zero: keep the space allocated rather than make a hole. */
  noHole = false;
  /** Zero: answer "unsupported" at once if it would be no faster than writing zeroes. */
  fastOnly = false;
  /** Status: where the answer goes. */
  extents: Extents | undefined = undefined;
  status: Status = "ok";
  /** Miscompare: bytes from the start of the range to the first difference. Medium: to the first damaged byte. */
  result = 0;
  readonly done: (op: BlockOp) => void;
  constructor(done: (op: BlockOp) => void) {
    this.done = done;
  }
}

/** Block status, in order of offset and without gaps from `op.offset`; may end early, or go beyond the range asked for. */
export class Extents {
  readonly countMax: number;
  count = 0;
  /** Bytes. */
  readonly length: Float64Array;
  /** Bits of `ExtentFlag`. */
  readonly flags: Uint32Array;
  /**
   * Which version of the set the data comes from: 1 is the device's own, 2 the version it descends from directly, and
   * so on; 0 when no version has written it (as QEMU's allocation depth).
   */
  readonly depth: Uint32Array;

  constructor(countMax: number) {
    this.countMax = countMax;
    this.length = new Float64Array(countMax);
    this.flags = new Uint32Array(countMax);
    this.depth = new Uint32Array(countMax);
  }

  clear(): void {
    this.count = 0;
  }

  /** Adds a run, joined to the last one when it is of the same kind. False when there is no room. */
  add(length: Bytes, flags: number, depth: number): boolean {
    const last = this.count - 1;
    if (last >= 0 && this.flags[last] === flags && this.depth[last] === depth) {
      this.length[last]! += length;
      return true;
    }
    if (this.count === this.countMax) return false;
    this.length[this.count] = length;
    this.flags[this.count] = flags;
    this.depth[this.count] = depth;
    this.count++;
    return true;
  }
}
export const ExtentFlag = {
  /** No space is taken. */
  HOLE: 1,
  /** Reads as zeroes. */
  ZERO: 2,
} as const;

export interface BlockDevice {
  /** Bytes; may grow while open: `onChanged` of those who asked is called. */
  readonly size: Bytes;
  /** The host's logical block in bytes, 512 or 4096: offsets and lengths of reads and writes are multiples of it. */
  readonly blockSize: number;
  /** What writes are best aligned to, in bytes. */
  readonly preferredBlockSize: number;
  readonly readOnly: boolean;
  /** A write of up to so many bytes is there whole or not at all after a crash; undefined: nothing is promised. */
  readonly atomicWriteBytes?: Bytes;
  /** Names the device for ever, on every path and protocol: 16 bytes as 32 lower-case hex digits. */
  readonly uuid: string;
  submit(op: BlockOp): void;
  /**
   * Makes the range of `op` (a write) what `source` has from byte `from` on, by sharing instead of moving data; reads and
   * writes see it as one write. "unsupported": it cannot be shared, and nothing was done.
   */
  copyFrom?(op: BlockOp, source: BlockDevice, from: Bytes): void;
  /** Tells of changes of size, of rights, and that the device is gone. Returns how to stop listening. */
  watch(watcher: DeviceWatcher): () => void;
}
export type DeviceChange = "resized" | "gone" | "read-only";
export type DeviceWatcher = (change: DeviceChange) => void;

/** The status of an operation that no device of this shape could do, or undefined. The first check of every device. */
export function checkRange(device: Pick<BlockDevice, "size" | "blockSize">, op: BlockOp): Status | undefined {
  if (op.kind === "flush") return undefined;
  if (!Number.isSafeInteger(op.offset) || op.offset < 0 || op.length <= 0) return "invalid";
  if (op.offset % device.blockSize !== 0 || op.length % device.blockSize !== 0) return "invalid";
  return op.offset + op.length > device.size ? "range" : undefined;
}
