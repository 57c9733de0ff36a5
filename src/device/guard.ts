/**
 * A host's view of a device: the one place where rights and range are checked. Nothing reaches a device around it.
 * Once closed (a revoked grant, a changed range), it answers "denied" for ever; what was submitted before still ends.
 */
import { canary } from "#base/canary";
import type { Access, RangeRecord } from "#base/rights";
import type { Status } from "#base/status";
import type { Bytes } from "#base/units";
import { type BlockDevice, BlockOp, checkRange, type DeviceChange, type DeviceWatcher, type OpKind } from "./device.ts";

/** Whether an operation of this kind can change the device. */
export const CHANGES = {
  read: false,
  write: true,
  flush: false,
  trim: true,
  zero: true,
  "compare-write": true,
  status: false,
  cache: false,
} as const satisfies Record<OpKind, boolean>;

/** What else stands between a host and a device, asked for each operation: another host's reservation, for example. */
export interface Gate {
  /** The status to refuse `op` with, or undefined to let it pass. */
  judge(op: BlockOp): Status | undefined;
}

export class Guard implements BlockDevice {
  readonly uuid: string;
  readonly blockSize: number;
  readonly preferredBlockSize: number;
  /** Set by those who keep reservations. */
  gate: Gate | undefined = undefined;
  readonly #device: BlockDevice;
  #access: Access;
  #range: RangeRecord | undefined;
  #end: Status | undefined;
  readonly #watchers = new Set<DeviceWatcher>();
  readonly #unwatch: () => void;
  /** For devices that are shown in part: an operation of our own per one in flight, moved by the range's offset. */
  readonly #spare: MovedOp[] = [];

  constructor(device: BlockDevice, access: Access, range?: RangeRecord) {
    this.#device = device;
    this.#access = access;
    this.#range = range;
    this.uuid = device.uuid;
    this.blockSize = device.blockSize;
    this.preferredBlockSize = device.preferredBlockSize;
    this.#unwatch = device.watch((change) => {
      if (change === "gone") this.#finish("gone");
      else this.#tell(change);
    });
  }

  get size(): Bytes {
    const size = this.#device.size;
    return this.#range === undefined ? size : Math.max(0, Math.min(this.#range.length, size - this.#range.offset));
  }

  get readOnly(): boolean {
    return this.#access === "read-only" || this.#device.readOnly;
  }

  /** Why it takes no more operations: "denied" after `close`, "gone" with the device. */
  get ended(): Status | undefined {
    return this.#end;
  }

  submit(op: BlockOp): void {
    const fault = this.#end ?? this.#judge(op);
    if (fault !== undefined) {
      op.status = fault;
      op.done(op);
    } else if (this.#range === undefined || op.kind === "flush") {
      this.#device.submit(op);
    } else {
      (this.#spare.pop() ?? new MovedOp(this.#spare)).carry(op, this.#range.offset, this.#device);
    }
  }

  copyFrom(op: BlockOp, source: BlockDevice, from: Bytes): void {
    const given = source instanceof Guard ? source.#whole : source;
    const fault = this.#end ?? (source instanceof Guard ? source.ended : undefined) ?? this.#judge(op);
    if (fault !== undefined) op.status = fault;
    else if (this.#whole?.copyFrom !== undefined && given !== undefined) return this.#whole.copyFrom(op, given, from);
    else op.status = "unsupported";
    op.done(op);
  }
  /** The device itself, if the host sees all of it. */
  get #whole(): BlockDevice | undefined {
    return this.#range === undefined ? this.#device : undefined;
  }

  watch(watcher: DeviceWatcher): () => void {
    this.#watchers.add(watcher);
    return () => this.#watchers.delete(watcher);
  }

  /** Changes what the host may do, from the next operation on. */
  setAccess(access: Access): void {
    if (this.#access === access || canary.armed === "grant-widens") return;
    this.#access = access;
    this.#tell("read-only");
  }

  /** Takes the device away from the host: every later operation is "denied". Watchers are told "gone". */
  close(): void {
    this.#finish("denied");
  }

  #judge(op: BlockOp): Status | undefined {
    if (CHANGES[op.kind] && this.readOnly) return "denied";
    return checkRange(this, op) ?? this.gate?.judge(op);
  }

  #finish(status: Status): void {
    if (this.#end !== undefined) return;
    this.#end = status;
    this.#unwatch();
    this.#tell("gone");
    this.#watchers.clear();
  }

  #tell(change: DeviceChange): void {
    for (const watcher of [...this.#watchers]) watcher(change);
  }
}

/** An operation on the whole device, in place of one on a part of it. */
class MovedOp extends BlockOp {
  #original!: BlockOp;
  readonly #home: MovedOp[];

  constructor(home: MovedOp[]) {
    super(() => this.#finish());
    this.#home = home;
  }

  carry(op: BlockOp, by: Bytes, device: BlockDevice): void {
    this.#original = op;
    this.kind = op.kind;
    this.offset = op.offset + by;
    this.length = op.length;
    this.at = op.at;
    this.fua = op.fua;
    this.noHole = op.noHole;
    this.fastOnly = op.fastOnly;
    this.extents = op.extents;
    this.result = 0;
    device.submit(this);
  }

  #finish(): void {
    const op = this.#original;
    op.status = this.status;
    op.result = this.result;
    this.extents = undefined;
    this.#home.push(this);
    op.done(op);
  }
}
