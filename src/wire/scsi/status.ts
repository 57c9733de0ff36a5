/** What a block operation's status means in SCSI: SAM-5 status, and sense key and code where it is CHECK CONDITION; and back. */
import type { Status } from "#base/status";
import { Asc, SamStatus, SenseKey } from "./codes.ts";

export interface ScsiStatus {
  readonly status: number;
  readonly key: number;
  readonly asc: number;
}
const check = (key: number, asc: number): ScsiStatus => ({ status: SamStatus.CHECK_CONDITION, key, asc });
const plain = (status: number): ScsiStatus => ({ status, key: 0, asc: 0 });

export const SCSI_STATUS = {
  ok: plain(SamStatus.GOOD),
  medium: check(SenseKey.MEDIUM_ERROR, Asc.UNRECOVERED_READ_ERROR),
  failed: check(SenseKey.HARDWARE_ERROR, Asc.INTERNAL_TARGET_FAILURE),
  full: check(SenseKey.DATA_PROTECT, Asc.SPACE_ALLOCATION_FAILED),
  range: check(SenseKey.ILLEGAL_REQUEST, Asc.LBA_OUT_OF_RANGE),
  invalid: check(SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_CDB),
  unsupported: check(SenseKey.ILLEGAL_REQUEST, Asc.INVALID_OPCODE),
  denied: check(SenseKey.DATA_PROTECT, Asc.WRITE_PROTECTED),
  conflict: plain(SamStatus.RESERVATION_CONFLICT),
  // A newer owner has the volume: this path is dead for good, others may serve.
  fenced: check(SenseKey.NOT_READY, Asc.UNAVAILABLE),
  miscompare: check(SenseKey.MISCOMPARE, Asc.MISCOMPARE_DURING_VERIFY),
  busy: plain(SamStatus.BUSY),
  away: check(SenseKey.NOT_READY, Asc.UNAVAILABLE),
  gone: check(SenseKey.ILLEGAL_REQUEST, Asc.LOGICAL_UNIT_NOT_SUPPORTED),
  aborted: check(SenseKey.ABORTED_COMMAND, Asc.NONE),
} as const satisfies Record<Status, ScsiStatus>;

const BY_KEY: Readonly<Record<number, Status>> = {
  [SenseKey.MEDIUM_ERROR]: "medium",
  [SenseKey.HARDWARE_ERROR]: "failed",
  [SenseKey.DATA_PROTECT]: "denied",
  [SenseKey.MISCOMPARE]: "miscompare",
  [SenseKey.NOT_READY]: "away",
  [SenseKey.ABORTED_COMMAND]: "aborted",
  [SenseKey.UNIT_ATTENTION]: "aborted",
};
const BY_ASC: Readonly<Record<number, Status>> = {
  [Asc.SPACE_ALLOCATION_FAILED]: "full",
  [Asc.LBA_OUT_OF_RANGE]: "range",
  [Asc.LOGICAL_UNIT_NOT_SUPPORTED]: "gone",
};

/** How a command ended, in the words of all protocols: for metrics. */
export function statusOf(status: number, sense: { readonly key: number; readonly asc: number }): Status {
  if (status === SamStatus.GOOD || status === SamStatus.CONDITION_MET) return "ok";
  if (status === SamStatus.RESERVATION_CONFLICT) return "conflict";
  if (status !== SamStatus.CHECK_CONDITION) return "busy";
  return BY_ASC[sense.asc] ?? BY_KEY[sense.key] ?? "invalid";
}
