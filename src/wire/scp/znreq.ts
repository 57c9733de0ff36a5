/** The 512-byte message of WO 02/15018 appendix C: all of version 1, and the hand-shakes of version 2. */
import { layout } from "#base/layout";

/** `znreq_t` and `znres_t`: sixteen 32-bit fields, big-endian, and padding. */
export const ZNREQ = layout({
  type: 4,
  version: 4,
  hostId: 4,
  zlun: 4,
  authentic: 4,
  sequence: 4,
  nsequence: 4,
  op: 4,
  flags: 4,
  requestId: 4,
  status: 4,
  reqszHi: 4,
  reqszLo: 4,
  lbaHi: 4,
  lbaLo: 4,
  marker: 4,
  pad: 448,
});

/** A message's place: made once per connection, and used again. */
export class ZnReq {
  type = 1;
  version = 1;
  hostId = 0;
  zlun = 0;
  authentic = 0;
  sequence = 0;
  nsequence = 0;
  op = 0;
  flags = 0;
  requestId = 0;
  status = 0;
  reqszHi = 0;
  reqszLo = 0;
  lbaHi = 0;
  lbaLo = 0;
  marker = 0;

  /** Bytes; at least 2^53 when it does not fit. */
  get length(): number {
    return this.reqszHi * 0x1_0000_0000 + this.reqszLo;
  }
  /** Blocks of 512 bytes; at least 2^53 when it does not fit. */
  get lba(): number {
    return this.lbaHi * 0x1_0000_0000 + this.lbaLo;
  }
  set lba(value: number) {
    this.lbaHi = Math.floor(value / 0x1_0000_0000);
    this.lbaLo = value >>> 0;
  }

  clear(): void {
    this.type = 1;
    this.version = 1;
    this.hostId = this.zlun = this.authentic = this.sequence = this.nsequence = this.op = this.flags = 0;
    this.requestId = this.status = this.reqszHi = this.reqszLo = this.lbaHi = this.lbaLo = this.marker = 0;
  }
}

/** Decodes the 16 fields at `at`. Any bytes are a message; whether it makes sense is for the machine to say. */
export function decodeZnReq(slot: ZnReq, from: DataView, at: number): void {
  slot.type = from.getUint32(at + ZNREQ.type);
  slot.version = from.getUint32(at + ZNREQ.version);
  slot.hostId = from.getUint32(at + ZNREQ.hostId);
  slot.zlun = from.getUint32(at + ZNREQ.zlun);
  slot.authentic = from.getUint32(at + ZNREQ.authentic);
  slot.sequence = from.getUint32(at + ZNREQ.sequence);
  slot.nsequence = from.getUint32(at + ZNREQ.nsequence);
  slot.op = from.getUint32(at + ZNREQ.op);
  slot.flags = from.getUint32(at + ZNREQ.flags);
  slot.requestId = from.getUint32(at + ZNREQ.requestId);
  slot.status = from.getUint32(at + ZNREQ.status);
  slot.reqszHi = from.getUint32(at + ZNREQ.reqszHi);
  slot.reqszLo = from.getUint32(at + ZNREQ.reqszLo);
  slot.lbaHi = from.getUint32(at + ZNREQ.lbaHi);
  slot.lbaLo = from.getUint32(at + ZNREQ.lbaLo);
  slot.marker = from.getUint32(at + ZNREQ.marker);
}

/** Encodes `slot` at `at` with zero padding, and returns where the next message goes. */
export function encodeZnReq(slot: ZnReq, to: DataView, at: number): number {
  to.setUint32(at + ZNREQ.type, slot.type);
  to.setUint32(at + ZNREQ.version, slot.version);
  to.setUint32(at + ZNREQ.hostId, slot.hostId);
  to.setUint32(at + ZNREQ.zlun, slot.zlun);
  to.setUint32(at + ZNREQ.authentic, slot.authentic);
  to.setUint32(at + ZNREQ.sequence, slot.sequence);
  to.setUint32(at + ZNREQ.nsequence, slot.nsequence);
  to.setUint32(at + ZNREQ.op, slot.op);
  to.setUint32(at + ZNREQ.flags, slot.flags);
  to.setUint32(at + ZNREQ.requestId, slot.requestId);
  to.setUint32(at + ZNREQ.status, slot.status);
  to.setUint32(at + ZNREQ.reqszHi, slot.reqszHi);
  to.setUint32(at + ZNREQ.reqszLo, slot.reqszLo);
  to.setUint32(at + ZNREQ.lbaHi, slot.lbaHi);
  to.setUint32(at + ZNREQ.lbaLo, slot.lbaLo);
  to.setUint32(at + ZNREQ.marker, slot.marker);
  new Uint8Array(to.buffer, to.byteOffset + at + ZNREQ.pad, ZNREQ.byteLength - ZNREQ.pad).fill(0);
  return at + ZNREQ.byteLength;
}
