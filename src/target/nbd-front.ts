/**
 * The NBD front: listens, lets clients in and turns them away, keeps what its connections share (slots, buffers, their
 * turns at the memory, the watch over time), counts what they do, and logs why each of them ended.
 */
import { Pieces } from "#base/memory";
import { type Effect, perform, type Task } from "#base/task";
import { type Bytes, MIB, type Millis } from "#base/units";
import { ByteDevice } from "#device/byte-device";
import { Extents } from "#device/device";
import { type Meter, Meters } from "#device/meter";
import {
  type Address,
  type Alarm,
  type Env,
  isNetError,
  type Line,
  type Listener,
  type NetError,
  type Tls,
} from "#env/env";
import type { Agreement } from "#proto/nbd/negotiation";
import { PAYLOAD_BYTES_DEFAULT } from "#wire/nbd/codes";
import { type ExportTable, isExportRefusal, type OpenExport } from "./exports.ts";
import { FairMemory } from "./fair-memory.ts";
import { NbdConnection, peerName } from "./nbd-connection.ts";
import { exportPeer, type HandshakeHome, NbdHandshake } from "./nbd-handshake.ts";
import {
  type ConnectionEnd,
  type ConnectionHome,
  type EndReason,
  type MemoryUser,
  RECEIVE_BYTES_LARGE,
  RECEIVE_BYTES_SMALL,
} from "./nbd-home.ts";
import { EXTENTS_MAX, Slot } from "./nbd-slot.ts";
import { Rounds } from "./rounds.ts";

/** How often it is looked whether something stands still, while anything can. */
const TICK_MS = 1000;
/** While others wait for memory, a client that stands still in the middle of something is given only this long. */
const PRESSED_STALL_MS = 5000;
/** What is kept for use again, and not left to the garbage collector: slots of about 500 bytes, Pieces of 8 KiB, Extents of 64 KiB. */
const SLOTS_KEPT = 8192;
const PIECES_KEPT = 512;
const EXTENTS_KEPT = 32;
/** Ends of connections logged per tick; the rest is counted. A flood must not fill the log. */
const ENDS_LOGGED_PER_TICK = 50;

export interface NbdFrontOptions {
  /** TLS is not to be had, may be used, or must be. */
  readonly tls?: "off" | "allow" | "require";
  /** For TLS: certificate and key, keys of clients. */
  readonly identity?: Omit<Tls, "role">;
  /** Connections at once, those in the handshake included. */
  readonly connectionsMax?: number;
  /** A client must get on with its handshake within this. */
  readonly handshakeMs?: Millis;
  /** A client must finish what it has begun to send, and take what is sent to it, within this. */
  readonly stallMs?: Millis;
  /** A connection on which nothing happens for so long is closed; by default never. */
  readonly idleMs?: Millis;
  /** Clients that do not ask for block sizes are refused where blocks are larger than 512 bytes. */
  readonly blockSizesRequired?: boolean;
  /** Takes connections to exports of other lanes. */
  readonly handOver?: (handover: Handover) => void;
}
/** Connections at once, unless told otherwise. */
export const CONNECTIONS_MAX = 10_000;
const DEFAULTS = {
  tls: "off",
  connectionsMax: CONNECTIONS_MAX,
  handshakeMs: 30_000,
  stallMs: 60_000,
  idleMs: Number.POSITIVE_INFINITY,
  blockSizesRequired: false,
} as const;

/** A connection that has agreed on an export of another lane. The line is quiet: nothing is in flight on it. */
export interface Handover {
  readonly line: Line;
  readonly lane: number;
  readonly agreement: Agreement;
  readonly secure: boolean;
  /** What the client has sent after the handshake. */
  readonly unread: Uint8Array;
}

/** Counts of a front since it was made, for metrics. */
export interface NbdFrontFigures {
  /** In the handshake, and in the transmission phase, now. */
  handshaking: number;
  connected: number;
  accepted: number;
  /** Requests waiting for memory now. */
  waiting: number;
  readonly ends: Record<EndReason, number>;
  bytesIn: Bytes;
  bytesOut: Bytes;
}

export class NbdFront implements ConnectionHome, HandshakeHome {
  readonly env: Env;
  readonly rounds: Rounds;
  readonly exports: ExportTable;
  readonly options: Required<Omit<NbdFrontOptions, "identity" | "handOver">> & {
    readonly identity: NbdFrontOptions["identity"];
    readonly maximumPayload: Bytes;
  };
  readonly #handOver: NbdFrontOptions["handOver"];
  readonly #listeners: Listener[] = [];
  readonly #handshakes = new Set<NbdHandshake>();
  readonly #connections = new Set<NbdConnection>();
  readonly #meters = new Meters();
  readonly #alarm: Alarm;
  readonly #slots: Slot[] = [];
  readonly #pieces: Pieces[] = [];
  readonly #extents: Extents[] = [];
  readonly #ends: Record<EndReason, number> = {
    stopped: 0,
    violated: 0,
    silent: 0,
    refused: 0,
    lost: 0,
    "handed-over": 0,
  };
  #accepted = 0;
  #bytesIn = 0;
  #bytesOut = 0;

  readonly #memory: FairMemory;
  #largeBuffers = 0;
  readonly #largeBuffersMax: number;

  #draining = false;
  /** Those who wait for the last connection to end. */
  readonly #drained: (() => void)[] = [];
  #endsLogged = 0;
  #endsNotLogged = 0;

  constructor(env: Env, exports: ExportTable, options: NbdFrontOptions = {}) {
    this.env = env;
    this.rounds = new Rounds(env.turn);
    this.exports = exports;
    this.#handOver = options.handOver;
    const { size } = env.memory;
    // A quarter, in whole MiB: a read without chunks must lie in memory as a whole.
    const maximumPayload = Math.min(PAYLOAD_BYTES_DEFAULT, Math.max(1, Math.floor(size / 4 / MIB)) * MIB);
    this.options = { ...DEFAULTS, ...defined(options), identity: options.identity, maximumPayload };
    this.#memory = new FairMemory(env, Math.max(size / 4, maximumPayload * 1.5));
    this.#largeBuffersMax = Math.max(4, Math.floor(size / 8 / RECEIVE_BYTES_LARGE));
    this.#alarm = env.clock.alarm(() => this.#tick());
  }

  /** Accepts connections at `address` too. The task's value is where it listens, or why it cannot. */
  *listen(address: Address): Task<Address | NetError> {
    const listener = yield* perform(this.env.net.listen(address, (line) => this.accept(line)));
    if (isNetError(listener)) return listener;
    this.#listeners.push(listener);
    if (this.#draining) listener.close();
    return listener.address;
  }

  /** Begins the handshake on a line that has been accepted. */
  accept(line: Line): void {
    this.#accepted++;
    const full = this.#handshakes.size + this.#connections.size >= this.options.connectionsMax;
    // Whoever has been shaking hands for longest makes room: idle strangers must not keep everyone out.
    if (full && !this.#dropOldestHandshake()) {
      this.#turnAway(line, "there are too many connections");
      return;
    }
    if (this.#draining) {
      this.#turnAway(line, "the server is shutting down");
      return;
    }
    const bufferAt = this.#bufferFor(line);
    if (bufferAt === 0) return;
    const handshake = new NbdHandshake(this, line, bufferAt);
    this.#handshakes.add(handshake);
    this.watchTime();
    handshake.start();
  }

  /** Goes on with a connection that another lane has negotiated. */
  resume(line: Line, agreement: Agreement, secure: boolean, unread: Uint8Array): void {
    const bufferAt = this.#bufferFor(line);
    if (bufferAt === 0) return;
    this.env.memory.bytes.set(unread, bufferAt);
    this.#connect(line, agreement, secure, bufferAt, unread.length);
  }

  /** Accepts nothing more, answers what is in flight, closes all connections; resumes when the last one has ended. */
  drain(): Effect<void> {
    return (resume) => {
      this.#draining = true;
      for (const listener of this.#listeners) listener.close();
      this.#drained.push(() => resume(undefined));
      for (const handshake of [...this.#handshakes]) handshake.end("stopped", "the server is shutting down");
      for (const connection of [...this.#connections]) connection.drain();
      this.#tellDrained();
    };
  }

  get draining(): boolean {
    return this.#draining;
  }

  /** Operations by export name, for metrics; names stay when the last connection has gone. */
  get meters(): ReadonlyMap<string, Meter> {
    return this.#meters.byName;
  }
  /** Connections in the transmission phase. */
  get connections(): ReadonlySet<NbdConnection> {
    return this.#connections;
  }
  get figures(): NbdFrontFigures {
    let bytesIn = this.#bytesIn;
    let bytesOut = this.#bytesOut;
    for (const connection of this.#connections) {
      bytesIn += connection.bytesIn;
      bytesOut += connection.bytesOut;
    }
    return {
      handshaking: this.#handshakes.size,
      connected: this.#connections.size,
      accepted: this.#accepted,
      waiting: this.#memory.waiting,
      ends: { ...this.#ends },
      bytesIn,
      bytesOut,
    };
  }

  /* ------------------------------------------------------------------ from handshakes */

  onAgreed(handshake: NbdHandshake, line: Line, agreement: Agreement, bufferAt: number, unread: number): void {
    this.#handshakes.delete(handshake);
    this.#connect(line, agreement, handshake.secure, bufferAt, unread);
  }

  onHandshakeEnded(handshake: NbdHandshake, end: ConnectionEnd): void {
    this.#handshakes.delete(handshake);
    this.#count(handshake.peer, end, {});
    this.#tellDrained();
  }

  #connect(line: Line, agreement: Agreement, secure: boolean, bufferAt: number, unread: number): void {
    const peer = exportPeer(line, secure);
    const found = this.exports.find(agreement.name, peer);
    let opened: OpenExport | undefined;
    let why: string = "the server is shutting down";
    if (isExportRefusal(found)) {
      why = found;
    } else if (found.lane !== undefined) {
      if (this.#handOver !== undefined && !this.#draining) {
        this.#give(line, found.lane, agreement, secure, bufferAt, unread);
        return;
      }
      why = "another lane has it";
    } else if (!this.#draining) {
      const answer = found.open();
      if (isExportRefusal(answer)) why = answer;
      else opened = answer;
    }
    if (opened === undefined) {
      this.env.memory.free(bufferAt);
      this.#turnAway(line, `export "${agreement.name}" could not be opened after the handshake: ${why}`);
      return;
    }
    // The kernel's client, for one, never asks for block sizes, and may send sectors of 512 bytes.
    if (agreement.blockSize < opened.device.blockSize)
      opened = { ...opened, device: new ByteDevice(opened.device, this.env.memory), close: opened.close.bind(opened) };
    const meter = this.#meters.of(agreement.name);
    const connection = new NbdConnection(this, line, agreement, opened, meter, bufferAt, unread, (ended, end) =>
      this.#onConnectionEnded(ended, end),
    );
    this.#connections.add(connection);
    const { name, style, contexts } = agreement;
    const fields = { peer: connection.peer, export: name, style, contexts: contexts.length, tls: secure };
    this.env.log.info({ ...fields, tlsName: line.peer.tlsName }, "NBD client connected");
    connection.start();
  }

  #give(line: Line, lane: number, agreement: Agreement, secure: boolean, bufferAt: number, unread: number): void {
    const bytes = this.env.memory.slice(bufferAt, unread).slice();
    this.env.memory.free(bufferAt);
    this.#count(peerName(line), { why: "handed-over", detail: `lane ${lane} has it` }, { export: agreement.name });
    this.#handOver!({ line, lane, agreement, secure, unread: bytes });
    this.#tellDrained();
  }

  /** A receive buffer for a new connection, or 0: then the line has been turned away. */
  #bufferFor(line: Line): number {
    const at = this.env.memory.allocate(RECEIVE_BYTES_SMALL);
    if (at === 0) this.#turnAway(line, "there is no memory for another connection");
    return at;
  }

  /** Closes a line that never became a connection. */
  #turnAway(line: Line, detail: string): void {
    const end = { why: "refused", detail } as const;
    line.ear = {
      onReceived: () => {},
      onSent: () => {},
      onClosed: () => this.#count(peerName(line), end, {}),
    };
    line.close();
  }

  #dropOldestHandshake(): boolean {
    for (const handshake of this.#handshakes) {
      if (handshake.securing) continue;
      this.#handshakes.delete(handshake);
      handshake.end("refused", "it made room for a newer connection before its handshake was over");
      return true;
    }
    return false;
  }

  /* ---------------------------------------------------------------- from connections */

  #onConnectionEnded(connection: NbdConnection, end: ConnectionEnd): void {
    this.#connections.delete(connection);
    this.#bytesIn += connection.bytesIn;
    this.#bytesOut += connection.bytesOut;
    this.#memory.leave(connection);
    const { requests, bytesIn, bytesOut } = connection;
    this.#count(connection.peer, end, { export: connection.agreement.name, requests, bytesIn, bytesOut });
    this.#tellDrained();
  }

  takeSlot(): Slot {
    return this.#slots.pop() ?? new Slot();
  }
  giveSlot(slot: Slot): void {
    slot.parent = undefined;
    if (this.#slots.length < SLOTS_KEPT) this.#slots.push(slot);
  }
  takePieces(): Pieces {
    return this.#pieces.pop() ?? new Pieces();
  }
  givePieces(pieces: Pieces): void {
    pieces.clear();
    if (this.#pieces.length < PIECES_KEPT) this.#pieces.push(pieces);
  }
  takeExtents(): Extents {
    return this.#extents.pop() ?? new Extents(EXTENTS_MAX);
  }
  giveExtents(extents: Extents): void {
    if (this.#extents.length < EXTENTS_KEPT) this.#extents.push(extents);
  }

  takeLargeBuffer(): number {
    if (this.#largeBuffers >= this.#largeBuffersMax || this.#memory.waiting > 0) return 0;
    const at = this.env.memory.allocate(RECEIVE_BYTES_LARGE);
    if (at !== 0) this.#largeBuffers++;
    return at;
  }
  giveLargeBuffer(at: number): void {
    this.#largeBuffers--;
    this.env.memory.free(at);
  }

  mayHold(user: MemoryUser, bytes: Bytes): boolean {
    return this.#memory.mayHold(user, bytes);
  }
  admit(user: MemoryUser, bytes: Bytes, keepTurn: boolean): number {
    const at = this.#memory.admit(user, bytes, keepTurn);
    if (at === 0) this.watchTime();
    return at;
  }
  discharge(user: MemoryUser, at: number): void {
    this.#memory.discharge(user, at);
  }

  /* ------------------------------------------------------------------------ time, log */

  watchTime(): void {
    if (this.#alarm.at === Number.POSITIVE_INFINITY) this.#alarm.at = this.env.clock.now() + TICK_MS;
  }

  #tick(): void {
    const now = this.env.clock.now();
    const { handshakeMs, stallMs, idleMs } = this.options;
    const pressed = this.#memory.waiting > 0;
    let again = pressed || this.#handshakes.size > 0;
    for (const handshake of [...this.#handshakes]) {
      if (now - handshake.movedAt > handshakeMs)
        handshake.end("silent", `the handshake stood still for ${Math.round(handshakeMs / 1000)} s`);
    }
    const limit = pressed ? Math.min(stallMs, PRESSED_STALL_MS) : stallMs;
    for (const connection of [...this.#connections]) again = connection.checkTime(now, limit, idleMs) || again;
    this.#memory.checkTime(now);
    if (this.#endsNotLogged > 0)
      this.env.log.warn({ connections: this.#endsNotLogged }, "More NBD connections ended than are logged one by one");
    this.#endsLogged = this.#endsNotLogged = 0;
    this.#alarm.at = again ? now + TICK_MS : Number.POSITIVE_INFINITY;
  }

  #count(peer: string, end: ConnectionEnd, fields: object): void {
    this.#ends[end.why]++;
    if (this.#endsLogged >= ENDS_LOGGED_PER_TICK) {
      this.#endsNotLogged++;
      return;
    }
    this.#endsLogged++;
    this.watchTime();
    const all = { peer, ...fields, why: end.why, detail: end.detail };
    if (end.why === "violated" || end.why === "silent") this.env.log.warn(all, "NBD connection ended");
    else this.env.log.info(all, "NBD connection ended");
  }

  #tellDrained(): void {
    if (this.#handshakes.size > 0 || this.#connections.size > 0) return;
    for (const drained of this.#drained.splice(0)) drained();
  }
}

/** Without the fields that are undefined, so that they do not hide a default. */
function defined<T extends object>(options: T): { [K in keyof T]: Exclude<T[K], undefined> } {
  return Object.fromEntries(Object.entries(options).filter(([, value]) => value !== undefined)) as never;
}
