/** The parameter list of EXTENDED COPY (LID1): SPC-4 §6.4. Descriptors of the kinds that a disk can serve. */
import { layout, readU64 } from "#base/layout";
import { Asc } from "./codes.ts";

export const COPY_TARGETS_MAX = 16;
export const COPY_SEGMENTS_MAX = 16;

const HEADER = layout({ list: 1, flags: 1, targetsLength: 2, reserved: 4, segmentsLength: 4, inlineLength: 4 });
/** SPC-4 §6.4.5.7: identification descriptor (type E4h), with what is particular to disks at its end. */
const TARGET = layout({
  type: 1,
  deviceType: 1,
  port: 2,
  codeSet: 1,
  designatorType: 1,
  reserved: 1,
  designatorLength: 1,
  designator: 20,
  flags: 1,
  blockLength: 3,
});
/** SPC-4 §6.4.6.3: from block device to block device (type 02h). */
const SEGMENT = layout({
  type: 1,
  flags: 1,
  length: 2,
  source: 2,
  destination: 2,
  reserved: 2,
  blocks: 2,
  sourceLba: 8,
  destinationLba: 8,
});
const IDENTIFICATION_TARGET = 0xe4;
const BLOCK_TO_BLOCK = 0x02;
const DESTINATION_COUNT = 0x02;
/** All target descriptors are 32 bytes long, but that of IPv6 and of IP copy services, E6h and up. */
const TARGET_BYTES = 32;
/** The longest list that can be right. */
export const COPY_LIST_BYTES_MAX =
  HEADER.byteLength + COPY_TARGETS_MAX * TARGET_BYTES + COPY_SEGMENTS_MAX * SEGMENT.byteLength;
export const COPY_DESCRIPTORS_BYTES_MAX = COPY_LIST_BYTES_MAX - HEADER.byteLength;

export interface CopyTarget {
  readonly designatorType: number;
  readonly designator: Uint8Array;
  readonly blockLength: number;
}
export interface CopySegment {
  readonly source: number;
  readonly destination: number;
  /** In blocks of the source, or of the destination when `destinationCount`. */
  readonly blocks: number;
  readonly destinationCount: boolean;
  readonly sourceLba: number;
  readonly destinationLba: number;
}
export interface CopyList {
  readonly list: number;
  /** Whether RECEIVE COPY RESULTS can ask for it afterwards. */
  readonly remembered: boolean;
  readonly targets: readonly CopyTarget[];
  readonly segments: readonly CopySegment[];
}

/** Parses a parameter list, or says what is wrong with it: an additional sense code of ILLEGAL REQUEST. */
export function parseCopyList(bytes: Uint8Array): CopyList | number {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  if (bytes.length < HEADER.byteLength) return Asc.PARAMETER_LIST_LENGTH_ERROR;
  const targetsLength = view.getUint16(HEADER.targetsLength);
  const segmentsLength = view.getUint32(HEADER.segmentsLength);
  if (targetsLength + segmentsLength > COPY_DESCRIPTORS_BYTES_MAX) return Asc.PARAMETER_LIST_LENGTH_ERROR;
  if (targetsLength > COPY_TARGETS_MAX * TARGET_BYTES) return Asc.TOO_MANY_TARGET_DESCRIPTORS;
  if (segmentsLength > COPY_SEGMENTS_MAX * SEGMENT.byteLength) return Asc.TOO_MANY_SEGMENT_DESCRIPTORS;
  if (HEADER.byteLength + targetsLength + segmentsLength > bytes.length) return Asc.PARAMETER_LIST_LENGTH_ERROR;
  if (targetsLength % TARGET_BYTES !== 0) return Asc.PARAMETER_LIST_LENGTH_ERROR;

  const targets: CopyTarget[] = [];
  let at: number = HEADER.byteLength;
  for (; at < HEADER.byteLength + targetsLength; at += TARGET_BYTES) {
    if (bytes[at + TARGET.type] !== IDENTIFICATION_TARGET) return Asc.UNSUPPORTED_TARGET_DESCRIPTOR;
    const DEVICE_TYPE_MASK = 0x1f;
    if ((bytes[at + TARGET.deviceType]! & DEVICE_TYPE_MASK) !== 0) return Asc.UNSUPPORTED_TARGET_DESCRIPTOR;
    const length = bytes[at + TARGET.designatorLength]!;
    if (length > 20) return Asc.INVALID_FIELD_IN_PARAMETERS;
    const start = at + TARGET.designator;
    targets.push({
      designatorType: bytes[at + TARGET.designatorType]! & 0x0f,
      designator: bytes.slice(start, start + length),
      blockLength: view.getUint32(at + TARGET.flags) & 0x00ff_ffff,
    });
  }
  const segments: CopySegment[] = [];
  const end = at + segmentsLength;
  for (; at < end; at += SEGMENT.byteLength) {
    if (bytes[at + SEGMENT.type] !== BLOCK_TO_BLOCK) return Asc.UNSUPPORTED_SEGMENT_DESCRIPTOR;
    if (at + SEGMENT.byteLength > end) return Asc.PARAMETER_LIST_LENGTH_ERROR;
    if (view.getUint16(at + SEGMENT.length) !== SEGMENT.byteLength - SEGMENT.source)
      return Asc.INVALID_FIELD_IN_PARAMETERS;
    segments.push({
      source: view.getUint16(at + SEGMENT.source),
      destination: view.getUint16(at + SEGMENT.destination),
      blocks: view.getUint16(at + SEGMENT.blocks),
      destinationCount: (bytes[at + SEGMENT.flags]! & DESTINATION_COUNT) !== 0,
      sourceLba: readU64(view, at + SEGMENT.sourceLba),
      destinationLba: readU64(view, at + SEGMENT.destinationLba),
    });
  }
  const LIST_USAGE_MASK = 0x18;
  const NO_LIST = 0x18;
  return {
    list: bytes[HEADER.list]!,
    remembered: (bytes[HEADER.flags]! & LIST_USAGE_MASK) !== NO_LIST,
    targets,
    segments,
  };
}
