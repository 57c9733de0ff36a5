/**
 * A device of one's own: an object with a size, `read` and perhaps more, whose methods may return promises, as a
 * `BlockDevice` that every front can serve. What it throws or answers wrongly becomes the status of one operation and
 * a line in the log; nothing that it does can harm the front.
 */
import type { Memory } from "#base/memory";
import type { Status } from "#base/status";
import { type Bytes, MIB } from "#base/units";
import { type BlockDevice, type BlockOp, checkRange, type DeviceWatcher, ExtentFlag } from "#device/device";
import type { Log } from "#env/env";
import { DeviceError } from "./device-error.ts";
import type { ExtentInfo } from "./handle.ts";

type Maybe<T> = T | Promise<T>;

/** Offsets and lengths are in bytes, multiples of `blockSize`, and within `size`. Several calls may be under way. */
export interface UserDevice {
  readonly size: Bytes;
  /** 512 (the default) or 4096. */
  readonly blockSize?: 512 | 4096;
  /** What requests are best aligned to. Default 4096. */
  readonly preferredBlockSize?: number;
  /** Default: whether there is no `write`. */
  readonly readOnly?: boolean;
  /** 32 hex digits that name the device for ever. Default: zeroes, for "none". */
  readonly uuid?: string;
  /** Exactly `length` bytes. */
  read(offset: Bytes, length: Bytes): Maybe<Uint8Array>;
  /** `data` is the device's to keep. */
  write?(offset: Bytes, data: Uint8Array): Maybe<void>;
  /** Everything written before is on stable storage when it is done. Without it, writes are taken to be so at once. */
  flush?(): Maybe<void>;
  /** The range's data is not needed any more. Without it, nothing is done. */
  trim?(offset: Bytes, length: Bytes): Maybe<void>;
  /** The range reads as zeroes afterwards. Without it, zeroes are written. */
  zero?(offset: Bytes, length: Bytes): Maybe<void>;
  /** What the range consists of, in order, from `offset` on without gaps. Without it, all is data. */
  status?(offset: Bytes, length: Bytes): Maybe<readonly Pick<ExtentInfo, "length" | "hole" | "zero">[]>;
}

/** Zeroes are written in pieces of this size where the device cannot do better. */
const ZERO_BYTES_MAX = MIB;

export class UserBlockDevice implements BlockDevice {
  readonly #user: UserDevice;
  readonly #memory: Memory;
  readonly #log: Log;
  readonly #watchers = new Set<DeviceWatcher>();

  constructor(user: UserDevice, memory: Memory, log: Log) {
    if (!Number.isSafeInteger(user.size) || user.size < 0)
      throw new RangeError(`A device's size is a whole number of bytes, and not ${user.size}`);
    if (user.blockSize !== undefined && user.blockSize !== 512 && user.blockSize !== 4096)
      throw new RangeError(`A device's blockSize is 512 or 4096, and not ${user.blockSize}`);
    this.#user = user;
    this.#memory = memory;
    this.#log = log;
  }

  get size(): Bytes {
    return this.#user.size - (this.#user.size % this.blockSize);
  }
  get blockSize(): number {
    return this.#user.blockSize ?? 512;
  }
  get preferredBlockSize(): number {
    return Math.max(this.#user.preferredBlockSize ?? 4096, this.blockSize);
  }
  get readOnly(): boolean {
    return this.#user.readOnly ?? this.#user.write === undefined;
  }
  get uuid(): string {
    return this.#user.uuid ?? "0".repeat(32);
  }

  watch(watcher: DeviceWatcher): () => void {
    this.#watchers.add(watcher);
    return () => this.#watchers.delete(watcher);
  }

  submit(op: BlockOp): void {
    op.result = 0;
    const isChange = op.kind === "write" || op.kind === "zero" || op.kind === "trim" || op.kind === "compare-write";
    const refused = checkRange(this, op) ?? (isChange && this.readOnly ? "denied" : undefined);
    if (refused !== undefined) {
      this.#answer(op, refused);
      return;
    }
    this.#do(op).then(
      (status) => this.#answer(op, status),
      (error: unknown) => this.#answer(op, this.#statusOf(op, error)),
    );
  }

  #answer(op: BlockOp, status: Status): void {
    op.status = status;
    op.done(op);
  }

  async #do(op: BlockOp): Promise<Status> {
    const user = this.#user;
    const { offset, length } = op;
    switch (op.kind) {
      case "read": {
        const bytes = await user.read(offset, length);
        if (!(bytes instanceof Uint8Array) || bytes.length !== length)
          throw new TypeError(`read() returned ${bytes?.length} bytes`);
        this.#memory.bytes.set(bytes, op.at);
        return "ok";
      }
      case "write":
        // A copy: the buffer belongs to the front again as soon as the operation is done.
        await user.write!(offset, this.#memory.bytes.slice(op.at, op.at + length));
        break;
      case "zero":
        if (user.zero !== undefined && !op.noHole) await user.zero(offset, length);
        else if (op.fastOnly) return "unsupported";
        else
          for (let done = 0; done < length; done += ZERO_BYTES_MAX)
            await user.write!(offset + done, new Uint8Array(Math.min(ZERO_BYTES_MAX, length - done)));
        break;
      case "trim":
        await user.trim?.(offset, length);
        break;
      case "flush":
        await user.flush?.();
        return "ok";
      case "status":
        return await this.#tell(op);
      case "cache":
        return "ok";
      default:
        return "unsupported";
    }
    if (op.fua) await user.flush?.();
    return "ok";
  }

  async #tell(op: BlockOp): Promise<Status> {
    const extents = op.extents!;
    extents.clear();
    if (this.#user.status === undefined) {
      extents.add(op.length, 0, 1);
      return "ok";
    }
    for (const { length, hole, zero } of await this.#user.status(op.offset, op.length)) {
      if (!Number.isSafeInteger(length) || length <= 0) throw new TypeError(`status() returned a length of ${length}`);
      const flags = (hole ? ExtentFlag.HOLE : 0) | (zero ? ExtentFlag.ZERO : 0);
      if (!extents.add(length, flags, hole ? 0 : 1)) break;
    }
    if (extents.count === 0) throw new TypeError("status() returned nothing");
    return "ok";
  }

  #statusOf(op: BlockOp, error: unknown): Status {
    if (error instanceof DeviceError) return error.status;
    const { kind, offset, length } = op;
    this.#log.warn({ kind, offset, length, error: String(error) }, "The device failed an operation");
    return op.kind === "read" ? "medium" : "failed";
  }
}
