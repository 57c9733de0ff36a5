/**
 * One NBD request from its first byte to its last, and how its answer is written into the lane's memory. Slots are
 * made when they are first needed and then used again and again; what limits their number is the memory that each of
 * them holds while it is in use.
 *
 * A slot's buffer has 512 bytes of room in front of the data, in which the reply's header is written so that it ends
 * where the data begins: header and data leave as one piece.
 */

import { canary } from "#base/canary";
import { writeU64 } from "#base/layout";
import type { Memory } from "#base/memory";
import { HEADER_ROOM_BYTES } from "#base/memory";
import type { Status } from "#base/status";
import type { Bytes, Millis } from "#base/units";
import { BlockOp, type Extents } from "#device/device";
import type { Agreement } from "#proto/nbd/negotiation";
import type { Objection } from "#proto/nbd/transmission";
import { BASE_ALLOCATION, Cmd, CmdFlag, errorOf, ReplyFlag, ReplyType } from "#wire/nbd/codes";
import {
  BLOCK_STATUS,
  BLOCK_STATUS_EXT,
  chunkBytes,
  DESCRIPTOR,
  DESCRIPTOR_EXT,
  ERROR,
  ERROR_OFFSET_TAIL,
  encodeChunk,
  encodeDescriptor,
  encodeSimpleReply,
  OFFSET_DATA,
  OFFSET_HOLE,
  SIMPLE_REPLY,
  STRUCTURED_REPLY,
} from "#wire/nbd/reply";
import { Request } from "#wire/nbd/request";

/** Data of one operation on the device. Longer requests are split: no request needs more than this in one piece. */
export const PART_BYTES = 256 * 1024;
/** Extents in one answer to BLOCK_STATUS; a client asks on from where an answer ends. */
export const EXTENTS_MAX = 4096;
/** The longest extent in a compact descriptor: the largest multiple of 64 KiB below 2^32. Bytes. */
const COMPACT_EXTENT_MAX = 0xffff_0000;

/** Who is told when a slot's operation is done. */
export interface SlotOwner {
  onDone(slot: Slot): void;
}

export class Slot {
  readonly request = new Request();
  readonly op: BlockOp;
  owner!: SlotOwner;
  /** The buffer, or 0; and its size as accounted for. */
  at = 0;
  held: Bytes = 0;
  /** What is to be sent. */
  replyAt = 0;
  replyLength = 0;
  /** When the header had come. */
  startedAt: Millis = 0;
  /** Of a request in several operations: the slot of the whole. */
  parent: Slot | undefined = undefined;
  /** Of the whole: operations that are not done yet, and whether more will follow. */
  pending = 0;
  issuing = false;
  /** How it ended so far, and for an error at a known place: bytes from the start of the export, or -1. */
  status: Status = "ok";
  errorOffset = -1;
  /** Of a read that must leave in one piece: its parts in order. */
  parts: Slot[] = [];
  /** Of BLOCK_STATUS: the contexts asked for, as bits by index; -1 for all. */
  contexts = -1;
  /** A range that reads as zeroes: there is no data, only a chunk that says so. */
  hole = false;
  /** It is the last that is sent for its request: then the request is over. */
  final = true;

  constructor() {
    this.op = new BlockOp(() => this.owner.onDone(this));
  }

  get dataAt(): number {
    return this.at + HEADER_ROOM_BYTES;
  }
}

/** What every status means to a person at a client. */
const TEXTS = {
  ok: "",
  medium: "data of this range is damaged",
  failed: "the storage failed",
  full: "no space left",
  range: "beyond the end of the export",
  invalid: "the request makes no sense",
  unsupported: "the export cannot do that",
  denied: "no right to do that",
  conflict: "another host has reserved the export",
  fenced: "the volume is served elsewhere now",
  miscompare: "the data differ",
  busy: "out of memory for the moment",
  away: "the export is not reachable from here at the moment",
  gone: "the export does not exist any more",
  aborted: "given up",
} as const satisfies Record<Status, string>;

// All texts are ASCII: they are written byte for byte.
const encoded = new Map<string, Uint8Array>();
function bytesOf(text: string): Uint8Array {
  let bytes = encoded.get(text);
  if (bytes === undefined) encoded.set(text, (bytes = new TextEncoder().encode(text)));
  return bytes;
}

/** Writes replies of one connection: in the style agreed on, into the slots' buffers. */
export class Replies {
  readonly #memory: Memory;
  readonly #view: DataView;
  readonly #agreement: Agreement;
  readonly #simple: boolean;
  readonly #extended: boolean;
  readonly #chunkBytes: number;

  constructor(memory: Memory, agreement: Agreement) {
    this.#memory = memory;
    this.#view = memory.view;
    this.#agreement = agreement;
    this.#simple = agreement.style === "simple";
    this.#extended = agreement.style === "extended";
    this.#chunkBytes = chunkBytes(this.#extended);
  }

  /** Success of a request without data. */
  acknowledge(slot: Slot): void {
    slot.replyAt = slot.at;
    slot.replyLength =
      (this.#simple
        ? encodeSimpleReply(slot.request, 0, this.#view, slot.at)
        : encodeChunk(slot.request, ReplyFlag.DONE, ReplyType.NONE, 0, this.#view, slot.at, this.#extended)) - slot.at;
  }

  /** `length` bytes of data at `slot.dataAt`, which lie at `offset` of the export. With `more`, chunks follow. */
  data(slot: Slot, request: Request, offset: Bytes, length: Bytes, more: boolean, total: Bytes = length): void {
    const view = this.#view;
    if (this.#simple) {
      slot.replyAt = slot.dataAt - SIMPLE_REPLY.byteLength;
      encodeSimpleReply(request, 0, view, slot.replyAt);
    } else {
      slot.replyAt = slot.dataAt - this.#chunkBytes - OFFSET_DATA.byteLength;
      const flags = more ? 0 : ReplyFlag.DONE;
      const payload = OFFSET_DATA.byteLength + total;
      const at = encodeChunk(request, flags, ReplyType.OFFSET_DATA, payload, view, slot.replyAt, this.#extended);
      writeU64(view, at + OFFSET_DATA.offset, offset);
    }
    slot.replyLength = slot.dataAt - slot.replyAt + length;
  }

  /** `length` bytes from `offset` read as zeroes. Only for chunks. */
  hole(slot: Slot, request: Request, offset: Bytes, length: Bytes, more: boolean): void {
    slot.replyAt = slot.at;
    const flags = more ? 0 : ReplyFlag.DONE;
    const { byteLength } = OFFSET_HOLE;
    const at = encodeChunk(request, flags, ReplyType.OFFSET_HOLE, byteLength, this.#view, slot.at, this.#extended);
    writeU64(this.#view, at + OFFSET_HOLE.offset, offset);
    this.#view.setUint32(at + OFFSET_HOLE.size, length);
    slot.replyLength = at + byteLength - slot.at;
  }

  object(slot: Slot, objection: Objection): void {
    this.#error(slot, slot.request, objection.error, objection.text, -1, false);
  }

  /** The answer to a request that failed with `status`, at `offset` of the export if that is known (else -1). */
  fail(slot: Slot, request: Request, status: Status, offset: Bytes, more = false): void {
    this.#error(slot, request, errorOf(status, request.type, request.flags), TEXTS[status], offset, more);
  }

  #error(slot: Slot, request: Request, error: number, text: string, offset: Bytes, more: boolean): void {
    const view = this.#view;
    slot.replyAt = slot.at;
    if (this.#simple) {
      slot.replyLength = encodeSimpleReply(request, error, view, slot.at) - slot.at;
      return;
    }
    const message = bytesOf(text);
    const placed = offset >= 0;
    const payload = ERROR.byteLength + message.length + (placed ? ERROR_OFFSET_TAIL.byteLength : 0);
    const type = placed ? ReplyType.ERROR_OFFSET : ReplyType.ERROR;
    const at = encodeChunk(request, more ? 0 : ReplyFlag.DONE, type, payload, view, slot.at, this.#extended);
    view.setUint32(at + ERROR.error, error);
    view.setUint16(at + ERROR.messageLength, message.length);
    this.#memory.bytes.set(message, at + ERROR.byteLength);
    if (placed) writeU64(view, at + ERROR.byteLength + message.length, offset);
    slot.replyLength = at + payload - slot.at;
  }

  /** Bytes that the answer to a BLOCK_STATUS of `length` bytes may need. */
  blockStatusRoom(request: Request): Bytes {
    const extents = this.#descriptorsMax(request);
    const descriptor = this.#extended ? DESCRIPTOR_EXT.byteLength : DESCRIPTOR.byteLength;
    return this.#agreement.contexts.length * (this.#chunkBytes + BLOCK_STATUS_EXT.byteLength + extents * descriptor);
  }

  /**
   * The answer to BLOCK_STATUS: one chunk per context that was asked for. `wanted` has a bit for each context of the
   * agreement, by index. False when the device told of no extent at all.
   */
  blockStatus(slot: Slot, extents: Extents, wanted: number, size: Bytes): boolean {
    const { contexts } = this.#agreement;
    slot.replyAt = slot.at;
    let at = slot.at;
    let last = 0;
    for (let index = 0; index < contexts.length; index++) {
      if ((wanted & (1 << index)) === 0) continue;
      const chunkAt = at;
      at += this.#chunkBytes;
      this.#view.setUint32(at, contexts[index]!.id);
      const countAt = at + BLOCK_STATUS_EXT.count;
      at += this.#extended ? BLOCK_STATUS_EXT.byteLength : BLOCK_STATUS.byteLength;
      const firstAt = at;
      at = this.#descriptors(slot.request, extents, contexts[index]!.name === BASE_ALLOCATION, size, at);
      if (at === firstAt) return false;
      const type = this.#extended ? ReplyType.BLOCK_STATUS_EXT : ReplyType.BLOCK_STATUS;
      if (this.#extended) this.#view.setUint32(countAt, (at - firstAt) / DESCRIPTOR_EXT.byteLength);
      encodeChunk(slot.request, 0, type, at - chunkAt - this.#chunkBytes, this.#view, chunkAt, this.#extended);
      last = chunkAt;
    }
    this.#markDone(last);
    slot.replyLength = at - slot.at;
    return true;
  }

  #descriptorsMax(request: Request): number {
    if ((request.flags & CmdFlag.REQ_ONE) !== 0) return 1;
    return Math.min(EXTENTS_MAX, Math.ceil(request.length / this.#agreement.blockSize));
  }

  /** Turns the chunk at `at` into the last one of its reply. */
  #markDone(at: number): void {
    this.#view.setUint16(at + STRUCTURED_REPLY.flags, ReplyFlag.DONE);
  }

  /**
   * The descriptors of one context, from `at` on; returns where they end. Neighbours that this context does not tell
   * apart become one. "the sum of the length fields of the first N-1 extents MUST be less than the requested length".
   */
  #descriptors(request: Request, extents: Extents, allocation: boolean, size: Bytes, at: number): number {
    const one = (request.flags & CmdFlag.REQ_ONE) !== 0;
    let room = this.#descriptorsMax(request);
    const extentMax = this.#extended ? Number.MAX_SAFE_INTEGER : COMPACT_EXTENT_MAX;
    const end = one ? request.offset + request.length : size;
    let position = request.offset;
    for (let index = 0; index < extents.count && room > 0 && position < request.offset + request.length; room--) {
      const flags = allocation ? extents.flags[index]! : extents.depth[index]!;
      let length = extents.length[index++]!;
      while (index < extents.count && (allocation ? extents.flags[index]! : extents.depth[index]!) === flags)
        length += extents.length[index++]!;
      length = Math.min(length, end - position);
      const told = Math.min(length, extentMax);
      if (told <= 0) break;
      at = encodeDescriptor(told, flags, this.#view, at, this.#extended);
      position += told;
      // What was cut off would leave a gap: the client asks on from here.
      if (one || told < length) break;
    }
    return at;
  }
}

/** The device's operation for a command without data, apart from BLOCK_STATUS. */
export function describeOp(op: BlockOp, request: Request): void {
  const { type, flags } = request;
  op.offset = request.offset;
  op.length = request.length;
  const fua = canary.armed === "nbd-ignore-fua" ? 0 : CmdFlag.FUA;
  op.fua = (flags & fua) !== 0 && type !== Cmd.FLUSH && type !== Cmd.CACHE && type !== Cmd.READ;
  op.noHole = (flags & CmdFlag.NO_HOLE) !== 0;
  op.fastOnly = (flags & CmdFlag.FAST_ZERO) !== 0;
  op.extents = undefined;
  op.kind = KINDS[type as keyof typeof KINDS];
}
const KINDS = {
  [Cmd.READ]: "read",
  [Cmd.WRITE]: "write",
  [Cmd.FLUSH]: "flush",
  [Cmd.TRIM]: "trim",
  [Cmd.CACHE]: "cache",
  [Cmd.WRITE_ZEROES]: "zero",
  [Cmd.BLOCK_STATUS]: "status",
} as const;
