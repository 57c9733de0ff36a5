/**
 * The operations of one NBD connection that are with the device, and the answers to them: an operation that is done
 * becomes an answer in its slot's buffer, and all answers of a turn leave in one send. A slot and its memory are given
 * back when its answer has left; if the line is gone by then, when the device is done with it.
 */
import { canary } from "#base/canary";
import type { Pieces } from "#base/memory";
import type { Bytes, Millis } from "#base/units";
import type { BlockDevice } from "#device/device";
import type { Meter } from "#device/meter";
import { type Env, type Line, Soon } from "#env/env";
import type { Objection } from "#proto/nbd/transmission";
import { Cmd, CmdFlag } from "#wire/nbd/codes";
import type { ConnectionHome, MemoryUser } from "./nbd-home.ts";
import type { Replies, Slot, SlotOwner } from "./nbd-slot.ts";

/** So much leaves in one send, so that a slow client is seen to make progress. */
const SEND_BYTES_MAX = 4 * 1024 * 1024;

export class Answers implements SlotOwner {
  readonly #home: ConnectionHome;
  readonly #env: Env;
  readonly #user: MemoryUser;
  readonly #line: Line;
  readonly #device: BlockDevice;
  readonly #replies: Replies;
  readonly #meter: Meter;
  readonly #ended: () => void;
  readonly #soon: Soon;
  /**
   * Answers that are ready, from `#readyFirst` to `#readyEnd`, and those that the line is sending. The arrays are never
   * cut: an array that is emptied gives its room back, and has to get it again for the next turn.
   */
  readonly #ready: Slot[] = [];
  #readyFirst = 0;
  #readyEnd = 0;
  readonly #sending: Slot[] = [];
  #sendingCount = 0;
  #pieces: Pieces | undefined;
  #lineClosed = false;
  /** Operations with the device. */
  inFlight = 0;
  /** When something was last given to the line, or had left. */
  sentAt: Millis = 0;
  bytesOut: Bytes = 0;

  /** @param ended called when an operation or a send has ended: there may be nothing left to do. */
  constructor(
    home: ConnectionHome,
    user: MemoryUser,
    line: Line,
    device: BlockDevice,
    replies: Replies,
    meter: Meter,
    ended: () => void,
  ) {
    this.#home = home;
    this.#env = home.env;
    this.#user = user;
    this.#line = line;
    this.#device = device;
    this.#replies = replies;
    this.#meter = meter;
    this.#ended = ended;
    this.#soon = new Soon(() => this.#send());
  }

  /** The line has not taken all of the last send yet. */
  get sending(): boolean {
    return this.#sendingCount > 0;
  }
  /** Nothing is with the device, and everything has been sent. */
  get idle(): boolean {
    return this.inFlight === 0 && this.#sendingCount === 0 && this.#readyFirst === this.#readyEnd;
  }

  submit(slot: Slot): void {
    this.inFlight++;
    if (slot.op.kind === "flush" && canary.armed === "nbd-flush-early") {
      slot.op.status = "ok";
      return slot.op.done(slot.op);
    }
    this.#device.submit(slot.op);
  }

  /** Answers a request that does not reach the device. */
  object(slot: Slot, objection: Objection): void {
    this.#replies.object(slot, objection);
    slot.status = "invalid";
    this.#queue(slot);
  }

  onDone(slot: Slot): void {
    this.inFlight--;
    slot.status = canary.armed === "nbd-swallow-error" ? "ok" : slot.op.status;
    const whole = slot.parent;
    if (this.#lineClosed) this.#forget(slot);
    else if (whole === undefined) this.#finish(slot);
    else if (whole.request.type === Cmd.WRITE) this.#finishWritePart(slot, whole);
    else if (whole.parts.length > 0) this.#finishWholeReadPart(slot, whole);
    else this.finishReadPart(slot, whole);
    this.#ended();
  }

  #finish(slot: Slot): void {
    const { request, status } = slot;
    if (status !== "ok") {
      this.#replies.fail(slot, request, status, errorPlace(slot, request.type));
    } else if (request.type === Cmd.READ) {
      this.#replies.data(slot, request, request.offset, request.length, false);
    } else if (request.type === Cmd.BLOCK_STATUS) {
      const size = this.#device.size;
      if (!this.#replies.blockStatus(slot, slot.op.extents!, slot.contexts, size))
        this.#replies.fail(slot, request, (slot.status = "failed"), -1);
    } else {
      this.#replies.acknowledge(slot);
    }
    this.#giveExtents(slot);
    this.#queue(slot);
  }

  #giveExtents(slot: Slot): void {
    if (slot.op.extents !== undefined) this.#home.giveExtents(slot.op.extents);
    slot.op.extents = undefined;
  }

  finishReadPart(part: Slot, whole: Slot): void {
    whole.pending--;
    const more = whole.issuing || whole.pending > 0;
    const { offset, length } = part.op;
    if (part.status !== "ok") {
      if (whole.status === "ok") whole.status = part.status;
      this.#replies.fail(part, whole.request, part.status, offset + errorWithin(part), more);
    } else if (part.hole) {
      this.#replies.hole(part, whole.request, offset, length, more);
    } else {
      this.#replies.data(part, whole.request, offset, length, more);
    }
    part.final = !more;
    this.#queue(part);
  }

  #finishWholeReadPart(part: Slot, whole: Slot): void {
    if (part.status !== "ok" && (whole.status === "ok" || part.op.offset < whole.errorOffset)) {
      whole.status = part.status;
      whole.errorOffset = part.op.offset + errorWithin(part);
    }
    if (--whole.pending > 0) return;
    const { parts, request } = whole;
    const first = parts[0]!;
    first.final = parts.length === 1;
    if (whole.status === "ok") {
      this.#replies.data(first, request, request.offset, first.op.length, false, request.length);
      for (let index = 1; index < parts.length; index++) {
        const other = parts[index]!;
        other.replyAt = other.dataAt;
        other.replyLength = other.op.length;
        other.final = index === parts.length - 1;
      }
      for (const each of parts) this.#queue(each);
    } else {
      this.#replies.fail(first, request, whole.status, whole.errorOffset);
      for (let index = 1; index < parts.length; index++) this.release(parts[index]!);
      first.final = true;
      this.#queue(first);
    }
    parts.length = 0;
  }

  #finishWritePart(part: Slot, whole: Slot): void {
    if (part.status !== "ok" && (whole.status === "ok" || part.op.offset < whole.errorOffset)) {
      whole.status = part.status;
      whole.errorOffset = part.op.offset;
    }
    this.release(part);
    whole.pending--;
    if (whole.pending === 0 && !whole.issuing) this.finishLongWrite(whole);
  }

  /** All parts of a long write are done; what FUA asks for is done for all of them at once. */
  finishLongWrite(whole: Slot): void {
    const { request } = whole;
    if (whole.status === "ok" && (request.flags & CmdFlag.FUA) !== 0) {
      whole.op.kind = "flush";
      whole.op.offset = whole.op.length = 0;
      whole.op.fua = false;
      whole.op.extents = undefined;
      this.submit(whole);
      return;
    }
    if (whole.status === "ok") this.#replies.acknowledge(whole);
    else this.#replies.fail(whole, request, whole.status, whole.errorOffset);
    this.#queue(whole);
  }

  #queue(slot: Slot): void {
    this.#ready[this.#readyEnd++] = slot;
    this.#env.turn.soon(this.#soon);
  }

  /** Sends all answers that are ready, in one go. */
  #send(): void {
    if (this.#sendingCount > 0 || this.#lineClosed || this.#readyFirst === this.#readyEnd) return;
    const pieces = this.#home.takePieces();
    const now = this.#env.clock.now();
    while (this.#readyFirst < this.#readyEnd && pieces.total < SEND_BYTES_MAX) {
      const slot = this.#ready[this.#readyFirst]!;
      if (!pieces.add(slot.replyAt, slot.replyLength)) break;
      this.#readyFirst++;
      this.#sending[this.#sendingCount++] = slot;
      if (slot.final) this.#note(slot.parent ?? slot, now);
    }
    if (this.#readyFirst === this.#readyEnd) this.#readyFirst = this.#readyEnd = 0;
    this.#pieces = pieces;
    this.sentAt = now;
    this.bytesOut += pieces.total;
    this.#home.watchTime();
    this.#line.send(pieces);
  }

  #note(slot: Slot, now: Millis): void {
    const { type, length } = slot.request;
    const kind = KINDS[type];
    if (kind !== undefined) this.#meter.note(kind, length, now - slot.startedAt, slot.status);
  }

  /** The line has taken all of the last send. */
  sent(): void {
    this.sentAt = this.#env.clock.now();
    this.#givePieces();
    for (let index = 0; index < this.#sendingCount; index++) this.release(this.#sending[index]!);
    this.#sendingCount = 0;
    if (this.#readyFirst < this.#readyEnd) this.#env.turn.soon(this.#soon);
    else this.#ended();
  }

  #givePieces(): void {
    if (this.#pieces !== undefined) this.#home.givePieces(this.#pieces);
    this.#pieces = undefined;
  }

  /** Gives a slot and its memory back; with the last part of a long request also the slot of the whole. */
  release(slot: Slot): void {
    if (slot.at !== 0) {
      this.#user.held -= slot.held;
      this.#home.discharge(this.#user, slot.at);
      slot.at = 0;
    }
    if (slot.parent !== undefined && slot.final) this.#home.giveSlot(slot.parent);
    this.#home.giveSlot(slot);
  }

  /** The line is closed: there is nobody to answer any more. */
  lineClosed(): void {
    this.#lineClosed = true;
    this.#givePieces();
    for (let index = 0; index < this.#sendingCount; index++) this.release(this.#sending[index]!);
    for (let index = this.#readyFirst; index < this.#readyEnd; index++) this.release(this.#ready[index]!);
    this.#sendingCount = this.#readyFirst = this.#readyEnd = 0;
  }

  /** An operation ended after the line: there is nobody to answer. */
  #forget(slot: Slot): void {
    const whole = slot.parent;
    if (whole === undefined) {
      this.#giveExtents(slot);
      this.release(slot);
      return;
    }
    whole.pending--;
    slot.final = false;
    if (whole.parts.length === 0) this.release(slot);
    if (whole.pending > 0 || whole.issuing) return;
    for (const part of whole.parts) this.release(part);
    whole.parts.length = 0;
    this.release(whole);
  }
}

/** Where an operation failed, in bytes from its start, if the device says so. */
const errorWithin = (slot: Slot): number =>
  slot.status === "medium" && slot.op.result < slot.op.length ? slot.op.result : 0;

/** The offset that the error of a request is told at, or -1. */
function errorPlace(slot: Slot, type: number): number {
  if (slot.errorOffset >= 0) return slot.errorOffset;
  return type === Cmd.READ && slot.status === "medium" ? slot.request.offset + errorWithin(slot) : -1;
}

const KINDS = ["read", "write", undefined, "flush", "trim", "cache", "zero", "status"] as const;
