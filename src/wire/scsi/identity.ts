/**
 * How a logical unit names itself. Everything is made from the volume's UUID, so that a volume has one name on every
 * path, server and protocol, for ever. SPC-4 §7.8.6 (designators), §7.6.4 (transport identifiers).
 */
import { layout } from "#base/layout";

/**
 * An IEEE company id with the "administratively assigned" pattern (second digit 2), which nobody can own. NAA 6 wants a
 * company id, and names made of a UUID have none.
 */
const COMPANY_ID = "02a51a";

/** The 120 random bits of a UUID: 30 hex digits, without its version and variant digits. */
const randomDigits = (uuid: string): string => uuid.slice(0, 12) + uuid.slice(13, 16) + uuid.slice(17);

/** 32 hex digits: NAA 6 (IEEE Registered Extended), SPC-4 §7.8.6.6.5. What `/dev/disk/by-id/wwn-0x…` shows. */
export const naaOf = (uuid: string): string => `6${COMPANY_ID}${randomDigits(uuid).slice(5)}`;

/** 32 hex digits: EUI-64 based 16-byte designator, SPC-4 §7.8.6.5.4: identifier extension, company id, extension. */
export const euiOf = (uuid: string): string => {
  const digits = randomDigits(uuid);
  return digits.slice(0, 16) + COMPANY_ID + digits.slice(16, 26);
};

export function bytesOfHex(hex: string): Uint8Array {
  const bytes = new Uint8Array(hex.length / 2);
  for (let index = 0; index < bytes.length; index++)
    bytes[index] = Number.parseInt(hex.slice(2 * index, 2 * index + 2), 16);
  return bytes;
}

export const hexOfBytes = (bytes: Uint8Array): string => {
  let hex = "";
  for (const byte of bytes) hex += byte.toString(16).padStart(2, "0");
  return hex;
};

export const asciiBytes = (text: string): Uint8Array => {
  const bytes = new Uint8Array(text.length);
  for (let index = 0; index < text.length; index++) bytes[index] = text.charCodeAt(index) & 0xff;
  return bytes;
};

/** SPC-4 §7.6.4.6: the identifier of an iSCSI initiator port, `format 01b`: name, separator, ISID. */
export const TRANSPORT_ID = layout({ protocol: 1, reserved: 1, length: 2 });
const PROTOCOL_ISCSI = 0x05;
const FORMAT_PORT = 0x40;

/** `initiatorPort` is `<iqn>,i,0x<ISID as 12 hex digits>`: null-terminated, padded to a multiple of 4, at least 24 bytes in all. */
export function encodeTransportId(initiatorPort: string): Uint8Array {
  const nameLength = Math.max((initiatorPort.length + 1 + 3) & ~3, 20);
  const bytes = new Uint8Array(TRANSPORT_ID.byteLength + nameLength);
  bytes[TRANSPORT_ID.protocol] = PROTOCOL_ISCSI | (initiatorPort.includes(",i,0x") ? FORMAT_PORT : 0);
  new DataView(bytes.buffer).setUint16(TRANSPORT_ID.length, nameLength);
  bytes.set(asciiBytes(initiatorPort), TRANSPORT_ID.byteLength);
  return bytes;
}

/**
 * Reads a transport identifier: the initiator port's name (or the bare initiator name, which stands for all its ports),
 * and how many bytes it took. Undefined when it is not a well-formed iSCSI one.
 */
export function decodeTransportId(
  from: Uint8Array,
): { readonly name: string; readonly byteLength: number } | undefined {
  if (from.length < 24) return undefined;
  const first = from[TRANSPORT_ID.protocol]!;
  const format = first & 0xc0;
  if ((first & 0x0f) !== PROTOCOL_ISCSI || (format !== 0 && format !== FORMAT_PORT)) return undefined;
  const length = (from[TRANSPORT_ID.length]! << 8) | from[TRANSPORT_ID.length + 1]!;
  if (length < 20 || length % 4 !== 0 || TRANSPORT_ID.byteLength + length > from.length) return undefined;
  let name = "";
  for (let at: number = TRANSPORT_ID.byteLength; at < TRANSPORT_ID.byteLength + length && from[at] !== 0; at++)
    name += String.fromCharCode(from[at]!);
  if (name === "" || (format === FORMAT_PORT) !== name.includes(",i,0x")) return undefined;
  return { name: name.toLowerCase(), byteLength: TRANSPORT_ID.byteLength + length };
}
