/**
 * The handshake's messages: greeting, options and their answers. NBD proto.md "Handshake", "Option types", "Option
 * reply types". They happen once per connection, so that strings and arrays are made freely here; every length is
 * checked against what is really there, and against the limits below.
 */
import { layout, readU64, writeU64 } from "#base/layout";
import { IHAVEOPT, Info, type Magic64, NBDMAGIC, OPTION_REPLY_MAGIC, STRING_BYTES_MAX } from "./codes.ts";

/** From the server, first of all. */
export const GREETING = layout({ magicHi: 4, magicLo: 4, optionHi: 4, optionLo: 4, flags: 2 });
/** From the client, at once after the greeting. */
export const CLIENT_FLAGS = layout({ flags: 4 });
/** Before an option's data, from the client. */
export const OPTION = layout({ magicHi: 4, magicLo: 4, option: 4, length: 4 });
/** Before the data of an answer to an option, from the server. */
export const OPTION_REPLY = layout({ magicHi: 4, magicLo: 4, option: 4, type: 4, length: 4 });
/** The answer to NBD_OPT_EXPORT_NAME; 124 zeroes may follow. */
export const EXPORT_NAME_REPLY = layout({ size: 8, flags: 2 });
/** Payloads of NBD_REP_INFO. */
export const INFO_EXPORT = layout({ info: 2, size: 8, flags: 2 });
export const INFO_STRING = layout({ info: 2 });
export const INFO_BLOCK_SIZE = layout({ info: 2, minimum: 4, preferred: 4, maximumPayload: 4 });
/** What stands before a string whose length is not told otherwise. */
const LENGTH = layout({ length: 4 });
const COUNT32 = layout({ count: 4 });
const COUNT16 = layout({ count: 2 });
const INFO_REQUEST = layout({ info: 2 });
const CONTEXT_ID = layout({ id: 4 });

/** No option of the document needs more: two strings, and a few thousand short queries. */
export const OPTION_BYTES_MAX = 0x1_0000;
/** More queries in one option than anyone needs; more are answered with NBD_REP_ERR_TOO_BIG. */
export const QUERIES_MAX = 1024;

/** "invalid": lengths that contradict each other, text that is none. "too-big": more than a limit allows. */
export type OptionFault = "invalid" | "too-big";
export const isOptionFault = (value: unknown): value is OptionFault => typeof value === "string";

const encoder = new TextEncoder();
const decoder = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });
const viewOf = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
export const isMagic = (from: DataView, at: number, magic: Magic64): boolean =>
  from.getUint32(at) === magic.hi && from.getUint32(at + 4) === magic.lo;

/** Text of a protocol string: valid UTF-8 without NUL, at most 4096 bytes. */
export function readText(bytes: Uint8Array): { readonly text: string } | OptionFault {
  if (bytes.length > STRING_BYTES_MAX) return "too-big";
  if (bytes.includes(0)) return "invalid";
  try {
    return { text: decoder.decode(bytes) };
  } catch {
    return "invalid";
  }
}

const lossyDecoder = new TextDecoder("utf-8");
/** What the other side says to a person, made fit for a log: whatever the bytes are, one line of at most 4096. */
export function readMessage(bytes: Uint8Array): string {
  const text = lossyDecoder.decode(bytes.subarray(0, STRING_BYTES_MAX));
  return text.replace(/\p{Cc}+/gu, " ").trim();
}

/** Whether an export can have this name: as a protocol string it is not too long and has no NUL. */
export const isExportName = (name: string): boolean =>
  !name.includes("\0") && encoder.encode(name).length <= STRING_BYTES_MAX;

export function encodeGreeting(flags: number): Uint8Array {
  const bytes = new Uint8Array(GREETING.byteLength);
  const view = viewOf(bytes);
  view.setUint32(GREETING.magicHi, NBDMAGIC.hi);
  view.setUint32(GREETING.magicLo, NBDMAGIC.lo);
  view.setUint32(GREETING.optionHi, IHAVEOPT.hi);
  view.setUint32(GREETING.optionLo, IHAVEOPT.lo);
  view.setUint16(GREETING.flags, flags);
  return bytes;
}

export function encodeClientFlags(flags: number): Uint8Array {
  const bytes = new Uint8Array(CLIENT_FLAGS.byteLength);
  viewOf(bytes).setUint32(CLIENT_FLAGS.flags, flags);
  return bytes;
}

/** An option with its data. */
export function encodeOption(option: number, data: Uint8Array = new Uint8Array(0)): Uint8Array {
  const bytes = new Uint8Array(OPTION.byteLength + data.length);
  const view = viewOf(bytes);
  view.setUint32(OPTION.magicHi, IHAVEOPT.hi);
  view.setUint32(OPTION.magicLo, IHAVEOPT.lo);
  view.setUint32(OPTION.option, option);
  view.setUint32(OPTION.length, data.length);
  bytes.set(data, OPTION.byteLength);
  return bytes;
}

/** An answer to an option with its data. */
export function encodeOptionReply(option: number, type: number, data: Uint8Array = new Uint8Array(0)): Uint8Array {
  const bytes = new Uint8Array(OPTION_REPLY.byteLength + data.length);
  const view = viewOf(bytes);
  view.setUint32(OPTION_REPLY.magicHi, OPTION_REPLY_MAGIC.hi);
  view.setUint32(OPTION_REPLY.magicLo, OPTION_REPLY_MAGIC.lo);
  view.setUint32(OPTION_REPLY.option, option);
  view.setUint32(OPTION_REPLY.type, type);
  view.setUint32(OPTION_REPLY.length, data.length);
  bytes.set(data, OPTION_REPLY.byteLength);
  return bytes;
}

/** A protocol string from text, cut to the 4096 bytes that any string may have, at a character's edge. */
export function encodeText(text: string): Uint8Array {
  const bytes = encoder.encode(text);
  if (bytes.length <= STRING_BYTES_MAX) return bytes;
  let end = STRING_BYTES_MAX;
  while ((bytes[end]! & 0xc0) === 0x80) end--;
  return bytes.subarray(0, end);
}

/* ------------------------------------------------------- NBD_OPT_INFO, NBD_OPT_GO */

export interface InfoRequest {
  readonly name: string;
  /** `Info` codes asked for, also ones we do not know. */
  readonly infos: readonly number[];
}

export function encodeInfoRequest(name: string, infos: readonly number[]): Uint8Array {
  const text = encodeText(name);
  const countAt = LENGTH.byteLength + text.length;
  const bytes = new Uint8Array(countAt + COUNT16.byteLength + infos.length * INFO_REQUEST.byteLength);
  const view = viewOf(bytes);
  view.setUint32(LENGTH.length, text.length);
  bytes.set(text, LENGTH.byteLength);
  view.setUint16(countAt, infos.length);
  infos.forEach((info, index) => {
    view.setUint16(countAt + COUNT16.byteLength + index * INFO_REQUEST.byteLength, info);
  });
  return bytes;
}

/** The data of NBD_OPT_INFO and NBD_OPT_GO; it must be exactly as long as it says. */
export function decodeInfoRequest(data: Uint8Array): InfoRequest | OptionFault {
  const view = viewOf(data);
  if (data.length < LENGTH.byteLength + COUNT16.byteLength) return "invalid";
  const nameLength = view.getUint32(LENGTH.length);
  const countAt = LENGTH.byteLength + nameLength;
  if (countAt + COUNT16.byteLength > data.length) return "invalid";
  const count = view.getUint16(countAt);
  if (data.length !== countAt + COUNT16.byteLength + count * INFO_REQUEST.byteLength) return "invalid";
  const name = readText(data.subarray(LENGTH.byteLength, countAt));
  if (isOptionFault(name)) return name;
  const infos: number[] = [];
  for (let index = 0; index < count; index++)
    infos.push(view.getUint16(countAt + COUNT16.byteLength + index * INFO_REQUEST.byteLength));
  return { name: name.text, infos };
}

export function encodeInfoExport(size: number, flags: number): Uint8Array {
  const bytes = new Uint8Array(INFO_EXPORT.byteLength);
  const view = viewOf(bytes);
  view.setUint16(INFO_EXPORT.info, Info.EXPORT);
  writeU64(view, INFO_EXPORT.size, size);
  view.setUint16(INFO_EXPORT.flags, flags);
  return bytes;
}

/** NBD_INFO_NAME and NBD_INFO_DESCRIPTION. */
export function encodeInfoString(info: number, text: string): Uint8Array {
  const string = encodeText(text);
  const bytes = new Uint8Array(INFO_STRING.byteLength + string.length);
  viewOf(bytes).setUint16(INFO_STRING.info, info);
  bytes.set(string, INFO_STRING.byteLength);
  return bytes;
}

/** All in bytes; see NBD proto.md "Size constraints". */
export interface BlockSizes {
  readonly minimum: number;
  readonly preferred: number;
  readonly maximumPayload: number;
}

export function encodeInfoBlockSize(sizes: BlockSizes): Uint8Array {
  const bytes = new Uint8Array(INFO_BLOCK_SIZE.byteLength);
  const view = viewOf(bytes);
  view.setUint16(INFO_BLOCK_SIZE.info, Info.BLOCK_SIZE);
  view.setUint32(INFO_BLOCK_SIZE.minimum, sizes.minimum);
  view.setUint32(INFO_BLOCK_SIZE.preferred, sizes.preferred);
  view.setUint32(INFO_BLOCK_SIZE.maximumPayload, sizes.maximumPayload);
  return bytes;
}

/** One NBD_REP_INFO, as a host reads it. */
export type InfoReply =
  | { readonly info: "export"; readonly size: number; readonly flags: number }
  | { readonly info: "name" | "description"; readonly text: string }
  | ({ readonly info: "block-size" } & BlockSizes)
  | { readonly info: "unknown"; readonly code: number };

export function decodeInfoReply(data: Uint8Array): InfoReply | OptionFault {
  const view = viewOf(data);
  if (data.length < INFO_STRING.byteLength) return "invalid";
  const code = view.getUint16(INFO_STRING.info);
  if (code === Info.EXPORT) {
    if (data.length !== INFO_EXPORT.byteLength) return "invalid";
    return { info: "export", size: readU64(view, INFO_EXPORT.size), flags: view.getUint16(INFO_EXPORT.flags) };
  }
  if (code === Info.BLOCK_SIZE) {
    if (data.length !== INFO_BLOCK_SIZE.byteLength) return "invalid";
    return {
      info: "block-size",
      minimum: view.getUint32(INFO_BLOCK_SIZE.minimum),
      preferred: view.getUint32(INFO_BLOCK_SIZE.preferred),
      maximumPayload: view.getUint32(INFO_BLOCK_SIZE.maximumPayload),
    };
  }
  if (code !== Info.NAME && code !== Info.DESCRIPTION) return { info: "unknown", code };
  const text = readText(data.subarray(INFO_STRING.byteLength));
  if (isOptionFault(text)) return text;
  return { info: code === Info.NAME ? "name" : "description", text: text.text };
}

/* ------------------------------------------------------------------- NBD_REP_SERVER */

export interface ServerReply {
  readonly name: string;
  readonly description: string;
}

export function encodeServerReply(server: ServerReply): Uint8Array {
  const name = encodeText(server.name);
  const description = encodeText(server.description);
  const bytes = new Uint8Array(LENGTH.byteLength + name.length + description.length);
  viewOf(bytes).setUint32(LENGTH.length, name.length);
  bytes.set(name, LENGTH.byteLength);
  bytes.set(description, LENGTH.byteLength + name.length);
  return bytes;
}

export function decodeServerReply(data: Uint8Array): ServerReply | OptionFault {
  if (data.length < LENGTH.byteLength) return "invalid";
  const length = viewOf(data).getUint32(LENGTH.length);
  if (length > data.length - LENGTH.byteLength) return "invalid";
  const name = readText(data.subarray(LENGTH.byteLength, LENGTH.byteLength + length));
  const description = readText(data.subarray(LENGTH.byteLength + length));
  if (isOptionFault(name)) return name;
  return { name: name.text, description: isOptionFault(description) ? "" : description.text };
}

/* -------------------------------- NBD_OPT_LIST_META_CONTEXT, NBD_OPT_SET_META_CONTEXT */

export interface MetaContextRequest {
  readonly name: string;
  readonly queries: readonly string[];
}

export function encodeMetaContextRequest(request: MetaContextRequest): Uint8Array {
  const strings = [request.name, ...request.queries].map(encodeText);
  const total = strings.reduce((sum, string) => sum + LENGTH.byteLength + string.length, COUNT32.byteLength);
  const bytes = new Uint8Array(total);
  const view = viewOf(bytes);
  let at = 0;
  strings.forEach((string, index) => {
    view.setUint32(at, string.length);
    bytes.set(string, at + LENGTH.byteLength);
    at += LENGTH.byteLength + string.length;
    if (index === 0) {
      view.setUint32(at, request.queries.length);
      at += COUNT32.byteLength;
    }
  });
  return bytes;
}

export function decodeMetaContextRequest(data: Uint8Array): MetaContextRequest | OptionFault {
  const view = viewOf(data);
  let at = 0;
  const nextString = (): { readonly text: string } | OptionFault => {
    if (data.length - at < LENGTH.byteLength) return "invalid";
    const length = view.getUint32(at);
    at += LENGTH.byteLength;
    if (length > data.length - at) return "invalid";
    at += length;
    return readText(data.subarray(at - length, at));
  };
  const name = nextString();
  if (isOptionFault(name)) return name;
  if (data.length - at < COUNT32.byteLength) return "invalid";
  const count = view.getUint32(at);
  at += COUNT32.byteLength;
  // Each query takes at least its length: a count that cannot be true is a lie, and not merely too much.
  if (count * LENGTH.byteLength > data.length - at) return "invalid";
  if (count > QUERIES_MAX) return "too-big";
  const queries: string[] = [];
  for (let index = 0; index < count; index++) {
    const query = nextString();
    if (isOptionFault(query)) return query;
    queries.push(query.text);
  }
  return at === data.length ? { name: name.text, queries } : "invalid";
}

export interface MetaContext {
  readonly id: number;
  readonly name: string;
}

export function encodeMetaContext(context: MetaContext): Uint8Array {
  const name = encodeText(context.name);
  const bytes = new Uint8Array(CONTEXT_ID.byteLength + name.length);
  viewOf(bytes).setUint32(CONTEXT_ID.id, context.id);
  bytes.set(name, CONTEXT_ID.byteLength);
  return bytes;
}

export function decodeMetaContext(data: Uint8Array): MetaContext | OptionFault {
  if (data.length <= CONTEXT_ID.byteLength) return "invalid";
  const name = readText(data.subarray(CONTEXT_ID.byteLength));
  return isOptionFault(name) ? name : { id: viewOf(data).getUint32(CONTEXT_ID.id), name: name.text };
}
