/**
 * Text keys: `key=value` pairs, each ended by a null byte. RFC 7143 §6.1. What comes from a peer is read with limits;
 * nonsense is a fault of the whole text, and not skipped.
 */
import { NAME_BYTES_MAX } from "./codes.ts";

/** §6.1: a key is at most 63 bytes long. */
export const KEY_BYTES_MAX = 63;
/** The longest value that we know is a list of algorithms or a binary one of 1024 bytes in hexadecimal. */
export const VALUE_BYTES_MAX = 8192;
/** The most pairs that one text may bring. */
export const PAIRS_MAX = 128;

export type TextFault = "not-text" | "no-value" | "bad-key" | "too-long" | "too-many" | "twice";

/** Parses the text of a login or text request. Pairs keep their order. */
export function parseText(bytes: Uint8Array): Map<string, string> | TextFault {
  const pairs = new Map<string, string>();
  for (let at = 0; at < bytes.length; ) {
    let end = at;
    while (end < bytes.length && bytes[end] !== 0) end++;
    // Stray null bytes are padding, as many initiators send it.
    if (end === at) {
      at++;
      continue;
    }
    const pair = readPrintable(bytes, at, end);
    at = end + 1;
    if (pair === undefined) return "not-text";
    const equals = pair.indexOf("=");
    if (equals < 0) return "no-value";
    const key = pair.slice(0, equals);
    const value = pair.slice(equals + 1);
    if (key.length > KEY_BYTES_MAX || value.length > VALUE_BYTES_MAX) return "too-long";
    if (!/^[A-Z][A-Za-z0-9.\-+@_#]*$/.test(key)) return "bad-key";
    if (pairs.has(key)) return "twice";
    if (pairs.size === PAIRS_MAX) return "too-many";
    pairs.set(key, value);
  }
  return pairs;
}

export function encodeText(pairs: Iterable<readonly [key: string, value: string]>): Uint8Array {
  let text = "";
  for (const [key, value] of pairs) text += `${key}=${value}\0`;
  const bytes = new Uint8Array(text.length);
  for (let at = 0; at < text.length; at++) bytes[at] = text.charCodeAt(at) & 0xff;
  return bytes;
}

/** §6.1: a number in decimal, or in hexadecimal after `0x`; undefined when it is none. */
export function parseNumber(value: string): number | undefined {
  if (/^(0|[1-9][0-9]{0,9})$/.test(value)) return Number.parseInt(value, 10);
  return /^0[xX][0-9a-fA-F]{1,8}$/.test(value) ? Number.parseInt(value.slice(2), 16) : undefined;
}

const BASE64 = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/** §6.1: bytes, in hexadecimal after `0x` or in base 64 after `0b`; undefined when they are none, or more than `max`. */
export function parseBinary(value: string, max: number): Uint8Array | undefined {
  if (/^0[xX][0-9a-fA-F]+$/.test(value)) {
    // An odd count of digits has lost a leading zero.
    const digits = value.length % 2 === 0 ? value.slice(2) : `0${value.slice(2)}`;
    const bytes = new Uint8Array(digits.length / 2);
    if (bytes.length > max) return undefined;
    for (let at = 0; at < bytes.length; at++) bytes[at] = Number.parseInt(digits.slice(2 * at, 2 * at + 2), 16);
    return bytes;
  }
  if (!/^0[bB][A-Za-z0-9+/]+={0,2}$/.test(value)) return undefined;
  const digits = value.slice(2).replace(/=+$/, "");
  const bytes = new Uint8Array(Math.floor((digits.length * 6) / 8));
  if (digits.length % 4 === 1 || bytes.length > max) return undefined;
  let bits = 0;
  let held = 0;
  let at = 0;
  for (const digit of digits) {
    bits = ((bits << 6) | BASE64.indexOf(digit)) & 0xffff;
    held += 6;
    if (held >= 8) {
      held -= 8;
      bytes[at++] = (bits >> held) & 0xff;
    }
  }
  return bytes;
}

export function formatBinary(bytes: Uint8Array): string {
  let text = "0x";
  for (const byte of bytes) text += byte.toString(16).padStart(2, "0");
  return text;
}

/** iSCSI names are compared after normalisation, which for ASCII is lower case: §4.2.7.2. Undefined: no such name. */
export function normalizeName(name: string): string | undefined {
  const lower = name.toLowerCase();
  if (lower.length > NAME_BYTES_MAX) return undefined;
  const isName = /^(iqn\.\d{4}-\d{2}\.[a-z0-9.\-:]+|eui\.[0-9a-f]{16}|naa\.([0-9a-f]{16}|[0-9a-f]{32}))$/;
  return isName.test(lower) ? lower : undefined;
}

/** Keys and values of the standard are ASCII; what is not is kept byte by byte, for the user names of CHAP. */
function readPrintable(bytes: Uint8Array, from: number, to: number): string | undefined {
  let text = "";
  for (let at = from; at < to; at++) {
    const byte = bytes[at]!;
    if (byte < 0x20 || byte === 0x7f) return undefined;
    text += String.fromCharCode(byte);
  }
  return text;
}
