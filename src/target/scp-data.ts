/**
 * The server's end of one SCP data socket: it cuts commands out of the stream, gives them to the guarded devices of
 * its session, and sends the answers of one turn in one piece. Version 1 has one command at a time, version 2 as many
 * as were agreed. What breaks the framing closes the socket; what is merely wrong is answered, and the stream stays in
 * step. Memory is the backpressure: no buffer, no receiving.
 */
import { writeU64 } from "#base/layout";
import { Pieces } from "#base/memory";
import type { Status } from "#base/status";
import type { Millis } from "#base/units";
import { Extents } from "#device/device";
import { type Ear, type Env, type Line, type LineEnd, Soon } from "#env/env";
import {
  Capability,
  DATA_BYTES_MAX_V1,
  Flag,
  LBA_BYTES,
  Op,
  STATUS_CODE,
  STATUS_REFUSED,
  Type,
  Version,
} from "#wire/scp/codes";
import { encodeHelloAnswer } from "#wire/scp/config";
import { decodeFrame, encodeFrame, FRAME, Frame } from "#wire/scp/frame";
import { decodeZnReq, encodeZnReq, ZNREQ, ZnReq } from "#wire/scp/znreq";
import type { ScpSession } from "./scp-session.ts";
import { EXTENT_BYTES, EXTENTS_MAX, OP_KIND, ScpSlot } from "./scp-slot.ts";

/** Received at a time; a write's data beyond it goes straight to the command's own buffer. */
const RECEIVE_BYTES = 16896;
/** Data of this length on is best received straight into its place, together with the header of what comes next. */
const BULK_BYTES_MIN = 32 * 1024;
/** Commands whose data is read with them, both halves of it: a compare-and-write is never larger than this. */
const COMPARE_BYTES_MAX = 128 * 1024;

export type DataEnd =
  | "stopped"
  | "lost"
  | "bad-hello"
  | "bad-frame"
  | "bad-length"
  | "replaced"
  | "fenced"
  | "stalled"
  | "session-ended";

/** Who lets data sockets in. */
export interface DataDoor {
  /** The session that a hello belongs to, with the answer's proof; undefined to refuse it. */
  welcome(
    connection: ScpDataConnection,
    message: ZnReq,
    view: DataView,
    at: number,
  ): { session: ScpSession; serial: number; mac: Uint8Array | undefined } | undefined;
  /** Told once the line is closed. */
  gone(connection: ScpDataConnection, end: DataEnd): void;
}

export class ScpDataConnection implements Ear {
  readonly line: Line;
  session: ScpSession | undefined;
  /** Of version 2: names this socket in its session. */
  serial = 0;
  /** Commands that are at the devices. */
  atDevices = 0;
  commands = 0;
  readonly #env: Env;
  readonly #door: DataDoor;
  #version = 0;
  #depth = 1;
  #dataMax = DATA_BYTES_MAX_V1;
  #dataCrc = false;
  readonly #message = new ZnReq();
  readonly #frame = new Frame();
  readonly #answer = new Frame();

  #buffer = 0;
  #start = 0;
  #end = 0;
  #receiving = false;
  /** A receive goes straight to `#bodyAt`: so many bytes of it at most, others are behind them. */
  #directBytes = 0;
  /** The last command had much data, and so will have the next: only its header is received before its place is known. */
  #bulk = false;
  /** Short commands that have come since the line was last told. */
  #gathered = 0;
  /** A command whose data is being received: into its buffer, or nowhere (`#bodyAt` 0). */
  #bodySlot: ScpSlot | undefined;
  #bodyAt = 0;
  #bodyLeft = 0;
  #bodyCrc = 0;
  /** What a command whose data is only drained is answered with. */
  #bodyStatus: Status = "ok";
  /** Waits for memory before it goes on. */
  #starved = false;
  /** Answer and close: nothing is read any more. */
  #closeAfter: DataEnd | undefined;

  readonly #free: ScpSlot[] = [];
  #inFlight = 0;
  #ready: ScpSlot[] = [];
  #sent: ScpSlot[] = [];
  #sending = false;
  readonly #pieces = new Pieces();
  readonly #flush = new Soon(() => this.#sendReady());
  readonly #again = new Soon(() => this.#advance());
  #closing = false;
  #closed = false;
  #why: DataEnd = "lost";
  /** Since when the peer owes us something: the rest of a message, or room for an answer. Infinity: nothing. */
  stalledSince: Millis = Number.POSITIVE_INFINITY;

  /** @param first what was received before, and belongs here: a whole hello. */
  constructor(env: Env, line: Line, door: DataDoor, first?: Uint8Array) {
    this.#env = env;
    this.line = line;
    this.#door = door;
    line.ear = this;
    if (first !== undefined) {
      this.#buffer = env.memory.allocate(RECEIVE_BYTES);
      if (this.#buffer !== 0) {
        env.memory.bytes.set(first, this.#buffer);
        this.#end = first.length;
      } else this.close("stopped");
    }
    this.stalledSince = env.clock.now();
    this.#env.turn.soon(this.#again);
  }

  get closed(): boolean {
    return this.#closed;
  }
  get inFlight(): number {
    return this.#inFlight;
  }

  close(why: DataEnd): void {
    if (this.#closing) return;
    this.#closing = true;
    this.#why = why;
    this.line.close();
  }

  /* ---- what the line tells */

  onReceived(count: number): void {
    this.#receiving = false;
    if (count === 0) {
      this.close("stopped");
      return;
    }
    const direct = Math.min(count, this.#directBytes);
    this.#directBytes = 0;
    this.#bodyAt += direct;
    this.#bodyLeft -= direct;
    this.#end += count - direct;
    this.#advance();
  }

  onSent(): void {
    this.#sending = false;
    for (const slot of this.#sent) this.#release(slot);
    this.#sent.length = 0;
    if (this.#ready.length > 0) this.#sendReady();
    else if (this.#closeAfter !== undefined) this.close(this.#closeAfter);
    this.#env.turn.soon(this.#again);
  }

  onClosed(end: LineEnd): void {
    if (this.#closed) return;
    if (!this.#closing) this.#why = end === "stopped" ? "stopped" : "lost";
    this.#closing = this.#closed = true;
    if (this.#buffer !== 0) this.#env.memory.free(this.#buffer);
    this.#buffer = 0;
    if (this.#bodySlot !== undefined) this.#release(this.#bodySlot);
    this.#bodySlot = undefined;
    for (const slot of [...this.#sent, ...this.#ready]) this.#release(slot);
    this.#sent.length = this.#ready.length = 0;
    this.#door.gone(this, this.#why);
    if (this.atDevices === 0) this.session?.onQuiet();
  }

  onMemory(): void {
    this.#starved = false;
    this.#env.turn.soon(this.#again);
  }

  /* ---- receiving */

  get #headerBytes(): number {
    return this.#version === Version.TWO ? FRAME.byteLength : ZNREQ.byteLength;
  }

  /** The stages follow each other for as long as one of them gets on. */
  #advance(): void {
    while (!this.#closing && !this.#starved && this.#closeAfter === undefined) {
      if (this.#bodyLeft > 0) {
        this.#takeBody();
        if (this.#bodyLeft > 0) break;
      }
      if (this.#bodySlot !== undefined) {
        this.#endBody();
        continue;
      }
      if (this.#version !== 0 && this.#inFlight >= this.#depth) break;
      if (this.#end - this.#start < this.#headerBytes) break;
      const before = this.#start;
      if (this.#version === 0) this.#takeHello();
      else if (this.#version === Version.ONE) this.#takeRequest();
      else this.#takeFrame();
      if (this.#start === before) break;
    }
    this.#receive();
    this.#noteStall();
  }

  #receive(): void {
    if (this.#receiving || this.#closing || this.#starved || this.#closeAfter !== undefined) return;
    if (this.#bodyLeft > 0 && this.#bodyAt !== 0) {
      // All that was in the buffer is in its place already. Behind it comes the next command.
      this.#start = this.#end = 0;
      this.#receiving = true;
      this.#directBytes = this.#bodyLeft;
      const rest = this.#bulk ? this.#headerBytes : RECEIVE_BYTES;
      this.line.receive(this.#bodyAt, this.#bodyLeft, this.#buffer, rest);
      return;
    }
    if (this.#buffer === 0) {
      this.#buffer = this.#env.memory.allocate(RECEIVE_BYTES);
      if (this.#buffer === 0) {
        this.#starve();
        return;
      }
    }
    if (this.#start === this.#end) this.#start = this.#end = 0;
    else if (this.#start > 0) {
      this.#env.memory.bytes.copyWithin(this.#buffer, this.#buffer + this.#start, this.#buffer + this.#end);
      this.#end -= this.#start;
      this.#start = 0;
    }
    const room = this.#bulk && this.#bodyLeft === 0 ? this.#headerBytes : RECEIVE_BYTES;
    if (this.#end >= room) return;
    if (this.#bodySlot === undefined && !this.#bulk && this.#end === 0) {
      this.line.gather?.(this.#gathered);
      this.#gathered = 0;
    }
    this.#receiving = true;
    this.line.receive(this.#buffer + this.#end, room - this.#end);
  }

  /** Moves what has come of a body to where it goes. */
  #takeBody(): void {
    const count = Math.min(this.#bodyLeft, this.#end - this.#start);
    if (count === 0) return;
    if (this.#bodyAt !== 0) {
      const from = this.#buffer + this.#start;
      this.#env.memory.bytes.copyWithin(this.#bodyAt, from, from + count);
      this.#bodyAt += count;
    }
    this.#start += count;
    this.#bodyLeft -= count;
  }

  #endBody(): void {
    const slot = this.#bodySlot!;
    this.#bodySlot = undefined;
    this.#bodyAt = 0;
    const status = this.#bodyStatus;
    if (status !== "ok") {
      this.#complete(slot, status);
      return;
    }
    if (this.#dataCrc) {
      const bytes = slot.op.kind === "compare-write" ? 2 * slot.length : slot.length;
      // Nothing was done yet: the host sends it again.
      if (this.#env.memory.crc32c(slot.dataAt, bytes) !== this.#bodyCrc) {
        this.#complete(slot, "aborted");
        return;
      }
    }
    this.#submit(slot);
  }

  #takeHello(): void {
    const { view } = this.#env.memory;
    const at = this.#buffer + this.#start;
    decodeZnReq(this.#message, view, at);
    const welcome = this.#door.welcome(this, this.#message, view, at);
    this.#start += ZNREQ.byteLength;
    const slot = this.#slot(ZNREQ.byteLength, 0);
    if (slot === undefined) {
      this.close("bad-hello");
      return;
    }
    const message = this.#message;
    message.clear();
    message.op = Op.Z_HELLO;
    if (welcome === undefined) {
      message.status = STATUS_REFUSED;
      encodeZnReq(message, view, slot.at);
      this.#closeAfter = "bad-hello";
    } else {
      const { session, serial, mac } = welcome;
      this.session = session;
      this.serial = serial;
      this.#version = session.version;
      this.#depth = session.depth;
      this.#dataMax = session.dataMax;
      this.#dataCrc = (session.capabilities & Capability.DATA_CRC) !== 0;
      message.version = session.version;
      encodeZnReq(message, view, slot.at);
      if (mac !== undefined) encodeHelloAnswer(serial, mac, view, slot.at);
    }
    slot.code = Op.Z_HELLO;
    slot.replyBytes = 0;
    this.#reply(slot);
  }

  /** WO appendix C, with the checks that its pseudocode leaves out. */
  #takeRequest(): void {
    const message = this.#message;
    decodeZnReq(message, this.#env.memory.view, this.#buffer + this.#start);
    const { op, length, lba } = message;
    const lengthRight = length > 0 && length <= DATA_BYTES_MAX_V1 && length % LBA_BYTES === 0;
    const data = (op === Op.READ || op === Op.WRITE) && lengthRight ? length : 0;
    const slot = this.#slot(ZNREQ.byteLength, data);
    if (slot === undefined) return;
    this.#start += ZNREQ.byteLength;
    this.#bulk = false;
    if (length < BULK_BYTES_MIN) this.#gathered++;
    slot.code = op;
    slot.tag = message.requestId;
    slot.unit = message.zlun;
    slot.lba = lba;
    slot.length = length;
    // Version 1 has no flush: what it was told is written has to stay written.
    slot.op.fua = op === Op.WRITE;
    let status: Status = "ok";
    if (op !== Op.READ && op !== Op.WRITE) status = "unsupported";
    else if (message.type !== 1 || message.version !== Version.ONE || !lengthRight) status = "invalid";
    else status = this.#aim(slot, lba);
    if (op === Op.WRITE) {
      if (!lengthRight) {
        // Nobody knows how much data follows: the stream cannot stay in step.
        this.#closeAfter = "bad-length";
        this.#complete(slot, "invalid");
        return;
      }
      this.#expectBody(slot, length, 0, status);
    } else if (status === "ok") this.#submit(slot);
    else this.#complete(slot, status);
  }

  #takeFrame(): void {
    const frame = this.#frame;
    if (decodeFrame(frame, this.#env.memory, this.#buffer + this.#start) !== undefined) {
      this.close("bad-frame");
      return;
    }
    if (frame.type !== Type.REQUEST || frame.session !== this.session!.id) {
      this.close("bad-frame");
      return;
    }
    const { op, length, bodyLength } = frame;
    if (bodyLength > Math.max(this.#dataMax, 2 * COMPARE_BYTES_MAX)) {
      this.close("bad-length");
      return;
    }
    let status: Status = this.#shapeFault(frame) ?? "ok";
    const room =
      status !== "ok" ? 0 : op === Op.READ ? length : op === Op.BLOCK_STATUS ? EXTENT_BYTES * EXTENTS_MAX : bodyLength;
    const slot = this.#slot(FRAME.byteLength, room);
    if (slot === undefined) return;
    this.#start += FRAME.byteLength;
    this.#bulk = false;
    if (length < BULK_BYTES_MIN) this.#gathered++;
    slot.code = op;
    slot.tag = frame.tag;
    slot.unit = frame.unit;
    slot.lba = frame.lba;
    slot.length = length;
    slot.op.fua = (frame.flags & Flag.FUA) !== 0;
    slot.op.noHole = (frame.flags & Flag.NO_HOLE) !== 0;
    slot.op.fastOnly = (frame.flags & Flag.FAST) !== 0;
    if (status === "ok" && op !== Op.PING) status = this.#aim(slot, frame.lba);
    if (bodyLength > 0) this.#expectBody(slot, bodyLength, frame.bodyCrc, status);
    else if (op === Op.PING || status !== "ok") this.#complete(slot, status);
    else this.#submit(slot);
  }

  /** What is wrong with a version 2 request in itself, whatever unit it is for. */
  #shapeFault({ op, length, bodyLength }: Frame): Status | undefined {
    switch (op) {
      case Op.READ:
        return bodyLength !== 0 || length > this.#dataMax || length === 0 ? "invalid" : undefined;
      case Op.WRITE:
        return bodyLength !== length || length > this.#dataMax || length === 0 ? "invalid" : undefined;
      case Op.COMPARE_WRITE:
        return bodyLength !== 2 * length || length > COMPARE_BYTES_MAX || length === 0 ? "invalid" : undefined;
      case Op.TRIM:
      case Op.ZERO:
      case Op.CACHE:
      case Op.BLOCK_STATUS:
        return bodyLength !== 0 || length === 0 ? "invalid" : undefined;
      case Op.FLUSH:
      case Op.PING:
        return bodyLength !== 0 ? "invalid" : undefined;
      default:
        return "unsupported";
    }
  }

  /** Finds the unit, and fills the operation. The guard checks rights and range when it is submitted. */
  #aim(slot: ScpSlot, lba: number): Status {
    const { op } = slot;
    op.kind = OP_KIND[slot.code] ?? "read";
    op.offset = lba * LBA_BYTES;
    op.length = slot.length;
    op.at = slot.dataAt;
    op.result = 0;
    if (op.kind === "status") op.extents = slot.extents ??= new Extents(EXTENTS_MAX);
    else op.extents = undefined;
    if (!Number.isSafeInteger(op.offset) || !Number.isSafeInteger(op.length)) return "range";
    const device = this.session!.device(slot.unit);
    return typeof device === "string" ? device : "ok";
  }

  #expectBody(slot: ScpSlot, bytes: number, crc: number, status: Status): void {
    this.#bulk = bytes >= BULK_BYTES_MIN;
    this.#bodySlot = slot;
    this.#bodyStatus = status;
    this.#bodyAt = status === "ok" ? slot.dataAt : 0;
    this.#bodyLeft = bytes;
    this.#bodyCrc = crc;
  }

  /* ---- doing and answering */

  #submit(slot: ScpSlot): void {
    const device = this.session!.device(slot.unit);
    if (typeof device === "string") {
      this.#complete(slot, device);
      return;
    }
    this.atDevices++;
    this.commands++;
    slot.since = this.#env.clock.now();
    slot.op.extents?.clear();
    device.submit(slot.op);
  }

  #onDone(slot: ScpSlot): void {
    this.atDevices--;
    this.session!.note(slot, this.#env.clock.now() - slot.since);
    if (this.#closed) {
      this.#release(slot);
      if (this.atDevices === 0) this.session!.onQuiet();
    } else this.#complete(slot, slot.op.status);
  }

  #complete(slot: ScpSlot, status: Status): void {
    if (this.#version === Version.ONE) this.#encodeOne(slot, status);
    else this.#encodeTwo(slot, status);
    this.#reply(slot);
  }

  #encodeOne(slot: ScpSlot, status: Status): void {
    const message = this.#message;
    message.clear();
    message.zlun = slot.unit;
    message.op = slot.code;
    message.requestId = slot.tag;
    message.lba = Number.isSafeInteger(slot.lba) ? slot.lba : 0;
    if (status === "ok") message.reqszLo = slot.length;
    else {
      message.status = STATUS_REFUSED;
      message.flags = STATUS_CODE[status];
    }
    encodeZnReq(message, this.#env.memory.view, slot.at);
    slot.replyBytes = status === "ok" && slot.code === Op.READ ? slot.length : 0;
  }

  #encodeTwo(slot: ScpSlot, status: Status): void {
    const { memory } = this.#env;
    slot.replyBytes = 0;
    if (status === "ok" && slot.code === Op.READ) slot.replyBytes = slot.length;
    else if (status === "ok" && slot.code === Op.BLOCK_STATUS) slot.replyBytes = this.#encodeExtents(slot);
    const frame = this.#answer;
    frame.type = Type.RESPONSE;
    frame.session = this.session!.id;
    frame.unit = slot.unit;
    frame.op = slot.code;
    frame.tag = slot.tag;
    frame.status = STATUS_CODE[status];
    frame.lba = Number.isSafeInteger(slot.lba) ? slot.lba : 0;
    frame.length = status === "ok" ? slot.length : slot.op.result;
    frame.bodyLength = slot.replyBytes;
    frame.bodyCrc = this.#dataCrc && slot.replyBytes > 0 ? memory.crc32c(slot.dataAt, slot.replyBytes) : 0;
    encodeFrame(frame, memory, slot.at);
  }

  #encodeExtents(slot: ScpSlot): number {
    const { view } = this.#env.memory;
    const extents = slot.op.extents!;
    let at = slot.dataAt;
    let left = slot.length;
    for (let i = 0; i < extents.count && left > 0; i++, at += EXTENT_BYTES) {
      const length = Math.min(extents.length[i]!, left);
      left -= length;
      writeU64(view, at, length);
      view.setUint32(at + 8, extents.flags[i]!);
      view.setUint32(at + 12, extents.depth[i]!);
    }
    return at - slot.dataAt;
  }

  #reply(slot: ScpSlot): void {
    this.#ready.push(slot);
    if (!this.#sending) this.#env.turn.soon(this.#flush);
  }

  #sendReady(): void {
    if (this.#sending || this.#closing || this.#ready.length === 0) return;
    const headerBytes = (slot: ScpSlot) => (slot.code === Op.Z_HELLO ? ZNREQ.byteLength : this.#headerBytes);
    const pieces = this.#pieces;
    pieces.clear();
    let count = 0;
    for (const slot of this.#ready) {
      if (!pieces.add(slot.at, headerBytes(slot) + slot.replyBytes)) break;
      count++;
    }
    if (count === this.#ready.length) [this.#sent, this.#ready] = [this.#ready, this.#sent];
    else this.#sent.push(...this.#ready.splice(0, count));
    this.#sending = true;
    this.stalledSince = this.#env.clock.now();
    this.line.send(pieces);
  }

  /* ---- slots and buffers */

  /** A slot with a buffer of `head` + `data` bytes, or undefined: then the connection waits for memory. */
  #slot(head: number, data: number): ScpSlot | undefined {
    const at = this.#env.memory.allocate(head + data);
    if (at === 0) {
      this.#starve();
      return undefined;
    }
    const slot = this.#free.pop() ?? new ScpSlot((done) => this.#onDone(done));
    slot.at = at;
    slot.dataAt = at + head;
    slot.op.result = 0;
    this.#inFlight++;
    return slot;
  }

  #release(slot: ScpSlot): void {
    this.#env.memory.free(slot.at);
    slot.at = 0;
    this.#inFlight--;
    this.#free.push(slot);
  }

  #starve(): void {
    this.#starved = true;
    this.#env.memory.whenFreed(this);
  }

  /** Whoever is in the middle of something with us has a limited time for it (`ScpFront` looks now and then). */
  #noteStall(): void {
    // Whoever does not take its answers may be what leaves no memory, for itself and for others.
    const owed =
      this.#sending ||
      (!this.#starved &&
        (this.#version === 0 || this.#bodyLeft > 0 || (this.#end > this.#start && this.#inFlight < this.#depth)));
    if (!owed) this.stalledSince = Number.POSITIVE_INFINITY;
    else if (this.stalledSince === Number.POSITIVE_INFINITY || (this.#bodyLeft > 0 && !this.#sending))
      this.stalledSince = this.#env.clock.now();
  }
}
