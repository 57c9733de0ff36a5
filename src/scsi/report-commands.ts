/** Commands that tell what a unit is and in what state: SPC-4 §6, SBC-3 §5.15 and §5.16. */
import { layout, writeU64 } from "#base/layout";
import {
  CDB_DEFECTS_10,
  CDB_DEFECTS_12,
  CDB_DIAGNOSTIC,
  CDB_INQUIRY,
  CDB_LOG_SENSE,
  CDB_REPORT_LUNS,
  CDB_SENSE,
} from "#wire/scsi/cdb";
import { Asc, Op, SenseKey, Vpd } from "#wire/scsi/codes";
import {
  encodeBlockLimits,
  encodeCharacteristics,
  encodeDeviceIdentification,
  encodeExtendedInquiry,
  encodeInquiry,
  encodeModePagePolicy,
  encodeProvisioning,
  encodeSerialNumber,
  encodeSupportedPages,
} from "#wire/scsi/inquiry";
import { encodeSense, SENSE_BYTES_MAX, Sense } from "#wire/scsi/sense";
import type { Nexus } from "./nexus.ts";
import type { ScsiTask, Step } from "./task.ts";
import { type LogicalUnit, THRESHOLD_EXPONENT } from "./unit.ts";

const FLAGS_BYTE = 1;

export const testUnitReady: Step = (task) => task.server.end(task);

/* -------------------------------------------------------------------- INQUIRY */

const PAGES = new Map<number, (unit: LogicalUnit, nexus: Nexus) => Uint8Array>([
  [Vpd.SUPPORTED_PAGES, () => encodeSupportedPages()],
  [Vpd.UNIT_SERIAL_NUMBER, (unit) => encodeSerialNumber(unit.device.uuid)],
  [Vpd.DEVICE_IDENTIFICATION, (unit, nexus) => encodeDeviceIdentification(unit.device.uuid, nexus.port)],
  [Vpd.EXTENDED_INQUIRY, () => encodeExtendedInquiry()],
  [Vpd.MODE_PAGE_POLICY, () => encodeModePagePolicy()],
  [Vpd.BLOCK_LIMITS, (unit) => encodeBlockLimits(unit.limits())],
  [Vpd.BLOCK_DEVICE_CHARACTERISTICS, () => encodeCharacteristics()],
  [
    Vpd.LOGICAL_BLOCK_PROVISIONING,
    (unit) => encodeProvisioning(unit.thin, unit.provisioning === undefined ? 0 : THRESHOLD_EXPONENT),
  ],
]);

export const inquiry: Step = (task) => {
  const EVPD = 0x01;
  const flags = task.byte(FLAGS_BYTE);
  const pageCode = task.byte(CDB_INQUIRY.page);
  const allocation = task.cdb.getUint16(CDB_INQUIRY.length);
  if ((flags & ~EVPD) !== 0) return task.server.invalidField(task, FLAGS_BYTE);
  if ((flags & EVPD) === 0) {
    if (pageCode !== 0) return task.server.invalidField(task, CDB_INQUIRY.page);
    return task.server.reply(task, encodeInquiry(task.unit!.removable, true), allocation);
  }
  const encode = PAGES.get(pageCode);
  if (encode === undefined) return task.server.invalidField(task, CDB_INQUIRY.page);
  task.server.reply(task, encode(task.unit!, task.nexus), allocation);
};

/* ---------------------------------------------------------------- REPORT LUNS */

const LUNS = layout({ length: 4, reserved: 4 });
const LUN_BYTES = 8;
const FLAT_SPACE = 0x4000;

export const reportLuns: Step = (task) => {
  const WELL_KNOWN_ONLY = 1;
  const SELECT_MAX = 2;
  const select = task.byte(CDB_REPORT_LUNS.select);
  const allocation = task.cdb.getUint32(CDB_REPORT_LUNS.length);
  if (select > SELECT_MAX) return task.server.invalidField(task, CDB_REPORT_LUNS.select);
  if (allocation < LUNS.byteLength + LUN_BYTES) return task.server.invalidField(task, CDB_REPORT_LUNS.length);
  const views = select === WELL_KNOWN_ONLY ? [] : task.nexus.units.list();
  const bytes = new Uint8Array(LUNS.byteLength + LUN_BYTES * views.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(LUNS.length, LUN_BYTES * views.length);
  for (const [index, { lun }] of views.entries())
    view.setUint16(LUNS.byteLength + LUN_BYTES * index, lun < 256 ? lun : FLAT_SPACE | lun);
  for (const { unit } of views) task.nexus.dropAttention(unit, Asc.REPORTED_LUNS_CHANGED);
  task.server.reply(task, bytes, allocation);
};

/* -------------------------------------------------------------- REQUEST SENSE */

export const requestSense: Step = (task) => {
  const DESCRIPTOR = 0x01;
  const unit = task.unit!;
  const sense = new Sense();
  const attention = task.nexus.takeAttention(unit);
  if (attention !== 0) {
    sense.set(SenseKey.UNIT_ATTENTION, attention);
  } else if (unit.sanitize !== undefined) {
    sense.set(SenseKey.NOT_READY, Asc.SANITIZE_IN_PROGRESS);
    sense.progress = unit.sanitize.progress;
  } else if (unit.sanitizeFailed !== undefined) {
    sense.set(SenseKey.MEDIUM_ERROR, Asc.SANITIZE_FAILED);
  } else {
    sense.set(SenseKey.NO_SENSE, Asc.NONE);
  }
  const bytes = new Uint8Array(SENSE_BYTES_MAX);
  const length = encodeSense(sense, (task.byte(FLAGS_BYTE) & DESCRIPTOR) !== 0, new DataView(bytes.buffer));
  task.server.reply(task, bytes.subarray(0, length), task.byte(CDB_SENSE.length));
};

/* -------------------------------------------------------------- READ CAPACITY */

const CAPACITY_10 = layout({ lba: 4, blockLength: 4 });
const CAPACITY_16 = layout({ lba: 8, blockLength: 4, protection: 1, exponent: 1, lowest: 2, reserved: 16 });
const ALLOCATION_16_AT = 10;

const lastBlock = (task: ScsiTask): number => Math.floor(task.device!.size / task.unit!.blockSize) - 1;

export const readCapacity10: Step = (task) => {
  const bytes = new Uint8Array(CAPACITY_10.byteLength);
  const view = new DataView(bytes.buffer);
  // FFFFFFFFh: more than fits; ask with READ CAPACITY (16). SBC-3 §5.15.
  view.setUint32(CAPACITY_10.lba, Math.min(lastBlock(task), 0xffff_ffff));
  view.setUint32(CAPACITY_10.blockLength, task.unit!.blockSize);
  task.server.reply(task, bytes, CAPACITY_10.byteLength);
};

export const readCapacity16: Step = (task) => {
  const THIN_READS_ZEROES = 0xc000;
  const unit = task.unit!;
  const bytes = new Uint8Array(CAPACITY_16.byteLength);
  const view = new DataView(bytes.buffer);
  writeU64(view, CAPACITY_16.lba, lastBlock(task));
  view.setUint32(CAPACITY_16.blockLength, unit.blockSize);
  const perPreferred = Math.max(1, unit.device.preferredBlockSize / unit.blockSize);
  const exponent = Math.log2(perPreferred);
  bytes[CAPACITY_16.exponent] = Number.isInteger(exponent) ? Math.min(exponent, 15) : 0;
  if (unit.thin) view.setUint16(CAPACITY_16.lowest, THIN_READS_ZEROES);
  task.server.reply(task, bytes, task.cdb.getUint32(ALLOCATION_16_AT));
};

/* ------------------------------------------------------------------ LOG SENSE */

const LogPage = { SUPPORTED: 0x00, PROVISIONING: 0x0c, EXCEPTIONS: 0x2f } as const;
const LOG_PAGE = layout({ code: 1, subpage: 1, length: 2 });
/** SBC-3 §6.4.5: counts in units of the threshold set. */
const RESOURCE = layout({ code: 2, control: 1, length: 1, count: 4, scope: 1, reserved: 3 });
const EXCEPTION = layout({ code: 2, control: 1, length: 1, asc: 2, temperature: 1, reserved: 1 });

export const logSense: Step = (task) => {
  const SP = 0x01;
  const PPC = 0x02;
  if ((task.byte(FLAGS_BYTE) & (SP | PPC)) !== 0) return task.server.invalidField(task, FLAGS_BYTE);
  if (task.byte(CDB_LOG_SENSE.subpage) !== 0) return task.server.invalidField(task, CDB_LOG_SENSE.subpage);
  const code = task.byte(CDB_LOG_SENSE.page) & 0x3f;
  const content = logPage(task.unit!, code);
  if (content === undefined) return task.server.invalidField(task, CDB_LOG_SENSE.page);
  const bytes = new Uint8Array(LOG_PAGE.byteLength + content.length);
  bytes[LOG_PAGE.code] = code;
  new DataView(bytes.buffer).setUint16(LOG_PAGE.length, content.length);
  bytes.set(content, LOG_PAGE.byteLength);
  task.server.reply(task, bytes, task.cdb.getUint16(CDB_LOG_SENSE.length));
};

function logPage(unit: LogicalUnit, code: number): Uint8Array | undefined {
  const { provisioning } = unit;
  const FIXED_BINARY = 0x03;
  if (code === LogPage.SUPPORTED)
    return Uint8Array.from(
      provisioning === undefined
        ? [LogPage.SUPPORTED, LogPage.EXCEPTIONS]
        : [LogPage.SUPPORTED, LogPage.PROVISIONING, LogPage.EXCEPTIONS],
    );
  if (code === LogPage.EXCEPTIONS) {
    const bytes = new Uint8Array(EXCEPTION.byteLength);
    bytes[EXCEPTION.control] = FIXED_BINARY;
    bytes[EXCEPTION.length] = EXCEPTION.byteLength - EXCEPTION.asc;
    return bytes;
  }
  if (code !== LogPage.PROVISIONING || provisioning === undefined) return undefined;
  const AVAILABLE = 0x0001;
  const USED = 0x0002;
  const SHARED_BY_UNITS = 0x02;
  const bytes = new Uint8Array(2 * RESOURCE.byteLength);
  const view = new DataView(bytes.buffer);
  const put = (at: number, parameter: number, count: number, scope: number): void => {
    view.setUint16(at + RESOURCE.code, parameter);
    bytes[at + RESOURCE.control] = FIXED_BINARY;
    bytes[at + RESOURCE.length] = RESOURCE.byteLength - RESOURCE.count;
    const sets = Math.floor(count / (unit.blockSize * 2 ** THRESHOLD_EXPONENT));
    view.setUint32(at + RESOURCE.count, Math.min(sets, 0xffff_ffff));
    bytes[at + RESOURCE.scope] = scope;
  };
  put(0, AVAILABLE, provisioning.available(), SHARED_BY_UNITS);
  put(RESOURCE.byteLength, USED, provisioning.used(), SHARED_BY_UNITS);
  return bytes;
}

/* ------------------------------------------ READ DEFECT DATA, SEND DIAGNOSTIC */

const DEFECTS_10 = layout({ reserved: 1, format: 1, length: 2 });
const DEFECTS_12 = layout({ reserved: 1, format: 1, generation: 2, length: 4 });
const LISTS_AND_FORMAT_MASK = 0x1f;

/** There are no defects that a host would have to know of: the list is empty, in the format asked for. SBC-3 §5.18. */
export const readDefectData: Step = (task) => {
  const isShort = task.opcode === Op.READ_DEFECT_DATA_10;
  const bytes = new Uint8Array(isShort ? DEFECTS_10.byteLength : DEFECTS_12.byteLength);
  const format = task.byte(isShort ? CDB_DEFECTS_10.format : CDB_DEFECTS_12.format) & LISTS_AND_FORMAT_MASK;
  bytes[DEFECTS_10.format] = format;
  const allocation = isShort ? task.cdb.getUint16(CDB_DEFECTS_10.length) : task.cdb.getUint32(CDB_DEFECTS_12.length);
  task.server.reply(task, bytes, allocation);
};

/** The default self-test: that the unit answers. Other tests need pages that we do not have. SPC-4 §6.42. */
export const sendDiagnostic: Step = (task) => {
  const SELF_TEST = 0x04;
  const OTHER_TESTS = 0xe0;
  if ((task.byte(FLAGS_BYTE) & OTHER_TESTS) !== 0 || (task.byte(FLAGS_BYTE) & SELF_TEST) === 0)
    return task.server.invalidField(task, FLAGS_BYTE);
  if (task.cdb.getUint16(CDB_DIAGNOSTIC.length) !== 0) return task.server.invalidField(task, CDB_DIAGNOSTIC.length);
  task.op.kind = "flush";
  task.server.submit(task, (done) => done.server.endWith(done, done.op.status));
};
