/** A unit of an SCP server as a BlockDevice of this host. It stays the same object while sessions come and go. */
import { readU64 } from "#base/layout";
import type { Memory } from "#base/memory";
import { sha256 } from "#base/sha256";
import type { Status } from "#base/status";
import type { Bytes } from "#base/units";
import {
  type BlockDevice,
  BlockOp,
  checkRange,
  type DeviceChange,
  type DeviceWatcher,
  type OpKind,
} from "#device/device";
import { CHANGES } from "#device/guard";
import type { Configured } from "#proto/scp/config-host";
import { Flag, Op, Version } from "#wire/scp/codes";
import type { UnitRecord } from "#wire/scp/config";
import type { ScpHost } from "./scp-host.ts";
import { ScpKept } from "./scp-kept.ts";

/** Room for the answer to a block status: as many runs as a server sends at most. */
const STATUS_BYTES = 4096;
const RUN_BYTES = 16;

const CODE: Record<OpKind, number> = {
  read: Op.READ,
  write: Op.WRITE,
  flush: Op.FLUSH,
  trim: Op.TRIM,
  zero: Op.ZERO,
  "compare-write": Op.COMPARE_WRITE,
  status: Op.BLOCK_STATUS,
  cache: Op.CACHE,
};

export class ScpUnit implements BlockDevice {
  readonly number: number;
  readonly name: string;
  readonly blockSize: number;
  readonly preferredBlockSize: number;
  readonly uuid: string;
  /** What the server may forget. In version 1 nothing: its writes are durable. */
  readonly kept: ScpKept;
  readonly #host: ScpHost;
  readonly #memory: Memory;
  readonly #watchers = new Set<DeviceWatcher>();
  #version: number;
  #size: Bytes;
  #readOnly: boolean;
  #gone = false;

  constructor(host: ScpHost, memory: Memory, record: UnitRecord, configured: Configured) {
    this.#host = host;
    this.#memory = memory;
    this.number = record.unit;
    this.name = record.name;
    this.blockSize = record.blockSize;
    this.preferredBlockSize = record.preferredBlockSize;
    this.uuid = configured.version === Version.TWO ? record.uuid : unitUuid(host, record);
    this.#version = configured.version;
    this.#size = record.size;
    this.#readOnly = record.readOnly;
    this.kept = new ScpKept(memory, host.settings.keptBytesMax);
  }

  get isGone(): boolean {
    return this.#gone;
  }

  get size(): Bytes {
    return this.#size;
  }
  get readOnly(): boolean {
    return this.#readOnly;
  }

  /** Whether the record is about the device that this is. */
  isSame(record: UnitRecord, configured: Configured): boolean {
    if (configured.version !== Version.TWO) return this.#version !== Version.TWO;
    // While its device is away at the server, a unit has no shape to compare.
    return record.away || (record.uuid === this.uuid && record.blockSize === this.blockSize);
  }

  update(record: UnitRecord, configured: Configured): void {
    this.#version = configured.version;
    if (record.away) return;
    if (record.size !== this.#size) {
      this.#size = record.size;
      this.#tell("resized");
    }
    if (record.readOnly !== this.#readOnly) {
      this.#readOnly = record.readOnly;
      this.#tell("read-only");
    }
  }

  gone(): void {
    if (this.#gone) return;
    this.#gone = true;
    this.#tell("gone");
  }

  watch(watcher: DeviceWatcher): () => void {
    this.#watchers.add(watcher);
    return () => this.#watchers.delete(watcher);
  }

  submit(op: BlockOp): void {
    let fault: Status | undefined = this.#gone ? "gone" : checkRange(this, op);
    if (fault === undefined && this.#readOnly && CHANGES[op.kind]) fault = "denied";
    if (fault !== undefined) {
      end(op, fault);
      return;
    }
    if (this.#version !== Version.TWO) {
      this.#submitOne(op);
      return;
    }
    const flags = (op.fua ? Flag.FUA : 0) | (op.noHole ? Flag.NO_HOLE : 0) | (op.fastOnly ? Flag.FAST : 0);
    if (op.kind === "status") {
      this.#submitStatus(op);
      return;
    }
    const withData = op.kind === "read" || op.kind === "write" || op.kind === "compare-write";
    this.#host.enqueue(op, this, CODE[op.kind], withData && op.kind === "read" ? 0 : flags, withData ? op.at : 0);
  }

  /** Version 1 has reads and writes; a write is on stable storage when it is answered (docs/protocols/scp.md). */
  #submitOne(op: BlockOp): void {
    switch (op.kind) {
      case "read":
      case "write":
        this.#host.enqueue(op, this, CODE[op.kind], 0, op.at);
        return;
      case "flush":
      case "trim":
      case "cache":
        end(op, "ok");
        return;
      case "zero":
        op.fastOnly ? end(op, "unsupported") : this.#writeZeroes(op);
        return;
      case "status":
        op.extents?.clear();
        op.extents?.add(op.length, 0, 1);
        end(op, "ok");
        return;
      case "compare-write":
        end(op, "unsupported");
        return;
    }
  }

  #writeZeroes(op: BlockOp): void {
    const room = Math.min(op.length, this.#host.settings.splitBytes);
    const at = this.#memory.allocate(room);
    if (at === 0) {
      end(op, "busy");
      return;
    }
    this.#memory.bytes.fill(0, at, at + room);
    const write = new BlockOp((inner) => {
      this.#memory.free(at);
      op.result = 0;
      end(op, inner.status);
    });
    write.kind = "zero";
    write.offset = op.offset;
    write.length = op.length;
    this.#host.enqueue(write, this, Op.WRITE, 0, at);
  }

  #submitStatus(op: BlockOp): void {
    const at = this.#memory.allocate(STATUS_BYTES);
    if (at === 0) {
      end(op, "busy");
      return;
    }
    const ask = new BlockOp((inner) => {
      if (inner.status === "ok") this.#readExtents(op, at, inner.result);
      this.#memory.free(at);
      op.result = 0;
      end(op, inner.status);
    });
    ask.kind = "status";
    ask.offset = op.offset;
    ask.length = op.length;
    this.#host.enqueue(ask, this, Op.BLOCK_STATUS, 0, at, STATUS_BYTES);
  }

  #readExtents(op: BlockOp, at: number, bytes: number): void {
    const { view } = this.#memory;
    op.extents?.clear();
    for (let run = at; run < at + bytes; run += RUN_BYTES)
      if (op.extents?.add(readU64(view, run), view.getUint32(run + 8), view.getUint32(run + 12)) !== true) return;
  }

  #tell(change: DeviceChange): void {
    for (const watcher of [...this.#watchers]) watcher(change);
  }
}

function end(op: BlockOp, status: Status): void {
  op.status = status;
  op.done(op);
}

/** Version 1 does not name devices: a name is made from what does not change, the server's address and the number. */
function unitUuid(host: ScpHost, { unit }: UnitRecord): string {
  const text = `${host.options.addresses[0]?.host ?? ""} ${unit}`;
  const digest = sha256(Uint8Array.from(text, (letter) => letter.charCodeAt(0)));
  return [...digest.subarray(0, 16)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
