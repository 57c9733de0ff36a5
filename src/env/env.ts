/**
 * All that a run can take from outside. There are three: `uring` (Linux), `node` (everywhere, the reference) and `sim`
 * (seeded, virtual time). Nothing outside their folders sees a clock, a socket, a file or chance by another way.
 *
 * The rule that keeps machines simple: nothing here calls back before the call that caused it has returned.
 * The one exception is an `Effect` (control operations), which a task may be resumed from at once.
 */
import type { Memory, Pieces } from "#base/memory";
import type { Effect } from "#base/task";
import type { Bytes, Millis } from "#base/units";

export interface Env {
  readonly clock: Clock;
  readonly random: Random;
  readonly memory: Memory;
  readonly turn: Turn;
  readonly net: Net;
  readonly disk: Disk;
  readonly log: Log;
}

export interface Clock {
  /** Monotonic: for spans of time, never for dates. */
  now(): Millis;
  /** Milliseconds since 1970, UTC: for dates that a person reads, never for spans. */
  date(): number;
  /** Made once for each machine that waits. It rings at `alarm.at`; put `at` to Infinity, and it is silent. */
  alarm(ring: () => void): Alarm;
}
export interface Alarm {
  /** Setting it re-arms; a past time rings in the next turn. Reads Infinity when not armed. */
  at: Millis;
}

export interface Random {
  /** A whole number from 0 to `limit - 1`; `limit` is at most 2^32. */
  below(limit: number): number;
  /** Fills `to` with bytes nobody can guess (in the simulator: with bytes from the seed). For keys, nonces, UUIDs. */
  fill(to: Uint8Array): void;
}

/**
 * A turn is one round of the lane's loop: all completions that have arrived are told, then what was asked to run
 * "soon" runs, then everything new goes to the kernel in one call. Work that gains from company (appends, replies)
 * collects during the turn and is done once, soon.
 */
export interface Turn {
  /** Runs `soon.run()` once at the end of this turn; asking again before that changes nothing. */
  soon(soon: Soon): void;
}
export class Soon {
  queued = false;
  readonly run: () => void;
  constructor(run: () => void) {
    this.run = run;
  }
}

/** pino's shape. Never called per operation on the data path. */
export interface Log {
  debug(fields: object, message: string): void;
  info(fields: object, message: string): void;
  warn(fields: object, message: string): void;
  error(fields: object, message: string): void;
}

/* ---------------------------------------------------------------- network */

/** `fd` is a listening socket that was handed to the process (systemd socket activation). */
export type Address =
  | { readonly host: string; readonly port: number }
  | { readonly path: string }
  | { readonly fd: number };

export type NetFault =
  | "refused"
  | "unreachable"
  | "timeout"
  | "in-use"
  | "denied"
  | "bad-address"
  | "tls-failed"
  | "unsupported"
  | "broken";

export interface NetError {
  readonly fault: NetFault;
  /** What the system said, for the log. */
  readonly detail: string;
}
export const isNetError = (value: object): value is NetError => "fault" in value;

export interface Net {
  /** Accepts until the listener is closed. A line's `ear` must be set before `accept` returns. */
  listen(at: Address, accept: (line: Line) => void): Effect<Listener | NetError>;
  dial(to: Address, options?: DialOptions): Effect<Line | NetError>;
  /** Continues `line` under TLS. Nothing may be in flight on it; the old line is not to be used any more. */
  secure(line: Line, tls: Tls): Effect<Line | NetError>;
  /** Not every Net has it: what needs it does without. */
  readonly datagrams?: (
    at: DatagramAddress,
    heard: (bytes: Uint8Array, from: DatagramAddress) => void,
  ) => Effect<Datagrams | NetError>;
  /** Where connections can go from lane to lane (`uring`). */
  readonly handover?: Handover;
}
/** Connected sockets as descriptors of the process, which another lane's Env can continue. */
export interface Handover {
  /** Nothing may be in flight on `line`, and it is told nothing more. Undefined when it is not a bare socket (TLS). */
  detach(line: Line): { readonly fd: number; readonly peer: Peer } | undefined;
  adopt(fd: number, peer: Peer): Line;
}
/** Small messages that may be lost; for discovery. */
export interface Datagrams {
  /** Where it is bound, with the port that the system chose if 0 was asked for. */
  readonly address: DatagramAddress;
  /** To one address, or to a broadcast address. Nobody tells whether it arrived. */
  send(bytes: Uint8Array, to: DatagramAddress): void;
  close(): void;
}
export interface DatagramAddress {
  readonly host: string;
  readonly port: number;
}
export interface DialOptions {
  readonly timeoutMs?: Millis;
  /** The local address to come from, to choose a network; `localPort` for protocols with privileged source ports. */
  readonly localHost?: string;
  readonly localPort?: number;
}
export interface Listener {
  /** Where it listens, with the port that the system chose if 0 was asked for. */
  readonly address: Address;
  close(): void;
}

/** TLS with certificates, with pre-shared keys, or with both on offer. Content of PEM files, not paths. */
export interface Tls {
  readonly role: "server" | "client";
  readonly cert?: string;
  readonly key?: string;
  /** PEM of who may sign the other side's certificate. For a server: then clients must show one. */
  readonly ca?: string;
  /** For a client: the name that the server's certificate must have. */
  readonly serverName?: string;
  /** For a client: false takes whatever certificate the server shows, which protects from listeners only. */
  readonly verifyPeer?: boolean;
  /** Identity to key. A client uses the first one. */
  readonly psk?: ReadonlyMap<string, Uint8Array>;
}

/** Why a line ended. "ended" is told as `onReceived(0)` and not as a close. */
export type LineEnd = "stopped" | "reset" | "broken";

/** A connected stream. At most one `receive` and one `send` are in flight at a time. */
export interface Line {
  ear: Ear;
  readonly peer: Peer;
  /**
   * Receives up to `length` bytes to `at`, and what there is beyond them, up to `restLength` bytes, to `restAt`:
   * `ear.onReceived(count)` counts both. Not calling it is the backpressure.
   */
  receive(at: number, length: number, restAt?: number, restLength?: number): void;
  /**
   * The next `receive` begins between two requests, and the last one has brought so many. Where clients keep several in
   * flight, an Env may let it wait for company, for some tens of microseconds (`uring`).
   */
  gather?(requests: number): void;
  /** Sends all of `pieces`; they, and what they point to, belong to the line until `ear.onSent()`. */
  send(pieces: Pieces): void;
  /**
   * When nothing has come for `idleMs` (whole seconds), the other machine is asked whether the connection still exists;
   * without an answer for some ten seconds, the line ends. Without this, it takes hours until that is known.
   */
  keepAlive(idleMs: Millis): void;
  /**
   * Ends the line: nothing but `ear.onClosed` follows, once nothing in flight touches memory any more. Calling it twice
   * is fine.
   */
  close(): void;
  /**
   * Ends the line as `close` does, and what was sent and has not left this machine is not sent any more: a socket that is
   * closed goes on sending it for minutes. The other side is told by a reset, if it can be told.
   */
  abort(): void;
}
export interface Ear {
  /** `count` bytes came; 0 means that the other side has finished sending. */
  onReceived(count: number): void;
  onSent(): void;
  /** The last word of a line, told exactly once, whoever ended it. */
  onClosed(end: LineEnd): void;
}
export interface Peer {
  /** Numeric IP address, or "" on a Unix socket. */
  readonly host: string;
  readonly port: number;
  /** Our own end's address. */
  readonly localHost: string;
  readonly localPort: number;
  /** The identity proven by TLS (PSK identity, or the certificate's common name), "" without. */
  readonly tlsName: string;
}

/* ------------------------------------------------------------------- disk */

export type DiskFault =
  /** A read or write failed. */
  | "io"
  | "full"
  | "exists"
  | "missing"
  | "denied"
  /** The file system is mounted read-only. */
  | "read-only"
  | "too-many-files"
  | "unsupported";

export const isDiskFault = (value: unknown): value is DiskFault => typeof value === "string";

/** An open file. Only the Env that made it can use it. */
export interface File {
  readonly path: string;
}

/**
 * One read, write or sync of an open file. It lives in its owner's slot and is used again and again; `done` is given
 * once, at its making.
 */
export class DiskOp {
  kind: "read" | "write" | "sync" = "read";
  file!: File;
  /** Bytes from the start of the file. */
  position: Bytes = 0;
  /** Where in memory; not used when `pieces` is set. */
  at = 0;
  length: Bytes = 0;
  /** A gathered write or a scattered read. */
  pieces: Pieces | undefined = undefined;
  fault: DiskFault | undefined = undefined;
  /** Bytes read: fewer than asked only at the end of the file. A write is done whole or has a fault. */
  count: Bytes = 0;
  readonly done: (op: DiskOp) => void;
  constructor(done: (op: DiskOp) => void) {
    this.done = done;
  }
}

export interface FileFacts {
  readonly kind: "file" | "directory" | "device" | "other";
  readonly size: Bytes;
  /** Bytes that it takes on the disk, as `du` counts. */
  readonly allocated: Bytes;
}

/** Files by absolute path. "sync" is fdatasync: data, and what is needed to find it; names need `syncDirectory`. */
export interface Disk {
  submit(op: DiskOp): void;
  /** "create" fails with "exists" if there is one; it opens for reading and writing, as "write" does. */
  open(path: string, how: "read" | "write" | "create"): Effect<File | DiskFault>;
  /** Nothing may be in flight on it. */
  close(file: File): Effect<DiskFault | undefined>;
  truncate(file: File, size: Bytes): Effect<DiskFault | undefined>;
  /** Reserves space for [position, position + length) and makes the file at least that long. May be "unsupported". */
  allocate(file: File, position: Bytes, length: Bytes): Effect<DiskFault | undefined>;
  /** Gives the space of a range back to the file system; it reads as zeroes. May be "unsupported". */
  punch(file: File, position: Bytes, length: Bytes): Effect<DiskFault | undefined>;
  facts(path: string): Effect<FileFacts | DiskFault>;
  list(directory: string): Effect<string[] | DiskFault>;
  makeDirectory(path: string): Effect<DiskFault | undefined>;
  removeDirectory(path: string): Effect<DiskFault | undefined>;
  /** Gives a file a second name; fails with "exists". */
  link(from: string, to: string): Effect<DiskFault | undefined>;
  /** Replaces `to` if there is one, at once. */
  rename(from: string, to: string): Effect<DiskFault | undefined>;
  unlink(path: string): Effect<DiskFault | undefined>;
  syncDirectory(path: string): Effect<DiskFault | undefined>;
  /** Of the file system that holds `path`. `available` is what an ordinary writer may still take. */
  space(path: string): Effect<{ readonly total: Bytes; readonly available: Bytes } | DiskFault>;
}
