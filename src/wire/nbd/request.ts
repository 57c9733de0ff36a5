/** NBD requests, compact and extended: NBD proto.md "Request message". Big-endian; nothing here allocates. */
import { layout, readU64, writeU64 } from "#base/layout";
import { EXTENDED_REQUEST_MAGIC, REQUEST_MAGIC } from "./codes.ts";

/** NBD proto.md "Request message": the compact form. */
export const REQUEST = layout({
  magic: 4,
  flags: 2,
  type: 2,
  cookieHi: 4,
  cookieLo: 4,
  offsetHi: 4,
  offsetLo: 4,
  length: 4,
});
/** NBD proto.md "Request message": the form agreed on with NBD_OPT_EXTENDED_HEADERS. */
export const EXTENDED_REQUEST = layout({
  magic: 4,
  flags: 2,
  type: 2,
  cookieHi: 4,
  cookieLo: 4,
  offsetHi: 4,
  offsetLo: 4,
  length: 8,
});
/** NBD proto.md "NBD_CMD_BLOCK_STATUS": what the payload begins with if there is one; context ids follow. */
export const BLOCK_STATUS_PAYLOAD = layout({ length: 8 });
export const CONTEXT_ID_BYTES = 4;

/** A request's place in a queue: made with the queue, and used again for one request after another. */
export class Request {
  /** Bits of `CmdFlag`. */
  flags = 0;
  /** A `Cmd`. */
  type = 0;
  /** Opaque to a server, which echoes the two halves and never joins them. */
  cookieHi = 0;
  cookieLo = 0;
  /** The offset as it stood in the header: an extended reply echoes it, and it may be too big for a number. */
  offsetHi = 0;
  offsetLo = 0;
  /** Bytes. From 2^53 on it is not exact, but then it is beyond the end of any device. */
  offset = 0;
  /** Bytes: of payload or of effect. From 2^53 on not exact. */
  length = 0;

  /** For who makes requests: sets all three forms of the offset. It is below 2^53. */
  setOffset(offset: number): void {
    this.offset = offset;
    this.offsetHi = Math.floor(offset / 0x1_0000_0000);
    this.offsetLo = offset >>> 0;
  }
}

/** How the two sides agreed to write requests. */
export const requestBytes = (extended: boolean): number =>
  extended ? EXTENDED_REQUEST.byteLength : REQUEST.byteLength;

/** Decodes the header at `at` into `slot`; the caller has seen to it that all of it is there. */
export function decodeRequest(slot: Request, from: DataView, at: number, extended: boolean): "bad-magic" | undefined {
  if (from.getUint32(at + REQUEST.magic) !== (extended ? EXTENDED_REQUEST_MAGIC : REQUEST_MAGIC)) return "bad-magic";
  // The two forms differ in nothing but the magic and the width of the length.
  slot.flags = from.getUint16(at + REQUEST.flags);
  slot.type = from.getUint16(at + REQUEST.type);
  slot.cookieHi = from.getUint32(at + REQUEST.cookieHi);
  slot.cookieLo = from.getUint32(at + REQUEST.cookieLo);
  slot.offsetHi = from.getUint32(at + REQUEST.offsetHi);
  slot.offsetLo = from.getUint32(at + REQUEST.offsetLo);
  slot.offset = slot.offsetHi * 0x1_0000_0000 + slot.offsetLo;
  slot.length = extended ? readU64(from, at + EXTENDED_REQUEST.length) : from.getUint32(at + REQUEST.length);
  return undefined;
}

/** Encodes `slot` at `at`, and returns where the next message goes. */
export function encodeRequest(slot: Request, to: DataView, at: number, extended: boolean): number {
  to.setUint32(at + REQUEST.magic, extended ? EXTENDED_REQUEST_MAGIC : REQUEST_MAGIC);
  to.setUint16(at + REQUEST.flags, slot.flags);
  to.setUint16(at + REQUEST.type, slot.type);
  to.setUint32(at + REQUEST.cookieHi, slot.cookieHi);
  to.setUint32(at + REQUEST.cookieLo, slot.cookieLo);
  to.setUint32(at + REQUEST.offsetHi, slot.offsetHi);
  to.setUint32(at + REQUEST.offsetLo, slot.offsetLo);
  if (extended) writeU64(to, at + EXTENDED_REQUEST.length, slot.length);
  else to.setUint32(at + REQUEST.length, slot.length);
  return at + requestBytes(extended);
}
