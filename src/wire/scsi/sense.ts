/**
 * Sense data: why a command ended in CHECK CONDITION. SPC-4 §4.5: the fixed format is what every initiator reads; the
 * descriptor format (D_SENSE of the control mode page) can carry a logical block address beyond 32 bits.
 */
import { layout, writeU64 } from "#base/layout";

export const SENSE_BYTES_MAX = 64;

/** SPC-4 §4.5.3. */
const FIXED = layout({
  code: 1,
  segment: 1,
  key: 1,
  information: 4,
  extra: 1,
  specificInformation: 4,
  asc: 2,
  fru: 1,
  keySpecific: 3,
});
/** SPC-4 §4.5.2.1; descriptors follow. */
const DESCRIPTOR = layout({ code: 1, key: 1, asc: 2, flags: 3, extra: 1 });
/** SPC-4 §4.5.2.2 and §4.5.2.4. */
const INFORMATION = layout({ type: 1, length: 1, valid: 1, reserved: 1, information: 8 });
const KEY_SPECIFIC = layout({ type: 1, length: 1, reserved: 2, specific: 3, reserved2: 1 });

const FIXED_CURRENT = 0x70;
const DESCRIPTOR_CURRENT = 0x72;
const INFORMATION_VALID = 0x80;
const SPECIFIC_VALID = 0x80;

/** One sense, as a command ended or as REQUEST SENSE asks. Reused. */
export class Sense {
  key = 0;
  /** `code << 8 | qualifier`, of `Asc`. */
  asc = 0;
  /** The INFORMATION field (offset of a miscompare, address of a bad block), or -1. */
  information = -1;
  /** For ILLEGAL REQUEST: the first wrong byte of the CDB (or of the parameter list), or -1. */
  fieldByte = -1;
  fieldBit = -1;
  fieldInCdb = true;
  /** For NOT READY and NO SENSE while something goes on: how far it is, 0 to 65535, or -1. */
  progress = -1;

  set(key: number, asc: number): void {
    this.key = key;
    this.asc = asc;
    this.information = -1;
    this.fieldByte = -1;
    this.fieldBit = -1;
    this.fieldInCdb = true;
    this.progress = -1;
  }
}

/** The sense-key-specific bytes, SPC-4 §4.5.2.4; 0 when there are none. */
function keySpecific(sense: Sense): number {
  if (sense.progress >= 0) return (SPECIFIC_VALID << 16) | sense.progress;
  if (sense.fieldByte < 0) return 0;
  const inCdb = sense.fieldInCdb ? 0x40 : 0;
  const bit = sense.fieldBit < 0 ? 0 : 0x08 | sense.fieldBit;
  return ((SPECIFIC_VALID | inCdb | bit) << 16) | sense.fieldByte;
}

/** Encodes `sense` in either format at the start of `to`; returns its length in bytes. */
export function encodeSense(sense: Sense, descriptorFormat: boolean, to: DataView): number {
  for (let at = 0; at < SENSE_BYTES_MAX; at += 4) to.setUint32(at, 0);
  const specific = keySpecific(sense);
  if (!descriptorFormat) {
    const fits = sense.information >= 0 && sense.information <= 0xffff_ffff;
    to.setUint8(FIXED.code, FIXED_CURRENT | (fits ? INFORMATION_VALID : 0));
    to.setUint8(FIXED.key, sense.key);
    if (fits) to.setUint32(FIXED.information, sense.information);
    to.setUint8(FIXED.extra, FIXED.byteLength - FIXED.specificInformation);
    to.setUint16(FIXED.asc, sense.asc);
    to.setUint8(FIXED.keySpecific, specific >>> 16);
    to.setUint16(FIXED.keySpecific + 1, specific & 0xffff);
    return FIXED.byteLength;
  }
  to.setUint8(DESCRIPTOR.code, DESCRIPTOR_CURRENT);
  to.setUint8(DESCRIPTOR.key, sense.key);
  to.setUint16(DESCRIPTOR.asc, sense.asc);
  let at: number = DESCRIPTOR.byteLength;
  if (sense.information >= 0) {
    to.setUint8(at + INFORMATION.type, 0x00);
    to.setUint8(at + INFORMATION.length, INFORMATION.byteLength - INFORMATION.valid);
    to.setUint8(at + INFORMATION.valid, INFORMATION_VALID);
    writeU64(to, at + INFORMATION.information, sense.information);
    at += INFORMATION.byteLength;
  }
  if (specific !== 0) {
    to.setUint8(at + KEY_SPECIFIC.type, 0x02);
    to.setUint8(at + KEY_SPECIFIC.length, KEY_SPECIFIC.byteLength - KEY_SPECIFIC.reserved);
    to.setUint8(at + KEY_SPECIFIC.specific, specific >>> 16);
    to.setUint16(at + KEY_SPECIFIC.specific + 1, specific & 0xffff);
    at += KEY_SPECIFIC.byteLength;
  }
  to.setUint8(DESCRIPTOR.extra, at - DESCRIPTOR.byteLength);
  return at;
}
