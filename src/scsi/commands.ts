/**
 * The table of commands: everything that the device server can do, with what each needs. REPORT SUPPORTED OPERATION
 * CODES is printed from it, so that it cannot say anything else.
 */
import { layout } from "#base/layout";
import { CDB_MAINTENANCE } from "#wire/scsi/cdb";
import { Op, PrIn, PrOut, Sa } from "#wire/scsi/codes";
import { getLbaStatus, preFetch, read, synchronizeCache, verify } from "./block-commands.ts";
import { extendedCopy, receiveCopyResults } from "./copy-commands.ts";
import * as report from "./report-commands.ts";
import { persistentReserveIn, persistentReserveOut, release, reserve } from "./reserve-commands.ts";
import * as state from "./state-commands.ts";
import type { ScsiTask, Step } from "./task.ts";
import type { LogicalUnit } from "./unit.ts";
import * as writing from "./write-commands.ts";

export interface Command {
  readonly opcode: number;
  readonly action: number | undefined;
  /** Bits of each byte of the CDB that are looked at. Its length is that of the CDB. SPC-4 §6.35.3. */
  readonly usage: readonly number[];
  /**
   * What somebody else's reservation does: "free" commands are never refused, "status" ones only by the old RESERVE,
   * the others as SPC-4 table 66 and SBC-3 table 14 say for reading and for changing.
   */
  readonly access: "free" | "status" | "read" | "write";
  /** It changes the medium: refused when that is write-protected. */
  readonly changes: boolean;
  readonly needsMedium: boolean;
  /** It does not end with the unit attention that waits. SAM-5 §5.14. */
  readonly hearsNoAttention: boolean;
  readonly worksInSanitize: boolean;
  readonly worksInStandby: boolean;
  /** With these fields it takes nothing from who has reserved the unit: then only the old RESERVE refuses it. */
  readonly isHarmless?: (task: ScsiTask) => boolean;
  readonly start: Step;
}

type Traits = Partial<Omit<Command, "opcode" | "action" | "usage" | "start" | "access">>;
const FREE: Traits = { worksInSanitize: true, worksInStandby: true };
const READS: Traits = { needsMedium: true };
const CHANGES: Traits = { needsMedium: true, changes: true };
const ANYWHERE: Traits = { worksInStandby: true, worksInSanitize: true };

const commands: Command[] = [];
function add(
  opcode: number,
  action: number | undefined,
  usage: readonly number[],
  access: Command["access"],
  traits: Traits,
  start: Step,
): void {
  const byAction = action === undefined ? [opcode, ...usage] : [opcode, (usage[0]! & 0xe0) | action, ...usage.slice(1)];
  commands.push({
    opcode,
    action,
    usage: byAction,
    access,
    changes: false,
    needsMedium: false,
    hearsNoAttention: false,
    worksInSanitize: false,
    worksInStandby: false,
    ...traits,
    start,
  });
}
const F = 0xff;
const LBA8 = [F, F, F, F, F, F, F, F];
const LBA4 = [F, F, F, F];
/** The usage of the classic forms: a byte of flags, address, length. */
const in10 = (flags: number): number[] => [flags, ...LBA4, 0x1f, F, F, 0x07];
const in12 = (flags: number): number[] => [flags, ...LBA4, ...LBA4, 0x1f, 0x07];
const in16 = (flags: number): number[] => [flags, ...LBA8, ...LBA4, 0x1f, 0x07];

const UA_FREE: Traits = { ...FREE, hearsNoAttention: true };
add(Op.INQUIRY, undefined, [0x01, F, F, F, 0x07], "free", UA_FREE, report.inquiry);
add(Op.REPORT_LUNS, undefined, [0, F, 0, 0, 0, F, F, F, F, 0, 0x07], "free", UA_FREE, report.reportLuns);
add(Op.REQUEST_SENSE, undefined, [0x01, 0, 0, F, 0x07], "free", UA_FREE, report.requestSense);
add(Op.TEST_UNIT_READY, undefined, [0, 0, 0, 0, 0x07], "status", READS, report.testUnitReady);
add(
  Op.READ_CAPACITY_10,
  undefined,
  [0, ...LBA4, 0, 0, 0x01, 0x07],
  "status",
  { needsMedium: true },
  report.readCapacity10,
);
add(
  Op.SERVICE_ACTION_IN_16,
  Sa.READ_CAPACITY_16,
  [0, ...LBA8, ...LBA4, 0x01, 0x07],
  "status",
  { needsMedium: true },
  report.readCapacity16,
);
add(Op.SERVICE_ACTION_IN_16, Sa.GET_LBA_STATUS, [0, ...LBA8, ...LBA4, 0, 0x07], "read", READS, getLbaStatus);
add(Op.LOG_SENSE, undefined, [0x03, F, F, 0, F, F, F, F, 0x07], "free", FREE, report.logSense);
add(Op.SEND_DIAGNOSTIC, undefined, [0xe7, 0, F, F, 0x07], "write", READS, report.sendDiagnostic);
add(Op.READ_DEFECT_DATA_10, undefined, [0, 0x1f, 0, 0, 0, 0, F, F, 0x07], "free", READS, report.readDefectData);
add(Op.READ_DEFECT_DATA_12, undefined, [0x1f, ...LBA4, ...LBA4, 0, 0x07], "free", READS, report.readDefectData);

add(Op.MODE_SENSE_6, undefined, [0x08, F, F, F, 0x07], "write", ANYWHERE, state.modeSense);
add(Op.MODE_SENSE_10, undefined, [0x18, F, F, 0, 0, 0, F, F, 0x07], "write", ANYWHERE, state.modeSense);
add(Op.MODE_SELECT_6, undefined, [0x11, 0, 0, F, 0x07], "write", { worksInStandby: true }, state.modeSelect);
add(
  Op.MODE_SELECT_10,
  undefined,
  [0x11, 0, 0, 0, 0, 0, F, F, 0x07],
  "write",
  { worksInStandby: true },
  state.modeSelect,
);
const STARTS: Traits = { isHarmless: state.isPlainStart };
const ALLOWS: Traits = { isHarmless: state.isAllow };
add(Op.START_STOP_UNIT, undefined, [0x01, 0, 0x0f, 0xf7, 0x07], "write", STARTS, state.startStopUnit);
add(Op.PREVENT_ALLOW, undefined, [0, 0, 0, 0x03, 0x07], "write", ALLOWS, state.preventAllow);

add(Op.READ_6, undefined, [0x1f, F, F, F, 0x07], "read", READS, read);
add(Op.READ_10, undefined, in10(0xf8), "read", READS, read);
add(Op.READ_12, undefined, in12(0xf8), "read", READS, read);
add(Op.READ_16, undefined, in16(0xf8), "read", READS, read);
add(Op.VERIFY_10, undefined, in10(0xf6), "read", READS, verify);
add(Op.VERIFY_12, undefined, in12(0xf6), "read", READS, verify);
add(Op.VERIFY_16, undefined, in16(0xf6), "read", READS, verify);
add(Op.PRE_FETCH_10, undefined, in10(0x02), "read", READS, preFetch);
add(Op.PRE_FETCH_16, undefined, in16(0x02), "read", READS, preFetch);
add(Op.SYNCHRONIZE_CACHE_10, undefined, in10(0x02), "write", READS, synchronizeCache);
add(Op.SYNCHRONIZE_CACHE_16, undefined, in16(0x02), "write", READS, synchronizeCache);

add(Op.WRITE_6, undefined, [0x1f, F, F, F, 0x07], "write", CHANGES, writing.write);
add(Op.WRITE_10, undefined, in10(0xf8), "write", CHANGES, writing.write);
add(Op.WRITE_12, undefined, in12(0xf8), "write", CHANGES, writing.write);
add(Op.WRITE_16, undefined, in16(0xf8), "write", CHANGES, writing.write);
add(Op.WRITE_AND_VERIFY_10, undefined, in10(0xf6), "write", CHANGES, writing.writeAndVerify);
add(Op.WRITE_AND_VERIFY_12, undefined, in12(0xf6), "write", CHANGES, writing.writeAndVerify);
add(Op.WRITE_AND_VERIFY_16, undefined, in16(0xf6), "write", CHANGES, writing.writeAndVerify);
add(Op.WRITE_ATOMIC_16, undefined, [0xf8, ...LBA8, F, F, F, F, 0x1f, 0x07], "write", CHANGES, writing.writeAtomic);
add(
  Op.COMPARE_AND_WRITE,
  undefined,
  [0xf8, ...LBA8, 0, 0, 0, F, 0x1f, 0x07],
  "write",
  CHANGES,
  writing.compareAndWrite,
);
add(Op.ORWRITE_16, undefined, in16(0xf8), "write", CHANGES, writing.orWrite);
add(Op.WRITE_SAME_10, undefined, in10(0xf8), "write", CHANGES, writing.writeSame);
add(Op.WRITE_SAME_16, undefined, in16(0xf9), "write", CHANGES, writing.writeSame);
add(Op.UNMAP, undefined, [0x01, 0, 0, 0, 0, 0x1f, F, F, 0x07], "write", CHANGES, writing.unmap);
const SANITIZE_USAGE = [0xa0, 0, 0, 0, 0, 0, F, F, 0x07];
add(Op.SANITIZE, Sa.SANITIZE_OVERWRITE, SANITIZE_USAGE, "write", CHANGES, writing.sanitizeOverwrite);
add(Op.SANITIZE, Sa.SANITIZE_BLOCK_ERASE, SANITIZE_USAGE, "write", CHANGES, writing.sanitizeErase);
add(Op.SANITIZE, Sa.SANITIZE_EXIT_FAILURE_MODE, SANITIZE_USAGE, "write", READS, writing.sanitizeExit);

add(Op.RESERVE_6, undefined, [0x1f, 0, 0, 0, 0x07], "free", FREE, reserve);
add(Op.RESERVE_10, undefined, [0x1f, 0, 0, 0, 0, 0, 0, 0, 0x07], "free", FREE, reserve);
add(Op.RELEASE_6, undefined, [0x1f, 0, 0, 0, 0x07], "free", FREE, release);
add(Op.RELEASE_10, undefined, [0x1f, 0, 0, 0, 0, 0, 0, 0, 0x07], "free", FREE, release);
for (const action of Object.values(PrIn))
  add(Op.PERSISTENT_RESERVE_IN, action, [0, 0, 0, 0, 0, 0, F, F, 0x07], "status", ANYWHERE, persistentReserveIn);
for (const action of Object.values(PrOut))
  add(Op.PERSISTENT_RESERVE_OUT, action, [0, F, 0, 0, F, F, F, F, 0x07], "status", ANYWHERE, persistentReserveOut);

const COPY_USAGE = [0, F, 0, 0, 0, 0, 0, 0, 0, F, F, F, F, 0, 0x07];
add(Op.EXTENDED_COPY, 0, [0, 0, ...COPY_USAGE.slice(2)], "write", READS, extendedCopy);
for (const action of [
  Sa.COPY_STATUS,
  Sa.COPY_RECEIVE_DATA,
  Sa.COPY_OPERATING_PARAMETERS,
  Sa.COPY_FAILED_SEGMENT_DETAILS,
])
  add(Op.RECEIVE_COPY_RESULTS, action, COPY_USAGE, "write", ANYWHERE, receiveCopyResults);

const MAINTENANCE_USAGE = [0xe0, 0, 0, 0, 0, F, F, F, F, 0, 0x07];
const OPCODES_USAGE = [0, 0x87, F, F, F, F, F, F, F, 0, 0x07];
add(Op.MAINTENANCE_IN, Sa.REPORT_TARGET_PORT_GROUPS, MAINTENANCE_USAGE, "free", FREE, state.reportTargetPortGroups);
add(Op.MAINTENANCE_IN, Sa.REPORT_SUPPORTED_OPERATION_CODES, OPCODES_USAGE, "free", FREE, reportOperationCodes);
add(
  Op.MAINTENANCE_IN,
  Sa.REPORT_SUPPORTED_TMF,
  [0, 0x80, 0, 0, 0, F, F, F, F, 0, 0x07],
  "free",
  FREE,
  reportManagement,
);
add(Op.MAINTENANCE_OUT, Sa.SET_TARGET_PORT_GROUPS, MAINTENANCE_USAGE, "write", ANYWHERE, state.setTargetPortGroups);

const ACTION_MASK = 0x1f;
const plain: (Command | undefined)[] = [];
const byAction: (Map<number, Command> | undefined)[] = [];
for (const command of commands) {
  if (command.action === undefined) plain[command.opcode] = command;
  else (byAction[command.opcode] ??= new Map()).set(command.action, command);
}
// Holes would make the look-up slow.
for (let opcode = 0; opcode < 256; opcode++) {
  plain[opcode] ??= undefined;
  byAction[opcode] ??= undefined;
}

/** The command of a task's CDB; "unknown-action" when only its service action is not known. */
export function findCommand(task: ScsiTask): Command | "unknown-action" | undefined {
  const opcode = task.opcode;
  return (
    plain[opcode] ??
    (byAction[opcode] === undefined
      ? undefined
      : (byAction[opcode].get(task.byte(1) & ACTION_MASK) ?? "unknown-action"))
  );
}

/* --------------------------------------------- REPORT SUPPORTED OPERATION CODES */

const LENGTH_BYTES = 4;
/** SPC-4 §6.35.2. */
const DESCRIPTOR = layout({ opcode: 1, reserved: 1, action: 2, reserved2: 1, flags: 1, length: 2 });
/** SPC-4 §6.35.3. */
const ONE = layout({ reserved: 1, support: 1, length: 2 });
/** No timeout is recommended. */
const TIMEOUTS = layout({ length: 2, reserved: 1, specific: 1, nominal: 4, recommended: 4 });
const RCTD = 0x80;
const OPTIONS_MASK = 0x07;
const SUPPORTED = 0x03;
const NOT_SUPPORTED = 0x01;

function timeouts(): Uint8Array {
  const bytes = new Uint8Array(TIMEOUTS.byteLength);
  new DataView(bytes.buffer).setUint16(TIMEOUTS.length, TIMEOUTS.byteLength - TIMEOUTS.reserved);
  return bytes;
}

function reportOperationCodes(task: ScsiTask): void {
  const options = task.byte(CDB_MAINTENANCE.options);
  const hasTimeouts = (options & RCTD) !== 0;
  const opcode = task.byte(CDB_MAINTENANCE.code);
  const action = task.cdb.getUint16(CDB_MAINTENANCE.codeAction);
  const allocation = task.cdb.getUint32(CDB_MAINTENANCE.length);
  const withActions = byAction[opcode];
  const offered = isOffered(plain[opcode], task.unit!) ? plain[opcode] : undefined;
  switch (options & OPTIONS_MASK) {
    case 0:
      return task.server.reply(task, listAll(hasTimeouts, task.unit!), allocation);
    case 1:
      if (withActions !== undefined) return task.server.invalidField(task, CDB_MAINTENANCE.codeAction);
      return task.server.reply(task, describe(offered, hasTimeouts), allocation);
    case 2:
      if (plain[opcode] !== undefined) return task.server.invalidField(task, CDB_MAINTENANCE.codeAction);
      return task.server.reply(task, describe(withActions?.get(action), hasTimeouts), allocation);
    case 3:
      // Either kind: a service action of a command without any must be 0. SPC-4 table 277.
      return task.server.reply(
        task,
        describe(withActions?.get(action) ?? (action === 0 ? offered : undefined), hasTimeouts),
        allocation,
      );
    default:
      return task.server.invalidField(task, CDB_MAINTENANCE.options);
  }
}

/** Commands that need something which not every unit has. */
function isOffered(command: Command | undefined, unit: LogicalUnit): boolean {
  if (command?.opcode === Op.UNMAP) return unit.thin;
  return command?.opcode !== Op.WRITE_ATOMIC_16 || unit.atomicMax > 0;
}

function listAll(hasTimeouts: boolean, unit: LogicalUnit): Uint8Array {
  const HAS_TIMEOUTS = 0x02;
  const HAS_ACTION = 0x01;
  const listed = commands.filter((command) => isOffered(command, unit));
  const size = DESCRIPTOR.byteLength + (hasTimeouts ? TIMEOUTS.byteLength : 0);
  const bytes = new Uint8Array(LENGTH_BYTES + listed.length * size);
  const view = new DataView(bytes.buffer);
  view.setUint32(0, listed.length * size);
  listed.forEach((command, index) => {
    const at = LENGTH_BYTES + index * size;
    bytes[at + DESCRIPTOR.opcode] = command.opcode;
    view.setUint16(at + DESCRIPTOR.action, command.action ?? 0);
    bytes[at + DESCRIPTOR.flags] = (command.action === undefined ? 0 : HAS_ACTION) | (hasTimeouts ? HAS_TIMEOUTS : 0);
    view.setUint16(at + DESCRIPTOR.length, command.usage.length);
    if (hasTimeouts) bytes.set(timeouts(), at + DESCRIPTOR.byteLength);
  });
  return bytes;
}

function describe(command: Command | undefined, hasTimeouts: boolean): Uint8Array {
  if (command === undefined) {
    const bytes = new Uint8Array(ONE.byteLength);
    bytes[ONE.support] = NOT_SUPPORTED;
    return bytes;
  }
  const HAS_TIMEOUTS = 0x80;
  const tail = hasTimeouts ? timeouts() : new Uint8Array(0);
  const bytes = new Uint8Array(ONE.byteLength + command.usage.length + tail.length);
  bytes[ONE.support] = SUPPORTED | (hasTimeouts ? HAS_TIMEOUTS : 0);
  new DataView(bytes.buffer).setUint16(ONE.length, command.usage.length);
  bytes.set(command.usage, ONE.byteLength);
  bytes.set(tail, ONE.byteLength + command.usage.length);
  return bytes;
}

/** SPC-4 §6.36: abort task, abort task set, clear task set, unit reset, target reset, query task and its kin. */
function reportManagement(task: ScsiTask): void {
  const REPD = 0x80;
  const EXTENDED_BYTES = 16;
  const FUNCTIONS = [0xda, 0x00];
  const isExtended = (task.byte(CDB_MAINTENANCE.options) & REPD) !== 0;
  const bytes = new Uint8Array(isExtended ? EXTENDED_BYTES : 4);
  bytes.set(FUNCTIONS);
  if (isExtended) bytes[3] = EXTENDED_BYTES - 4;
  task.server.reply(task, bytes, task.cdb.getUint32(CDB_MAINTENANCE.length));
}
