/** Which operation of a device a command stands for, for those who count: SBC-3 §5. */
import type { OpKind } from "#device/device";
import { Op, Sa } from "#wire/scsi/codes";
import type { ScsiTask } from "./task.ts";

const KINDS: readonly (OpKind | undefined)[] = Array.from({ length: 256 }, (_, opcode) => kindOfOpcode(opcode));

function kindOfOpcode(opcode: number): OpKind | undefined {
  switch (opcode) {
    case Op.READ_6:
    case Op.READ_10:
    case Op.READ_12:
    case Op.READ_16:
    case Op.VERIFY_10:
    case Op.VERIFY_12:
    case Op.VERIFY_16:
      return "read";
    case Op.WRITE_6:
    case Op.WRITE_10:
    case Op.WRITE_12:
    case Op.WRITE_16:
    case Op.WRITE_AND_VERIFY_10:
    case Op.WRITE_AND_VERIFY_12:
    case Op.WRITE_AND_VERIFY_16:
    case Op.WRITE_ATOMIC_16:
    case Op.ORWRITE_16:
      return "write";
    case Op.WRITE_SAME_10:
    case Op.WRITE_SAME_16:
      return "zero";
    case Op.UNMAP:
      return "trim";
    case Op.COMPARE_AND_WRITE:
      return "compare-write";
    case Op.SYNCHRONIZE_CACHE_10:
    case Op.SYNCHRONIZE_CACHE_16:
      return "flush";
    case Op.PRE_FETCH_10:
    case Op.PRE_FETCH_16:
      return "cache";
    default:
      return undefined;
  }
}

/** Undefined for commands that do not touch the medium. WRITE SAME is "zero", whatever it writes. */
export function kindOf(task: ScsiTask): OpKind | undefined {
  const { opcode } = task;
  if (opcode === Op.SERVICE_ACTION_IN_16) return (task.byte(1) & 0x1f) === Sa.GET_LBA_STATUS ? "status" : undefined;
  return KINDS[opcode];
}
