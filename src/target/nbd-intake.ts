/**
 * Cuts the requests of one NBD connection out of its stream, finds memory for them, and sets them going.
 *
 * Bytes come into the connection's own buffer, many small requests at a time; a write's payload is copied once from
 * there to its slot. What is missing of a long one is received straight into the slot, together with the header that
 * follows; where long ones follow each other, none of them is copied, and each takes one receive. A request that finds no
 * memory stops the receiving: the connection then waits for its turn (see `NbdFront`), and TCP stops the client.
 * Requests longer than PART_BYTES run as several operations, so that none of them needs much memory in one piece.
 *
 * A bad request is answered and the stream stays in step; only when it makes no sense any more it is `broken`.
 */
import { readU64 } from "#base/layout";
import { HEADER_ROOM_BYTES } from "#base/memory";
import type { Bytes, Millis } from "#base/units";
import type { BlockDevice } from "#device/device";
import type { Env, Line } from "#env/env";
import type { Agreement } from "#proto/nbd/negotiation";
import {
  BAD_CONTEXTS,
  type Objection,
  payloadBytes,
  SHUTTING_DOWN,
  validateRange,
  validateRequest,
} from "#proto/nbd/transmission";
import { Cmd, CmdFlag, NbdError } from "#wire/nbd/codes";
import { BLOCK_STATUS_PAYLOAD, CONTEXT_ID_BYTES, decodeRequest, requestBytes } from "#wire/nbd/request";
import type { Answers } from "./nbd-answers.ts";
import { HoleFinder } from "./nbd-holes.ts";
import { type ConnectionHome, type MemoryUser, RECEIVE_BYTES_LARGE, RECEIVE_BYTES_SMALL } from "./nbd-home.ts";
import { describeOp, PART_BYTES, type Replies, type Slot } from "./nbd-slot.ts";

/** A missing payload from this length on is received straight into its slot; shorter ones gain more from company. */
const DIRECT_BYTES_MIN = 32 * 1024;
/** A read of at least this length is first asked for holes. */
const HOLE_READ_BYTES_MIN = 32 * 1024;

const OUT_OF_MEMORY: Objection = { error: NbdError.ENOMEM, text: "out of memory for the moment" };

/** What comes next: it is named after what is awaited. */
type Stage = "header" | "admission" | "context-ids" | "payload" | "dropping" | "splitting" | "nothing";

export class Intake {
  readonly #home: ConnectionHome;
  readonly #env: Env;
  readonly #user: MemoryUser;
  readonly #line: Line;
  readonly #agreement: Agreement;
  readonly #device: BlockDevice;
  readonly #replies: Replies;
  readonly #answers: Answers;
  readonly #extended: boolean;
  readonly #headerBytes: number;
  readonly #holes: HoleFinder | undefined;

  /** The receive buffer; bytes from `start` to `end` in it have come and are not used yet. */
  #bufferAt: number;
  #bufferSize = RECEIVE_BYTES_SMALL;
  #start = 0;
  #end = 0;
  #receiving = false;
  /** Short requests that have come since the line was last told: long ones need no company. */
  #gathered = 0;
  /** A receive goes straight into the slot that is being filled: so many bytes of it at most, others are behind them. */
  #directBytes = 0;
  /** The last request had a long payload, and so will have the next: only its header is received before its place is known. */
  #bulk = false;

  #stage: Stage = "header";
  /** The request that is being taken in, and what speaks against it. */
  #slot: Slot | undefined;
  #objection: Objection | undefined;
  /** The operation whose payload is coming: the slot itself, or a part of it. */
  #part: Slot | undefined;
  /** Payload bytes of the request that have not come yet; and of them those that belong to `#part`. */
  #left: Bytes = 0;
  #partLeft: Bytes = 0;
  /** How far the request has been split, in bytes from the start of the export. */
  #position: Bytes = 0;
  /** Contexts that the client asked for by payload, as bits by index; all of them otherwise. */
  #contexts = 0;
  #now: Millis = 0;

  /** Enough has been begun in this round (see `Rounds`): nothing more is taken in before `goOn`. */
  resting = false;
  /** New requests are refused: the server is shutting down. */
  draining = false;
  /** The client has said goodbye; what it sends after that is not looked at. */
  goodbye = false;
  /** Set once the stream makes no sense any more: what is wrong with it. */
  broken: string | undefined;
  requests = 0;
  bytesIn: Bytes = 0;

  /** @param bufferAt a receive buffer of RECEIVE_BYTES_SMALL, which holds `unread` bytes at its beginning. */
  constructor(
    home: ConnectionHome,
    user: MemoryUser,
    line: Line,
    agreement: Agreement,
    device: BlockDevice,
    replies: Replies,
    answers: Answers,
    bufferAt: number,
    unread: number,
  ) {
    this.#home = home;
    this.#env = home.env;
    this.#user = user;
    this.#line = line;
    this.#agreement = agreement;
    this.#device = device;
    this.#replies = replies;
    this.#answers = answers;
    this.#extended = agreement.style === "extended";
    this.#headerBytes = requestBytes(this.#extended);
    this.#holes = agreement.style === "simple" ? undefined : new HoleFinder(device);
    this.#bufferAt = bufferAt;
    this.#end = unread;
  }

  /** What the client has begun to send and not finished, or undefined. */
  get owed(): "header" | "payload" | undefined {
    if (this.#stage === "nothing") return undefined;
    if (this.#stage !== "header") return "payload";
    return this.#end > this.#start ? "header" : undefined;
  }

  /** `count` bytes have come. */
  received(count: number): void {
    this.#receiving = false;
    this.bytesIn += count;
    const direct = Math.min(count, this.#directBytes);
    this.#end += count - direct;
    if (direct === 0) return;
    this.#directBytes = 0;
    this.#left -= direct;
    this.#partLeft -= direct;
    if (this.#partLeft === 0) this.#takePart();
  }

  /** Takes in all that has come, as far as there is memory for it. */
  takeAll(now: Millis): void {
    this.#now = now;
    // The stages follow each other for as long as one of them gets on: a receive can hold many requests, or a part.
    while (!this.goodbye && !this.resting && this.broken === undefined && this.#step());
  }

  #step(): boolean {
    switch (this.#stage) {
      case "header":
        return this.#takeHeader();
      case "admission":
        return this.#admit();
      case "context-ids":
        return this.#takeContextIds();
      case "payload":
        return this.#takePayload();
      case "dropping":
        return this.#dropPayload();
      case "splitting":
        return this.#splitRead();
      case "nothing":
        return false;
    }
  }

  /** Asks the line for more. */
  receive(): void {
    if (this.#receiving || this.#stage === "nothing") return;
    this.#receiving = true;
    if (this.owed !== undefined) this.#home.watchTime();
    const worth = this.#bulk || this.#partLeft >= Math.min(DIRECT_BYTES_MIN, this.#bufferSize / 2);
    if (this.#stage === "payload" && worth) {
      const part = this.#part!;
      // All that was in the buffer is in the part already. Behind the last part comes the next request.
      this.#start = this.#end = 0;
      const rest = this.#left > this.#partLeft ? 0 : this.#bulk ? this.#headerBytes : this.#bufferSize;
      this.#directBytes = this.#partLeft;
      this.#line.receive(part.dataAt + part.op.length - this.#partLeft, this.#partLeft, this.#bufferAt, rest);
      return;
    }
    this.#makeRoom();
    const isHeader = this.#bulk && this.#stage === "header";
    const room = isHeader ? this.#headerBytes : this.#bufferSize;
    if (this.#stage === "header" && !isHeader && this.#end === 0) {
      this.#line.gather?.(this.#gathered);
      this.#gathered = 0;
    }
    this.#line.receive(this.#bufferAt + this.#end, room - this.#end);
  }

  /** Moves what is not used yet to the front of the buffer; takes a larger one if this one was too small. */
  #makeRoom(): void {
    const { memory } = this.#env;
    const full = this.#end === this.#bufferSize;
    const left = this.#end - this.#start;
    if (full && this.#bufferSize === RECEIVE_BYTES_SMALL) {
      const larger = this.#home.takeLargeBuffer();
      if (larger !== 0) {
        memory.bytes.copyWithin(larger, this.#bufferAt + this.#start, this.#bufferAt + this.#end);
        memory.free(this.#bufferAt);
        this.#bufferAt = larger;
        this.#bufferSize = RECEIVE_BYTES_LARGE;
        this.#start = 0;
        this.#end = left;
        return;
      }
    }
    if (this.#start === 0) return;
    if (left > 0) memory.bytes.copyWithin(this.#bufferAt, this.#bufferAt + this.#start, this.#bufferAt + this.#end);
    this.#start = 0;
    this.#end = left;
  }

  #takeHeader(): boolean {
    if (this.#end - this.#start < this.#headerBytes) return false;
    const slot = this.#home.takeSlot();
    this.#slot = slot;
    const { request } = slot;
    const { view } = this.#env.memory;
    if (decodeRequest(request, view, this.#bufferAt + this.#start, this.#extended) !== undefined) {
      const magic = view.getUint32(this.#bufferAt + this.#start).toString(16);
      this.broken = `what should be a request begins with 0x${magic}`;
      return false;
    }
    this.#start += this.#headerBytes;
    this.requests++;
    if (request.length < DIRECT_BYTES_MIN) this.#gathered++;
    this.#left = payloadBytes(request, this.#agreement);
    this.#bulk = this.#left >= DIRECT_BYTES_MIN;
    if (this.#left < 0) {
      this.broken = `a request has a payload of ${request.length} bytes`;
      return false;
    }
    slot.owner = this.#answers;
    slot.startedAt = this.#now;
    slot.status = "ok";
    slot.errorOffset = -1;
    slot.pending = 0;
    slot.issuing = false;
    slot.hole = false;
    slot.final = true;
    this.#contexts = -1;
    this.#objection = this.draining ? SHUTTING_DOWN : validateRequest(request, this.#agreement, this.#device.size);
    this.#stage = "admission";
    if (this.#objection === undefined) {
      if (request.type === Cmd.DISC) {
        this.#stage = "nothing";
        this.goodbye = true;
        return false;
      }
      if (this.#left > 0 && request.type === Cmd.BLOCK_STATUS) this.#stage = "context-ids";
    }
    return true;
  }

  /** NBD proto.md "NBD_CMD_BLOCK_STATUS": 64 bits of effect length, then the ids of the contexts asked for. */
  #takeContextIds(): boolean {
    const { contexts } = this.#agreement;
    const { request } = this.#slot!;
    const count = (this.#left - BLOCK_STATUS_PAYLOAD.byteLength) / CONTEXT_ID_BYTES;
    this.#stage = "admission";
    if (!Number.isInteger(count) || count < 1 || count > contexts.length) {
      this.#objection = BAD_CONTEXTS;
      return true;
    }
    if (this.#end - this.#start < this.#left) {
      this.#stage = "context-ids";
      return false;
    }
    const { view } = this.#env.memory;
    let at = this.#bufferAt + this.#start;
    request.length = readU64(view, at + BLOCK_STATUS_PAYLOAD.length);
    at += BLOCK_STATUS_PAYLOAD.byteLength;
    this.#contexts = 0;
    for (let each = 0; each < count; each++, at += CONTEXT_ID_BYTES) {
      const id = view.getUint32(at);
      let index = 0;
      while (index < contexts.length && contexts[index]!.id !== id) index++;
      if (index === contexts.length || (this.#contexts & (1 << index)) !== 0) this.#objection = BAD_CONTEXTS;
      this.#contexts |= 1 << index;
    }
    this.#start += this.#left;
    this.#left = 0;
    this.#objection ??= validateRange(request, this.#agreement, this.#device.size);
    return true;
  }

  /** Gets the memory that the request needs, and sets it going; false if it has to wait. */
  #admit(): boolean {
    const slot = this.#slot!;
    if (this.#objection !== undefined) {
      if (!this.#allocate(slot, HEADER_ROOM_BYTES)) return false;
      this.#stage = "dropping";
      return true;
    }
    switch (slot.request.type) {
      case Cmd.READ:
        return this.#admitRead(slot);
      case Cmd.WRITE:
        return this.#admitWrite(slot);
      case Cmd.BLOCK_STATUS:
        if (!this.#allocate(slot, Math.max(HEADER_ROOM_BYTES, this.#replies.blockStatusRoom(slot.request))))
          return false;
        describeOp(slot.op, slot.request);
        slot.op.extents = this.#home.takeExtents();
        slot.contexts = this.#contexts;
        break;
      default:
        if (!this.#allocate(slot, HEADER_ROOM_BYTES)) return false;
        describeOp(slot.op, slot.request);
    }
    this.#stage = "header";
    this.#submit(slot);
    return true;
  }

  #admitRead(slot: Slot): boolean {
    const { request } = slot;
    const { length } = request;
    const whole = this.#holes === undefined || (request.flags & CmdFlag.DF) !== 0;
    if (length <= PART_BYTES && (whole || length < HOLE_READ_BYTES_MIN)) {
      if (!this.#allocate(slot, HEADER_ROOM_BYTES + length)) return false;
      describeOp(slot.op, request);
      slot.op.at = slot.dataAt;
      this.#stage = "header";
      this.#submit(slot);
      return true;
    }
    if (whole) return this.#admitWholeRead(slot);
    slot.issuing = true;
    this.#position = request.offset;
    this.#stage = "splitting";
    return true;
  }

  /** A long read whose answer is one piece: all of its parts must be there before the header can say that it is good. */
  #admitWholeRead(slot: Slot): boolean {
    const { request } = slot;
    const held = slot.parts.length > 0;
    if (!held && !this.#home.mayHold(this.#user, partsRoom(request.length))) return false;
    while (slot.parts.length * PART_BYTES < request.length) {
      const part = this.#newPart(slot, Math.min(PART_BYTES, request.length - slot.parts.length * PART_BYTES), "read");
      part.op.offset = request.offset + slot.parts.length * PART_BYTES;
      // It keeps what it has, and its turn: two reads that waited for each other's parts would wait for ever.
      if (!this.#allocate(part, HEADER_ROOM_BYTES + part.op.length, slot.parts.length > 0)) {
        this.#home.giveSlot(part);
        return false;
      }
      part.op.at = part.dataAt;
      slot.parts.push(part);
    }
    slot.pending = slot.parts.length;
    this.#stage = "header";
    // A device may be done with all of them before the loop is, and the slot be in use for another request.
    const count = slot.parts.length;
    const first = slot.parts[0]!;
    for (let index = 1; index < count; index++) this.#submit(slot.parts[index]!);
    this.#submit(first);
    return true;
  }

  /** Sets the next part of a long read going: data, or a hole that needs no reading. */
  #splitRead(): boolean {
    const slot = this.#slot!;
    const { request } = slot;
    const end = request.offset + request.length;
    if (slot.status === "busy") return this.#refuseRest(slot, end);
    const run = this.#holes!.next(this.#position, end);
    const part = this.#newPart(slot, run.length, "read");
    part.op.offset = this.#position;
    if (!this.#allocate(part, run.hole ? HEADER_ROOM_BYTES : HEADER_ROOM_BYTES + run.length)) {
      this.#home.giveSlot(part);
      return false;
    }
    part.op.at = part.dataAt;
    this.#position += run.length;
    slot.pending++;
    if (this.#position === end) {
      slot.issuing = false;
      this.#stage = "header";
      this.#slot = undefined;
    }
    if (run.hole) {
      part.hole = true;
      part.status = "ok";
      this.#answers.finishReadPart(part, slot);
    } else {
      this.#submit(part);
    }
    return true;
  }

  /** There was no memory for the rest of a long read: the answer ends with an error from here on. */
  #refuseRest(slot: Slot, end: Bytes): boolean {
    const part = this.#newPart(slot, end - this.#position, "read");
    part.op.offset = this.#position;
    if (!this.#allocate(part, HEADER_ROOM_BYTES)) {
      this.#home.giveSlot(part);
      return false;
    }
    part.status = "busy";
    slot.pending++;
    slot.issuing = false;
    this.#stage = "header";
    this.#slot = undefined;
    this.#answers.finishReadPart(part, slot);
    return true;
  }

  #admitWrite(slot: Slot): boolean {
    const { request } = slot;
    if (request.length <= PART_BYTES) {
      if (!this.#allocate(slot, HEADER_ROOM_BYTES + request.length)) return false;
      describeOp(slot.op, request);
      slot.op.at = slot.dataAt;
      this.#part = slot;
    } else {
      // The whole has room for its answer; the data go through parts.
      if (slot.at === 0 && !this.#allocate(slot, HEADER_ROOM_BYTES)) return false;
      slot.issuing = true;
      if (slot.status !== "ok") {
        // It has failed already: the rest is not worth writing.
        this.#stage = "dropping";
        return true;
      }
      const part = this.#newPart(slot, Math.min(PART_BYTES, this.#left), "write");
      part.op.offset = request.offset + request.length - this.#left;
      if (!this.#allocate(part, HEADER_ROOM_BYTES + part.op.length)) {
        this.#home.giveSlot(part);
        return false;
      }
      part.op.at = part.dataAt;
      this.#part = part;
    }
    this.#partLeft = this.#part.op.length;
    this.#stage = "payload";
    return true;
  }

  #takePayload(): boolean {
    const part = this.#part!;
    const count = Math.min(this.#end - this.#start, this.#partLeft);
    if (count > 0) {
      const from = this.#bufferAt + this.#start;
      this.#env.memory.bytes.copyWithin(part.dataAt + part.op.length - this.#partLeft, from, from + count);
      this.#start += count;
      this.#left -= count;
      this.#partLeft -= count;
    }
    if (this.#partLeft > 0) return false;
    this.#takePart();
    return true;
  }

  /** All of a part's data has come. */
  #takePart(): void {
    const part = this.#part!;
    const whole = part.parent;
    this.#part = undefined;
    this.#stage = this.#left > 0 ? "admission" : "header";
    if (whole !== undefined) {
      whole.pending++;
      if (this.#left === 0) whole.issuing = false;
    }
    this.#submit(part);
  }

  /** Reads the payload of a request that is not served, then answers it. */
  #dropPayload(): boolean {
    const count = Math.min(this.#end - this.#start, this.#left);
    this.#start += count;
    this.#left -= count;
    if (this.#left > 0) return false;
    const slot = this.#slot!;
    this.#stage = "header";
    if (this.#objection !== undefined) {
      this.#slot = undefined;
      this.#answers.object(slot, this.#objection);
    } else {
      slot.issuing = false;
      this.#slot = undefined;
      if (slot.pending === 0) this.#answers.finishLongWrite(slot);
    }
    return true;
  }

  #newPart(whole: Slot, length: Bytes, kind: "read" | "write"): Slot {
    const part = this.#home.takeSlot();
    part.owner = this.#answers;
    part.parent = whole;
    part.hole = false;
    part.final = false;
    part.status = "ok";
    part.errorOffset = -1;
    const { op } = part;
    op.kind = kind;
    op.length = length;
    op.fua = op.noHole = op.fastOnly = false;
    op.extents = undefined;
    return part;
  }

  #allocate(slot: Slot, bytes: Bytes, keepTurn = false): boolean {
    slot.at = this.#home.admit(this.#user, bytes, keepTurn);
    if (slot.at === 0) return false;
    slot.held = bytes;
    this.#user.held += bytes;
    return true;
  }

  #submit(slot: Slot): void {
    if (this.#stage === "header") this.#slot = undefined;
    const { op } = slot;
    if (op.kind === "read" && this.#home.rounds.begin(op.length)) this.resting = true;
    this.#answers.submit(slot);
  }

  /** Gives up the request that waits for memory, with an answer, if only its answer finds room. */
  refuseForMemory(): void {
    if (this.#stage === "admission" && this.#objection === undefined) {
      const slot = this.#slot!;
      for (const part of slot.parts) this.#answers.release(part);
      slot.parts.length = 0;
      // A long write has room for its answer already: it reads on, and answers at the end.
      if (slot.at === 0) this.#objection = OUT_OF_MEMORY;
      else slot.status = "busy";
    } else if (this.#stage === "splitting" && this.#slot !== undefined) this.#slot.status = "busy";
  }

  /** Gives back all that requests hold which are not with the device yet, and the buffer. The line is closed. */
  close(): void {
    const slot = this.#slot;
    if (this.#part !== undefined && this.#part !== slot) this.#answers.release(this.#part);
    if (slot !== undefined) {
      for (const part of slot.parts) this.#answers.release(part);
      slot.parts.length = 0;
      this.#answers.release(slot);
    }
    this.#part = this.#slot = undefined;
    this.#stage = "nothing";
    if (this.#bufferSize === RECEIVE_BYTES_LARGE) this.#home.giveLargeBuffer(this.#bufferAt);
    else this.#env.memory.free(this.#bufferAt);
  }
}

/** What the parts of a read of `length` bytes take of memory. */
const partsRoom = (length: Bytes): Bytes => length + Math.ceil(length / PART_BYTES) * HEADER_ROOM_BYTES;
