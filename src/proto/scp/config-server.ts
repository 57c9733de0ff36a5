/**
 * The server's side of the configuration protocol (WO 02/15018 appendix D), as a story: it yields how many bytes it
 * needs next and is resumed with exactly those; "wait" is resumed by the world when what it waits for has happened.
 * Its return value is why the connection ends. Nothing here knows of sockets, clocks or tables: that is the `world`.
 */
import { equalBytes } from "#base/sha256";
import type { Status } from "#base/status";
import { ByteBox } from "#wire/scp/byte-box";
import { Capability, Op, STATUS_CODE, STATUS_REFUSED, Type, Version } from "#wire/scp/codes";
import {
  CAPACITY,
  type Challenge,
  DATA_PORT,
  type DataPort,
  decodeProof,
  encodeCapacities,
  encodeChallenge,
  encodeDataPorts,
  encodeUnits,
  encodeVerdict,
  UNIT,
  type UnitRecord,
} from "#wire/scp/config";
import { decodeFrame, encodeFrame, FRAME, Frame } from "#wire/scp/frame";
import { decodeZnReq, encodeZnReq, ZNREQ, ZnReq } from "#wire/scp/znreq";
import { serverMac, sessionKeys } from "./proofs.ts";

/** The longest body that a host may send on the configuration socket. */
const BODY_BYTES_MAX = 4096;

export type ConfigEnd =
  /** The other side closed; said by the driver, not by the story. */
  | "closed"
  | "start-tls"
  | "version-mismatch"
  | "bad-response"
  | "unknown-host"
  | "bad-proof"
  | "secret-required"
  | "tls-required"
  | "violated"
  | "refused";

export interface Admitted {
  readonly version: number;
  readonly host: string;
  readonly session: number;
  readonly capabilities: number;
  /** Of version 2. */
  readonly key: Uint8Array | undefined;
  readonly instance: Uint8Array | undefined;
}

export interface ConfigServerWorld {
  /** The versions on offer, as a bitmask. */
  readonly versions: number;
  /** The nonce of this connection: 32 unpredictable bits. */
  readonly random: number;
  readonly challenge: Challenge;
  /** Whether this host must start TLS, and has not. */
  tlsRequired(host: string): boolean;
  send(bytes: Uint8Array): void;
  /** The host that the peer's address stands for, if it may speak version 1. */
  hostByAddress(): string | "secret-required" | undefined;
  secretOf(host: string): Uint8Array | undefined;
  /**
   * Opens the session, and fences what the same host left of an older one: the story yields "wait" until everything
   * of that has ended. Returns the session's number, or undefined when there is no room for it.
   */
  admit(admitted: Omit<Admitted, "session">): number | undefined;
  cookie(): number;
  /** As long as it stays the same, over restarts too, nothing that was acknowledged is lost. Not 0; 32 bits. */
  readonly run: number;
  /** By unit number, ascending. */
  units(): readonly UnitRecord[];
  dataPorts(): readonly DataPort[];
  /** Closes one data socket; `ended` is called once nothing of it can reach a device any more, at once if there is none. */
  fence(serial: number, ended: () => void): void;
}

export type Needs = number | "wait";

export function* serveConfig(world: ConfigServerWorld): Generator<Needs, ConfigEnd, DataView> {
  const message = new ZnReq();
  message.op = Op.Z_GET_VERSION;
  message.version = world.versions;
  message.reqszLo = world.random;
  const greeting = box(message);
  if ((world.versions & Version.TWO) !== 0) encodeChallenge(world.challenge, greeting.view, 0);
  world.send(greeting.bytes);

  const answer = yield ZNREQ.byteLength;
  decodeZnReq(message, answer, 0);
  if (message.op === Op.Z_START_TLS) {
    if ((world.challenge.capabilities & Capability.TLS) === 0) return refuse(world, message, "violated");
    message.status = 0;
    world.send(box(message).bytes);
    return "start-tls";
  }
  const version = message.version;
  if ((version !== Version.ONE && version !== Version.TWO) || (version & world.versions) === 0)
    return refuse(world, message, "version-mismatch");
  if (message.reqszLo !== ~world.random >>> 0) return refuse(world, message, "bad-response");

  const admitted = version === Version.ONE ? admitByAddress(world) : admitByProof(world, answer);
  if (typeof admitted === "string") return refuse(world, message, admitted);
  const session = world.admit(admitted);
  if (session === undefined) return refuse(world, message, "refused");
  // The old session's commands may still be at the disks: whoever is told "welcome" can rely on their end.
  yield "wait";

  message.status = 0;
  const verdict = box(message);
  if (admitted.key !== undefined) encodeVerdict(session, serverMac(admitted.key, session), verdict.view, 0);
  world.send(verdict.bytes);
  return version === Version.ONE ? yield* serveOne(world) : yield* serveTwo(world, session);
}

function admitByAddress(world: ConfigServerWorld): Omit<Admitted, "session"> | ConfigEnd {
  const host = world.hostByAddress();
  if (host === undefined) return "unknown-host";
  if (host === "secret-required") return "secret-required";
  if (world.tlsRequired(host)) return "tls-required";
  return { version: Version.ONE, host, capabilities: 0, key: undefined, instance: undefined };
}

function admitByProof(world: ConfigServerWorld, answer: DataView): Omit<Admitted, "session"> | ConfigEnd {
  const proof = decodeProof(answer, 0);
  if (proof === undefined) return "bad-proof";
  // An unknown host costs the same work as a known one, and is told the same.
  const secret = world.secretOf(proof.hostName);
  const keys = sessionKeys(secret ?? new Uint8Array(32), {
    versions: world.versions,
    random: world.random,
    challenge: world.challenge,
    proof,
  });
  if (!equalBytes(keys.hostMac, proof.mac) || secret === undefined) return "bad-proof";
  if (world.tlsRequired(proof.hostName)) return "tls-required";
  const capabilities = proof.capabilities & world.challenge.capabilities;
  return { version: Version.TWO, host: proof.hostName, capabilities, key: keys.key, instance: proof.instance };
}

function refuse(world: ConfigServerWorld, message: ZnReq, why: ConfigEnd): ConfigEnd {
  message.status = STATUS_REFUSED;
  world.send(box(message).bytes);
  return why;
}

/** Steps (6) to (11), as often as the host asks. */
function* serveOne(world: ConfigServerWorld): Generator<Needs, ConfigEnd, DataView> {
  const message = new ZnReq();
  for (;;) {
    decodeZnReq(message, yield ZNREQ.byteLength, 0);
    const { op } = message;
    message.clear();
    message.op = op;
    if (op === Op.Z_GET_STARTTIME) {
      message.reqszLo = world.cookie();
      world.send(box(message).bytes);
    } else if (op === Op.Z_GET_CAPACITIES) {
      const sizes = capacities(world.units());
      message.reqszLo = sizes.length;
      const reply = box(message, sizes.length * CAPACITY.byteLength);
      encodeCapacities(sizes, reply.view, ZNREQ.byteLength);
      world.send(reply.bytes);
    } else if (op === Op.Z_GET_DATAPORT) {
      const ports = world.dataPorts();
      message.reqszLo = ports.length;
      const reply = box(message, ports.length * DATA_PORT.byteLength);
      encodeDataPorts(ports, reply.view, ZNREQ.byteLength);
      world.send(reply.bytes);
    } else {
      message.status = STATUS_REFUSED;
      world.send(box(message).bytes);
    }
  }
}

/** Version 1 knows units by their place in a list: unit n is entry n, and a number without a unit has capacity 0. */
export function capacities(units: readonly UnitRecord[]): number[] {
  const sizes: number[] = [];
  for (const { unit, size, away } of units) {
    while (sizes.length < unit) sizes.push(0);
    sizes.push(away ? 0 : size);
  }
  return sizes;
}

function* serveTwo(world: ConfigServerWorld, session: number): Generator<Needs, ConfigEnd, DataView> {
  const frame = new Frame();
  const reply = (status: Status, body?: Uint8Array): void => {
    frame.type = Type.RESPONSE;
    frame.status = STATUS_CODE[status];
    world.send(frameBytes(frame, body));
  };
  for (;;) {
    const view = yield FRAME.byteLength;
    if (decodeFrame(frame, new ByteBox(viewBytes(view)), 0) !== undefined) return "violated";
    if (frame.type !== Type.REQUEST || frame.session !== session || frame.bodyLength > BODY_BYTES_MAX)
      return "violated";
    if (frame.bodyLength > 0) yield frame.bodyLength;
    switch (frame.op) {
      case Op.PING:
        reply("ok");
        break;
      case Op.Z_GET_STARTTIME:
        frame.length = world.cookie();
        frame.lba = world.run;
        reply("ok");
        break;
      case Op.Z_GET_UNITS: {
        const units = world.units();
        const body = new ByteBox(units.length * UNIT.byteLength);
        encodeUnits(units, body.view, 0);
        frame.length = units.length;
        reply("ok", body.bytes);
        break;
      }
      case Op.Z_GET_DATAPORT: {
        const ports = world.dataPorts();
        const body = new ByteBox(ports.length * DATA_PORT.byteLength);
        encodeDataPorts(ports, body.view, 0);
        frame.length = ports.length;
        reply("ok", body.bytes);
        break;
      }
      case Op.Z_FENCE: {
        // It may take as long as a slow disk does; meanwhile pings are answered.
        const { tag, unit } = frame;
        world.fence(unit, () => world.send(fencedBytes(session, tag, unit)));
        break;
      }
      default:
        reply("unsupported");
    }
  }
}

/** A frame that tells of something; `unit` is what it is about. */
export function eventBytes(session: number, event: number, unit: number): Uint8Array {
  const frame = new Frame();
  frame.type = Type.EVENT;
  frame.session = session;
  frame.op = Op.Z_EVENT;
  frame.flags = event;
  frame.unit = unit;
  return frameBytes(frame, undefined);
}

function fencedBytes(session: number, tag: number, serial: number): Uint8Array {
  const frame = new Frame();
  frame.type = Type.RESPONSE;
  frame.session = session;
  frame.op = Op.Z_FENCE;
  frame.tag = tag;
  frame.unit = serial;
  return frameBytes(frame, undefined);
}

/** A frame with its body, whose checksum is always there on the configuration socket. */
export function frameBytes(frame: Frame, body: Uint8Array | undefined): Uint8Array {
  const bytes = new ByteBox(FRAME.byteLength + (body?.length ?? 0));
  if (body !== undefined) bytes.bytes.set(body, FRAME.byteLength);
  frame.bodyLength = body?.length ?? 0;
  frame.bodyCrc = frame.bodyLength === 0 ? 0 : bytes.crc32c(FRAME.byteLength, frame.bodyLength);
  encodeFrame(frame, bytes, 0);
  return bytes.bytes;
}

export function box(message: ZnReq, more = 0): ByteBox {
  const bytes = new ByteBox(ZNREQ.byteLength + more);
  encodeZnReq(message, bytes.view, 0);
  return bytes;
}

export const viewBytes = (view: DataView): Uint8Array => new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
