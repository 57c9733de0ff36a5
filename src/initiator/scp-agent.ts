/**
 * One agent of a host (WO 02/15018 figure 7): one data socket to a server. It takes pieces, sends their requests and
 * data, and matches what comes back; version 1 has one piece in flight, version 2 as many as were agreed. What comes
 * back wrong ends it, and gives its pieces back to the host. It never decides what becomes of them.
 */
import { canary } from "#base/canary";
import { Pieces } from "#base/memory";
import { equalBytes } from "#base/sha256";
import type { Status } from "#base/status";
import type { Millis } from "#base/units";
import { type Ear, type Env, type Line, Soon } from "#env/env";
import type { Configured } from "#proto/scp/config-host";
import { helloAnswerMac, helloMac } from "#proto/scp/proofs";
import { Capability, LBA_BYTES, Op, statusOf, Type, Version } from "#wire/scp/codes";
import { type DataPort, decodeHelloAnswer, encodeHello } from "#wire/scp/config";
import { decodeFrame, encodeFrame, FRAME, Frame } from "#wire/scp/frame";
import { decodeZnReq, encodeZnReq, ZNREQ, ZnReq } from "#wire/scp/znreq";
import type { ScpPiece } from "./scp-work.ts";

const RECEIVE_BYTES = 16896;
/** Data of this length on is best received straight into its place, together with the header of what comes next. */
const BULK_BYTES_MIN = 32 * 1024;
/** A tag is a slot's number in its low byte, and the slot's turn above. */
const SLOT_BITS = 8;
const PING_TAG = 0xffff_ffff;
/** Weight of the newest latency in the average. */
const LATENCY_WEIGHT = 0.1;

export type AgentEnd =
  | "stopped"
  | "lost"
  | "closed"
  | "refused"
  | "silent"
  | "violated"
  | "bad-data-crc"
  | "not-proven"
  | "session-ended"
  | "network-removed";

export interface AgentOwner {
  onReady(agent: ScpAgent): void;
  onPiece(agent: ScpAgent, piece: ScpPiece, status: Status, result: number): void;
  /** A ping was answered after `took`. */
  onPing(took: Millis): void;
  /** Told once, when nothing of the agent touches memory any more. `orphans` were in flight. */
  onEnd(agent: ScpAgent, end: AgentEnd, orphans: readonly Orphan[]): void;
}
/** A piece whose socket ended: it is known whether anything of it can have reached the server. */
export interface Orphan {
  readonly piece: ScpPiece;
  readonly sent: boolean;
}

class AgentSlot {
  piece: ScpPiece | undefined;
  turn = 0;
  sentAt: Millis = 0;
  /** Given to the line; it, and what it points to, is the line's until that says `onSent`. */
  sending = false;
  /** An answer that came while it was still being sent. */
  answered: Status | undefined;
  result = 0;
}

export class ScpAgent implements Ear {
  readonly port: DataPort;
  readonly serial: number;
  readonly since: Millis;
  ready = false;
  inFlight = 0;
  /** Exponentially weighted, of commands that succeeded. */
  latencyMs: Millis = 0;
  done = 0;
  /** When bytes came last. */
  heardAt: Millis;
  /** When a ping left that has not been answered; Infinity: none. */
  pingAt: Millis = Number.POSITIVE_INFINITY;
  end: AgentEnd | undefined;
  readonly #env: Env;
  readonly #line: Line;
  readonly #owner: AgentOwner;
  readonly #session: Configured;
  readonly #two: boolean;
  readonly #headerBytes: number;
  readonly #slots: AgentSlot[] = [];
  readonly #free: number[] = [];
  /** Headers of all slots, one after another, and one more for pings and the hello. */
  #headers = 0;
  #buffer = 0;
  #start = 0;
  #stop = 0;
  #receiving = false;
  /** A receive goes straight to `#bodyAt`: so many bytes of it at most, others are behind them. */
  #directBytes = 0;
  /** The last answer had much data, and so will have the next: only its header is received before its place is known. */
  #bulk = false;
  #bodySlot: AgentSlot | undefined;
  #bodyAt = 0;
  #bodyLeft = 0;
  #bodyCrc = 0;
  #sending = false;
  #toSend: number[] = [];
  #inSend: number[] = [];
  #pingQueued = false;
  readonly #pieces = new Pieces();
  readonly #flush = new Soon(() => this.#send());
  readonly #frame = new Frame();
  readonly #message = new ZnReq();
  #closing = false;

  constructor(env: Env, line: Line, port: DataPort, serial: number, session: Configured, owner: AgentOwner) {
    this.#env = env;
    this.#line = line;
    this.port = port;
    this.serial = serial;
    this.#session = session;
    this.#owner = owner;
    this.#two = session.version === Version.TWO;
    this.#headerBytes = this.#two ? FRAME.byteLength : ZNREQ.byteLength;
    this.since = this.heardAt = env.clock.now();
    line.ear = this;
    const depth = Math.min(session.depth, 1 << SLOT_BITS);
    for (let i = 0; i < depth; i++) {
      this.#slots.push(new AgentSlot());
      this.#free.push(depth - 1 - i);
    }
    // The extra one is as long as a hello, whichever the version.
    this.#headers = env.memory.allocate(depth * this.#headerBytes + ZNREQ.byteLength);
    this.#buffer = this.#headers === 0 ? 0 : env.memory.allocate(RECEIVE_BYTES);
    if (this.#buffer === 0) this.close("stopped");
    else this.#sayHello();
  }

  get depth(): number {
    return this.#slots.length;
  }
  get room(): boolean {
    return this.ready && !this.#closing && this.#free.length > 0;
  }
  get two(): boolean {
    return this.#two;
  }

  /** The oldest piece in flight left at this time; Infinity when there is none. */
  oldestSentAt(): Millis {
    let oldest = Number.POSITIVE_INFINITY;
    for (const slot of this.#slots) if (slot.piece !== undefined && slot.sentAt < oldest) oldest = slot.sentAt;
    return oldest;
  }

  /** Takes a piece; only when there is `room`. */
  take(piece: ScpPiece): void {
    const index = this.#free.pop()!;
    const slot = this.#slots[index]!;
    slot.piece = piece;
    slot.turn = (slot.turn + 1) & 0xff_ffff;
    slot.sentAt = this.#env.clock.now();
    slot.answered = undefined;
    slot.sending = false;
    piece.agent = this;
    piece.attempts++;
    this.inFlight++;
    this.#toSend.push(index);
    this.#env.turn.soon(this.#flush);
  }

  /** A piece in flight that asks for the same. */
  like({ code, length }: ScpPiece): ScpPiece | undefined {
    return this.#slots.find(({ piece }) => piece?.code === code && piece.length === length)?.piece;
  }

  /** Asks for a sign of life; version 2 only. */
  ping(): void {
    if (!this.#two || !this.ready || this.pingAt !== Number.POSITIVE_INFINITY) return;
    this.pingAt = this.#env.clock.now();
    this.#pingQueued = true;
    this.#env.turn.soon(this.#flush);
  }

  close(why: AgentEnd): void {
    if (this.#closing) return;
    this.#closing = true;
    this.ready = false;
    this.end = why;
    this.#line.close();
  }

  /* ---- what the line tells */

  onReceived(count: number): void {
    this.#receiving = false;
    if (this.#closing) return;
    if (count === 0) {
      this.close("closed");
      return;
    }
    this.heardAt = this.#env.clock.now();
    const direct = Math.min(count, this.#directBytes);
    this.#directBytes = 0;
    this.#bodyAt += direct;
    this.#bodyLeft -= direct;
    this.#stop += count - direct;
    this.#advance();
  }

  onSent(): void {
    this.#sending = false;
    for (const index of this.#inSend) {
      const slot = this.#slots[index]!;
      slot.sending = false;
      if (slot.answered !== undefined) this.#finish(slot, index, slot.answered, slot.result);
    }
    this.#inSend.length = 0;
    this.#send();
  }

  onClosed(): void {
    this.#closing = true;
    this.ready = false;
    this.end ??= "lost";
    const { memory } = this.#env;
    if (this.#headers !== 0) memory.free(this.#headers);
    if (this.#buffer !== 0) memory.free(this.#buffer);
    this.#headers = this.#buffer = 0;
    const waiting = new Set(this.#toSend);
    const orphans: Orphan[] = [];
    this.#slots.forEach((slot, index) => {
      if (slot.piece === undefined) return;
      orphans.push({ piece: slot.piece, sent: !waiting.has(index) });
      slot.piece.agent = undefined;
      slot.piece = undefined;
    });
    this.inFlight = 0;
    this.#owner.onEnd(this, this.end, orphans);
  }

  /* ---- sending */

  #sayHello(): void {
    const { view } = this.#env.memory;
    const { random, session, key } = this.#session;
    const message = this.#message;
    message.clear();
    message.op = Op.Z_HELLO;
    message.version = this.#session.version;
    message.reqszLo = random;
    const at = this.#helloAt();
    encodeZnReq(message, view, at);
    if (key !== undefined)
      encodeHello({ session, serial: this.serial, mac: helloMac(key, session, this.serial, random) }, view, at);
    this.#pieces.clear();
    this.#pieces.add(at, ZNREQ.byteLength);
    this.#sending = true;
    this.#line.send(this.#pieces);
    this.#receive();
  }

  #helloAt(): number {
    return this.#headers + this.#slots.length * this.#headerBytes;
  }

  #send(): void {
    if (this.#sending || this.#closing || (this.#toSend.length === 0 && !this.#pingQueued)) return;
    const pieces = this.#pieces;
    pieces.clear();
    if (this.#pingQueued) {
      this.#pingQueued = false;
      const frame = this.#frame;
      frame.clear();
      frame.session = this.#session.session;
      frame.op = Op.PING;
      frame.tag = PING_TAG;
      encodeFrame(frame, this.#env.memory, this.#helloAt());
      pieces.add(this.#helloAt(), FRAME.byteLength);
    }
    for (const index of this.#toSend) {
      const slot = this.#slots[index]!;
      const piece = slot.piece!;
      const at = this.#headers + index * this.#headerBytes;
      if (this.#two) this.#encodeFrame(piece, index, slot.turn, at);
      else this.#encodeRequest(piece, at);
      pieces.add(at, this.#headerBytes);
      if (piece.outBytes > 0) pieces.add(piece.at, piece.outBytes);
      slot.sending = true;
    }
    [this.#inSend, this.#toSend] = [this.#toSend, this.#inSend];
    this.#sending = true;
    this.#line.send(pieces);
  }

  #encodeRequest(piece: ScpPiece, at: number): void {
    const message = this.#message;
    message.clear();
    message.zlun = piece.unit;
    message.op = piece.code;
    message.flags = piece.flags;
    message.reqszLo = piece.length;
    message.lba = piece.offset / LBA_BYTES;
    encodeZnReq(message, this.#env.memory.view, at);
  }

  #encodeFrame(piece: ScpPiece, index: number, turn: number, at: number): void {
    const { memory } = this.#env;
    const frame = this.#frame;
    frame.clear();
    frame.session = this.#session.session;
    frame.unit = piece.unit;
    frame.op = piece.code;
    frame.flags = piece.flags;
    frame.tag = ((turn << SLOT_BITS) | index) >>> 0;
    frame.length = piece.length;
    frame.lba = piece.offset / LBA_BYTES;
    frame.bodyLength = piece.outBytes;
    if (piece.outBytes > 0 && this.#dataCrc) frame.bodyCrc = memory.crc32c(piece.at, piece.outBytes);
    encodeFrame(frame, memory, at);
  }

  get #dataCrc(): boolean {
    return (this.#session.capabilities & Capability.DATA_CRC) !== 0;
  }

  /* ---- receiving */

  #receive(): void {
    if (this.#receiving || this.#closing) return;
    this.#receiving = true;
    if (this.#bodyLeft > 0) {
      // All that was in the buffer is in its place already. Behind it comes the next answer.
      this.#start = this.#stop = 0;
      this.#directBytes = this.#bodyLeft;
      const rest = this.#bulk ? this.#headerBytes : RECEIVE_BYTES;
      this.#line.receive(this.#bodyAt, this.#bodyLeft, this.#buffer, rest);
      return;
    }
    if (this.#start === this.#stop) this.#start = this.#stop = 0;
    else if (this.#start > 0) {
      this.#env.memory.bytes.copyWithin(this.#buffer, this.#buffer + this.#start, this.#buffer + this.#stop);
      this.#stop -= this.#start;
      this.#start = 0;
    }
    const room = this.#bulk ? this.#headerBytes : RECEIVE_BYTES;
    this.#line.receive(this.#buffer + this.#stop, room - this.#stop);
  }

  #advance(): void {
    while (!this.#closing) {
      if (this.#bodyLeft > 0) {
        const count = Math.min(this.#bodyLeft, this.#stop - this.#start);
        const from = this.#buffer + this.#start;
        this.#env.memory.bytes.copyWithin(this.#bodyAt, from, from + count);
        this.#bodyAt += count;
        this.#bodyLeft -= count;
        this.#start += count;
        if (this.#bodyLeft > 0) break;
      }
      if (this.#bodySlot !== undefined) {
        this.#endBody();
        continue;
      }
      const headerBytes = this.ready ? this.#headerBytes : ZNREQ.byteLength;
      if (this.#stop - this.#start < headerBytes) break;
      const at = this.#buffer + this.#start;
      this.#start += headerBytes;
      this.#bulk = false;
      if (!this.ready) this.#hearWelcome(at);
      else if (this.#two) this.#hearFrame(at);
      else this.#hearResponse(at);
    }
    this.#receive();
  }

  #hearWelcome(at: number): void {
    const { view } = this.#env.memory;
    decodeZnReq(this.#message, view, at);
    if (this.#message.status !== 0) {
      this.close("refused");
      return;
    }
    const { key, session } = this.#session;
    if (key !== undefined) {
      const { serial, mac } = decodeHelloAnswer(view, at);
      if (serial !== this.serial || !equalBytes(mac, helloAnswerMac(key, session, serial))) {
        this.close("not-proven");
        return;
      }
    }
    this.ready = true;
    this.#owner.onReady(this);
  }

  /** Version 1: the one command in flight, and every field of the answer that the text defines. */
  #hearResponse(at: number): void {
    const message = this.#message;
    decodeZnReq(message, this.#env.memory.view, at);
    const index = this.#slots[0]!.piece === undefined ? -1 : 0;
    const piece = this.#slots[0]!.piece;
    if (index < 0 || piece === undefined || message.type !== 1 || message.version !== Version.ONE) {
      this.close("violated");
      return;
    }
    if (message.op !== piece.code || message.zlun !== piece.unit) {
      this.close("violated");
      return;
    }
    const slot = this.#slots[0]!;
    if (message.status !== 0) {
      this.#answer(slot, 0, statusOf(message.flags === 0 ? 1 : message.flags), 0);
      return;
    }
    if (message.reqszHi !== 0 || message.reqszLo !== piece.length) {
      this.close("violated");
      return;
    }
    if (piece.inBytes === 0) {
      this.#answer(slot, 0, "ok", 0);
      return;
    }
    this.#expectBody(slot, piece, piece.inBytes, 0);
  }

  #hearFrame(at: number): void {
    const frame = this.#frame;
    if (decodeFrame(frame, this.#env.memory, at) !== undefined) {
      this.close("violated");
      return;
    }
    if (frame.type !== Type.RESPONSE || frame.session !== this.#session.session) {
      this.close("violated");
      return;
    }
    if (frame.tag === PING_TAG && frame.op === Op.PING) {
      if (this.pingAt !== Number.POSITIVE_INFINITY) this.#owner.onPing(this.#env.clock.now() - this.pingAt);
      this.pingAt = Number.POSITIVE_INFINITY;
      return;
    }
    let index = frame.tag & ((1 << SLOT_BITS) - 1);
    if (canary.armed === "scp-wrong-answer") index = this.#mistake(index, frame);
    const slot = this.#slots[index];
    const piece = slot?.piece;
    // An answer to nothing, or to an earlier turn of the slot: this stream cannot be believed any more.
    if (slot === undefined || piece === undefined || slot.turn !== frame.tag >>> SLOT_BITS) {
      this.close("violated");
      return;
    }
    if (slot.answered !== undefined || frame.op !== piece.code || frame.unit !== piece.unit) {
      this.close("violated");
      return;
    }
    if (frame.status !== 0) {
      if (frame.bodyLength !== 0) {
        this.close("violated");
        return;
      }
      this.#answer(slot, index, statusOf(frame.status), frame.length);
      return;
    }
    const fits =
      piece.code === Op.BLOCK_STATUS ? frame.bodyLength <= piece.inBytes : frame.bodyLength === piece.inBytes;
    if (frame.length !== piece.length || !fits) {
      this.close("violated");
      return;
    }
    if (frame.bodyLength === 0) {
      this.#answer(slot, index, "ok", 0);
      return;
    }
    this.#expectBody(slot, piece, frame.bodyLength, frame.bodyCrc);
  }

  /** Takes the answer to one command for that to another one of its kind. */
  #mistake(index: number, frame: Frame): number {
    const wrong = this.#slots.findIndex(
      ({ piece, answered }, other) =>
        other !== index && answered === undefined && piece?.code === frame.op && piece.length === frame.length,
    );
    if (wrong < 0) return index;
    frame.tag = ((this.#slots[wrong]!.turn << SLOT_BITS) | wrong) >>> 0;
    return wrong;
  }

  #expectBody(slot: AgentSlot, piece: ScpPiece, bytes: number, crc: number): void {
    this.#bodySlot = slot;
    this.#bodyAt = piece.at;
    this.#bodyLeft = bytes;
    this.#bodyCrc = crc;
    this.#bulk = bytes >= BULK_BYTES_MIN;
    slot.result = bytes;
  }

  #endBody(): void {
    const slot = this.#bodySlot!;
    this.#bodySlot = undefined;
    const bytes = slot.result;
    if (this.#two && this.#dataCrc && this.#env.memory.crc32c(slot.piece!.at, bytes) !== this.#bodyCrc) {
      this.close("bad-data-crc");
      return;
    }
    this.#answer(slot, this.#slots.indexOf(slot), "ok", bytes);
  }

  #answer(slot: AgentSlot, index: number, status: Status, result: number): void {
    if (slot.sending) {
      slot.answered = status;
      slot.result = result;
    } else this.#finish(slot, index, status, result);
  }

  #finish(slot: AgentSlot, index: number, status: Status, result: number): void {
    const piece = slot.piece!;
    slot.piece = undefined;
    slot.answered = undefined;
    piece.agent = undefined;
    this.#free.push(index);
    this.inFlight--;
    this.done++;
    const took = this.#env.clock.now() - slot.sentAt;
    if (status === "ok")
      this.latencyMs = this.done === 1 ? took : this.latencyMs + LATENCY_WEIGHT * (took - this.latencyMs);
    this.#owner.onPiece(this, piece, status, result);
  }
}
