/**
 * Numbers of the Storage Control Protocol. "WO" is WO 02/15018, appendices C and D: version 1. Numbers that the text
 * leaves open, and all of version 2, are ours: docs/protocols/scp.md.
 */
import type { Status } from "#base/status";

/** WO appendix D: the configuration port by default. */
export const CONFIG_PORT = 10001;
/** WO appendix D (1): a version 1 host must come from a port below this. */
export const PRIVILEGED_PORT_END = 1024;
/** Where servers listen for discovery datagrams: docs/protocols/scp.md, "Discovery". */
export const DISCOVERY_PORT = 10001;

/** WO appendix D (2): a bitmask on offer, one bit when chosen. */
export const Version = { ONE: 0x01, TWO: 0x02 } as const;

/** `zn_op`. */
export const Op = {
  /** WO appendix C. */
  READ: 0x2,
  WRITE: 0x3,
  /** Version 2. */
  FLUSH: 0x4,
  TRIM: 0x5,
  ZERO: 0x6,
  COMPARE_WRITE: 0x7,
  BLOCK_STATUS: 0x8,
  CACHE: 0x9,
  /** Answered at once, whatever the disk does: tells a dead network from a slow disk. */
  PING: 0xa,
  /** WO appendix D (2). */
  Z_GET_VERSION: 0x1005,
  /** Named but not numbered in WO appendix D (6), (8), (10). */
  Z_GET_STARTTIME: 0x1006,
  Z_GET_CAPACITIES: 0x1007,
  Z_GET_DATAPORT: 0x1008,
  /** What we put into the hello of a data socket, WO appendix D (14); a server does not look at it. */
  Z_HELLO: 0x1009,
  /** Version 2. */
  Z_START_TLS: 0x100a,
  Z_GET_UNITS: 0x100b,
  Z_FENCE: 0x100c,
  Z_EVENT: 0x100d,
  /** A datagram: who is there? */
  Z_DISCOVER: 0x100e,
} as const;

/** `zn_type`. Version 1 has 1 for everything. */
export const Type = { REQUEST: 1, RESPONSE: 2, EVENT: 3 } as const;

/** `zn_flags` of a version 2 request. */
export const Flag = {
  /** Be on stable storage when answered: the write-through flag that WO appendix C announces. */
  FUA: 1,
  /** Zero: keep the space. */
  NO_HOLE: 2,
  /** Zero: only if it is faster than writing. */
  FAST: 4,
} as const;

/** What a version 2 server can do, and which of it a host wants: bits of the challenge's `capabilities`. */
export const Capability = {
  /** Data carries a CRC32C. (Headers always do.) */
  DATA_CRC: 1,
  /** The server tells of changes by events and leaves the configuration socket open. */
  EVENTS: 2,
  /** One data socket can be fenced by itself (Z_FENCE). */
  FENCE: 4,
  /** TLS can be started before anything is proven. */
  TLS: 8,
} as const;

/** What a Z_EVENT tells, in `zn_flags`. */
export const Event = {
  UNIT_ADDED: 1,
  UNIT_RESIZED: 2,
  UNIT_REMOVED: 3,
  UNIT_ACCESS: 4,
  /** The server is going down: finish, send nothing new, come back later. */
  DRAINING: 5,
} as const;

/** `zn_status` of the configuration protocol: WO appendix D (5), (15), "-1". */
export const STATUS_REFUSED = 0xffff_ffff;

/** `zn_status` of version 2; in version 1 the extended error information in `zn_flags` of a failed response. */
export const STATUS_CODE = {
  ok: 0,
  medium: 1,
  failed: 2,
  full: 3,
  range: 4,
  invalid: 5,
  unsupported: 6,
  denied: 7,
  conflict: 8,
  fenced: 9,
  miscompare: 10,
  busy: 11,
  away: 12,
  gone: 13,
  aborted: 14,
} as const satisfies Record<Status, number>;

const STATUS_OF = new Map<number, Status>(
  Object.entries(STATUS_CODE).map(([status, code]) => [code, status as Status]),
);
/** The status that a response's code means; a code nobody has heard of is a failure of the medium. */
export const statusOf = (code: number): Status => STATUS_OF.get(code) ?? "medium";

/** The name of a code, for logs: `nameOf(Op, 2)` is "READ". */
export function nameOf(table: Readonly<Record<string, number>>, code: number): string {
  for (const [name, value] of Object.entries(table)) if (value === code) return name;
  return `0x${code.toString(16)}`;
}

/** WO appendix C: a block address counts these. */
export const LBA_BYTES = 512;
/** WO appendix C: "no more than 128 Kilobytes" in a command. */
export const DATA_BYTES_MAX_V1 = 128 * 1024;
/** Version 2: data in one command. */
export const DATA_BYTES_MAX_V2 = 1024 * 1024;
/** WO II: requests above this are cut up. */
export const SPLIT_BYTES = 64 * 1024;
/** WO appendix D (4). */
export const ANSWER_MS_MAX = 5_000;
/** Commands in flight on one data socket: WO I, "one at-a-time", and version 2. */
export const DEPTH_V1 = 1;
export const DEPTH_V2 = 64;
/** Units in a list, whatever a peer says; entries in a list of data ports. */
export const UNITS_MAX = 16384;
export const DATA_PORTS_MAX = 64;
