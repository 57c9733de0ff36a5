/** Commands that read, check and describe blocks: SBC-3 §5. Each is a chain of steps on its task. */
import { layout, readU64, writeU64 } from "#base/layout";
import { ExtentFlag, Extents } from "#device/device";
import { CDB_16, cdbBlocks, cdbLba, RwFlag } from "#wire/scsi/cdb";
import { Asc, SenseKey } from "#wire/scsi/codes";
import type { ScsiTask, Step } from "./task.ts";
import { TRANSFER_BYTES_MAX } from "./unit.ts";

const FLAGS_BYTE = 1;
/** What VERIFY without data reads at a time. */
export const CHUNK_BYTES = 256 * 1024;

/** The blocks that a command names, in bytes of the device; undefined when it has been ended because they are not there. */
export function takeRange(task: ScsiTask, blocks: number): boolean {
  const { blockSize } = task.unit!;
  const lba = cdbLba(task.cdb);
  const capacity = Math.floor(task.device!.size / blockSize);
  if (lba + blocks > capacity) {
    task.server.fail(task, SenseKey.ILLEGAL_REQUEST, Asc.LBA_OUT_OF_RANGE, 2);
    return false;
  }
  task.position = lba * blockSize;
  task.remaining = blocks * blockSize;
  return true;
}

/** As `takeRange`, for a command that moves its blocks over the transport. */
export function takeTransfer(task: ScsiTask): boolean {
  // Protection information is not supported: SBC-3 §4.22. READ (6) and WRITE (6) have the address in these bits.
  if (task.opcode >> 5 !== 0 && (task.byte(FLAGS_BYTE) & RwFlag.PROTECT_MASK) !== 0) {
    task.server.invalidField(task, FLAGS_BYTE);
    return false;
  }
  if (!takeRange(task, cdbBlocks(task.cdb))) return false;
  if (task.remaining <= TRANSFER_BYTES_MAX) return true;
  task.server.invalidField(task, task.opcode >> 5 === 4 ? CDB_16.length : 6);
  return false;
}

/* ----------------------------------------------------------------------- READ */

export const read: Step = (task) => {
  if (!takeTransfer(task)) return;
  task.total = task.remaining;
  const { blockSize } = task.unit!;
  // The initiator may have room for less than the command says: whole blocks are read, and cut when sent.
  const length = Math.min(task.remaining, Math.ceil(task.inMax / blockSize) * blockSize);
  if (length === 0) return task.server.end(task);
  task.remaining = length;
  task.server.withMemory(task, length, false, readBuffered);
};

const readBuffered: Step = (task) => {
  const isFua = task.opcode >> 5 !== 0 && (task.byte(FLAGS_BYTE) & RwFlag.FUA) !== 0;
  if (!isFua) return readNow(task);
  // FUA: what is read must be on the medium. SBC-3 §5.8.
  task.op.kind = "flush";
  task.server.submit(task, readFlushed);
};
const readFlushed: Step = (task) =>
  task.op.status === "ok" ? readNow(task) : task.server.endWith(task, task.op.status);

const readNow: Step = (task) => {
  const { op } = task;
  op.kind = "read";
  op.offset = task.position;
  op.length = task.remaining;
  op.at = task.at;
  task.server.submit(task, readDone);
};
const readDone: Step = (task) => {
  if (task.op.status === "ok") task.inLength = Math.min(task.remaining, task.inMax);
  task.server.endWith(task, task.op.status);
};

/* --------------------------------------------------------------------- VERIFY */

const ByteCheck = { NONE: 0, ALL: 1, ONE_BLOCK: 3 } as const;

export const verify: Step = (task) => {
  const flags = task.byte(FLAGS_BYTE);
  const check = (flags & RwFlag.BYTCHK_MASK) >> 1;
  if ((flags & RwFlag.PROTECT_MASK) !== 0 || check === 2) return task.server.invalidField(task, FLAGS_BYTE);
  if (!takeRange(task, cdbBlocks(task.cdb))) return;
  task.cursor = 0;
  if (task.remaining === 0) return task.server.end(task);
  if (check === ByteCheck.NONE)
    return task.server.withMemory(task, Math.min(CHUNK_BYTES, task.remaining), true, verifyNext);
  const { blockSize } = task.unit!;
  if (check === ByteCheck.ALL && task.remaining > TRANSFER_BYTES_MAX)
    return task.server.invalidField(task, CDB_16.length);
  task.server.collect(task, check === ByteCheck.ALL ? task.remaining : blockSize, verifyCollected);
};

const verifyCollected: Step = (task) => {
  const { blockSize } = task.unit!;
  if (task.outLength < Math.min(task.total, blockSize)) return task.server.end(task);
  // All blocks, but no more than the initiator has sent.
  if (!isOneBlockCheck(task)) task.remaining = Math.floor(task.outLength / blockSize) * blockSize;
  task.server.withMemory(task, Math.min(CHUNK_BYTES, task.remaining), true, verifyNext);
};
const isOneBlockCheck = (task: ScsiTask): boolean =>
  (task.byte(FLAGS_BYTE) & RwFlag.BYTCHK_MASK) >> 1 === ByteCheck.ONE_BLOCK;

/** Reads the next piece into the second buffer. Shared with WRITE AND VERIFY. */
export const verifyNext: Step = (task) => {
  const { op } = task;
  op.kind = "read";
  op.offset = task.position + task.cursor;
  op.length = Math.min(task.scratchLength, task.remaining - task.cursor);
  op.at = task.scratch;
  task.server.submit(task, verifyRead);
};
const verifyRead: Step = (task) => {
  const { op, server } = task;
  if (op.status !== "ok") return server.endWith(task, op.status);
  const check = (task.byte(FLAGS_BYTE) & RwFlag.BYTCHK_MASK) >> 1;
  if (check !== ByteCheck.NONE) {
    const different = findDifference(task, check === ByteCheck.ONE_BLOCK ? task.unit!.blockSize : 0);
    if (different >= 0) {
      op.result = different;
      return server.endWith(task, "miscompare");
    }
  }
  task.cursor += op.length;
  if (task.cursor < task.remaining) return verifyNext(task);
  server.end(task);
};

/** Where the piece just read differs from the data sent, in bytes from the start; -1 when it does not. */
function findDifference(task: ScsiTask, repeat: number): number {
  const { bytes } = task.server.memory;
  for (let index = 0; index < task.op.length; index++) {
    const sent = task.at + (repeat === 0 ? task.cursor + index : (task.cursor + index) % repeat);
    if (bytes[task.scratch + index] !== bytes[sent]) return task.cursor + index;
  }
  return -1;
}

/* --------------------------------------------------- PRE-FETCH, SYNCHRONIZE CACHE */

/** The blocks from the address to the end, when the command says 0. */
function takeRangeOrRest(task: ScsiTask): boolean {
  const blocks = cdbBlocks(task.cdb);
  if (!takeRange(task, blocks)) return false;
  if (blocks === 0) task.remaining = task.device!.size - task.position;
  return true;
}

export const preFetch: Step = (task) => {
  if (!takeRangeOrRest(task)) return;
  if (task.remaining === 0) return task.server.end(task);
  task.op.kind = "cache";
  task.op.offset = task.position;
  task.op.length = task.remaining;
  task.server.submit(task, preFetched);
};
/** A device without a cache has nothing to do. GOOD, and not CONDITION MET, promises nothing: SBC-3 §5.10. */
const preFetched: Step = (task) => task.server.endWith(task, task.op.status === "unsupported" ? "ok" : task.op.status);

export const synchronizeCache: Step = (task) => {
  if (!takeRangeOrRest(task)) return;
  task.op.kind = "flush";
  task.server.submit(task, endWithStatus);
};
export const endWithStatus: Step = (task) => task.server.endWith(task, task.op.status);

/* ------------------------------------------------------------- GET LBA STATUS */

/** SBC-3 §5.5. */
const LBA_STATUS = layout({ length: 4, reserved: 4 });
const LBA_DESCRIPTOR = layout({ lba: 8, blocks: 4, status: 1, reserved: 3 });
const Provisioning = { MAPPED: 0, DEALLOCATED: 1, ANCHORED: 2 } as const;
const DESCRIPTORS_MAX = 64;
const STATUS_LENGTH_AT = 10;

export const getLbaStatus: Step = (task) => {
  const { unit, device, server } = task;
  const lba = readU64(task.cdb, CDB_16.lba);
  if (lba >= Math.floor(device!.size / unit!.blockSize))
    return server.fail(task, SenseKey.ILLEGAL_REQUEST, Asc.LBA_OUT_OF_RANGE, CDB_16.lba);
  const allocation = task.cdb.getUint32(STATUS_LENGTH_AT);
  const fits = Math.floor((allocation - LBA_STATUS.byteLength) / LBA_DESCRIPTOR.byteLength);
  const { op } = task;
  op.kind = "status";
  op.offset = lba * unit!.blockSize;
  op.length = device!.size - op.offset;
  op.extents = new Extents(Math.min(Math.max(fits, 1), DESCRIPTORS_MAX));
  server.submit(task, lbaStatusKnown);
};

const lbaStatusKnown: Step = (task) => {
  const { op, server } = task;
  const extents = op.extents!;
  if (op.status !== "ok") return server.endWith(task, op.status);
  const { blockSize } = task.unit!;
  const bytes = new Uint8Array(LBA_STATUS.byteLength + extents.count * LBA_DESCRIPTOR.byteLength);
  const view = new DataView(bytes.buffer);
  let lba = op.offset / blockSize;
  let at: number = LBA_STATUS.byteLength;
  const end = task.device!.size / blockSize;
  for (let index = 0; index < extents.count && lba < end; index++) {
    const blocks = Math.min(Math.floor(extents.length[index]! / blockSize), 0xffff_ffff, end - lba);
    if (blocks === 0) break;
    const flags = extents.flags[index]!;
    writeU64(view, at + LBA_DESCRIPTOR.lba, lba);
    view.setUint32(at + LBA_DESCRIPTOR.blocks, blocks);
    bytes[at + LBA_DESCRIPTOR.status] = provisioningOf(flags);
    at += LBA_DESCRIPTOR.byteLength;
    lba += blocks;
  }
  view.setUint32(LBA_STATUS.length, at - LBA_STATUS.reserved);
  server.reply(task, bytes.subarray(0, at), task.cdb.getUint32(STATUS_LENGTH_AT));
};
function provisioningOf(flags: number): number {
  if ((flags & ExtentFlag.HOLE) !== 0) return Provisioning.DEALLOCATED;
  return (flags & ExtentFlag.ZERO) !== 0 ? Provisioning.ANCHORED : Provisioning.MAPPED;
}
