/**
 * NBD replies: simple, structured and extended headers, and what the chunks of the last two carry. NBD proto.md
 * "Simple reply message", "Structured reply chunk message", "Extended reply chunk message", "Structured reply types".
 * Big-endian; nothing here allocates.
 */
import { layout, readU64, writeU64 } from "#base/layout";
import { EXTENDED_REPLY_MAGIC, isErrorChunk, ReplyType, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC } from "./codes.ts";
import type { Request } from "./request.ts";

export type ReplyStyle = "simple" | "structured" | "extended";

export const SIMPLE_REPLY = layout({ magic: 4, error: 4, cookieHi: 4, cookieLo: 4 });
export const STRUCTURED_REPLY = layout({ magic: 4, flags: 2, type: 2, cookieHi: 4, cookieLo: 4, length: 4 });
export const EXTENDED_REPLY = layout({
  magic: 4,
  flags: 2,
  type: 2,
  cookieHi: 4,
  cookieLo: 4,
  offsetHi: 4,
  offsetLo: 4,
  length: 8,
});

/** What NBD_REPLY_TYPE_OFFSET_DATA begins with; the data follows. */
export const OFFSET_DATA = layout({ offset: 8 });
export const OFFSET_HOLE = layout({ offset: 8, size: 4 });
/** What NBD_REPLY_TYPE_BLOCK_STATUS begins with; DESCRIPTORs follow. */
export const BLOCK_STATUS = layout({ contextId: 4 });
export const DESCRIPTOR = layout({ length: 4, flags: 4 });
/** What NBD_REPLY_TYPE_BLOCK_STATUS_EXT begins with; DESCRIPTOR_EXTs follow. */
export const BLOCK_STATUS_EXT = layout({ contextId: 4, count: 4 });
export const DESCRIPTOR_EXT = layout({ length: 8, flagsHi: 4, flagsLo: 4 });
/** What every error chunk begins with; the message follows, and for ERROR_OFFSET 64 bits of offset after it. */
export const ERROR = layout({ error: 4, messageLength: 2 });
export const ERROR_OFFSET_TAIL = layout({ offset: 8 });

/** Bytes of the header that begins with `magic`, or 0 if no reply does. */
export function replyBytes(magic: number): number {
  if (magic === SIMPLE_REPLY_MAGIC) return SIMPLE_REPLY.byteLength;
  if (magic === STRUCTURED_REPLY_MAGIC) return STRUCTURED_REPLY.byteLength;
  return magic === EXTENDED_REPLY_MAGIC ? EXTENDED_REPLY.byteLength : 0;
}
/** Bytes of the header of a chunk. */
export const chunkBytes = (extended: boolean): number =>
  extended ? EXTENDED_REPLY.byteLength : STRUCTURED_REPLY.byteLength;

/** A decoded reply header, for the host's side; used again and again. */
export class Reply {
  style: ReplyStyle = "simple";
  /** Of a simple reply: an `NbdError`. */
  error = 0;
  /** Of a chunk: bits of `ReplyFlag`. */
  flags = 0;
  /** Of a chunk: a `ReplyType`. */
  type = 0;
  cookieHi = 0;
  cookieLo = 0;
  /** Of an extended chunk: the request's offset. */
  offset = 0;
  /** Of a chunk: bytes of payload. A simple reply does not tell. */
  length = 0;
}

/** Decodes the header at `at`, of which `replyBytes` are there. */
export function decodeReply(slot: Reply, from: DataView, at: number): "bad-magic" | undefined {
  const magic = from.getUint32(at);
  // A simple reply has its error where a chunk has flags and type; the cookie stands in the same place in all three.
  slot.cookieHi = from.getUint32(at + SIMPLE_REPLY.cookieHi);
  slot.cookieLo = from.getUint32(at + SIMPLE_REPLY.cookieLo);
  if (magic === SIMPLE_REPLY_MAGIC) {
    slot.style = "simple";
    slot.error = from.getUint32(at + SIMPLE_REPLY.error);
    slot.flags = slot.type = slot.offset = slot.length = 0;
    return undefined;
  }
  slot.error = 0;
  slot.flags = from.getUint16(at + STRUCTURED_REPLY.flags);
  slot.type = from.getUint16(at + STRUCTURED_REPLY.type);
  if (magic === STRUCTURED_REPLY_MAGIC) {
    slot.style = "structured";
    slot.offset = 0;
    slot.length = from.getUint32(at + STRUCTURED_REPLY.length);
    return undefined;
  }
  if (magic !== EXTENDED_REPLY_MAGIC) return "bad-magic";
  slot.style = "extended";
  slot.offset = readU64(from, at + EXTENDED_REPLY.offsetHi);
  slot.length = readU64(from, at + EXTENDED_REPLY.length);
  return undefined;
}

/** Encodes a simple reply at `at`; returns where its data, or the next message, goes. */
export function encodeSimpleReply(request: Request, error: number, to: DataView, at: number): number {
  to.setUint32(at + SIMPLE_REPLY.magic, SIMPLE_REPLY_MAGIC);
  to.setUint32(at + SIMPLE_REPLY.error, error);
  to.setUint32(at + SIMPLE_REPLY.cookieHi, request.cookieHi);
  to.setUint32(at + SIMPLE_REPLY.cookieLo, request.cookieLo);
  return at + SIMPLE_REPLY.byteLength;
}

/** Encodes the header of a chunk with `length` bytes of payload at `at`; returns where the payload goes. */
export function encodeChunk(
  request: Request,
  flags: number,
  type: number,
  length: number,
  to: DataView,
  at: number,
  extended: boolean,
): number {
  to.setUint32(at + STRUCTURED_REPLY.magic, extended ? EXTENDED_REPLY_MAGIC : STRUCTURED_REPLY_MAGIC);
  to.setUint16(at + STRUCTURED_REPLY.flags, flags);
  to.setUint16(at + STRUCTURED_REPLY.type, type);
  to.setUint32(at + STRUCTURED_REPLY.cookieHi, request.cookieHi);
  to.setUint32(at + STRUCTURED_REPLY.cookieLo, request.cookieLo);
  if (!extended) {
    to.setUint32(at + STRUCTURED_REPLY.length, length);
    return at + STRUCTURED_REPLY.byteLength;
  }
  to.setUint32(at + EXTENDED_REPLY.offsetHi, request.offsetHi);
  to.setUint32(at + EXTENDED_REPLY.offsetLo, request.offsetLo);
  writeU64(to, at + EXTENDED_REPLY.length, length);
  return at + EXTENDED_REPLY.byteLength;
}

/** Encodes a descriptor of block status at `at`; a compact one is at most 2^32 - 1 bytes long. */
export function encodeDescriptor(length: number, flags: number, to: DataView, at: number, extended: boolean): number {
  if (!extended) {
    to.setUint32(at + DESCRIPTOR.length, length);
    to.setUint32(at + DESCRIPTOR.flags, flags);
    return at + DESCRIPTOR.byteLength;
  }
  writeU64(to, at + DESCRIPTOR_EXT.length, length);
  to.setUint32(at + DESCRIPTOR_EXT.flagsHi, 0);
  to.setUint32(at + DESCRIPTOR_EXT.flagsLo, flags);
  return at + DESCRIPTOR_EXT.byteLength;
}

/** Where the fields of an error chunk's payload are, once it has been found whole. */
export class ErrorChunk {
  error = 0;
  messageAt = 0;
  messageLength = 0;
  /** Of ERROR_OFFSET: bytes from the start of the export. Otherwise -1. */
  offset = -1;
}

/**
 * Decodes the payload of an error chunk of `type`: `length` bytes at `at`. Unknown error types have the first fields in
 * common ("All error chunk types have bit 15 set, and begin with the same").
 */
export function decodeError(
  slot: ErrorChunk,
  type: number,
  from: DataView,
  at: number,
  length: number,
): "bad-chunk" | undefined {
  if (!isErrorChunk(type) || length < ERROR.byteLength) return "bad-chunk";
  slot.error = from.getUint32(at + ERROR.error);
  slot.messageLength = from.getUint16(at + ERROR.messageLength);
  slot.messageAt = at + ERROR.byteLength;
  slot.offset = -1;
  const rest = length - ERROR.byteLength - slot.messageLength;
  if (rest < 0) return "bad-chunk";
  if (type === ReplyType.ERROR_OFFSET) {
    if (rest < ERROR_OFFSET_TAIL.byteLength) return "bad-chunk";
    slot.offset = readU64(from, slot.messageAt + slot.messageLength);
  }
  // "error (MUST be nonzero)": a server that says it failed is believed over the code it says it with.
  return undefined;
}
