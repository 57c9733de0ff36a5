/**
 * A partition: ranges of drives, thick and in place, as one BlockDevice. An operation that crosses ranges is done in
 * parts and completed once. Where the partition asks for it, no part of it is accessed before it has been zeroed:
 * `ZeroMap` knows which parts have been, and it is durable before anything else of the part is.
 */
import type { Status } from "#base/status";
import type { Bytes } from "#base/units";
import { type BlockDevice, type BlockOp, checkRange, type DeviceChange, type DeviceWatcher } from "#device/device";
import { type DiskFault, DiskOp, type Env, type File, Soon } from "#env/env";
import type { ZeroMap } from "./drive-zero.ts";

/** Written at a time when zeroes are asked for. */
const ZERO_BYTES = 256 * 1024;
/** A compare-and-write is read and compared in one piece. */
const COMPARE_BYTES_MAX = 1024 * 1024;

export interface Slice {
  readonly file: File;
  /** Bytes from the start of the drive. */
  readonly position: Bytes;
  readonly length: Bytes;
}

export const STATUS_OF_FAULT: Readonly<Record<DiskFault, Status>> = {
  io: "medium",
  full: "full",
  exists: "failed",
  missing: "gone",
  denied: "denied",
  "read-only": "denied",
  "too-many-files": "busy",
  unsupported: "unsupported",
};

export class Partition implements BlockDevice {
  readonly name: string;
  readonly uuid: string;
  readonly blockSize = 512;
  readonly preferredBlockSize = 4096;
  readonly readOnly = false;
  readonly #env: Env;
  readonly #zero: ZeroMap | undefined;
  readonly #watchers = new Set<DeviceWatcher>();
  readonly #free: Part[] = [];
  #slices: readonly Slice[];
  #size: Bytes;
  #gone = false;
  #inFlight = 0;
  /**
   * Drives of which a sync has failed: nothing that was written to them since the one before can be promised any more, by
   * whatever partition, and the system tells it only once.
   */
  readonly #failedDrives: Set<File>;
  #mapFailed = false;
  readonly #whenIdle: (() => void)[] = [];
  /** Compare-and-writes are done one after another, and nothing else is while one is. */
  #exclusive = false;
  readonly #waiting: BlockOp[] = [];
  readonly #next = new Soon(() => this.#startWaiting());

  constructor(
    env: Env,
    name: string,
    uuid: string,
    slices: readonly Slice[],
    zero: ZeroMap | undefined,
    failedDrives: Set<File>,
  ) {
    this.#env = env;
    this.#failedDrives = failedDrives;
    this.name = name;
    this.uuid = uuid;
    this.#zero = zero;
    this.#slices = slices;
    this.#size = lengthOf(slices);
  }

  get size(): Bytes {
    return this.#size;
  }
  get slices(): readonly Slice[] {
    return this.#slices;
  }
  get inFlight(): number {
    return this.#inFlight;
  }

  watch(watcher: DeviceWatcher): () => void {
    this.#watchers.add(watcher);
    return () => this.#watchers.delete(watcher);
  }

  /** The partition has grown: the new slices begin with the old ones. */
  grow(slices: readonly Slice[]): void {
    this.#slices = slices;
    this.#size = lengthOf(slices);
    this.#tell("resized");
  }

  /** Every later operation is answered "gone". Calls once nothing is in flight any more. */
  retire(idle: () => void): void {
    this.#gone = true;
    this.#tell("gone");
    for (const op of this.#waiting.splice(0)) end(op, "gone");
    if (this.#inFlight === 0) idle();
    else this.#whenIdle.push(idle);
  }

  submit(op: BlockOp): void {
    const fault = this.#gone ? "gone" : checkRange(this, op);
    if (fault !== undefined) {
      end(op, fault);
      return;
    }
    if (this.#exclusive || this.#waiting.length > 0 || (op.kind === "compare-write" && this.#inFlight > 0)) {
      this.#waiting.push(op);
      return;
    }
    this.#begin(op);
  }

  #begin(op: BlockOp): void {
    this.#inFlight++;
    if (op.kind === "compare-write") this.#exclusive = true;
    if (this.#zero === undefined || op.kind === "flush" || op.kind === "cache") {
      this.#perform(op);
      return;
    }
    this.#zero.prepare(op.offset, op.length, (status) => {
      if (status === "ok") this.#perform(op);
      else this.#finish(op, status);
    });
  }

  #perform(op: BlockOp): void {
    switch (op.kind) {
      case "read":
      case "write":
      case "flush":
        this.#part().start(op);
        break;
      case "zero":
        if (op.fastOnly) this.#finish(op, "unsupported");
        else this.#part().start(op);
        break;
      case "status":
        op.extents?.clear();
        op.extents?.add(op.length, 0, 1);
        this.#finish(op, "ok");
        break;
      case "trim":
        // Thick: the space stays, and so does what it holds.
        if (op.fua) this.#part().start(op);
        else this.#finish(op, "ok");
        break;
      case "cache":
        this.#finish(op, "ok");
        break;
      case "compare-write":
        if (op.length > COMPARE_BYTES_MAX) this.#finish(op, "invalid");
        else this.#part().start(op);
        break;
    }
  }

  #part(): Part {
    return this.#free.pop() ?? new Part(this.#env, this.#home);
  }

  readonly #home: PartHome = {
    slices: () => this.#slices,
    // What a failed sync had to write is lost to the kernel: a second one would lie.
    failed: () =>
      this.#mapFailed || (this.#failedDrives.size > 0 && this.#slices.some(({ file }) => this.#failedDrives.has(file))),
    syncFailed: (file) => {
      if (file === undefined) this.#mapFailed = true;
      else this.#failedDrives.add(file);
    },
    zero: () => this.#zero,
    done: (part, op, status) => {
      this.#free.push(part);
      this.#finish(op, status);
    },
  };

  #finish(op: BlockOp, status: Status): void {
    this.#inFlight--;
    if (op.kind === "compare-write") this.#exclusive = false;
    if (this.#waiting.length > 0) this.#env.turn.soon(this.#next);
    end(op, status);
    if (this.#inFlight === 0) for (const call of this.#whenIdle.splice(0)) call();
  }

  #startWaiting(): void {
    while (this.#waiting.length > 0 && !this.#exclusive) {
      if (this.#waiting[0]!.kind === "compare-write" && this.#inFlight > 0) return;
      this.#begin(this.#waiting.shift()!);
    }
  }

  #tell(change: DeviceChange): void {
    for (const watcher of [...this.#watchers]) watcher(change);
  }
}

interface PartHome {
  slices(): readonly Slice[];
  failed(): boolean;
  /** Of a drive, or of the map. */
  syncFailed(file: File | undefined): void;
  zero(): ZeroMap | undefined;
  done(part: Part, op: BlockOp, status: Status): void;
}

/** One operation on its way through slices and syncs; reused. */
class Part {
  readonly #env: Env;
  readonly #home: PartHome;
  readonly #disk: DiskOp;
  #op!: BlockOp;
  #stage: "data" | "compare" | "sync" = "data";
  /** Of the operation, done so far. */
  #done: Bytes = 0;
  #slice = 0;
  /** A buffer of our own: zeroes, or what is compared. */
  #own = 0;

  constructor(env: Env, home: PartHome) {
    this.#env = env;
    this.#home = home;
    this.#disk = new DiskOp((disk) => this.#onDisk(disk));
  }

  start(op: BlockOp): void {
    this.#op = op;
    this.#done = 0;
    this.#slice = 0;
    this.#own = 0;
    if (op.kind === "flush" || op.kind === "trim") {
      this.#sync();
      return;
    }
    if (op.kind !== "read" && this.#home.failed()) {
      this.#end("failed");
      return;
    }
    this.#stage = op.kind === "compare-write" ? "compare" : "data";
    if (op.kind === "zero" || op.kind === "compare-write") {
      const room = op.kind === "zero" ? Math.min(op.length, ZERO_BYTES) : op.length;
      this.#own = this.#env.memory.allocate(room);
      if (this.#own === 0) {
        this.#end("busy");
        return;
      }
      if (op.kind === "zero") this.#env.memory.bytes.fill(0, this.#own, this.#own + room);
    }
    this.#step();
  }

  #step(): void {
    const op = this.#op;
    let from = op.offset + this.#done;
    for (const slice of this.#home.slices()) {
      if (from >= slice.length) {
        from -= slice.length;
        continue;
      }
      const disk = this.#disk;
      const most = op.kind === "zero" ? ZERO_BYTES : op.length;
      disk.kind = this.#stage === "compare" || op.kind === "read" ? "read" : "write";
      disk.file = slice.file;
      disk.position = slice.position + from;
      disk.length = Math.min(op.length - this.#done, slice.length - from, most);
      disk.at = this.#at();
      this.#env.disk.submit(disk);
      return;
    }
    this.#end("range");
  }

  #at(): number {
    if (this.#op.kind === "zero") return this.#own;
    if (this.#stage === "compare") return this.#own + this.#done;
    if (this.#op.kind === "compare-write") return this.#op.at + this.#op.length + this.#done;
    return this.#op.at + this.#done;
  }

  #onDisk(disk: DiskOp): void {
    const op = this.#op;
    if (this.#stage === "sync") {
      this.#onSync(disk);
      return;
    }
    if (disk.fault !== undefined) {
      op.result = this.#done;
      this.#end(STATUS_OF_FAULT[disk.fault]);
      return;
    }
    if (disk.kind === "read" && disk.count < disk.length) {
      // The drive has become shorter than it was when it was added.
      op.result = this.#done + disk.count;
      this.#end("medium");
      return;
    }
    this.#done += disk.length;
    if (this.#done < op.length) this.#step();
    else if (this.#stage === "compare") this.#compare();
    else if (op.fua && op.kind !== "read") this.#sync();
    else this.#end("ok");
  }

  #compare(): void {
    const op = this.#op;
    const { bytes } = this.#env.memory;
    for (let i = 0; i < op.length; i++)
      if (bytes[this.#own + i] !== bytes[op.at + i]) {
        op.result = i;
        this.#end("miscompare");
        return;
      }
    this.#stage = "data";
    this.#done = 0;
    this.#step();
  }

  /** Every drive once, then the map of what is zeroed. */
  #sync(): void {
    if (this.#home.failed()) {
      this.#end("failed");
      return;
    }
    this.#stage = "sync";
    this.#slice = 0;
    this.#syncNext();
  }

  #syncNext(): void {
    const slices = this.#home.slices();
    while (this.#slice < slices.length) {
      const { file } = slices[this.#slice]!;
      if (slices.findIndex((slice) => slice.file === file) === this.#slice) {
        this.#disk.kind = "sync";
        this.#disk.file = file;
        this.#env.disk.submit(this.#disk);
        return;
      }
      this.#slice++;
    }
    const zero = this.#home.zero();
    if (zero === undefined) this.#end("ok");
    else
      zero.sync((status) => {
        if (status !== "ok") this.#home.syncFailed(undefined);
        this.#end(status);
      });
  }

  #onSync(disk: DiskOp): void {
    if (disk.fault !== undefined) {
      this.#home.syncFailed(disk.file);
      this.#end("failed");
      return;
    }
    this.#slice++;
    this.#syncNext();
  }

  #end(status: Status): void {
    if (this.#own !== 0) this.#env.memory.free(this.#own);
    this.#own = 0;
    this.#home.done(this, this.#op, status);
  }
}

function end(op: BlockOp, status: Status): void {
  op.status = status;
  op.done(op);
}

const lengthOf = (slices: readonly Slice[]): Bytes => slices.reduce((sum, slice) => sum + slice.length, 0);
