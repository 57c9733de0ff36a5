/**
 * The 64-byte header of version 2: the fields of `znreq_t` at the same places without the padding, some of them with
 * a use at last. docs/protocols/scp.md, "Frames". `bodyLength` bytes follow it, whatever the operation is, so that a
 * stream can be cut without understanding it.
 */
import { layout } from "#base/layout";
import { Version } from "./codes.ts";

/** Where frames are read and written: the lane's `Memory`, or a buffer of the configuration protocol (`ByteBox`). */
export interface Checked {
  readonly view: DataView;
  crc32c(at: number, length: number): number;
}

export const FRAME = layout({
  type: 4,
  version: 4,
  session: 4,
  unit: 4,
  bodyCrc: 4,
  headerCrc: 4,
  bodyLength: 4,
  op: 4,
  flags: 4,
  tag: 4,
  status: 4,
  lengthHi: 4,
  lengthLo: 4,
  lbaHi: 4,
  lbaLo: 4,
  marker: 4,
});

/** "ASH2": where `znreq_t` has "just a marker to help us find things". */
export const FRAME_MARKER = 0x41534832;

export type FrameFault = "bad-marker" | "bad-version" | "bad-header-crc";

/** A frame's place: made once per connection or slot, and used again. */
export class Frame {
  type = 1;
  /** Identifies the session, so that a stray answer of another one is recognised. */
  session = 0;
  unit = 0;
  /** CRC32C of the body when DATA_CRC was agreed, else 0. */
  bodyCrc = 0;
  bodyLength = 0;
  op = 0;
  flags = 0;
  /** Echoed in the response; the requester's own. */
  tag = 0;
  /** Requests: 0. Responses: a STATUS_CODE. */
  status = 0;
  /** Bytes that the operation is about. Responses of failed operations: `op.result`, bytes. */
  length = 0;
  /** Blocks of 512 bytes. */
  lba = 0;

  clear(): void {
    this.type = 1;
    this.session = this.unit = this.bodyCrc = this.bodyLength = this.op = this.flags = 0;
    this.tag = this.status = this.length = this.lba = 0;
  }
}

/** Decodes the header at `at` and checks it; the caller has all of its bytes. */
export function decodeFrame(slot: Frame, memory: Checked, at: number): FrameFault | undefined {
  const from = memory.view;
  if (from.getUint32(at + FRAME.marker) !== FRAME_MARKER) return "bad-marker";
  if (from.getUint32(at + FRAME.version) !== Version.TWO) return "bad-version";
  const crc = from.getUint32(at + FRAME.headerCrc);
  from.setUint32(at + FRAME.headerCrc, 0);
  const right = memory.crc32c(at, FRAME.byteLength);
  from.setUint32(at + FRAME.headerCrc, crc);
  if (crc !== right) return "bad-header-crc";
  slot.type = from.getUint32(at + FRAME.type);
  slot.session = from.getUint32(at + FRAME.session);
  slot.unit = from.getUint32(at + FRAME.unit);
  slot.bodyCrc = from.getUint32(at + FRAME.bodyCrc);
  slot.bodyLength = from.getUint32(at + FRAME.bodyLength);
  slot.op = from.getUint32(at + FRAME.op);
  slot.flags = from.getUint32(at + FRAME.flags);
  slot.tag = from.getUint32(at + FRAME.tag);
  slot.status = from.getUint32(at + FRAME.status);
  slot.length = from.getUint32(at + FRAME.lengthHi) * 0x1_0000_0000 + from.getUint32(at + FRAME.lengthLo);
  slot.lba = from.getUint32(at + FRAME.lbaHi) * 0x1_0000_0000 + from.getUint32(at + FRAME.lbaLo);
  return undefined;
}

/** Encodes `slot` with its checksum, and returns where the next thing goes. `bodyCrc` is the caller's. */
export function encodeFrame(slot: Frame, memory: Checked, at: number): number {
  const to = memory.view;
  to.setUint32(at + FRAME.type, slot.type);
  to.setUint32(at + FRAME.version, Version.TWO);
  to.setUint32(at + FRAME.session, slot.session);
  to.setUint32(at + FRAME.unit, slot.unit);
  to.setUint32(at + FRAME.bodyCrc, slot.bodyCrc);
  to.setUint32(at + FRAME.headerCrc, 0);
  to.setUint32(at + FRAME.bodyLength, slot.bodyLength);
  to.setUint32(at + FRAME.op, slot.op);
  to.setUint32(at + FRAME.flags, slot.flags);
  to.setUint32(at + FRAME.tag, slot.tag);
  to.setUint32(at + FRAME.status, slot.status);
  to.setUint32(at + FRAME.lengthHi, Math.floor(slot.length / 0x1_0000_0000));
  to.setUint32(at + FRAME.lengthLo, slot.length >>> 0);
  to.setUint32(at + FRAME.lbaHi, Math.floor(slot.lba / 0x1_0000_0000));
  to.setUint32(at + FRAME.lbaLo, slot.lba >>> 0);
  to.setUint32(at + FRAME.marker, FRAME_MARKER);
  to.setUint32(at + FRAME.headerCrc, memory.crc32c(at, FRAME.byteLength));
  return at + FRAME.byteLength;
}
