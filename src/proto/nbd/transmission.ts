/**
 * What a server makes of a request's header before it touches a device: how much payload follows it, and whether it
 * can be served at all. NBD proto.md "Command flags", "Request types", "Error values", "Size constraints". Pure, and
 * nothing is allocated per request: every objection is a constant.
 */
import { Cmd, CmdFlag, NbdError } from "#wire/nbd/codes";
import type { Request } from "#wire/nbd/request";
import type { Agreement } from "./negotiation.ts";

/** Why a request is answered with an error at once; the text is for the person at the client. */
export interface Objection {
  readonly error: number;
  readonly text: string;
}

const UNKNOWN_COMMAND: Objection = { error: NbdError.EINVAL, text: "unknown command" };
const UNKNOWN_FLAGS: Objection = { error: NbdError.EINVAL, text: "this command does not take these flags" };
const NO_PAYLOAD: Objection = { error: NbdError.EINVAL, text: "this command takes no payload" };
const PAYLOAD_MISSING: Objection = { error: NbdError.EINVAL, text: "a write needs NBD_CMD_FLAG_PAYLOAD_LEN" };
const READ_ONLY: Objection = { error: NbdError.EPERM, text: "the export is read-only" };
const EMPTY: Objection = { error: NbdError.EINVAL, text: "the length is 0" };
const MISALIGNED: Objection = { error: NbdError.EINVAL, text: "not a multiple of the export's block size" };
const BEYOND_END: Objection = { error: NbdError.EINVAL, text: "beyond the end of the export" };
const BEYOND_END_WRITE: Objection = { error: NbdError.ENOSPC, text: "beyond the end of the export" };
const TOO_LONG: Objection = { error: NbdError.EINVAL, text: "longer than the largest payload" };
const TOO_LONG_READ: Objection = { error: NbdError.EOVERFLOW, text: "longer than the largest payload" };
const NOT_NULL: Objection = { error: NbdError.EINVAL, text: "offset and length of this command must be 0" };
const NO_CONTEXTS: Objection = { error: NbdError.EINVAL, text: "no metadata context was selected" };
export const BAD_CONTEXTS: Objection = { error: NbdError.EINVAL, text: "unknown or repeated metadata contexts" };
export const SHUTTING_DOWN: Objection = { error: NbdError.ESHUTDOWN, text: "the server is shutting down" };

/**
 * Bytes that follow the header, or -1 if that is more than a client of extended headers may send: "A server SHOULD
 * initiate hard disconnect". With compact headers a write's payload is as long as it says, up to 4 GiB.
 */
export function payloadBytes(request: Request, agreement: Agreement): number {
  if (agreement.style !== "extended") return request.type === Cmd.WRITE ? request.length : 0;
  if ((request.flags & CmdFlag.PAYLOAD_LEN) === 0) return 0;
  return request.length > agreement.maximumPayload ? -1 : request.length;
}

/** Flags that a command may have. FUA is allowed everywhere: "the server MUST accept all commands with this bit set". */
function flagsOf(type: number, agreement: Agreement): number {
  switch (type) {
    case Cmd.READ:
      return agreement.style === "simple" ? CmdFlag.FUA : CmdFlag.FUA | CmdFlag.DF;
    case Cmd.WRITE:
      return agreement.style === "extended" ? CmdFlag.FUA | CmdFlag.PAYLOAD_LEN : CmdFlag.FUA;
    case Cmd.WRITE_ZEROES:
      return CmdFlag.FUA | CmdFlag.NO_HOLE | CmdFlag.FAST_ZERO;
    case Cmd.BLOCK_STATUS:
      return agreement.style === "extended"
        ? CmdFlag.FUA | CmdFlag.REQ_ONE | CmdFlag.PAYLOAD_LEN
        : CmdFlag.FUA | CmdFlag.REQ_ONE;
    default:
      return CmdFlag.FUA;
  }
}

/**
 * What speaks against serving `request`, if anything does. The payload of a request that is refused is still to be
 * read, and dropped.
 *
 * @param size the device's size now, in bytes: it may have grown since the handshake.
 */
export function validateRequest(request: Request, agreement: Agreement, size: number): Objection | undefined {
  const { type, flags } = request;
  if (type > Cmd.BLOCK_STATUS) return UNKNOWN_COMMAND;
  if ((flags & ~flagsOf(type, agreement)) !== 0)
    return agreement.style === "extended" && (flags & CmdFlag.PAYLOAD_LEN) !== 0 ? NO_PAYLOAD : UNKNOWN_FLAGS;
  switch (type) {
    case Cmd.DISC:
      return undefined;
    case Cmd.FLUSH:
      return request.offset !== 0 || request.length !== 0 ? NOT_NULL : undefined;
    case Cmd.READ:
      if (request.length > agreement.maximumPayload) return agreement.style === "simple" ? TOO_LONG : TOO_LONG_READ;
      break;
    case Cmd.WRITE:
      if (agreement.style === "extended" && (flags & CmdFlag.PAYLOAD_LEN) === 0) return PAYLOAD_MISSING;
      if (agreement.readOnly) return READ_ONLY;
      if (request.length > agreement.maximumPayload) return TOO_LONG;
      break;
    case Cmd.TRIM:
    case Cmd.WRITE_ZEROES:
      if (agreement.readOnly) return READ_ONLY;
      break;
    case Cmd.BLOCK_STATUS:
      if (agreement.contexts.length === 0) return NO_CONTEXTS;
      // Its payload replaces the length: `validateRange` sees to that once it has come.
      if ((flags & CmdFlag.PAYLOAD_LEN) !== 0) return undefined;
      break;
  }
  return validateRange(request, agreement, size);
}

/** The part of `validateRequest` about offset and length. */
export function validateRange(request: Request, agreement: Agreement, size: number): Objection | undefined {
  const { type, offset, length } = request;
  if (length === 0) return EMPTY;
  // First the end, then the alignment: beyond 2^53 numbers are no longer exact, but still larger than any device.
  if (offset + length > size) return type === Cmd.WRITE || type === Cmd.WRITE_ZEROES ? BEYOND_END_WRITE : BEYOND_END;
  if (offset % agreement.blockSize !== 0 || length % agreement.blockSize !== 0) return MISALIGNED;
  return undefined;
}
