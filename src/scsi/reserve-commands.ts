/** RESERVE and RELEASE (SPC-2), PERSISTENT RESERVE IN and OUT (SPC-4 §6.15, §6.16). */
import { layout } from "#base/layout";
import { CDB_PR_IN, CDB_PR_OUT } from "#wire/scsi/cdb";
import { Asc, PrIn, PrOut, SenseKey } from "#wire/scsi/codes";
import { bytesOfHex, decodeTransportId, encodeTransportId, hexOfBytes } from "#wire/scsi/identity";
import { type Nexus, nexusName, type TargetPort } from "./nexus.ts";
import { type Effects, isReservationType, KEY_NONE, type Registrant } from "./reservations.ts";
import type { ScsiTask, Step } from "./task.ts";

const ACTION_MASK = 0x1f;

/** Of the whole unit only: third-party and extent reservations are obsolete since SPC-2. */
export const reserve: Step = (task) => {
  const EXTENT_OR_THIRD_PARTY = 0x1f;
  if ((task.byte(1) & EXTENT_OR_THIRD_PARTY) !== 0) return task.server.invalidField(task, 1);
  const { reservations } = task.unit!;
  if (!reservations.reserveLegacy(task.nexus.name)) return task.server.conflict(task);
  task.server.persist(task, () => reservations.dropLegacy(task.nexus.name));
};
export const release: Step = (task) => {
  if (!task.unit!.reservations.releaseLegacy(task.nexus.name)) return task.server.conflict(task);
  task.server.persist(task, () => {});
};

/* -------------------------------------------------------- PERSISTENT RESERVE IN */

const IN_HEADER = layout({ generation: 4, length: 4 });
const RESERVATION = layout({ key: 8, obsolete: 4, reserved: 1, type: 1, obsolete2: 2 });
const CAPABILITIES = layout({ length: 2, flags: 1, more: 1, types: 2, reserved: 2 });
const FULL = layout({ key: 8, reserved: 4, flags: 1, type: 1, reserved2: 4, port: 2, length: 4 });

export const persistentReserveIn: Step = (task) => {
  const { reservations } = task.unit!;
  let content: Uint8Array;
  switch (task.byte(CDB_PR_IN.action) & ACTION_MASK) {
    case PrIn.READ_KEYS:
      content = Uint8Array.from(reservations.registrants.flatMap((one) => [...bytesOfHex(one.key)]));
      break;
    case PrIn.READ_RESERVATION:
      content = encodeReservation(task);
      break;
    case PrIn.REPORT_CAPABILITIES:
      return task.server.reply(task, encodeCapabilities(reservations.aptpl), task.cdb.getUint16(CDB_PR_IN.length));
    default:
      content = Uint8Array.from(reservations.registrants.flatMap((one) => [...encodeFullStatus(task, one)]));
  }
  const bytes = new Uint8Array(IN_HEADER.byteLength + content.length);
  const view = new DataView(bytes.buffer);
  view.setUint32(IN_HEADER.generation, reservations.generation);
  view.setUint32(IN_HEADER.length, content.length);
  bytes.set(content, IN_HEADER.byteLength);
  task.server.reply(task, bytes, task.cdb.getUint16(CDB_PR_IN.length));
};

function encodeReservation(task: ScsiTask): Uint8Array {
  const { reservation } = task.unit!.reservations;
  if (reservation === undefined) return new Uint8Array(0);
  const bytes = new Uint8Array(RESERVATION.byteLength);
  bytes.set(bytesOfHex(reservation.key), RESERVATION.key);
  bytes[RESERVATION.type] = reservation.type;
  return bytes;
}

/** SPC-4 §6.15.4. */
function encodeCapabilities(aptpl: boolean): Uint8Array {
  const COMPATIBLE_RESERVE = 0x10;
  const SPECIFIES_PORTS = 0x08;
  const ALL_TARGET_PORTS = 0x04;
  const CAN_PERSIST = 0x01;
  const TYPES_VALID = 0x80;
  const PERSISTS = 0x01;
  const ALL_TYPES = 0xea01;
  const bytes = new Uint8Array(CAPABILITIES.byteLength);
  const view = new DataView(bytes.buffer);
  view.setUint16(CAPABILITIES.length, CAPABILITIES.byteLength);
  bytes[CAPABILITIES.flags] = COMPATIBLE_RESERVE | SPECIFIES_PORTS | ALL_TARGET_PORTS | CAN_PERSIST;
  bytes[CAPABILITIES.more] = TYPES_VALID | (aptpl ? PERSISTS : 0);
  view.setUint16(CAPABILITIES.types, ALL_TYPES);
  return bytes;
}

function encodeFullStatus(task: ScsiTask, one: Registrant): Uint8Array {
  const HOLDER = 0x01;
  const { reservations } = task.unit!;
  const id = encodeTransportId(one.initiatorPort);
  const bytes = new Uint8Array(FULL.byteLength + id.length);
  const view = new DataView(bytes.buffer);
  bytes.set(bytesOfHex(one.key), FULL.key);
  if (reservations.isHolder(one.nexus)) {
    bytes[FULL.flags] = HOLDER;
    bytes[FULL.type] = reservations.reservation!.type;
  }
  view.setUint16(FULL.port, one.relativePort);
  view.setUint32(FULL.length, id.length);
  bytes.set(id, FULL.byteLength);
  return bytes;
}

/* ------------------------------------------------------- PERSISTENT RESERVE OUT */

/** SPC-4 §6.16.3. */
const OUT_LIST = layout({ key: 8, newKey: 8, obsolete: 4, flags: 1, reserved: 1, obsolete2: 2 });
const OUT_PORTS = layout({ length: 4 });
/** SPC-4 §6.16.4. */
const MOVE_LIST = layout({ key: 8, newKey: 8, reserved: 1, flags: 1, port: 2, length: 4 });
const SPEC_I_PT = 0x08;
const ALL_TG_PT = 0x04;
const APTPL = 0x01;
const UNREG = 0x02;
const OUT_BYTES_MAX = 8192;

export const persistentReserveOut: Step = (task) => {
  const action = task.byte(CDB_PR_OUT.action) & ACTION_MASK;
  const type = task.byte(CDB_PR_OUT.type);
  const length = task.cdb.getUint32(CDB_PR_OUT.length);
  // Scope 0 (the unit) is in the upper half; element scopes are obsolete. PREEMPT looks at it when it comes to reserve.
  if (action === PrOut.RESERVE && !isReservationType(type)) return task.server.invalidField(task, CDB_PR_OUT.type);
  if (length < OUT_LIST.byteLength || length > OUT_BYTES_MAX)
    return task.server.fail(task, SenseKey.ILLEGAL_REQUEST, Asc.PARAMETER_LIST_LENGTH_ERROR, CDB_PR_OUT.length);
  task.server.collect(task, length, outCollected);
};

const outCollected: Step = (task) => {
  const { server } = task;
  const { reservations } = task.unit!;
  const action = task.byte(CDB_PR_OUT.action) & ACTION_MASK;
  const type = task.byte(CDB_PR_OUT.type);
  const list = server.memory.bytes.slice(task.at, task.at + task.outLength);
  const lengthError = (): void =>
    server.fail(task, SenseKey.ILLEGAL_REQUEST, Asc.PARAMETER_LIST_LENGTH_ERROR, CDB_PR_OUT.length);
  if (list.length < OUT_LIST.byteLength || task.outLength < task.total) return lengthError();
  const before = reservations.record();
  const key = hexOfBytes(list.subarray(OUT_LIST.key, OUT_LIST.newKey));
  const newKey = hexOfBytes(list.subarray(OUT_LIST.newKey, OUT_LIST.obsolete));
  const { name } = task.nexus;

  let effects: Effects;
  if (action === PrOut.REGISTER_AND_MOVE) {
    const moved = moveReservation(task, list, key, newKey);
    if (moved === "length") return lengthError();
    if (typeof moved === "number") return server.invalidParameter(task, moved);
    effects = moved;
  } else {
    const flags = list[OUT_LIST.flags]!;
    const named = namedPorts(task, list, action === PrOut.REGISTER && (flags & SPEC_I_PT) !== 0);
    if (named === "length") return lengthError();
    if (named === "wrong") return server.invalidParameter(task, OUT_LIST.byteLength);
    if ((flags & SPEC_I_PT) !== 0 && action !== PrOut.REGISTER) return server.invalidParameter(task, OUT_LIST.flags);
    switch (action) {
      case PrOut.REGISTER:
      case PrOut.REGISTER_AND_IGNORE: {
        if (named.length > 0 && reservations.isRegistered(name)) return server.invalidParameter(task, OUT_LIST.flags);
        const ports =
          (flags & ALL_TG_PT) !== 0
            ? task.nexus.port.portal.siblings.flatMap((group) => group.ports)
            : [task.nexus.port];
        const as = registrations(task.nexus, ports, named);
        const ignores = action === PrOut.REGISTER_AND_IGNORE;
        effects = reservations.register(as, key, newKey, ignores, (flags & APTPL) !== 0);
        break;
      }
      case PrOut.RESERVE:
        effects = reservations.reserve(name, key, type);
        break;
      case PrOut.RELEASE:
        effects = reservations.release(name, key, type);
        break;
      case PrOut.CLEAR:
        effects = reservations.clear(name, key);
        break;
      default:
        effects = reservations.preempt(name, key, newKey, type, action === PrOut.PREEMPT_AND_ABORT);
    }
  }
  settle(task, effects, () => reservations.restore(before));
};

/** Tells those concerned, waits for what had to be aborted, makes it durable, and answers. */
function settle(task: ScsiTask, effects: Effects, undo: () => void): void {
  const { server } = task;
  const unit = task.unit!;
  if (effects.outcome === "conflict") return server.conflict(task);
  if (effects.outcome === "invalid-parameter") return server.invalidParameter(task, OUT_LIST.newKey);
  if (effects.outcome === "invalid-type") return server.invalidField(task, CDB_PR_OUT.type);
  if (effects.outcome === "invalid-release") return server.fail(task, SenseKey.ILLEGAL_REQUEST, Asc.INVALID_RELEASE);
  if (effects.outcome === "full")
    return server.fail(task, SenseKey.ILLEGAL_REQUEST, Asc.INSUFFICIENT_REGISTRATION_RESOURCES);
  for (const [nexus, asc] of effects.attentions) unit.tellNamed(nexus, asc);
  const victims = new Set(effects.abort);
  const aborted = unit.tasksOf((other) => other !== task && victims.has(other.nexus.name));
  server.abort(aborted, () => server.persist(task, undo));
}

/** The registrations that a REGISTER makes: this initiator port and the named ones, at each of the target ports. */
function registrations(
  nexus: Nexus,
  ports: readonly TargetPort[],
  named: readonly string[],
): Omit<Registrant, "key">[] {
  const own = [nexus.port, ...ports.filter((port) => port !== nexus.port)];
  return [nexus.initiatorPort, ...named].flatMap((initiatorPort) =>
    own.map((port) => ({
      nexus: nexusName(initiatorPort, port.name),
      initiatorPort,
      targetPort: port.name,
      relativePort: port.relativeId,
    })),
  );
}

/** The initiator ports of SPEC_I_PT, SPC-4 §6.16.3. Names without an ISID stand for no port that could register. */
function namedPorts(task: ScsiTask, list: Uint8Array, present: boolean): string[] | "length" | "wrong" {
  if (!present) return list.length === OUT_LIST.byteLength ? [] : "length";
  if (list.length < OUT_LIST.byteLength + OUT_PORTS.byteLength) return "length";
  const view = new DataView(list.buffer, list.byteOffset);
  const length = view.getUint32(OUT_LIST.byteLength + OUT_PORTS.length);
  let at = OUT_LIST.byteLength + OUT_PORTS.byteLength;
  if (at + length !== list.length) return "length";
  const names: string[] = [];
  while (at < list.length) {
    const id = decodeTransportId(list.subarray(at));
    if (id === undefined || !id.name.includes(",i,0x")) return "wrong";
    if (task.unit!.reservations.isRegistered(nexusName(id.name, task.nexus.port.name))) return "wrong";
    names.push(id.name);
    at += id.byteLength;
  }
  return names;
}

/** REGISTER AND MOVE; a number is the offset of a wrong parameter. */
function moveReservation(task: ScsiTask, list: Uint8Array, key: string, newKey: string): Effects | "length" | number {
  const { reservations } = task.unit!;
  const view = new DataView(list.buffer, list.byteOffset);
  if (MOVE_LIST.byteLength + view.getUint32(MOVE_LIST.length) !== list.length) return "length";
  if (!reservations.isRegistered(task.nexus.name)) return { outcome: "conflict", attentions: [], abort: [] };
  const relativeId = view.getUint16(MOVE_LIST.port);
  const port = task.nexus.port.portal.siblings
    .flatMap((group) => group.ports)
    .find((one) => one.relativeId === relativeId);
  if (port === undefined) return MOVE_LIST.port;
  const id = decodeTransportId(list.subarray(MOVE_LIST.byteLength));
  if (id === undefined || !id.name.includes(",i,0x")) return MOVE_LIST.byteLength;
  if (newKey === KEY_NONE) return MOVE_LIST.newKey;
  const flags = list[MOVE_LIST.flags]!;
  const to = {
    nexus: nexusName(id.name, port.name),
    initiatorPort: id.name,
    targetPort: port.name,
    relativePort: port.relativeId,
  };
  return reservations.move(task.nexus.name, key, to, newKey, (flags & UNREG) !== 0, (flags & APTPL) !== 0);
}
