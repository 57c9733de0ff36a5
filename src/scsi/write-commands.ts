/** Commands that change blocks: SBC-3 §5, SBC-4 for WRITE ATOMIC. */
import { layout, readU64 } from "#base/layout";
import {
  CDB_16,
  CDB_ATOMIC,
  CDB_COMPARE,
  CDB_SANITIZE,
  CDB_UNMAP,
  cdbBlocks,
  cdbLba,
  RwFlag,
  SameFlag,
} from "#wire/scsi/cdb";
import { Asc, Op, SenseKey } from "#wire/scsi/codes";
import { CHUNK_BYTES, endWithStatus, takeRange, takeTransfer, verifyNext } from "./block-commands.ts";
import { Sanitize } from "./sanitize.ts";
import type { ScsiTask, Step } from "./task.ts";
import { COMPARE_BYTES_MAX, UNMAP_BYTES_MAX, UNMAP_DESCRIPTORS_MAX, WRITE_SAME_BLOCKS_MAX } from "./unit.ts";

const FLAGS_BYTE = 1;
const isFua = (task: ScsiTask): boolean => (task.byte(FLAGS_BYTE) & RwFlag.FUA) !== 0 || !task.unit!.mode.writeCache;

/* ---------------------------------------------------------------------- WRITE */

export const write: Step = (task) => {
  if (!takeTransfer(task)) return;
  if (task.remaining === 0) return task.server.end(task);
  task.server.collect(task, task.remaining, writeCollected);
};

const writeCollected: Step = (task) => {
  const { op, server } = task;
  const { blockSize } = task.unit!;
  // What the initiator did not send is not written: whole blocks only.
  op.length = task.outLength - (task.outLength % blockSize);
  if (op.length === 0) return server.end(task);
  op.kind = "write";
  op.offset = task.position;
  op.at = task.at;
  op.fua = task.opcode === Op.WRITE_6 ? !task.unit!.mode.writeCache : isFua(task);
  server.submit(task, endWithStatus);
};

/* ---------------------------------------------------------- WRITE AND VERIFY */

export const writeAndVerify: Step = (task) => {
  const check = (task.byte(FLAGS_BYTE) & RwFlag.BYTCHK_MASK) >> 1;
  if (check >= 2) return task.server.invalidField(task, FLAGS_BYTE);
  if (!takeTransfer(task)) return;
  if (task.remaining === 0) return task.server.end(task);
  task.server.collect(task, task.remaining, verifiedCollected);
};
const verifiedCollected: Step = (task) => {
  const { op, server } = task;
  op.length = task.outLength - (task.outLength % task.unit!.blockSize);
  if (op.length === 0) return server.end(task);
  task.remaining = op.length;
  op.kind = "write";
  op.offset = task.position;
  op.at = task.at;
  // It is the medium that is to be verified, so the data has to be there first.
  op.fua = true;
  server.submit(task, verifiedWritten);
};
const verifiedWritten: Step = (task) => {
  if (task.op.status !== "ok") return task.server.endWith(task, task.op.status);
  task.cursor = 0;
  task.server.withMemory(task, Math.min(CHUNK_BYTES, task.remaining), true, verifyNext);
};

/* --------------------------------------------------------------- WRITE ATOMIC */

export const writeAtomic: Step = (task) => {
  if (task.unit!.atomicMax === 0) return task.server.fail(task, SenseKey.ILLEGAL_REQUEST, Asc.INVALID_OPCODE, 0);
  const blocks = task.cdb.getUint16(CDB_ATOMIC.length);
  if ((task.byte(FLAGS_BYTE) & RwFlag.PROTECT_MASK) !== 0) return task.server.invalidField(task, FLAGS_BYTE);
  // Writes that are atomic in parts only are not offered: MAXIMUM ATOMIC BOUNDARY SIZE is 0.
  if (task.cdb.getUint16(CDB_ATOMIC.boundary) !== 0) return task.server.invalidField(task, CDB_ATOMIC.boundary);
  if (!takeRange(task, blocks)) return;
  const granularity = Math.max(task.unit!.blockSize, task.unit!.device.preferredBlockSize);
  if (task.position % granularity !== 0) return task.server.invalidField(task, CDB_ATOMIC.lba);
  if (task.remaining % granularity !== 0) return task.server.invalidField(task, CDB_ATOMIC.length);
  if (task.remaining > task.unit!.atomicMax) return task.server.invalidField(task, CDB_ATOMIC.length);
  if (task.remaining === 0) return task.server.end(task);
  // A part of it would not be atomic.
  if (task.outMax < task.remaining) return task.server.invalidField(task, CDB_ATOMIC.length);
  task.server.collect(task, task.remaining, writeCollected);
};

/* ---------------------------------------------------------- COMPARE AND WRITE */

export const compareAndWrite: Step = (task) => {
  const blocks = task.byte(CDB_COMPARE.length);
  if ((task.byte(FLAGS_BYTE) & RwFlag.PROTECT_MASK) !== 0) return task.server.invalidField(task, FLAGS_BYTE);
  if (!takeRange(task, blocks)) return;
  if (task.remaining > COMPARE_BYTES_MAX) return task.server.invalidField(task, CDB_COMPARE.length);
  // Both halves, no more and no less: with another length nobody knows where the second one starts.
  if (task.outMax !== 2 * task.remaining) return task.server.invalidField(task, CDB_COMPARE.length);
  if (blocks === 0) return task.server.end(task);
  task.server.collect(task, 2 * task.remaining, compareCollected);
};
const compareCollected: Step = (task) => {
  const { op } = task;
  op.kind = "compare-write";
  op.offset = task.position;
  op.length = task.remaining;
  op.at = task.at;
  op.fua = isFua(task);
  task.server.submit(task, endWithStatus);
};

/* -------------------------------------------------------------------- ORWRITE */

/** How often a piece is tried again because somebody else wrote it meanwhile; then the initiator is told "busy". */
const OR_TRIES_MAX = 64;

export const orWrite: Step = (task) => {
  if (!takeTransfer(task)) return;
  if (task.remaining === 0) return task.server.end(task);
  task.server.collect(task, task.remaining, orCollected);
};
const orCollected: Step = (task) => {
  const { blockSize } = task.unit!;
  task.remaining = task.outLength - (task.outLength % blockSize);
  task.cursor = 0;
  task.extra = 0;
  if (task.remaining === 0) return task.server.end(task);
  task.server.withMemory(task, 2 * Math.min(COMPARE_BYTES_MAX, task.remaining), true, orRead);
};
/** Reads a piece, ORs it, and writes it only if it is still what was read: atomic against every other command. */
const orRead: Step = (task) => {
  const { op } = task;
  op.kind = "read";
  op.offset = task.position + task.cursor;
  op.length = Math.min(task.scratchLength / 2, task.remaining - task.cursor);
  op.at = task.scratch;
  task.server.submit(task, orSwap);
};
const orSwap: Step = (task) => {
  const { op, server } = task;
  if (op.status !== "ok") return server.endWith(task, op.status);
  const { bytes } = server.memory;
  for (let index = 0; index < op.length; index++)
    bytes[task.scratch + op.length + index] = bytes[task.scratch + index]! | bytes[task.at + task.cursor + index]!;
  op.kind = "compare-write";
  op.fua = isFua(task);
  server.submit(task, orSwapped);
};
const orSwapped: Step = (task) => {
  const { op, server } = task;
  if (op.status === "miscompare") {
    const tries = (task.extra as number) + 1;
    task.extra = tries;
    return tries < OR_TRIES_MAX ? orRead(task) : server.endWith(task, "busy");
  }
  if (op.status !== "ok") return server.endWith(task, op.status);
  task.cursor += op.length;
  if (task.cursor < task.remaining) return orRead(task);
  server.end(task);
};

/* ----------------------------------------------------------------- WRITE SAME */

const SAME_BUFFER_BYTES = 1024 * 1024;
/** What one operation zeroes at most. */
const ZERO_BYTES = 1024 * 1024 * 1024;

export const writeSame: Step = (task) => {
  const { server } = task;
  const { blockSize, thin } = task.unit!;
  const flags = task.byte(FLAGS_BYTE);
  const isLong = task.opcode === Op.WRITE_SAME_16;
  const unmaps = (flags & SameFlag.UNMAP) !== 0;
  if ((flags & SameFlag.PROTECT_MASK) !== 0) return server.invalidField(task, FLAGS_BYTE);
  if ((flags & SameFlag.ANCHOR) !== 0 && !unmaps) return server.invalidField(task, FLAGS_BYTE);
  if (unmaps && !thin) return server.invalidField(task, FLAGS_BYTE);
  const blocks = cdbBlocks(task.cdb);
  if (!takeRange(task, blocks)) return;
  // 0 means all blocks from the address on.
  if (blocks === 0) task.remaining = task.device!.size - cdbLba(task.cdb) * blockSize;
  if (task.remaining > WRITE_SAME_BLOCKS_MAX * blockSize) return server.invalidField(task, CDB_16.length);
  task.cursor = 0;
  if (isLong && (flags & SameFlag.NDOB) !== 0) return sameZero(task);
  if (!isLong && (flags & SameFlag.NDOB) !== 0) return server.invalidField(task, FLAGS_BYTE);
  if (task.outMax !== blockSize) return server.invalidField(task, CDB_16.length);
  server.collect(task, blockSize, sameCollected);
};
const sameCollected: Step = (task) => {
  const { bytes } = task.server.memory;
  // Deviates: with UNMAP, SBC-3 §5.43 has blocks written that would not read back as the block sent. Like other targets
  // we unmap them, whatever was sent: that is what hosts mean by it.
  if ((task.byte(FLAGS_BYTE) & SameFlag.UNMAP) !== 0) return sameZero(task);
  for (let index = 0; index < task.unit!.blockSize; index++)
    if (bytes[task.at + index] !== 0)
      return task.server.withMemory(task, Math.min(SAME_BUFFER_BYTES, Math.max(task.remaining, 1)), true, sameFill);
  sameZero(task);
};
const sameZero: Step = (task) => {
  const { op, server } = task;
  if (task.cursor >= task.remaining) return server.end(task);
  const flags = task.byte(FLAGS_BYTE);
  op.kind = "zero";
  op.offset = task.position + task.cursor;
  op.length = Math.min(ZERO_BYTES, task.remaining - task.cursor);
  op.noHole = (flags & SameFlag.UNMAP) === 0 || (flags & SameFlag.ANCHOR) !== 0;
  op.fastOnly = false;
  op.fua = !task.unit!.mode.writeCache;
  task.cursor += op.length;
  server.submit(task, sameZeroed);
};
const sameZeroed: Step = (task) =>
  task.op.status === "ok" ? sameZero(task) : task.server.endWith(task, task.op.status);
const sameFill: Step = (task) => {
  const { bytes } = task.server.memory;
  for (let done = 0; done < task.scratchLength; done += task.unit!.blockSize)
    bytes.copyWithin(task.scratch + done, task.at, task.at + task.unit!.blockSize);
  sameWrite(task);
};
const sameWrite: Step = (task) => {
  const { op, server } = task;
  if (task.cursor >= task.remaining) return server.end(task);
  op.kind = "write";
  op.offset = task.position + task.cursor;
  op.length = Math.min(task.scratchLength, task.remaining - task.cursor);
  op.at = task.scratch;
  op.fua = !task.unit!.mode.writeCache;
  task.cursor += op.length;
  server.submit(task, sameWritten);
};
const sameWritten: Step = (task) =>
  task.op.status === "ok" ? sameWrite(task) : task.server.endWith(task, task.op.status);

/* ---------------------------------------------------------------------- UNMAP */

/** SBC-3 §5.35. */
const UNMAP_LIST = layout({ length: 2, descriptorsLength: 2, reserved: 4 });
const UNMAP_DESCRIPTOR = layout({ lba: 8, blocks: 4, reserved: 4 });
const ANCHOR = 0x01;
const UNMAP_LIST_BYTES_MAX = UNMAP_LIST.byteLength + UNMAP_DESCRIPTORS_MAX * UNMAP_DESCRIPTOR.byteLength;

export const unmap: Step = (task) => {
  const { server } = task;
  if (!task.unit!.thin) return server.fail(task, SenseKey.ILLEGAL_REQUEST, Asc.INVALID_OPCODE, 0);
  const length = task.cdb.getUint16(CDB_UNMAP.length);
  if (length === 0) return server.end(task);
  if (length < UNMAP_LIST.byteLength)
    return server.fail(task, SenseKey.ILLEGAL_REQUEST, Asc.PARAMETER_LIST_LENGTH_ERROR, CDB_UNMAP.length);
  server.collect(task, Math.min(length, UNMAP_LIST_BYTES_MAX + UNMAP_DESCRIPTOR.byteLength), unmapCollected);
};
const unmapCollected: Step = (task) => {
  const { server } = task;
  const { view } = server.memory;
  const { blockSize } = task.unit!;
  if (task.outLength < UNMAP_LIST.byteLength)
    return server.fail(task, SenseKey.ILLEGAL_REQUEST, Asc.PARAMETER_LIST_LENGTH_ERROR, CDB_UNMAP.length);
  const listed = view.getUint16(task.at + UNMAP_LIST.descriptorsLength);
  const count = Math.floor(Math.min(listed, task.outLength - UNMAP_LIST.byteLength) / UNMAP_DESCRIPTOR.byteLength);
  if (count > UNMAP_DESCRIPTORS_MAX) return server.invalidParameter(task, UNMAP_LIST.descriptorsLength);
  const capacity = Math.floor(task.device!.size / blockSize);
  let total = 0;
  for (let index = 0; index < count; index++) {
    const at = task.at + UNMAP_LIST.byteLength + index * UNMAP_DESCRIPTOR.byteLength;
    const blocks = view.getUint32(at + UNMAP_DESCRIPTOR.blocks);
    if (readU64(view, at + UNMAP_DESCRIPTOR.lba) + blocks > capacity)
      return server.fail(task, SenseKey.ILLEGAL_REQUEST, Asc.LBA_OUT_OF_RANGE);
    total += blocks * blockSize;
  }
  if (total > UNMAP_BYTES_MAX) return server.invalidParameter(task, UNMAP_LIST.byteLength);
  task.cursor = 0;
  task.remaining = count;
  unmapNext(task);
};
const unmapNext: Step = (task) => {
  const { op, server } = task;
  const { view } = server.memory;
  const { blockSize } = task.unit!;
  while (task.cursor < task.remaining) {
    const at = task.at + UNMAP_LIST.byteLength + task.cursor * UNMAP_DESCRIPTOR.byteLength;
    task.cursor++;
    op.length = view.getUint32(at + UNMAP_DESCRIPTOR.blocks) * blockSize;
    if (op.length === 0) continue;
    const anchors = (task.byte(FLAGS_BYTE) & ANCHOR) !== 0;
    op.kind = anchors ? "zero" : "trim";
    op.offset = readU64(view, at + UNMAP_DESCRIPTOR.lba) * blockSize;
    op.noHole = anchors;
    op.fastOnly = false;
    op.fua = !task.unit!.mode.writeCache;
    return server.submit(task, unmapped);
  }
  server.end(task);
};
const unmapped: Step = (task) =>
  task.op.status === "ok" ? unmapNext(task) : task.server.endWith(task, task.op.status);

/* ------------------------------------------------------------------- SANITIZE */

/** SBC-3 §5.27.2: overwrite, parameter list. */
const OVERWRITE = layout({ flags: 1, reserved: 1, patternLength: 2 });
const PASSES_MASK = 0x1f;
const INVERT = 0x80;
const IMMEDIATE = 0x80;
const UNRESTRICTED_EXIT = 0x20;

/** Reserved bits are refused: who sets them wants something that a later standard means by them. */
function hasReserved(task: ScsiTask): boolean {
  const RESERVED_BIT = 0x40;
  if ((task.byte(FLAGS_BYTE) & RESERVED_BIT) !== 0) {
    task.server.invalidField(task, FLAGS_BYTE);
    return true;
  }
  for (let at = CDB_SANITIZE.reserved; at < CDB_SANITIZE.length; at++)
    if (task.byte(at) !== 0) {
      task.server.invalidField(task, at);
      return true;
    }
  return false;
}

export const sanitizeErase: Step = (task) => {
  if (hasReserved(task)) return;
  if (task.cdb.getUint16(CDB_SANITIZE.length) !== 0) return task.server.invalidField(task, CDB_SANITIZE.length);
  startSanitize(task, undefined, 1, false);
};

export const sanitizeOverwrite: Step = (task) => {
  if (hasReserved(task)) return;
  const length = task.cdb.getUint16(CDB_SANITIZE.length);
  const { blockSize } = task.unit!;
  if (length <= OVERWRITE.byteLength || length > OVERWRITE.byteLength + blockSize)
    return task.server.invalidField(task, CDB_SANITIZE.length);
  task.server.collect(task, length, overwriteCollected);
};
const overwriteCollected: Step = (task) => {
  const { server } = task;
  const { view } = server.memory;
  if (task.outLength < task.total)
    return server.fail(task, SenseKey.ILLEGAL_REQUEST, Asc.PARAMETER_LIST_LENGTH_ERROR, CDB_SANITIZE.length);
  const flags = view.getUint8(task.at + OVERWRITE.flags);
  const patternLength = view.getUint16(task.at + OVERWRITE.patternLength);
  const passes = flags & PASSES_MASK;
  if (passes === 0) return server.invalidField(task, CDB_SANITIZE.length);
  if (patternLength === 0 || patternLength !== task.outLength - OVERWRITE.byteLength)
    return server.invalidField(task, CDB_SANITIZE.length);
  const start = task.at + OVERWRITE.byteLength;
  startSanitize(task, server.memory.bytes.slice(start, start + patternLength), passes, (flags & INVERT) !== 0);
};

export const sanitizeExit: Step = (task) => {
  if (hasReserved(task)) return;
  if (task.cdb.getUint16(CDB_SANITIZE.length) !== 0) return task.server.invalidField(task, CDB_SANITIZE.length);
  // SBC-3 §4.11.3: who has not allowed it with the command that failed must sanitize again.
  if (task.unit!.sanitizeFailed === "restricted") return task.server.invalidField(task, FLAGS_BYTE);
  task.unit!.sanitizeFailed = undefined;
  task.server.end(task);
};

/** The command waits for the end, unless IMMED is set. If it is aborted meanwhile, the work goes on without it. */
function startSanitize(task: ScsiTask, pattern: Uint8Array | undefined, passes: number, invert: boolean): void {
  const { server } = task;
  const unit = task.unit!;
  const immediate = (task.byte(FLAGS_BYTE) & IMMEDIATE) !== 0;
  const failure = (task.byte(FLAGS_BYTE) & UNRESTRICTED_EXIT) !== 0 ? "unrestricted" : "restricted";
  const ticket = {};
  if (!immediate) {
    task.stage = "waiting";
    task.next = undefined;
    task.extra = ticket;
  }
  unit.sanitize = new Sanitize(
    unit.device,
    server.env.clock,
    server.memory,
    { pattern, passes, invert, rate: unit.sanitizeRate },
    (ok) => {
      unit.sanitize = undefined;
      unit.sanitizeFailed = ok ? undefined : failure;
      if (!ok) server.env.log.error({ volume: unit.device.uuid }, "sanitize failed");
      if (!immediate && task.extra === ticket) server.endWith(task, ok ? "ok" : "failed");
    },
  );
  if (immediate) server.end(task);
  else server.relax(task);
}
