/**
 * Cuts a server's replies out of the bytes of a connection: simple, structured and extended; no I/O. It says where the
 * next bytes are to be received: into its window, or straight to where a read wants its data. Data of a read goes to
 * memory as it comes; the rest of a reply is checked whole before it means anything.
 *
 * A server that breaks the protocol is told by a word and is not listened to any more. Nothing that it says can touch
 * memory other than the range of a read that is in flight.
 */

import { canary } from "#base/canary";
import { readU64 } from "#base/layout";
import type { Memory } from "#base/memory";
import { KIB } from "#base/units";
import { Cmd, CmdFlag, isErrorChunk, NbdError, ReplyFlag, ReplyType, STRING_BYTES_MAX } from "#wire/nbd/codes";
import {
  BLOCK_STATUS,
  BLOCK_STATUS_EXT,
  DESCRIPTOR,
  DESCRIPTOR_EXT,
  decodeError,
  decodeReply,
  ERROR,
  ERROR_OFFSET_TAIL,
  ErrorChunk,
  OFFSET_DATA,
  OFFSET_HOLE,
  Reply,
  type ReplyStyle,
  replyBytes,
} from "#wire/nbd/reply";
import { Request } from "#wire/nbd/request";
import { Fragments } from "./fragments.ts";

/** The window: many small replies per receive, and the longest error chunk with room to spare. */
export const WINDOW_BYTES = 64 * KIB;
const ERROR_CHUNK_BYTES_MAX = ERROR.byteLength + STRING_BYTES_MAX + ERROR_OFFSET_TAIL.byteLength;
const MAGIC_BYTES = 4;
/** Reads of fewer bytes than this are not worth a receive of their own: they come with what is behind them. */
const DIRECT_BYTES_MIN = 8 * KIB;

export type ReplyFault =
  | "bad-magic"
  /** A simple reply where a chunk must be, or the other way round. */
  | "wrong-style"
  | "unknown-cookie"
  /** A chunk that this request cannot have, or with a length that its type cannot have. */
  | "bad-chunk"
  /** Content outside of what was asked for. */
  | "outside"
  | "overlap"
  | "fragmented"
  /** It says that all has been said, and it has not. */
  | "incomplete"
  | "unknown-context"
  /** A read of more pieces than anyone would make in good faith. */
  | "too-many-pieces";

/** The descriptors of one context, in order of offset. */
export class Descriptors {
  said = false;
  count = 0;
  /** Bytes. */
  length = new Float64Array(0);
  flags = new Uint32Array(0);

  begin(countMax: number): void {
    this.said = true;
    this.count = 0;
    if (this.length.length >= countMax) return;
    this.length = new Float64Array(countMax);
    this.flags = new Uint32Array(countMax);
  }
}

/** One request in flight on one connection. Its owner sets `request` and `at`, and reads the outcome. */
export class NbdSlot {
  readonly index: number;
  /** Goes up with each use: a second reply to a request that is done finds nobody. */
  turn = 0;
  busy = false;
  readonly request = new Request();
  /** Where the data of a read goes. */
  at = 0;
  /** How many descriptors of BLOCK_STATUS are kept per context; the server may tell more. */
  descriptorsMax = 0;
  /** An `NbdError`: the first one that the server told. */
  error = 0;
  /** Where the error is, in bytes from the start of the export, or -1. */
  errorOffset = -1;
  readonly received = new Fragments();
  contentChunks = 0;
  /** What was said in each context, if `said`. Made at the first BLOCK_STATUS, and kept. */
  readonly allocation = new Descriptors();
  readonly depth = new Descriptors();

  constructor(index: number) {
    this.index = index;
  }

  /** Takes it into use, and gives its request a cookie. */
  open(): void {
    this.busy = true;
    this.turn = (this.turn + 1) >>> 0;
    this.request.cookieHi = this.turn;
    this.request.cookieLo = this.index;
    this.error = 0;
    this.errorOffset = -1;
    this.contentChunks = 0;
    this.allocation.said = this.depth.said = false;
    this.received.clear();
  }
}

export interface ReplySink {
  /** `slot` has been answered, with `slot.error`; it may be used again from within. */
  onReply(slot: NbdSlot): void;
}

export interface ReplyFacts {
  readonly replyStyle: ReplyStyle;
  readonly allocationId: number | undefined;
  readonly depthId: number | undefined;
}

type Stage = "header" | "data" | "payload" | "descriptors";

export class ReplyStream {
  readonly #memory: Memory;
  readonly #window: number;
  readonly #slots: readonly NbdSlot[];
  readonly #facts: ReplyFacts;
  readonly #sink: ReplySink;
  readonly #reply = new Reply();
  readonly #errorChunk = new ErrorChunk();
  #stage: Stage = "header";
  /** What of the window is filled and not used. */
  #start: number;
  #end: number;
  #slot: NbdSlot | undefined = undefined;
  /** Stage "data": where the next byte goes, and how many are to come. Stage "descriptors": bytes to come. */
  #dataAt = 0;
  #left = 0;
  #list: Descriptors | undefined = undefined;
  #fault: ReplyFault | undefined = undefined;

  /** @param window WINDOW_BYTES of memory that are this stream's own. */
  constructor(memory: Memory, window: number, slots: readonly NbdSlot[], facts: ReplyFacts, sink: ReplySink) {
    this.#memory = memory;
    this.#window = this.#start = this.#end = window;
    this.#slots = slots;
    this.#facts = facts;
    this.#sink = sink;
  }

  /** Where to receive next, and at most how much. */
  get receiveAt(): number {
    return this.#isDirect() ? this.#dataAt : this.#end;
  }
  get receiveBytes(): number {
    return this.#isDirect() ? this.#left : this.#window + WINDOW_BYTES - this.#end;
  }

  /** `count` bytes have come to `receiveAt`. Answers with what the server did wrong; after that it is not to be called. */
  handleReceived(count: number): ReplyFault | undefined {
    if (this.#isDirect()) {
      this.#dataAt += count;
      this.#left -= count;
      if (this.#left === 0) this.#endOfData();
      return this.#fault;
    }
    this.#end += count;
    while (this.#fault === undefined && this.#step());
    if (this.#fault !== undefined) return this.#fault;
    if (this.#start === this.#end) this.#start = this.#end = this.#window;
    else if (this.#start > this.#window) {
      // Less than a header or an error chunk is left: to the front with it.
      this.#memory.bytes.copyWithin(this.#window, this.#start, this.#end);
      this.#end -= this.#start - this.#window;
      this.#start = this.#window;
    }
    return undefined;
  }

  #isDirect(): boolean {
    return this.#stage === "data" && this.#start === this.#end && this.#left >= DIRECT_BYTES_MIN;
  }

  /** One step on; false when there are too few bytes for one. */
  #step(): boolean {
    if (this.#stage === "header") return this.#takeHeader();
    if (this.#stage === "data") return this.#takeData();
    if (this.#stage === "payload") return this.#takePayload();
    return this.#takeDescriptors();
  }

  #takeHeader(): boolean {
    const there = this.#end - this.#start;
    if (there < MAGIC_BYTES) return false;
    const headerBytes = replyBytes(this.#memory.view.getUint32(this.#start));
    if (headerBytes === 0) return this.#fail("bad-magic");
    if (there < headerBytes) return false;
    const reply = this.#reply;
    if (decodeReply(reply, this.#memory.view, this.#start) !== undefined) return this.#fail("bad-magic");
    let slot = this.#slots[reply.cookieLo];
    if (slot === undefined || !slot.busy || slot.turn !== reply.cookieHi) return this.#fail("unknown-cookie");
    if (canary.armed === "nbd-wrong-cookie") slot = this.#slots.find((one) => one.busy && isAlike(one, slot!)) ?? slot;
    this.#start += headerBytes;
    this.#slot = slot;
    return reply.style === "simple" ? this.#beginSimple(slot) : this.#beginChunk(slot);
  }

  #beginSimple(slot: NbdSlot): boolean {
    const isRead = slot.request.type === Cmd.READ;
    // "Simple reply message": with structured replies, still right for all commands but those that return payload.
    if (this.#facts.replyStyle === "extended") return this.#fail("wrong-style");
    if (this.#facts.replyStyle === "structured" && (isRead || slot.request.type === Cmd.BLOCK_STATUS))
      return this.#fail("wrong-style");
    this.#reply.flags = ReplyFlag.DONE;
    slot.error = this.#reply.error;
    if (slot.error !== NbdError.OK || !isRead) return this.#endOfReply(slot);
    slot.received.add(slot.request.offset, slot.request.offset + slot.request.length);
    this.#expectData(slot.at, slot.request.length);
    return true;
  }

  #beginChunk(slot: NbdSlot): boolean {
    const { style, type, length, flags } = this.#reply;
    if (style !== this.#facts.replyStyle) return this.#fail("wrong-style");
    if (isErrorChunk(type)) {
      if (length < ERROR.byteLength || length > ERROR_CHUNK_BYTES_MAX) return this.#fail("bad-chunk");
    } else if (type === ReplyType.NONE) {
      if (length !== 0 || (flags & ReplyFlag.DONE) === 0) return this.#fail("bad-chunk");
      return this.#endOfReply(slot);
    } else if (type === ReplyType.OFFSET_DATA) {
      if (slot.request.type !== Cmd.READ || length <= OFFSET_DATA.byteLength) return this.#fail("bad-chunk");
      if (length - OFFSET_DATA.byteLength > slot.request.length) return this.#fail("outside");
    } else if (type === ReplyType.OFFSET_HOLE) {
      if (slot.request.type !== Cmd.READ || length !== OFFSET_HOLE.byteLength) return this.#fail("bad-chunk");
    } else if (type === (style === "extended" ? ReplyType.BLOCK_STATUS_EXT : ReplyType.BLOCK_STATUS)) {
      const head = style === "extended" ? BLOCK_STATUS_EXT.byteLength : BLOCK_STATUS.byteLength;
      const each = style === "extended" ? DESCRIPTOR_EXT.byteLength : DESCRIPTOR.byteLength;
      if (slot.request.type !== Cmd.BLOCK_STATUS || length < head + each || (length - head) % each !== 0)
        return this.#fail("bad-chunk");
    } else return this.#fail("bad-chunk");
    this.#stage = "payload";
    return true;
  }

  /** What of a chunk must be there at once: all of it, or what stands in front of its data or descriptors. */
  #takePayload(): boolean {
    const { type, length, style } = this.#reply;
    const slot = this.#slot!;
    const view = this.#memory.view;
    const at = this.#start;
    const there = this.#end - at;
    if (isErrorChunk(type)) {
      if (there < length) return false;
      if (decodeError(this.#errorChunk, type, view, at, length) !== undefined) return this.#fail("bad-chunk");
      const { error, offset } = this.#errorChunk;
      if (slot.error === NbdError.OK) {
        slot.error = error === NbdError.OK ? NbdError.EINVAL : error;
        const { request } = slot;
        slot.errorOffset = offset >= request.offset && offset < request.offset + request.length ? offset : -1;
      }
      this.#start += length;
      return this.#endOfChunk(slot);
    }
    if (type === ReplyType.OFFSET_DATA) {
      if (there < OFFSET_DATA.byteLength) return false;
      const bytes = length - OFFSET_DATA.byteLength;
      const offset = readU64(view, at + OFFSET_DATA.offset);
      if (!this.#addContent(slot, offset, bytes)) return false;
      this.#start += OFFSET_DATA.byteLength;
      this.#expectData(slot.at + offset - slot.request.offset, bytes);
      return true;
    }
    if (type === ReplyType.OFFSET_HOLE) {
      if (there < OFFSET_HOLE.byteLength) return false;
      const offset = readU64(view, at + OFFSET_HOLE.offset);
      const bytes = view.getUint32(at + OFFSET_HOLE.size);
      if (bytes === 0) return this.#fail("bad-chunk");
      if (!this.#addContent(slot, offset, bytes)) return false;
      const to = slot.at + offset - slot.request.offset;
      this.#memory.bytes.fill(0, to, to + bytes);
      this.#start += OFFSET_HOLE.byteLength;
      return this.#endOfChunk(slot);
    }
    const isExtended = style === "extended";
    const head = isExtended ? BLOCK_STATUS_EXT.byteLength : BLOCK_STATUS.byteLength;
    if (there < head) return false;
    const count = (length - head) / (isExtended ? DESCRIPTOR_EXT.byteLength : DESCRIPTOR.byteLength);
    if (isExtended && view.getUint32(at + BLOCK_STATUS_EXT.count) !== count) return this.#fail("bad-chunk");
    return this.#beginList(slot, view.getUint32(at + BLOCK_STATUS.contextId), length - head, head);
  }

  /** The range is new and within the request; otherwise the stream has failed. */
  #addContent(slot: NbdSlot, offset: number, bytes: number): boolean {
    const { request, received } = slot;
    if (offset < request.offset || offset + bytes > request.offset + request.length) return this.#fail("outside");
    if (slot.contentChunks++ > 0 && (request.flags & CmdFlag.DF) !== 0) return this.#fail("fragmented");
    const added = received.add(offset, offset + bytes);
    return added === "added" ? true : this.#fail(added);
  }

  #expectData(at: number, bytes: number): void {
    this.#stage = "data";
    this.#dataAt = at;
    this.#left = bytes;
  }

  #takeData(): boolean {
    const count = Math.min(this.#end - this.#start, this.#left);
    if (count === 0) return false;
    this.#memory.bytes.copyWithin(this.#dataAt, this.#start, this.#start + count);
    this.#start += count;
    this.#dataAt += count;
    this.#left -= count;
    if (this.#left === 0) this.#endOfData();
    return true;
  }

  #endOfData(): void {
    this.#endOfChunk(this.#slot!);
  }

  #beginList(slot: NbdSlot, contextId: number, bytes: number, head: number): boolean {
    if (contextId === this.#facts.allocationId && !slot.allocation.said) this.#list = slot.allocation;
    else if (contextId === this.#facts.depthId && !slot.depth.said) this.#list = slot.depth;
    else return this.#fail("unknown-context");
    this.#list.begin(slot.descriptorsMax);
    this.#start += head;
    this.#left = bytes;
    this.#stage = "descriptors";
    return true;
  }

  #takeDescriptors(): boolean {
    const isExtended = this.#reply.style === "extended";
    const each = isExtended ? DESCRIPTOR_EXT.byteLength : DESCRIPTOR.byteLength;
    const view = this.#memory.view;
    const list = this.#list!;
    const slot = this.#slot!;
    while (this.#left > 0) {
      if (this.#end - this.#start < each) return false;
      const at = this.#start;
      const length = isExtended ? readU64(view, at + DESCRIPTOR_EXT.length) : view.getUint32(at + DESCRIPTOR.length);
      const flags = view.getUint32(at + (isExtended ? DESCRIPTOR_EXT.flagsLo : DESCRIPTOR.flags));
      if (length === 0 || !Number.isSafeInteger(length)) return this.#fail("bad-chunk");
      // What there is no room for is told by ending early: the asker asks again from there.
      if (list.count < slot.descriptorsMax) {
        list.length[list.count] = length;
        list.flags[list.count++] = flags;
      }
      this.#start += each;
      this.#left -= each;
    }
    return this.#endOfChunk(slot);
  }

  #endOfChunk(slot: NbdSlot): boolean {
    this.#stage = "header";
    return (this.#reply.flags & ReplyFlag.DONE) === 0 || this.#endOfReply(slot);
  }

  #endOfReply(slot: NbdSlot): boolean {
    this.#stage = "header";
    const { request } = slot;
    if (slot.error === NbdError.OK) {
      if (request.type === Cmd.READ && slot.received.bytes !== request.length) return this.#fail("incomplete");
      if (request.type === Cmd.BLOCK_STATUS && !slot.allocation.said && !slot.depth.said)
        return this.#fail("incomplete");
    }
    slot.busy = false;
    this.#sink.onReply(slot);
    return true;
  }

  #fail(fault: ReplyFault): false {
    this.#fault = fault;
    return false;
  }
}

const isAlike = (one: { request: Request }, other: { request: Request }): boolean =>
  one.request.type === other.request.type && one.request.length === other.request.length;
