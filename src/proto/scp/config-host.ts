/**
 * The host's side of the configuration protocol (WO 02/15018 appendix D), as a story: it yields how many bytes it needs
 * next and is resumed with exactly those. It runs for as long as the session: after the configuration it waits for
 * what the server has to say. Its return value is why it ended.
 */
import { equalBytes } from "#base/sha256";
import type { Status } from "#base/status";
import { ByteBox } from "#wire/scp/byte-box";
import { Capability, Op, statusOf, Type, Version } from "#wire/scp/codes";
import {
  CAPACITY,
  DATA_PORT,
  type DataPort,
  decodeCapacities,
  decodeChallenge,
  decodeDataPorts,
  decodeUnits,
  decodeVerdict,
  encodeProof,
  UNIT,
  type UnitRecord,
} from "#wire/scp/config";
import { decodeFrame, FRAME, Frame } from "#wire/scp/frame";
import { decodeZnReq, ZNREQ, ZnReq } from "#wire/scp/znreq";
import { box, frameBytes, viewBytes } from "./config-server.ts";
import { serverMac, sessionKeys } from "./proofs.ts";

export type HostEnd =
  /** The other side closed: the signal to run it again. Said by the driver, not by the story. */
  | "closed"
  /** Go on under TLS, and from the beginning. */
  | "start-tls"
  | "version-mismatch"
  /** Version 2 or TLS was demanded, and is not on offer: an old server, or somebody in between. */
  | "downgraded"
  | "refused"
  | "server-not-proven"
  | "violated";

/** What the host knows after a configuration. */
export interface Configured {
  readonly version: number;
  /** Z_GET_STARTTIME: to be compared for equality, and for nothing else. */
  readonly cookie: number;
  /** Version 2: another number than before means that the server may have lost what it had acknowledged. 0: it does not tell. */
  readonly run: number;
  readonly units: readonly UnitRecord[];
  readonly ports: readonly DataPort[];
  readonly random: number;
  readonly session: number;
  readonly capabilities: number;
  readonly key: Uint8Array | undefined;
  /** Commands in flight per data socket, and bytes in one command. */
  readonly depth: number;
  readonly dataMax: number;
  /** 16 bytes that name the server, in version 2. */
  readonly serverId: Uint8Array | undefined;
}

export interface ConfigHostWorld {
  readonly versions: number;
  /** Refuse to speak version 1, whatever the server offers. */
  readonly requireSecret: boolean;
  readonly hostName: string;
  readonly secret: Uint8Array | undefined;
  readonly instance: Uint8Array;
  readonly hostNonce: Uint8Array;
  readonly capabilities: number;
  /** "wanted": TLS is demanded and not yet there. */
  readonly tls: "off" | "wanted" | "on";
  readonly depthV1: number;
  readonly dataMaxV1: number;
  send(bytes: Uint8Array): void;
  /** Called after each configuration: the first one, and those that an event caused. */
  onConfigured(configured: Configured): void;
  /** Version 2: an answer to a PING or Z_FENCE. */
  onAnswer(op: number, tag: number, status: Status): void;
  onEvent(event: number, unit: number): void;
}

/** Tags of the story's own requests; the world's begin above. */
const OWN_TAG = 1;
export const WORLD_TAG_MIN = 16;

export function* configureHost(world: ConfigHostWorld): Generator<number, HostEnd, DataView> {
  const message = new ZnReq();
  const greeting = yield ZNREQ.byteLength;
  decodeZnReq(message, greeting, 0);
  if (message.op !== Op.Z_GET_VERSION || message.type !== 1) return "violated";
  const offered = message.version;
  const random = message.reqszLo;
  const challenge = decodeChallenge(greeting, 0);

  if (world.tls === "wanted") {
    if ((offered & Version.TWO) === 0 || (challenge.capabilities & Capability.TLS) === 0) return "downgraded";
    message.clear();
    message.op = Op.Z_START_TLS;
    world.send(box(message).bytes);
    decodeZnReq(message, yield ZNREQ.byteLength, 0);
    return message.status === 0 ? "start-tls" : "refused";
  }

  const common = offered & (world.secret === undefined ? world.versions & ~Version.TWO : world.versions);
  if (world.requireSecret && (common & Version.TWO) === 0) return "downgraded";
  if ((common & (Version.ONE | Version.TWO)) === 0) return "version-mismatch";
  const version = (common & Version.TWO) !== 0 ? Version.TWO : Version.ONE;

  message.clear();
  message.op = Op.Z_GET_VERSION;
  message.version = version;
  message.reqszLo = ~random >>> 0;
  const answer = box(message);
  let key: Uint8Array | undefined;
  const capabilities = challenge.capabilities & world.capabilities;
  if (version === Version.TWO && world.secret !== undefined) {
    const proof = { capabilities, instance: world.instance, hostNonce: world.hostNonce, hostName: world.hostName };
    const keys = sessionKeys(world.secret, { versions: offered, random, challenge, proof });
    key = keys.key;
    encodeProof({ ...proof, mac: keys.hostMac }, answer.view, 0);
  }
  world.send(answer.bytes);

  const verdict = yield ZNREQ.byteLength;
  decodeZnReq(message, verdict, 0);
  if (message.status !== 0) return "refused";
  if (key === undefined) return yield* converseOne(world, random);
  const { session, mac } = decodeVerdict(verdict, 0);
  if (!equalBytes(mac, serverMac(key, session))) return "server-not-proven";
  return yield* converseTwo(world, {
    version,
    random,
    session,
    capabilities,
    key,
    depth: Math.max(1, challenge.depth),
    dataMax: Math.max(4096, challenge.dataMax),
    serverId: challenge.serverId,
  });
}

type Fixed = Omit<Configured, "cookie" | "run" | "units" | "ports">;

/** Steps (6) to (11) of version 1. Then the socket is only there to be closed. */
function* converseOne(world: ConfigHostWorld, random: number): Generator<number, HostEnd, DataView> {
  const message = new ZnReq();
  const ask = (op: number): void => {
    message.clear();
    message.op = op;
    world.send(box(message).bytes);
  };
  ask(Op.Z_GET_STARTTIME);
  decodeZnReq(message, yield ZNREQ.byteLength, 0);
  // Optional in the text: a server that does not know it says so, and its configuration is then always new.
  const cookie = message.status === 0 ? message.reqszLo : 0;

  ask(Op.Z_GET_CAPACITIES);
  decodeZnReq(message, yield ZNREQ.byteLength, 0);
  if (message.status !== 0 || message.reqszLo * CAPACITY.byteLength > LIST_BYTES_MAX) return "violated";
  const count = message.reqszLo;
  const sizes = count === 0 ? [] : decodeCapacities(yield count * CAPACITY.byteLength, 0, count);
  if (sizes === undefined) return "violated";

  ask(Op.Z_GET_DATAPORT);
  decodeZnReq(message, yield ZNREQ.byteLength, 0);
  if (message.status !== 0 || message.reqszLo * DATA_PORT.byteLength > LIST_BYTES_MAX) return "violated";
  const portCount = message.reqszLo;
  const ports = portCount === 0 ? [] : decodeDataPorts(yield portCount * DATA_PORT.byteLength, 0, portCount);
  if (ports === undefined) return "violated";

  const units: UnitRecord[] = [];
  sizes.forEach((size, unit) => {
    if (size === 0) return;
    const shape = { blockSize: 512, preferredBlockSize: 4096, readOnly: false, away: false, uuid: "0".repeat(32) };
    units.push({ unit, name: `unit${unit}`, size, ...shape });
  });
  world.onConfigured({
    version: Version.ONE,
    cookie,
    run: 0,
    units,
    ports,
    random,
    session: 0,
    capabilities: 0,
    key: undefined,
    depth: world.depthV1,
    dataMax: world.dataMaxV1,
    serverId: undefined,
  });
  yield 1;
  return "violated";
}

/** Bounds what a lying server can make us wait for. */
const LIST_BYTES_MAX = 8 * 1024 * 1024;

function* converseTwo(world: ConfigHostWorld, fixed: Fixed): Generator<number, HostEnd, DataView> {
  const frame = new Frame();
  const ask = (op: number): void => {
    frame.clear();
    frame.session = fixed.session;
    frame.op = op;
    frame.tag = OWN_TAG;
    world.send(frameBytes(frame, undefined));
  };
  let cookie = 0;
  let run = 0;
  let units: readonly UnitRecord[] = [];
  let stale = false;
  let asking = 3;
  ask(Op.Z_GET_STARTTIME);
  ask(Op.Z_GET_UNITS);
  ask(Op.Z_GET_DATAPORT);
  for (;;) {
    const header = yield FRAME.byteLength;
    if (decodeFrame(frame, new ByteBox(viewBytes(header)), 0) !== undefined) return "violated";
    if (frame.session !== fixed.session || frame.bodyLength > LIST_BYTES_MAX) return "violated";
    const body = frame.bodyLength === 0 ? new DataView(new ArrayBuffer(0)) : yield frame.bodyLength;
    if (frame.bodyLength > 0 && new ByteBox(viewBytes(body)).crc32c(0, body.byteLength) !== frame.bodyCrc)
      return "violated";
    if (frame.type === Type.EVENT) {
      world.onEvent(frame.flags, frame.unit);
      // What is being asked may have been answered before the event: it is asked again after the answer.
      if (asking > 0) stale = true;
      else {
        asking = 3;
        ask(Op.Z_GET_STARTTIME);
        ask(Op.Z_GET_UNITS);
        ask(Op.Z_GET_DATAPORT);
      }
      continue;
    }
    if (frame.type !== Type.RESPONSE) return "violated";
    if (frame.tag !== OWN_TAG) {
      world.onAnswer(frame.op, frame.tag, statusOf(frame.status));
      continue;
    }
    if (asking === 0 || frame.status !== 0) return "violated";
    asking--;
    if (frame.op === Op.Z_GET_STARTTIME) {
      cookie = frame.length;
      run = frame.lba;
    } else if (frame.op === Op.Z_GET_UNITS) {
      const list = frame.length * UNIT.byteLength === body.byteLength ? decodeUnits(body, 0, frame.length) : undefined;
      if (list === undefined) return "violated";
      units = list;
    } else if (frame.op === Op.Z_GET_DATAPORT) {
      const fits = frame.length * DATA_PORT.byteLength === body.byteLength;
      const ports = fits ? decodeDataPorts(body, 0, frame.length) : undefined;
      if (ports === undefined) return "violated";
      world.onConfigured({ ...fixed, cookie, run, units, ports });
      if (stale) {
        stale = false;
        asking = 3;
        ask(Op.Z_GET_STARTTIME);
        ask(Op.Z_GET_UNITS);
        ask(Op.Z_GET_DATAPORT);
      }
    } else return "violated";
  }
}

/** A request of the world's on a version 2 configuration socket. */
export function requestBytes(session: number, op: number, tag: number, unit: number): Uint8Array {
  const frame = new Frame();
  frame.session = session;
  frame.op = op;
  frame.tag = tag;
  frame.unit = unit;
  return frameBytes(frame, undefined);
}
