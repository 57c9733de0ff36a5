/**
 * What a connection sends. Those who have something to say stand in a queue; once a turn, as much of it as fits is
 * written into one of two header areas and leaves in one gathered send, while the other area is filled. Data goes out
 * from where it lies.
 */
import { type Memory, Pieces } from "#base/memory";
import type { Line, Turn } from "#env/env";
import { Soon } from "#env/env";
import type { ConnectionParameters } from "#proto/iscsi/negotiate";
import { BHS, BHS_BYTES, nextSn, padded, RESPONSE } from "#wire/iscsi/bhs";
import { DIGEST_BYTES } from "#wire/iscsi/codes";
import type { IscsiTask } from "./iscsi-task.ts";

/** Bytes of one header area: a class of `Memory`. */
const AREA_BYTES = 8704;
/** What an outbox takes for as long as it lives. */
export const OUTBOX_BYTES = 2 * AREA_BYTES;
/** Pieces that one PDU takes at most: header, data, padding with digest. */
const PDU_PIECES = 3;
/** The bytes that a PDU takes of the area at most: header, both digests, padding, sense. */
const PDU_AREA_BYTES = BHS_BYTES + 2 * DIGEST_BYTES + 3 + 256;

export interface Sendable {
  /** Writes what it has to say. False when the room was not enough: it is asked again after the next send. */
  write(outbox: Outbox): boolean;
  queued: boolean;
  /** It stands in no queue any more. */
  left?(): void;
}

/** Numbers that every PDU carries: §4.2.2.1. */
export interface Window {
  readonly expCmdSn: number;
  readonly maxCmdSn: number;
}

export class Outbox {
  readonly view: DataView;
  readonly #memory: Memory;
  readonly #bytes: Uint8Array;
  readonly #line: Line;
  readonly #turn: Turn;
  readonly #parameters: ConnectionParameters;
  readonly #queue: Sendable[] = [];
  #head = 0;
  readonly #pieces = [new Pieces(), new Pieces()] as const;
  readonly #areas: readonly [number, number];
  /** Tasks whose answer is complete with the batch. */
  readonly #done: [IscsiTask[], IscsiTask[]] = [[], []];
  /** Of a data segment that was copied from outside the lane's memory. */
  readonly #copies: [number[], number[]] = [[], []];
  #filling = 0;
  #used = 0;
  #sending = false;
  #closed = false;
  readonly #soon: Soon;
  readonly #sentTasks: (task: IscsiTask) => void;
  window: Window = { expCmdSn: 1, maxCmdSn: 1 };
  statSn = 1;
  /** With the next batch the connection ends (logout, a login refused). */
  endAfter = false;
  /** Told when a batch has left. */
  onDrained: (() => void) | undefined;
  bytesOut = 0;

  /** Throws nothing; `isReady` is false when there was no memory. */
  constructor(
    memory: Memory,
    line: Line,
    turn: Turn,
    parameters: ConnectionParameters,
    sentTask: (task: IscsiTask) => void,
  ) {
    this.#memory = memory;
    this.#bytes = memory.bytes;
    this.view = memory.view;
    this.#line = line;
    this.#turn = turn;
    this.#parameters = parameters;
    this.#sentTasks = sentTask;
    this.#areas = [memory.allocate(AREA_BYTES), memory.allocate(AREA_BYTES)];
    this.#soon = new Soon(() => this.flush());
  }

  get isReady(): boolean {
    return this.#areas[0] !== 0 && this.#areas[1] !== 0;
  }
  /** How many wait to say something. */
  get waiting(): number {
    return this.#queue.length - this.#head;
  }
  get isIdle(): boolean {
    return this.waiting === 0 && !this.#sending;
  }

  push(one: Sendable): void {
    if (one.queued || this.#closed) return;
    one.queued = true;
    this.#queue.push(one);
    this.#turn.soon(this.#soon);
  }

  /** Writes and sends what is queued, if nothing is being sent. */
  flush(): void {
    if (this.#sending || this.#closed) return;
    const pieces = this.#pieces[this.#filling]!;
    while (this.#head < this.#queue.length) {
      const one = this.#queue[this.#head]!;
      if (!one.write(this)) break;
      one.queued = false;
      this.#head++;
      one.left?.();
    }
    if (this.#head === this.#queue.length) {
      this.#queue.length = 0;
      this.#head = 0;
    } else if (this.#head > 256) {
      this.#queue.splice(0, this.#head);
      this.#head = 0;
    }
    if (pieces.count === 0) return;
    this.#sending = true;
    this.bytesOut += pieces.total;
    this.#line.send(pieces);
    this.#filling ^= 1;
    this.#used = 0;
  }

  /** The line has taken the last batch. True when the connection is to end now. */
  sent(): boolean {
    this.#sending = false;
    const batch = this.#filling ^ 1;
    this.#pieces[batch]!.clear();
    this.#releaseBatch(batch);
    if (this.waiting > 0) this.flush();
    this.onDrained?.();
    return this.endAfter && this.isIdle;
  }

  /** Nothing is sent any more; nothing in flight touches memory. */
  close(): void {
    this.#closed = true;
    for (const batch of [0, 1] as const) this.#releaseBatch(batch);
    for (const area of this.#areas) if (area !== 0) this.#memory.free(area);
    for (let at = this.#head; at < this.#queue.length; at++) this.#queue[at]!.queued = false;
    this.#queue.length = 0;
  }

  /* -------------------------------------------------------------------- for sendables */

  /** A cleared header with its kind and the length of its data; 0 when there is no room. */
  header(opcode: number, flags: number, length: number): number {
    const pieces = this.#pieces[this.#filling]!;
    if (this.#used + PDU_AREA_BYTES > AREA_BYTES || pieces.count + PDU_PIECES > Pieces.COUNT_MAX) return 0;
    const at = this.#areas[this.#filling]! + this.#used;
    this.#bytes.fill(0, at, at + BHS_BYTES);
    const { view } = this;
    view.setUint8(at + BHS.opcode, opcode);
    view.setUint8(at + BHS.flags, flags);
    view.setUint32(at + BHS.ahsWords, length);
    view.setUint32(at + RESPONSE.expCmdSn, this.window.expCmdSn);
    view.setUint32(at + RESPONSE.maxCmdSn, this.window.maxCmdSn);
    this.#used += BHS_BYTES;
    return at;
  }
  /** The header is complete: it gets its digest, and its place in the batch. */
  endHeader(at: number): void {
    let length: number = BHS_BYTES;
    if (this.#parameters.headerDigest) {
      this.view.setUint32(at + BHS_BYTES, this.#memory.crc32c(at, BHS_BYTES), true);
      length += DIGEST_BYTES;
      this.#used += DIGEST_BYTES;
    }
    this.#pieces[this.#filling]!.add(at, length);
  }
  /** The data segment, from where it lies. It must stay there until the batch has left. */
  data(from: number, length: number): void {
    const pieces = this.#pieces[this.#filling]!;
    pieces.add(from, length);
    const padding = padded(length) - length;
    if (padding === 0 && !this.#parameters.dataDigest) return;
    const at = this.#areas[this.#filling]! + this.#used;
    let tail = padding;
    this.#bytes.fill(0, at, at + padding);
    if (this.#parameters.dataDigest) {
      const crc = this.#memory.crc32c(at, padding, this.#memory.crc32c(from, length));
      for (let index = 0; index < DIGEST_BYTES; index++) this.#bytes[at + padding + index] = crc >>> (8 * index);
      tail += DIGEST_BYTES;
    }
    pieces.add(at, tail);
    this.#used += tail;
    this.#align();
  }
  /** Sense data with its length in front of it: §11.4.7. */
  sense(bytes: DataView, length: number): void {
    const at = this.#areas[this.#filling]! + this.#used;
    this.view.setUint16(at, length);
    for (let index = 0; index < length; index++) this.#bytes[at + 2 + index] = bytes.getUint8(index);
    this.#used += padded(length + 2);
    this.data(at, length + 2);
  }
  /** A data segment from outside the lane's memory. False when there is no memory for it. */
  copy(bytes: Uint8Array): boolean {
    if (bytes.length === 0) return true;
    const at = this.#memory.allocate(bytes.length);
    if (at === 0) return false;
    this.#bytes.set(bytes, at);
    this.#copies[this.#filling]!.push(at);
    this.data(at, bytes.length);
    return true;
  }
  takeStatSn(): number {
    const taken = this.statSn;
    this.statSn = nextSn(taken);
    return taken;
  }
  /** The answer to a task is complete in this batch. */
  finished(task: IscsiTask): void {
    task.leaving = true;
    this.#done[this.#filling]!.push(task);
  }

  /** Headers start at multiples of 4, which keeps digests and pieces simple. */
  #align(): void {
    this.#used = padded(this.#used);
  }
  #releaseBatch(batch: number): void {
    const tasks = this.#done[batch]!;
    for (let index = 0; index < tasks.length; index++) this.#sentTasks(tasks[index]!);
    tasks.length = 0;
    const copies = this.#copies[batch]!;
    for (let index = 0; index < copies.length; index++) this.#memory.free(copies[index]!);
    copies.length = 0;
  }
}
