/**
 * The numbers of the NBD protocol, in the spelling of its document (NetworkBlockDevice/nbd, doc/proto.md), without the
 * prefix that their table already says: `NBD_CMD_WRITE_ZEROES` is `Cmd.WRITE_ZEROES`. What belongs to extended headers
 * is of the document's branch `extension-ext-header`.
 */
import type { Status } from "#base/status";

/** 64-bit magics as two halves: nothing here is ever calculated with. */
export interface Magic64 {
  readonly hi: number;
  readonly lo: number;
}
/** "NBDMAGIC". */
export const NBDMAGIC: Magic64 = { hi: 0x4e42_444d, lo: 0x4147_4943 };
/** "IHAVEOPT": in the server's greeting and before every option. */
export const IHAVEOPT: Magic64 = { hi: 0x4948_4156, lo: 0x454f_5054 };
/** `cliserv_magic`: in its greeting, a server of the old style. */
export const OLDSTYLE_MAGIC: Magic64 = { hi: 0x0000_4202, lo: 0x8186_1253 };
export const OPTION_REPLY_MAGIC: Magic64 = { hi: 0x0003_e889, lo: 0x0455_65a9 };

export const REQUEST_MAGIC = 0x2560_9513;
export const EXTENDED_REQUEST_MAGIC = 0x21e4_1c71;
export const SIMPLE_REPLY_MAGIC = 0x6744_6698;
export const STRUCTURED_REPLY_MAGIC = 0x668e_33ef;
export const EXTENDED_REPLY_MAGIC = 0x6e8a_278c;

/** IANA's port for NBD. */
export const NBD_PORT = 10809;
/** "Where this document refers to a string": MUST be no longer than this, in bytes. */
export const STRING_BYTES_MAX = 4096;
/** "Size constraints": what a server supports by default, and what a portable client keeps to. */
export const PAYLOAD_BYTES_DEFAULT = 0x200_0000;
/** "Size constraints": the largest minimum block size that may be advertised. */
export const MINIMUM_BLOCK_BYTES_MAX = 0x1_0000;
/** "NBD_REPLY_TYPE_BLOCK_STATUS": no more descriptors in one chunk. */
export const DESCRIPTORS_MAX = 0x10_0000;
/** "NBD_CMD_READ": a read of up to this length is never refused for its DF flag. */
export const DF_BYTES_MIN = 0x1_0000;
/** Zeroes after the answer to NBD_OPT_EXPORT_NAME, unless both sides agreed on NO_ZEROES. */
export const EXPORT_NAME_ZEROES = 124;

/** "Handshake flags" (16 bits, from the server). */
export const HandshakeFlag = { FIXED_NEWSTYLE: 1 << 0, NO_ZEROES: 1 << 1 } as const;
/** "Client flags" (32 bits). */
export const ClientFlag = { C_FIXED_NEWSTYLE: 1 << 0, C_NO_ZEROES: 1 << 1 } as const;

/** "Transmission flags" (16 bits, from the server, per export). */
export const Flag = {
  HAS_FLAGS: 1 << 0,
  READ_ONLY: 1 << 1,
  SEND_FLUSH: 1 << 2,
  SEND_FUA: 1 << 3,
  ROTATIONAL: 1 << 4,
  SEND_TRIM: 1 << 5,
  SEND_WRITE_ZEROES: 1 << 6,
  SEND_DF: 1 << 7,
  CAN_MULTI_CONN: 1 << 8,
  SEND_RESIZE: 1 << 9,
  SEND_CACHE: 1 << 10,
  SEND_FAST_ZERO: 1 << 11,
  BLOCK_STATUS_PAYLOAD: 1 << 12,
} as const;

/** "Option types". */
export const Opt = {
  EXPORT_NAME: 1,
  ABORT: 2,
  LIST: 3,
  PEEK_EXPORT: 4,
  STARTTLS: 5,
  INFO: 6,
  GO: 7,
  STRUCTURED_REPLY: 8,
  LIST_META_CONTEXT: 9,
  SET_META_CONTEXT: 10,
  EXTENDED_HEADERS: 11,
} as const;

/** "Option reply types"; errors have bit 31 set. */
export const Rep = {
  ACK: 1,
  SERVER: 2,
  INFO: 3,
  META_CONTEXT: 4,
  ERR_UNSUP: 0x8000_0001,
  ERR_POLICY: 0x8000_0002,
  ERR_INVALID: 0x8000_0003,
  ERR_PLATFORM: 0x8000_0004,
  ERR_TLS_REQD: 0x8000_0005,
  ERR_UNKNOWN: 0x8000_0006,
  ERR_SHUTDOWN: 0x8000_0007,
  ERR_BLOCK_SIZE_REQD: 0x8000_0008,
  ERR_TOO_BIG: 0x8000_0009,
  ERR_EXT_HEADER_REQD: 0x8000_000a,
} as const;
export const isRepError = (type: number): boolean => type >= 0x8000_0000;

/** Information types of NBD_REP_INFO. */
export const Info = { EXPORT: 0, NAME: 1, DESCRIPTION: 2, BLOCK_SIZE: 3 } as const;

/** "Request types". */
export const Cmd = {
  READ: 0,
  WRITE: 1,
  DISC: 2,
  FLUSH: 3,
  TRIM: 4,
  CACHE: 5,
  WRITE_ZEROES: 6,
  BLOCK_STATUS: 7,
  RESIZE: 8,
} as const;
/** "Command flags" (16 bits, from the client, per request). */
export const CmdFlag = {
  FUA: 1 << 0,
  NO_HOLE: 1 << 1,
  DF: 1 << 2,
  REQ_ONE: 1 << 3,
  FAST_ZERO: 1 << 4,
  PAYLOAD_LEN: 1 << 5,
} as const;

/** "Structured reply flags". */
export const ReplyFlag = { DONE: 1 << 0 } as const;
/** "Structured reply types"; error chunks have bit 15 set. */
export const ReplyType = {
  NONE: 0,
  OFFSET_DATA: 1,
  OFFSET_HOLE: 2,
  BLOCK_STATUS: 5,
  BLOCK_STATUS_EXT: 6,
  ERROR: 0x8001,
  ERROR_OFFSET: 0x8002,
} as const;
export const isErrorChunk = (type: number): boolean => (type & 0x8000) !== 0;

/** Flags of the metadata context `base:allocation`. `ExtentFlag` of BlockDevice has the same two bits. */
export const State = { HOLE: 1 << 0, ZERO: 1 << 1 } as const;
export const BASE_ALLOCATION = "base:allocation";
/** QEMU's docs/interop/nbd.txt: the flags field is the depth at which the extent is allocated, 0 for not at all. */
export const QEMU_ALLOCATION_DEPTH = "qemu:allocation-depth";

/** "Error values". */
export const NbdError = {
  OK: 0,
  EPERM: 1,
  EIO: 5,
  ENOMEM: 12,
  EINVAL: 22,
  ENOSPC: 28,
  EOVERFLOW: 75,
  ENOTSUP: 95,
  ESHUTDOWN: 108,
} as const;

/**
 * What a server answers. "Error values" allows ENOTSUP only to NBD_CMD_FLAG_FAST_ZERO, and wants ENOSPC for writes
 * beyond the end: `errorOf` sees to both.
 */
export const NBD_STATUS = {
  ok: NbdError.OK,
  medium: NbdError.EIO,
  failed: NbdError.EIO,
  full: NbdError.ENOSPC,
  range: NbdError.EINVAL,
  invalid: NbdError.EINVAL,
  unsupported: NbdError.EINVAL,
  denied: NbdError.EPERM,
  conflict: NbdError.EPERM,
  fenced: NbdError.EPERM,
  miscompare: NbdError.EIO,
  busy: NbdError.ENOMEM,
  // After ESHUTDOWN a client must disconnect: then it can find the volume where it is now, or learn that it is not.
  away: NbdError.ESHUTDOWN,
  gone: NbdError.ESHUTDOWN,
  aborted: NbdError.ESHUTDOWN,
} as const satisfies Record<Status, number>;

/** The error field for `status` in answer to the command `type` with `flags`. */
export function errorOf(status: Status, type: number, flags: number): number {
  if (status === "range" && (type === Cmd.WRITE || type === Cmd.WRITE_ZEROES)) return NbdError.ENOSPC;
  if (status === "unsupported" && (flags & CmdFlag.FAST_ZERO) !== 0) return NbdError.ENOTSUP;
  return NBD_STATUS[status];
}

/** What a host makes of a server's error. "The client SHOULD treat an unexpected error value as NBD_EINVAL". */
export function statusOf(error: number, type: number): Status {
  switch (error) {
    case NbdError.OK:
      return "ok";
    case NbdError.EPERM:
      return "denied";
    case NbdError.EIO:
      return type === Cmd.READ ? "medium" : "failed";
    case NbdError.ENOMEM:
      return "busy";
    case NbdError.ENOSPC:
      return "full";
    case NbdError.ENOTSUP:
      return "unsupported";
    case NbdError.ESHUTDOWN:
      return "away";
    default:
      return "invalid";
  }
}

/** The name of a code for a log, or its number: `nameOf(Cmd, 6)` is "WRITE_ZEROES". */
export function nameOf(table: Readonly<Record<string, number>>, code: number): string {
  for (const name in table) if (table[name] === code) return name;
  return String(code);
}
