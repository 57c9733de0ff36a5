/**
 * The first 48 bytes of every PDU, RFC 7143 §11, big-endian. Each kind has a layout of its own over the same bytes; a
 * connection reads and writes them in place, in the lane's memory.
 */
import { layout } from "#base/layout";

export const BHS_BYTES = 48;

/** §11.2.1: what all have in common. */
export const BHS = layout({ opcode: 1, flags: 1, own: 2, ahsWords: 1, dataLength: 3, lun: 8, taskTag: 4, own2: 28 });
/** Requests: §11.2.1 with the numbers that most of them have. */
export const REQUEST = layout({ head: 20, transferTag: 4, cmdSn: 4, expStatSn: 4, own: 16 });
/** Responses. */
export const RESPONSE = layout({ head: 20, transferTag: 4, statSn: 4, expCmdSn: 4, maxCmdSn: 4, own: 12 });
/** §11.3. */
export const SCSI_COMMAND = layout({ head: 20, expectedLength: 4, cmdSn: 4, expStatSn: 4, cdb: 16 });
/** §11.4. */
export const SCSI_RESPONSE = layout({
  opcode: 1,
  flags: 1,
  response: 1,
  status: 1,
  lengths: 4,
  reserved: 8,
  taskTag: 4,
  snackTag: 4,
  statSn: 4,
  expCmdSn: 4,
  maxCmdSn: 4,
  expDataSn: 4,
  bidiResidual: 4,
  residual: 4,
});
/** §11.5. */
export const TASK_REQUEST = layout({
  head: 20,
  referencedTag: 4,
  cmdSn: 4,
  expStatSn: 4,
  refCmdSn: 4,
  expDataSn: 4,
  reserved: 8,
});
/** §11.6: the response code is the third byte. */
export const TASK_RESPONSE = layout({ opcode: 1, flags: 1, response: 1, rest: 45 });
/** §11.7. */
export const DATA_OUT = layout({
  head: 20,
  transferTag: 4,
  reserved: 4,
  expStatSn: 4,
  reserved2: 4,
  dataSn: 4,
  offset: 4,
  reserved3: 4,
});
export const DATA_IN = layout({
  opcode: 1,
  flags: 1,
  reserved: 1,
  status: 1,
  lengths: 4,
  lun: 8,
  taskTag: 4,
  transferTag: 4,
  statSn: 4,
  expCmdSn: 4,
  maxCmdSn: 4,
  dataSn: 4,
  offset: 4,
  residual: 4,
});
/** §11.8. */
export const R2T = layout({
  head: 20,
  transferTag: 4,
  statSn: 4,
  expCmdSn: 4,
  maxCmdSn: 4,
  r2tSn: 4,
  offset: 4,
  length: 4,
});
/** §11.9. */
export const ASYNC = layout({
  head: 24,
  statSn: 4,
  expCmdSn: 4,
  maxCmdSn: 4,
  event: 1,
  vendorCode: 1,
  parameter1: 2,
  parameter2: 2,
  parameter3: 2,
  reserved: 4,
});
/** §11.12. */
export const LOGIN_REQUEST = layout({
  opcode: 1,
  flags: 1,
  versionMax: 1,
  versionMin: 1,
  lengths: 4,
  isid: 6,
  tsih: 2,
  taskTag: 4,
  cid: 2,
  reserved: 2,
  cmdSn: 4,
  expStatSn: 4,
  reserved2: 16,
});
/** §11.13. */
export const LOGIN_RESPONSE = layout({
  opcode: 1,
  flags: 1,
  versionMax: 1,
  versionActive: 1,
  lengths: 4,
  isid: 6,
  tsih: 2,
  taskTag: 4,
  reserved: 4,
  statSn: 4,
  expCmdSn: 4,
  maxCmdSn: 4,
  status: 2,
  reserved2: 10,
});
/** §11.14. */
export const LOGOUT_REQUEST = layout({
  opcode: 1,
  reason: 1,
  reserved: 18,
  cid: 2,
  reserved2: 2,
  cmdSn: 4,
  expStatSn: 4,
  reserved3: 16,
});
/** §11.15. */
export const LOGOUT_RESPONSE = layout({
  opcode: 1,
  flags: 1,
  response: 1,
  reserved: 21,
  statSn: 4,
  expCmdSn: 4,
  maxCmdSn: 4,
  reserved2: 4,
  time2Wait: 2,
  time2Retain: 2,
  reserved3: 4,
});
/** §11.16. */
export const SNACK = layout({
  head: 20,
  transferTag: 4,
  reserved: 4,
  expStatSn: 4,
  reserved2: 8,
  begin: 4,
  runLength: 4,
});
/** §11.17. */
export const REJECT = layout({
  opcode: 1,
  flags: 1,
  reason: 1,
  reserved: 1,
  lengths: 4,
  reserved2: 8,
  taskTag: 4,
  reserved3: 4,
  statSn: 4,
  expCmdSn: 4,
  maxCmdSn: 4,
  dataSn: 4,
  reserved4: 8,
});

const IMMEDIATE = 0x40;
const OPCODE_MASK = 0x3f;
const FINAL = 0x80;
export const opcodeOf = (pdu: DataView, at: number): number => pdu.getUint8(at + BHS.opcode) & OPCODE_MASK;
export const isImmediate = (pdu: DataView, at: number): boolean => (pdu.getUint8(at + BHS.opcode) & IMMEDIATE) !== 0;
export const isFinal = (pdu: DataView, at: number): boolean => (pdu.getUint8(at + BHS.flags) & FINAL) !== 0;
/** Bytes of additional header segments. */
export const ahsLength = (pdu: DataView, at: number): number => 4 * pdu.getUint8(at + BHS.ahsWords);
/** Bytes of the data segment, without padding. */
export const dataLength = (pdu: DataView, at: number): number => pdu.getUint32(at + BHS.ahsWords) & 0x00ff_ffff;
/** Segments are padded to 4 bytes: §11.1. */
export const padded = (length: number): number => (length + 3) & ~3;

/** Serial numbers of 32 bits: RFC 1982, as §4.2.2.1 has it. True when `a` comes before `b`. */
export const isBefore = (a: number, b: number): boolean => ((a - b) | 0) < 0;
export const nextSn = (sn: number): number => (sn + 1) >>> 0;

/**
 * A LUN as SAM-5 §4.6 writes it into 8 bytes: peripheral or flat space addressing, one level. -1: not such a one, and
 * thus nobody's.
 */
export function readLun(pdu: DataView, at: number): number {
  const first = pdu.getUint16(at);
  if (pdu.getUint16(at + 2) !== 0 || pdu.getUint32(at + 4) !== 0) return -1;
  const method = first >> 14;
  if (method === 0) return first <= 0xff ? first : -1;
  return method === 1 ? first & 0x3fff : -1;
}
