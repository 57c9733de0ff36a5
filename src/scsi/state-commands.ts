/** Commands that change the unit's state and not its data: mode parameters, medium, access states of the paths. SPC-4, SBC-3. */
import { layout, writeU64 } from "#base/layout";
import { CDB_MAINTENANCE, CDB_MODE_6, CDB_MODE_10, CDB_PREVENT, CDB_START_STOP } from "#wire/scsi/cdb";
import { AccessState, Asc, Op, SenseKey } from "#wire/scsi/codes";
import { applyModePages, encodeModePages, ModeControl, ModeSubpage } from "#wire/scsi/mode";
import type { PortGroup } from "./nexus.ts";
import type { ScsiTask, Step } from "./task.ts";
import type { LogicalUnit } from "./unit.ts";

const FLAGS_BYTE = 1;

/* ------------------------------------------------------ MODE SENSE, MODE SELECT */

const HEADER_6 = layout({ length: 1, medium: 1, specific: 1, descriptors: 1 });
const HEADER_10 = layout({ length: 2, medium: 1, specific: 1, longLba: 1, reserved: 1, descriptors: 2 });
/** SBC-3 §6.5.2. */
const DESCRIPTOR = layout({ blocks: 4, blockLength: 4 });
const LONG_DESCRIPTOR = layout({ blocks: 8, reserved: 4, blockLength: 4 });
const DBD = 0x08;
const LLBAA = 0x10;
const WRITE_PROTECTED = 0x80;
const DPO_AND_FUA = 0x10;

export const modeSense: Step = (task) => {
  const isShort = task.opcode === Op.MODE_SENSE_6;
  const flags = task.byte(FLAGS_BYTE);
  const control = task.byte(CDB_MODE_6.page) >> 6;
  const code = task.byte(CDB_MODE_6.page) & 0x3f;
  const subpage = task.byte(CDB_MODE_6.subpage);
  if (control === ModeControl.SAVED)
    return task.server.fail(task, SenseKey.ILLEGAL_REQUEST, Asc.SAVING_NOT_SUPPORTED, CDB_MODE_6.page);
  const unit = task.unit!;
  const pages = encodeModePages(code, subpage, control, unit.mode, unit.thresholdDefault);
  if (pages === undefined)
    return task.server.invalidField(task, subpage === ModeSubpage.NONE ? CDB_MODE_6.page : CDB_MODE_6.subpage);

  const hasDescriptor = (flags & DBD) === 0;
  const isLong = !isShort && (flags & LLBAA) !== 0;
  const descriptorLength = hasDescriptor ? (isLong ? LONG_DESCRIPTOR.byteLength : DESCRIPTOR.byteLength) : 0;
  const headerLength = isShort ? HEADER_6.byteLength : HEADER_10.byteLength;
  const bytes = new Uint8Array(headerLength + descriptorLength + pages.length);
  const view = new DataView(bytes.buffer);
  const isProtected = task.device!.readOnly || unit.mode.softwareWriteProtect;
  const specific = DPO_AND_FUA | (isProtected ? WRITE_PROTECTED : 0);
  if (isShort) {
    bytes[HEADER_6.length] = bytes.length - HEADER_6.medium;
    bytes[HEADER_6.specific] = specific;
    bytes[HEADER_6.descriptors] = descriptorLength;
  } else {
    view.setUint16(HEADER_10.length, bytes.length - HEADER_10.medium);
    bytes[HEADER_10.specific] = specific;
    bytes[HEADER_10.longLba] = isLong ? 1 : 0;
    view.setUint16(HEADER_10.descriptors, descriptorLength);
  }
  if (hasDescriptor) {
    const blocks = Math.floor(task.device!.size / unit.blockSize);
    if (isLong) {
      writeU64(view, headerLength + LONG_DESCRIPTOR.blocks, blocks);
      view.setUint32(headerLength + LONG_DESCRIPTOR.blockLength, unit.blockSize);
    } else {
      view.setUint32(headerLength + DESCRIPTOR.blocks, Math.min(blocks, 0xffff_ffff));
      view.setUint32(headerLength + DESCRIPTOR.blockLength, unit.blockSize);
    }
  }
  bytes.set(pages, headerLength + descriptorLength);
  task.server.reply(task, bytes, isShort ? task.byte(CDB_MODE_6.length) : task.cdb.getUint16(CDB_MODE_10.length));
};

export const modeSelect: Step = (task) => {
  const SAVE_PAGES = 0x01;
  if ((task.byte(FLAGS_BYTE) & SAVE_PAGES) !== 0) return task.server.invalidField(task, FLAGS_BYTE);
  const isShort = task.opcode === Op.MODE_SELECT_6;
  const length = isShort ? task.byte(CDB_MODE_6.length) : task.cdb.getUint16(CDB_MODE_10.length);
  if (length === 0) return task.server.end(task);
  task.server.collect(task, length, modeSelected);
};
const modeSelected: Step = (task) => {
  const { server } = task;
  const unit = task.unit!;
  const isShort = task.opcode === Op.MODE_SELECT_6;
  const headerLength = isShort ? HEADER_6.byteLength : HEADER_10.byteLength;
  const list = server.memory.bytes.slice(task.at, task.at + task.outLength);
  const tooShort = (): void => server.fail(task, SenseKey.ILLEGAL_REQUEST, Asc.PARAMETER_LIST_LENGTH_ERROR);
  if (list.length < headerLength) return tooShort();
  const view = new DataView(list.buffer);
  const descriptorsAt = isShort ? HEADER_6.descriptors : HEADER_10.descriptors;
  const descriptors = isShort ? list[descriptorsAt]! : view.getUint16(descriptorsAt);
  if (headerLength + descriptors > list.length) return tooShort();
  // The block length is the volume's for ever; a descriptor that says so is fine.
  if (descriptors === DESCRIPTOR.byteLength) {
    const blockLength = view.getUint32(headerLength + DESCRIPTOR.blockLength) & 0x00ff_ffff;
    if (blockLength !== 0 && blockLength !== unit.blockSize)
      return server.invalidParameter(task, headerLength + DESCRIPTOR.blockLength);
  }
  const fault = applyModePages(list.subarray(headerLength + descriptors), unit.mode, unit.thresholdDefault);
  if (fault === "length") return tooShort();
  if (fault !== undefined) return server.invalidParameter(task, headerLength + descriptors + fault);
  unit.tell(Asc.MODE_PARAMETERS_CHANGED, task.nexus);
  server.end(task);
};

/* ------------------------------------------- START STOP UNIT, PREVENT ALLOW … */

const LOAD_OR_EJECT = 0x02;
const START = 0x01;
const NO_FLUSH = 0x04;
const PREVENT_MASK = 0x03;

/**
 * A volume does not spin: stopping it flushes, and leaves it ready. Ejecting takes the medium out of a removable unit
 * until it is loaded again. SBC-3 §5.29.
 */
export const startStopUnit: Step = (task) => {
  const unit = task.unit!;
  const action = task.byte(CDB_START_STOP.action);
  const condition = action >> 4;
  if (condition === 0 && (action & LOAD_OR_EJECT) !== 0) {
    if (!unit.removable) return task.server.invalidField(task, CDB_START_STOP.action);
    const loads = (action & START) !== 0;
    if (unit.preventing.size > 0) return task.server.fail(task, SenseKey.ILLEGAL_REQUEST, Asc.MEDIUM_REMOVAL_PREVENTED);
    if (loads && !unit.loaded) unit.tell(Asc.MEDIUM_MAY_HAVE_CHANGED, task.nexus);
    if (loads) unit.loaded = true;
    else {
      task.op.kind = "flush";
      return task.server.submit(task, ejected);
    }
    return task.server.end(task);
  }
  if ((action & START) !== 0 || condition !== 0) return task.server.end(task);
  task.op.kind = "flush";
  task.server.submit(task, (done) => done.server.endWith(done, done.op.status));
};
const ejected: Step = (task) => {
  if (task.op.status === "ok") task.unit!.loaded = false;
  task.server.endWith(task, task.op.status);
};

/** START, and nothing else: what SBC-3 table 14 lets everybody do, whoever has reserved the unit. */
export const isPlainStart = (task: ScsiTask): boolean =>
  (task.byte(CDB_START_STOP.action) & ~NO_FLUSH) === START && task.byte(CDB_START_STOP.modifier) === 0;

export const preventAllow: Step = (task) => {
  const prevent = task.byte(CDB_PREVENT.prevent) & PREVENT_MASK;
  if (prevent > 1) return task.server.invalidField(task, CDB_PREVENT.prevent);
  if (prevent === 1) task.unit!.preventing.add(task.nexus);
  else task.unit!.preventing.delete(task.nexus);
  task.server.end(task);
};
/** SPC-4 table 66: allowing a removal takes nothing from anybody. */
export const isAllow = (task: ScsiTask): boolean => (task.byte(CDB_PREVENT.prevent) & PREVENT_MASK) === 0;

/* ------------------------------------------------ asymmetric logical unit access */

const EXTENDED_HEADER = layout({ format: 1, transitionTime: 1, reserved: 2 });
const GROUP = layout({ state: 1, supported: 1, id: 2, reserved: 1, status: 1, vendor: 1, ports: 1 });
const PORT = layout({ reserved: 2, id: 2 });
/** SPC-4 §6.37: optimized, non-optimized, standby, unavailable. */
const STATES_SUPPORTED = 0x0f;
const LENGTH_BYTES = 4;

export const reportTargetPortGroups: Step = (task) => {
  const format = task.byte(CDB_MAINTENANCE.action) >> 5;
  if (format > 1) return task.server.invalidField(task, CDB_MAINTENANCE.action);
  const bytes: number[] = [];
  if (format === 1)
    bytes.push(...new Array<number>(EXTENDED_HEADER.byteLength).fill(0).with(EXTENDED_HEADER.format, 0x10));
  for (const group of task.nexus.port.portal.siblings) bytes.push(...encodeGroup(group, task.unit!));
  const reply = new Uint8Array(LENGTH_BYTES + bytes.length);
  new DataView(reply.buffer).setUint32(0, bytes.length);
  reply.set(bytes, LENGTH_BYTES);
  task.server.reply(task, reply, task.cdb.getUint32(CDB_MAINTENANCE.length));
};
function encodeGroup(group: PortGroup, unit: LogicalUnit): Uint8Array {
  /** SPC-4 §6.37: who has changed the state last. */
  const Status = { NOBODY: 0, HOST: 1 } as const;
  const bytes = new Uint8Array(GROUP.byteLength + PORT.byteLength * group.ports.length);
  const view = new DataView(bytes.buffer);
  bytes[GROUP.state] = unit.accessOf(group);
  bytes[GROUP.supported] = STATES_SUPPORTED;
  view.setUint16(GROUP.id, group.id);
  bytes[GROUP.status] = unit.access?.has(group) ? Status.HOST : Status.NOBODY;
  bytes[GROUP.ports] = group.ports.length;
  for (const [index, port] of group.ports.entries())
    view.setUint16(GROUP.byteLength + PORT.byteLength * index + PORT.id, port.relativeId);
  return bytes;
}

const SET_HEADER_BYTES = 4;
const SET_GROUP = layout({ state: 1, reserved: 1, id: 2 });
const SET_LENGTH_AT = 6;
const SET_LIST_BYTES_MAX = 1024;

export const setTargetPortGroups: Step = (task) => {
  const length = task.cdb.getUint32(SET_LENGTH_AT);
  if (length === 0) return task.server.end(task);
  if (length > SET_LIST_BYTES_MAX) return task.server.invalidField(task, SET_LENGTH_AT);
  task.server.collect(task, length, groupsCollected);
};
const groupsCollected: Step = (task) => {
  const { server } = task;
  const list = server.memory.bytes.slice(task.at, task.at + task.outLength);
  if (list.length < SET_HEADER_BYTES || (list.length - SET_HEADER_BYTES) % SET_GROUP.byteLength !== 0)
    return server.fail(task, SenseKey.ILLEGAL_REQUEST, Asc.PARAMETER_LIST_LENGTH_ERROR);
  const view = new DataView(list.buffer);
  const groups = task.nexus.port.portal.siblings;
  const unit = task.unit!;
  const states = new Map(groups.map((group) => [group, unit.accessOf(group)]));
  for (let at = SET_HEADER_BYTES; at < list.length; at += SET_GROUP.byteLength) {
    const group = groups.find((one) => one.id === view.getUint16(at + SET_GROUP.id));
    const state = list[at + SET_GROUP.state]! & 0x0f;
    if (group === undefined) return server.invalidParameter(task, at + SET_GROUP.id);
    if (state > AccessState.UNAVAILABLE) return server.invalidParameter(task, at + SET_GROUP.state);
    states.set(group, state);
  }
  // A unit without a usable path could not even be told to come back.
  if (![...states.values()].some((state) => state <= AccessState.NON_OPTIMIZED))
    return server.invalidParameter(task, SET_HEADER_BYTES);
  applyStates(task, states);
  server.end(task);
};
function applyStates(task: ScsiTask, states: ReadonlyMap<PortGroup, number>): void {
  const unit = task.unit!;
  for (const [group, state] of states) {
    if (unit.accessOf(group) === state) continue;
    unit.access ??= new Map();
    unit.access.set(group, state);
    unit.tell(Asc.ASYMMETRIC_ACCESS_CHANGED, task.nexus);
  }
}
