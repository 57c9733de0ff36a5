/**
 * What travels on the configuration socket besides the headers: lists of capacities and data ports (WO appendix D
 * (9), (11)), and version 2's proofs, in the padding of `znreq_t`, and list of units. Control plane: not on any hot
 * path, so these allocate.
 */
import { layout, readU64, writeU64 } from "#base/layout";
import { DATA_PORTS_MAX, UNITS_MAX } from "./codes.ts";
import { ZNREQ } from "./znreq.ts";

/** WO appendix D (9): "`uint64_t`'s, which specify the capacity for each unit", in bytes. */
export const CAPACITY = layout({ bytes: 8 });

/** WO appendix D (11): `struct z_get_dataport_t`. */
export const DATA_PORT = layout({ ipType: 4, address: 16, port: 4, socketsMax: 4 });

export interface DataPort {
  /** Numeric. */
  readonly address: string;
  readonly port: number;
  readonly socketsMax: number;
}

/** Version 2: one unit of a Z_GET_UNITS answer. */
export const UNIT = layout({ unit: 4, flags: 4, size: 8, blockSize: 4, preferredBlockSize: 4, uuid: 16, name: 216 });
export const UnitFlag = {
  READ_ONLY: 1,
  /** Granted, but its device is not there now. */
  AWAY: 2,
} as const;

export interface UnitRecord {
  readonly unit: number;
  readonly name: string;
  readonly size: number;
  readonly blockSize: number;
  readonly preferredBlockSize: number;
  readonly readOnly: boolean;
  readonly away: boolean;
  readonly uuid: string;
}

/** Version 2, in the padding of the server's Z_GET_VERSION. */
export const CHALLENGE = layout({
  capabilities: 4,
  depth: 4,
  dataMax: 4,
  reserved: 4,
  serverId: 16,
  serverNonce: 32,
});
/** Version 2, in the padding of the host's answer. `instance` tells two attachments of one host apart. */
export const PROOF = layout({ capabilities: 4, instance: 16, hostNonce: 32, mac: 32, hostName: 64 });
/** Version 2, in the padding of the server's verdict. */
export const VERDICT = layout({ session: 4, mac: 32 });
/** Version 2, in the padding of a data socket's hello, and of the answer. */
export const HELLO = layout({ session: 4, serial: 4, mac: 32 });
export const HELLO_ANSWER = layout({ serial: 4, mac: 32 });

/** In the padding of the answer to Z_DISCOVER: the configuration port is in `zn_hostid`. */
export const FOUND = layout({ serverId: 16 });

export const NONCE_BYTES = 32;
export const HOST_NAME_BYTES = PROOF.byteLength - PROOF.hostName;

export interface Challenge {
  readonly capabilities: number;
  readonly depth: number;
  readonly dataMax: number;
  readonly serverId: Uint8Array;
  readonly serverNonce: Uint8Array;
}
export interface Proof {
  readonly capabilities: number;
  readonly instance: Uint8Array;
  readonly hostNonce: Uint8Array;
  readonly mac: Uint8Array;
  readonly hostName: string;
}

const padAt = (at: number): number => at + ZNREQ.pad;
const bytesAt = (view: DataView, at: number, length: number): Uint8Array =>
  new Uint8Array(view.buffer, view.byteOffset + at, length);

export function encodeChallenge(value: Challenge, to: DataView, messageAt: number): void {
  const at = padAt(messageAt);
  to.setUint32(at + CHALLENGE.capabilities, value.capabilities);
  to.setUint32(at + CHALLENGE.depth, value.depth);
  to.setUint32(at + CHALLENGE.dataMax, value.dataMax);
  bytesAt(to, at + CHALLENGE.serverId, 16).set(value.serverId);
  bytesAt(to, at + CHALLENGE.serverNonce, NONCE_BYTES).set(value.serverNonce);
}

export function decodeChallenge(from: DataView, messageAt: number): Challenge {
  const at = padAt(messageAt);
  return {
    capabilities: from.getUint32(at + CHALLENGE.capabilities),
    depth: from.getUint32(at + CHALLENGE.depth),
    dataMax: from.getUint32(at + CHALLENGE.dataMax),
    serverId: bytesAt(from, at + CHALLENGE.serverId, 16).slice(),
    serverNonce: bytesAt(from, at + CHALLENGE.serverNonce, NONCE_BYTES).slice(),
  };
}

export function encodeProof(value: Proof, to: DataView, messageAt: number): void {
  const at = padAt(messageAt);
  to.setUint32(at + PROOF.capabilities, value.capabilities);
  bytesAt(to, at + PROOF.instance, 16).set(value.instance);
  bytesAt(to, at + PROOF.hostNonce, NONCE_BYTES).set(value.hostNonce);
  bytesAt(to, at + PROOF.mac, 32).set(value.mac);
  bytesAt(to, at + PROOF.hostName, HOST_NAME_BYTES).set(asciiBytes(value.hostName, HOST_NAME_BYTES));
}

/** Undefined when the host's name is none: empty, unterminated, or with bytes that no name has. */
export function decodeProof(from: DataView, messageAt: number): Proof | undefined {
  const at = padAt(messageAt);
  const hostName = asciiText(bytesAt(from, at + PROOF.hostName, HOST_NAME_BYTES));
  if (hostName === undefined || hostName === "") return undefined;
  return {
    capabilities: from.getUint32(at + PROOF.capabilities),
    instance: bytesAt(from, at + PROOF.instance, 16).slice(),
    hostNonce: bytesAt(from, at + PROOF.hostNonce, NONCE_BYTES).slice(),
    mac: bytesAt(from, at + PROOF.mac, 32).slice(),
    hostName,
  };
}

export function encodeVerdict(session: number, mac: Uint8Array, to: DataView, messageAt: number): void {
  to.setUint32(padAt(messageAt) + VERDICT.session, session);
  bytesAt(to, padAt(messageAt) + VERDICT.mac, 32).set(mac);
}
export function decodeVerdict(from: DataView, messageAt: number): { session: number; mac: Uint8Array } {
  return {
    session: from.getUint32(padAt(messageAt) + VERDICT.session),
    mac: bytesAt(from, padAt(messageAt) + VERDICT.mac, 32).slice(),
  };
}

export interface Hello {
  readonly session: number;
  readonly serial: number;
  readonly mac: Uint8Array;
}
export function encodeHello(value: Hello, to: DataView, messageAt: number): void {
  const at = padAt(messageAt);
  to.setUint32(at + HELLO.session, value.session);
  to.setUint32(at + HELLO.serial, value.serial);
  bytesAt(to, at + HELLO.mac, 32).set(value.mac);
}
export function decodeHello(from: DataView, messageAt: number): Hello {
  const at = padAt(messageAt);
  return {
    session: from.getUint32(at + HELLO.session),
    serial: from.getUint32(at + HELLO.serial),
    mac: bytesAt(from, at + HELLO.mac, 32).slice(),
  };
}
export function encodeHelloAnswer(serial: number, mac: Uint8Array, to: DataView, messageAt: number): void {
  to.setUint32(padAt(messageAt) + HELLO_ANSWER.serial, serial);
  bytesAt(to, padAt(messageAt) + HELLO_ANSWER.mac, 32).set(mac);
}
export function decodeHelloAnswer(from: DataView, messageAt: number): { serial: number; mac: Uint8Array } {
  return {
    serial: from.getUint32(padAt(messageAt) + HELLO_ANSWER.serial),
    mac: bytesAt(from, padAt(messageAt) + HELLO_ANSWER.mac, 32).slice(),
  };
}

export function encodeFound(serverId: Uint8Array, to: DataView, messageAt: number): void {
  bytesAt(to, padAt(messageAt) + FOUND.serverId, 16).set(serverId);
}
export function decodeFound(from: DataView, messageAt: number): Uint8Array {
  return bytesAt(from, padAt(messageAt) + FOUND.serverId, 16).slice();
}

export function encodeCapacities(sizes: readonly number[], to: DataView, at: number): number {
  for (const size of sizes) {
    writeU64(to, at + CAPACITY.bytes, size);
    at += CAPACITY.byteLength;
  }
  return at;
}
/** Undefined when there are too many, or one does not fit. */
export function decodeCapacities(from: DataView, at: number, count: number): number[] | undefined {
  if (count > UNITS_MAX) return undefined;
  const sizes: number[] = [];
  for (let i = 0; i < count; i++) sizes.push(readU64(from, at + i * CAPACITY.byteLength));
  return sizes.every((size) => Number.isSafeInteger(size)) ? sizes : undefined;
}

export function encodeDataPorts(ports: readonly DataPort[], to: DataView, at: number): number {
  for (const { address, port, socketsMax } of ports) {
    const words = addressWords(address);
    to.setUint32(at + DATA_PORT.ipType, words.length === 1 ? 4 : 6);
    for (let i = 0; i < 4; i++) to.setUint32(at + DATA_PORT.address + 4 * i, words[i] ?? 0);
    to.setUint32(at + DATA_PORT.port, port);
    to.setUint32(at + DATA_PORT.socketsMax, socketsMax);
    at += DATA_PORT.byteLength;
  }
  return at;
}
/** Undefined when an entry makes no sense. */
export function decodeDataPorts(from: DataView, at: number, count: number): DataPort[] | undefined {
  if (count > DATA_PORTS_MAX) return undefined;
  const ports: DataPort[] = [];
  for (let i = 0; i < count; i++, at += DATA_PORT.byteLength) {
    const ipType = from.getUint32(at + DATA_PORT.ipType);
    const port = from.getUint32(at + DATA_PORT.port);
    if ((ipType !== 4 && ipType !== 6) || port === 0 || port > 0xffff) return undefined;
    const words: number[] = [];
    for (let word = 0; word < (ipType === 4 ? 1 : 4); word++)
      words.push(from.getUint32(at + DATA_PORT.address + 4 * word));
    ports.push({ address: wordsAddress(words), port, socketsMax: from.getUint32(at + DATA_PORT.socketsMax) });
  }
  return ports;
}

export function encodeUnits(units: readonly UnitRecord[], to: DataView, at: number): number {
  for (const unit of units) {
    to.setUint32(at + UNIT.unit, unit.unit);
    to.setUint32(at + UNIT.flags, (unit.readOnly ? UnitFlag.READ_ONLY : 0) | (unit.away ? UnitFlag.AWAY : 0));
    writeU64(to, at + UNIT.size, unit.size);
    to.setUint32(at + UNIT.blockSize, unit.blockSize);
    to.setUint32(at + UNIT.preferredBlockSize, unit.preferredBlockSize);
    for (let i = 0; i < 16; i++)
      to.setUint8(at + UNIT.uuid + i, Number.parseInt(unit.uuid.slice(2 * i, 2 * i + 2), 16));
    bytesAt(to, at + UNIT.name, UNIT.byteLength - UNIT.name).set(asciiBytes(unit.name, UNIT.byteLength - UNIT.name));
    at += UNIT.byteLength;
  }
  return at;
}
export function decodeUnits(from: DataView, at: number, count: number): UnitRecord[] | undefined {
  if (count > UNITS_MAX) return undefined;
  const units: UnitRecord[] = [];
  for (let i = 0; i < count; i++, at += UNIT.byteLength) {
    const flags = from.getUint32(at + UNIT.flags);
    const size = readU64(from, at + UNIT.size);
    const blockSize = from.getUint32(at + UNIT.blockSize);
    const name = asciiText(bytesAt(from, at + UNIT.name, UNIT.byteLength - UNIT.name));
    const uuid = [...bytesAt(from, at + UNIT.uuid, 16)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
    if (name === undefined || !Number.isSafeInteger(size) || (blockSize !== 512 && blockSize !== 4096))
      return undefined;
    units.push({
      unit: from.getUint32(at + UNIT.unit),
      name,
      size,
      blockSize,
      preferredBlockSize: from.getUint32(at + UNIT.preferredBlockSize),
      readOnly: (flags & UnitFlag.READ_ONLY) !== 0,
      away: (flags & UnitFlag.AWAY) !== 0,
      uuid,
    });
  }
  return units;
}

function asciiBytes(text: string, length: number): Uint8Array {
  const bytes = new Uint8Array(length);
  for (let i = 0; i < Math.min(text.length, length - 1); i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}
/** The text up to the first zero; undefined without one, or with anything but printable ASCII. */
function asciiText(bytes: Uint8Array): string | undefined {
  const end = bytes.indexOf(0);
  if (end < 0) return undefined;
  const text = String.fromCharCode(...bytes.subarray(0, end));
  return /^[\x21-\x7e]*$/.test(text) ? text : undefined;
}

/** A numeric IP address as one (IPv4) or four (IPv6) 32-bit words. Throws on anything else. */
export function addressWords(address: string): number[] {
  const plain = address.replace(/%.*$/, "");
  const quad = /^(?:::ffff:)?(\d+)\.(\d+)\.(\d+)\.(\d+)$/i.exec(plain);
  if (quad !== null) {
    const bytes = quad.slice(1).map(Number);
    if (bytes.some((byte) => byte > 255)) throw new Error(`"${address}" is no IP address`);
    return [((bytes[0]! << 24) | (bytes[1]! << 16) | (bytes[2]! << 8) | bytes[3]!) >>> 0];
  }
  const halves = plain.split("::");
  const groups = (half: string | undefined): string[] => (half === undefined || half === "" ? [] : half.split(":"));
  const head = groups(halves[0]);
  const tail = groups(halves[1]);
  const missing = 8 - head.length - tail.length;
  const all = halves.length === 2 ? [...head, ...new Array<string>(Math.max(missing, 0)).fill("0"), ...tail] : head;
  if (halves.length > 2 || all.length !== 8 || !all.every((group) => /^[0-9a-f]{1,4}$/i.test(group)))
    throw new Error(`"${address}" is no IP address`);
  const words: number[] = [];
  for (let i = 0; i < 8; i += 2) words.push(Number.parseInt(all[i]!, 16) * 0x1_0000 + Number.parseInt(all[i + 1]!, 16));
  return words;
}

export function wordsAddress(words: readonly number[]): string {
  if (words.length === 1) {
    const word = words[0]!;
    return [word >>> 24, (word >>> 16) & 255, (word >>> 8) & 255, word & 255].join(".");
  }
  const groups = words.flatMap((word) => [word >>> 16, word & 0xffff]).map((group) => group.toString(16));
  // RFC 5952: the longest run of zero groups becomes "::".
  let best = { from: 0, length: 0 };
  for (let from = 0; from < 8; from++) {
    let length = 0;
    while (groups[from + length] === "0") length++;
    if (length > best.length) best = { from, length };
  }
  if (best.length < 2) return groups.join(":");
  return `${groups.slice(0, best.from).join(":")}::${groups.slice(best.from + best.length).join(":")}`;
}
