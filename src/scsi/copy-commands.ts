/**
 * EXTENDED COPY (LID1) and RECEIVE COPY RESULTS: SPC-4 §6.4 and §6.24 to §6.28. The units are those that the asking
 * host may see itself, with its rights and under its reservations; nothing else can be reached through a copy.
 */
import { layout } from "#base/layout";
import type { Status } from "#base/status";
import { CDB_COPY } from "#wire/scsi/cdb";
import { Asc, Sa, SamStatus, SenseKey } from "#wire/scsi/codes";
import {
  COPY_DESCRIPTORS_BYTES_MAX,
  COPY_LIST_BYTES_MAX,
  COPY_SEGMENTS_MAX,
  COPY_TARGETS_MAX,
  type CopyList,
  type CopyTarget,
  parseCopyList,
} from "#wire/scsi/copy";
import { asciiBytes, hexOfBytes } from "#wire/scsi/identity";
import { VENDOR } from "#wire/scsi/inquiry";
import { encodeSense } from "#wire/scsi/sense";
import { SCSI_STATUS } from "#wire/scsi/status";
import type { UnitView } from "./nexus.ts";
import type { ScsiTask, Step } from "./task.ts";

const COPY_BUFFER_BYTES = 1024 * 1024;
/** Data is shared in whole blocks of the engine; what one sharing covers at most, so that none takes long. */
const SHARE_BLOCK_BYTES = 4096;
const SHARE_BYTES_MAX = 256 * 1024 * 1024;

interface Copy {
  readonly list: CopyList;
  readonly views: readonly (UnitView | undefined)[];
  segment: number;
  /** Bytes done of the segment, and of all. */
  done: number;
  moved: number;
  /** The units of this segment share no data: it is moved. */
  moves: boolean;
}

export const extendedCopy: Step = (task) => {
  const length = task.cdb.getUint32(CDB_COPY.length);
  if (length === 0) return task.server.end(task);
  // One descriptor more than can be right is taken in, so that the refusal can say which kind there are too many of.
  task.server.collect(task, Math.min(length, 2 * COPY_LIST_BYTES_MAX), copyCollected);
};

const copyCollected: Step = (task) => {
  const { server } = task;
  const list = parseCopyList(server.memory.bytes.slice(task.at, task.at + task.outLength));
  if (typeof list === "number") return server.fail(task, SenseKey.ILLEGAL_REQUEST, list);
  if (list.segments.length === 0) return server.end(task);
  const views = list.targets.map((target) => findUnit(task, target));
  task.extra = { list, views, segment: 0, done: 0, moved: 0, moves: false } satisfies Copy;
  server.withMemory(task, COPY_BUFFER_BYTES, true, copyNext);
};

/** Goes to the next piece, the next segment, or the end. */
const copyNext: Step = (task) => {
  const { op, server } = task;
  const copy = task.extra as Copy;
  const segment = copy.list.segments[copy.segment];
  if (segment === undefined) {
    remember(task, false);
    return server.end(task);
  }
  const source = copy.views[segment.source];
  const destination = copy.views[segment.destination];
  if (source === undefined || destination === undefined) return abortCopy(task, Asc.UNREACHABLE_COPY_TARGET);
  const unit = segment.destinationCount ? destination.unit : source.unit;
  const bytes = segment.blocks * unit.blockSize;
  const from = segment.sourceLba * source.unit.blockSize;
  const to = segment.destinationLba * destination.unit.blockSize;
  if (copy.done === 0) {
    const sizes = copy.list.targets;
    const wrongSize = (index: number, blockSize: number): boolean =>
      sizes[index]!.blockLength !== 0 && sizes[index]!.blockLength !== blockSize;
    if (wrongSize(segment.source, source.unit.blockSize) || wrongSize(segment.destination, destination.unit.blockSize))
      return abortCopy(task, Asc.NONE);
    if (from + bytes > source.device.size || to + bytes > destination.device.size) return abortCopy(task, Asc.NONE);
    if (bytes % destination.unit.blockSize !== 0) return abortCopy(task, Asc.NONE);
    const { name } = task.nexus;
    if (source.unit.reservations.refuses(name, "read") || destination.unit.reservations.refuses(name, "write"))
      return abortCopy(task, Asc.THIRD_PARTY_DEVICE_FAILURE);
    if (destination.unit.mode.softwareWriteProtect || destination.unit.sanitize !== undefined)
      return abortCopy(task, Asc.THIRD_PARTY_DEVICE_FAILURE);
  }
  if (copy.done >= bytes) {
    copy.segment++;
    copy.done = 0;
    copy.moves = false;
    return copyNext(task);
  }
  const left = bytes - copy.done;
  const into = (to + copy.done) % SHARE_BLOCK_BYTES;
  const shares = !copy.moves && (from + copy.done) % SHARE_BLOCK_BYTES === into;
  const whole = into === 0 ? left - (left % SHARE_BLOCK_BYTES) : 0;
  if (shares && whole > 0 && destination.device.copyFrom !== undefined) {
    op.kind = "write";
    op.offset = to + copy.done;
    op.length = Math.min(whole, SHARE_BYTES_MAX);
    op.fua = !destination.unit.mode.writeCache;
    task.next = copyShared;
    task.stage = "executing";
    destination.device.copyFrom(op, source.device, from + copy.done);
    return;
  }
  op.kind = "read";
  op.offset = from + copy.done;
  // Up to where sharing may begin, data is moved.
  op.length = Math.min(COPY_BUFFER_BYTES, left, shares && into > 0 ? SHARE_BLOCK_BYTES - into : COPY_BUFFER_BYTES);
  op.at = task.scratch;
  task.next = copyRead;
  task.stage = "executing";
  source.device.submit(op);
};

const copyShared: Step = (task) => {
  if (task.op.status !== "unsupported") return copyWritten(task);
  (task.extra as Copy).moves = true;
  copyNext(task);
};

const copyRead: Step = (task) => {
  const { op } = task;
  const copy = task.extra as Copy;
  if (op.status !== "ok") return abortCopyWith(task, op.status);
  const segment = copy.list.segments[copy.segment]!;
  const destination = copy.views[segment.destination]!;
  op.kind = "write";
  op.offset = segment.destinationLba * destination.unit.blockSize + copy.done;
  op.fua = !destination.unit.mode.writeCache;
  task.next = copyWritten;
  destination.device.submit(op);
};

const copyWritten: Step = (task) => {
  const { op } = task;
  const copy = task.extra as Copy;
  if (op.status !== "ok") return abortCopyWith(task, op.status);
  copy.done += op.length;
  copy.moved += op.length;
  copyNext(task);
};

function abortCopyWith(task: ScsiTask, status: Status): void {
  const meaning = SCSI_STATUS[status];
  abortCopy(
    task,
    meaning.status === SamStatus.CHECK_CONDITION && meaning.asc !== 0 ? meaning.asc : Asc.THIRD_PARTY_DEVICE_FAILURE,
  );
}

/** SPC-4 §6.4.3: COPY ABORTED; the INFORMATION field is the number of the segment. */
function abortCopy(task: ScsiTask, asc: number): void {
  task.status = SamStatus.CHECK_CONDITION;
  task.sense.set(SenseKey.COPY_ABORTED, asc);
  task.sense.information = (task.extra as Copy).segment;
  remember(task, true);
  task.server.end(task);
}

function remember(task: ScsiTask, failed: boolean): void {
  const copy = task.extra as Copy;
  if (!copy.list.remembered) return;
  const length = failed ? encodeSense(task.sense, false, task.senseBytes) : 0;
  task.unit!.copies.put(task.nexus.name, copy.list.list, {
    failed,
    segments: copy.segment,
    bytes: copy.moved,
    sense: new Uint8Array(task.senseBytes.buffer.slice(0, length)),
  });
}

/** The unit that a designator of its VPD page 83h names. */
function findUnit(task: ScsiTask, target: CopyTarget): UnitView | undefined {
  const T10_VENDOR = 1;
  const EUI64 = 2;
  const NAA = 3;
  const hex = hexOfBytes(target.designator);
  return task.nexus.units.list().find(({ unit }) => {
    if (target.designatorType === NAA) return hex === unit.naa;
    if (target.designatorType === EUI64) return hex === unit.eui;
    // The descriptor has room for the first 20 bytes of a designator.
    const full = hexOfBytes(asciiBytes(VENDOR.padEnd(8) + unit.device.uuid));
    return target.designatorType === T10_VENDOR && hex.length === 40 && full.startsWith(hex);
  });
}

/* -------------------------------------------------------- RECEIVE COPY RESULTS */

const PARAMETERS = layout({
  length: 4,
  flags: 1,
  reserved: 3,
  targetsMax: 2,
  segmentsMax: 2,
  descriptorsBytesMax: 4,
  segmentBytesMax: 4,
  inlineMax: 4,
  heldMax: 4,
  streamMax: 4,
  reserved2: 2,
  copiesTotal: 2,
  copiesMax: 1,
  segmentGranularity: 1,
  inlineGranularity: 1,
  heldGranularity: 1,
  reserved3: 3,
  kindsLength: 1,
  kinds: 2,
});
const STATUS = layout({ length: 4, status: 1, segments: 2, units: 1, count: 4 });
const DETAILS = layout({ length: 4, reserved: 52, status: 1, reserved2: 1, senseLength: 2 });
const COMPLETED = 1;
const FAILED = 2;
const KIB_UNITS = 1;
const LIST_AT = CDB_COPY.list;

export const receiveCopyResults: Step = (task) => {
  const { server } = task;
  const allocation = task.cdb.getUint32(CDB_COPY.length);
  const action = task.byte(CDB_COPY.action) & 0x1f;
  if (action === Sa.COPY_OPERATING_PARAMETERS)
    return server.reply(task, encodeParameters(task.unit!.blockSize), allocation);
  const outcome = task.unit!.copies.get(task.nexus.name, task.byte(LIST_AT));
  // No data is ever held for an initiator.
  if (outcome === undefined || action === Sa.COPY_RECEIVE_DATA) return server.invalidField(task, LIST_AT);
  if (action === Sa.COPY_STATUS) {
    const bytes = new Uint8Array(STATUS.byteLength);
    const view = new DataView(bytes.buffer);
    view.setUint32(STATUS.length, STATUS.byteLength - STATUS.status);
    bytes[STATUS.status] = outcome.failed ? FAILED : COMPLETED;
    view.setUint16(STATUS.segments, outcome.segments);
    bytes[STATUS.units] = KIB_UNITS;
    view.setUint32(STATUS.count, Math.floor(outcome.bytes / 1024));
    return server.reply(task, bytes, allocation);
  }
  const bytes = new Uint8Array(DETAILS.byteLength + outcome.sense.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(DETAILS.length, outcome.failed ? bytes.length - DETAILS.reserved : 0);
  bytes[DETAILS.status] = SamStatus.CHECK_CONDITION;
  view.setUint16(DETAILS.senseLength, outcome.sense.length);
  bytes.set(outcome.sense, DETAILS.byteLength);
  server.reply(task, outcome.failed ? bytes : new Uint8Array(DETAILS.reserved), allocation);
};

function encodeParameters(blockSize: number): Uint8Array {
  const LIST_IDENTIFIERS_OPTIONAL = 0x01;
  const BLOCK_TO_BLOCK = 0x02;
  const IDENTIFICATION_TARGET = 0xe4;
  const COPIES_AT_ONCE = 16;
  const bytes = new Uint8Array(PARAMETERS.byteLength);
  const view = new DataView(bytes.buffer);
  view.setUint32(PARAMETERS.length, PARAMETERS.byteLength - PARAMETERS.flags);
  bytes[PARAMETERS.flags] = LIST_IDENTIFIERS_OPTIONAL;
  view.setUint16(PARAMETERS.targetsMax, COPY_TARGETS_MAX);
  view.setUint16(PARAMETERS.segmentsMax, COPY_SEGMENTS_MAX);
  view.setUint32(PARAMETERS.descriptorsBytesMax, COPY_DESCRIPTORS_BYTES_MAX);
  view.setUint32(PARAMETERS.segmentBytesMax, 0xffff * blockSize);
  view.setUint16(PARAMETERS.copiesTotal, COPIES_AT_ONCE);
  bytes[PARAMETERS.copiesMax] = COPIES_AT_ONCE;
  bytes[PARAMETERS.segmentGranularity] = Math.log2(blockSize);
  bytes[PARAMETERS.kindsLength] = 2;
  bytes.set([BLOCK_TO_BLOCK, IDENTIFICATION_TARGET], PARAMETERS.kinds);
  return bytes;
}
