/**
 * Command descriptor blocks: where each kind has its address and length. SBC-3 §5. A transport hands over 16 bytes, of
 * which a shorter command uses the first.
 */
import { layout, readU64 } from "#base/layout";

export const CDB_BYTES = 16;

export const CDB_6 = layout({ opcode: 1, lbaHigh: 1, lba: 2, length: 1, control: 1 });
export const CDB_10 = layout({ opcode: 1, flags: 1, lba: 4, group: 1, length: 2, control: 1 });
export const CDB_12 = layout({ opcode: 1, flags: 1, lba: 4, length: 4, group: 1, control: 1 });
export const CDB_16 = layout({ opcode: 1, flags: 1, lba: 8, length: 4, group: 1, control: 1 });
/** COMPARE AND WRITE: the count of blocks is one byte. SBC-3 §5.2. */
export const CDB_COMPARE = layout({ opcode: 1, flags: 1, lba: 8, reserved: 3, length: 1, group: 1, control: 1 });
/** WRITE ATOMIC (16): SBC-4 §5.46. */
export const CDB_ATOMIC = layout({ opcode: 1, flags: 1, lba: 8, boundary: 2, length: 2, group: 1, control: 1 });

/** SPC-4 §6: commands with a parameter list or an allocation length. */
export const CDB_INQUIRY = layout({ opcode: 1, flags: 1, page: 1, length: 2, control: 1 });
export const CDB_MODE_6 = layout({ opcode: 1, flags: 1, page: 1, subpage: 1, length: 1, control: 1 });
export const CDB_MODE_10 = layout({ opcode: 1, flags: 1, page: 1, subpage: 1, reserved: 3, length: 2, control: 1 });
export const CDB_LOG_SENSE = layout({
  opcode: 1,
  flags: 1,
  page: 1,
  subpage: 1,
  reserved: 1,
  pointer: 2,
  length: 2,
  control: 1,
});
export const CDB_SENSE = layout({ opcode: 1, flags: 1, reserved: 2, length: 1, control: 1 });
export const CDB_START_STOP = layout({ opcode: 1, flags: 1, reserved: 1, modifier: 1, action: 1, control: 1 });
export const CDB_PREVENT = layout({ opcode: 1, reserved: 3, prevent: 1, control: 1 });
export const CDB_UNMAP = layout({ opcode: 1, flags: 1, reserved: 4, group: 1, length: 2, control: 1 });
export const CDB_SANITIZE = layout({ opcode: 1, flags: 1, reserved: 5, length: 2, control: 1 });
export const CDB_PR_IN = layout({ opcode: 1, action: 1, reserved: 5, length: 2, control: 1 });
export const CDB_PR_OUT = layout({ opcode: 1, action: 1, type: 1, reserved: 2, length: 4, control: 1 });
export const CDB_REPORT_LUNS = layout({
  opcode: 1,
  reserved: 1,
  select: 1,
  reserved2: 3,
  length: 4,
  reserved3: 1,
  control: 1,
});
export const CDB_MAINTENANCE = layout({
  opcode: 1,
  action: 1,
  options: 1,
  code: 1,
  codeAction: 2,
  length: 4,
  reserved: 1,
  control: 1,
});
export const CDB_COPY = layout({ opcode: 1, action: 1, list: 1, reserved: 7, length: 4, reserved2: 1, control: 1 });
export const CDB_DIAGNOSTIC = layout({ opcode: 1, flags: 1, reserved: 1, length: 2, control: 1 });
export const CDB_DEFECTS_10 = layout({ opcode: 1, reserved: 1, format: 1, reserved2: 4, length: 2, control: 1 });
export const CDB_DEFECTS_12 = layout({ opcode: 1, format: 1, index: 4, length: 4, reserved: 1, control: 1 });

/** The logical block address of a command that has one. */
export function cdbLba(cdb: DataView): number {
  switch (cdb.getUint8(CDB_6.opcode) >> 5) {
    case 0:
      return ((cdb.getUint8(CDB_6.lbaHigh) & 0x1f) << 16) | cdb.getUint16(CDB_6.lba);
    case 4:
      return readU64(cdb, CDB_16.lba);
    default:
      return cdb.getUint32(CDB_10.lba);
  }
}

/** The count of blocks that a command names, as it stands there; READ (6) and WRITE (6) mean 256 when they say 0. */
export function cdbBlocks(cdb: DataView): number {
  switch (cdb.getUint8(CDB_6.opcode) >> 5) {
    case 0:
      return cdb.getUint8(CDB_6.length) || 256;
    case 4:
      return cdb.getUint32(CDB_16.length);
    case 5:
      return cdb.getUint32(CDB_12.length);
    default:
      return cdb.getUint16(CDB_10.length);
  }
}

/** Bits of the byte after the operation code. SBC-3 §5.8, §5.40. */
export const RwFlag = { PROTECT_MASK: 0xe0, DPO: 0x10, FUA: 0x08, BYTCHK_MASK: 0x06, RARC: 0x04 } as const;
/** SBC-3 §5.44. */
export const SameFlag = { PROTECT_MASK: 0xe0, ANCHOR: 0x10, UNMAP: 0x08, NDOB: 0x01 } as const;
