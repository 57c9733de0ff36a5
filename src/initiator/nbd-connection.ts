/**
 * One connection in the transmission phase. Requests of one turn leave in one gathered send; a reply is told to the
 * owner when it is whole and the request has left memory. A server that breaks the protocol, falls silent with
 * requests in flight or announces its end is dropped, with the reason in a word; then, once the line touches no memory
 * any more, the owner gets the requests back that were not answered.
 */
import { Pieces } from "#base/memory";
import type { Millis } from "#base/units";
import { type Alarm, type Ear, type Env, type LineEnd, Soon } from "#env/env";
import type { NbdExport } from "#proto/nbd/client-handshake";
import { NbdSlot, type ReplyFault, ReplyStream } from "#proto/nbd/client-replies";
import { Cmd, CmdFlag, NbdError } from "#wire/nbd/codes";
import { encodeRequest, Request, requestBytes } from "#wire/nbd/request";
import type { Joined } from "./nbd-dial.ts";

/** Why a connection is no more. */
export type ConnectionEnd = ReplyFault | LineEnd | "ended" | "silent" | "shutting-down";

export interface ConnectionOwner {
  onReply(connection: NbdConnection, slot: NbdSlot): void;
  /** Nothing touches memory any more; `unanswered` are the requests to do again elsewhere. */
  onLost(connection: NbdConnection, end: ConnectionEnd, unanswered: readonly NbdSlot[]): void;
}

/** Room for the longest request header there is. */
const HEADER_BYTES = requestBytes(true);
/** For a server to take our goodbye; then the line is closed without. */
const FAREWELL_MS = 1_000;
/** Silence is counted in so many looks, of which one stands for all the time in which we did not run ourselves. */
const SILENT_LOOKS = 8;

export class NbdConnection implements Ear {
  readonly export: NbdExport;
  readonly #env: Env;
  readonly #owner: ConnectionOwner;
  readonly #joined: Joined<NbdExport>;
  readonly #silenceMs: Millis;
  readonly #slots: NbdSlot[] = [];
  readonly #free: NbdSlot[] = [];
  readonly #stream: ReplyStream;
  /** Headers of all slots, and one more for the farewell. */
  readonly #headers: number;
  readonly #isExtended: boolean;
  readonly #soon = new Soon(() => this.#sendWaiting());
  readonly #alarm: Alarm;
  readonly #pieces = new Pieces();
  /** Taken, and not sent yet; in order. */
  #waiting: NbdSlot[] = [];
  /** In the send that is under way. */
  #sending: NbdSlot[] = [];
  #isSending = false;
  readonly #sent: boolean[] = [];
  /** Answered by a server in a hurry, while the request was still being sent. */
  readonly #early: NbdSlot[] = [];
  /** Looks since something was heard. */
  #silentLooks = 0;
  #farewell: "none" | "wanted" | "said" = "none";
  #end: ConnectionEnd | undefined = undefined;

  /** @returns undefined when there is no memory for it. */
  static open(
    env: Env,
    joined: Joined<NbdExport>,
    depth: number,
    silenceMs: Millis,
    owner: ConnectionOwner,
  ): NbdConnection | undefined {
    const headers = env.memory.allocate((depth + 1) * HEADER_BYTES);
    return headers === 0 ? undefined : new NbdConnection(env, joined, depth, silenceMs, owner, headers);
  }

  private constructor(
    env: Env,
    joined: Joined<NbdExport>,
    depth: number,
    silenceMs: Millis,
    owner: ConnectionOwner,
    headers: number,
  ) {
    this.#env = env;
    this.#owner = owner;
    this.#joined = joined;
    this.#silenceMs = silenceMs;
    this.#headers = headers;
    this.export = joined.result;
    this.#isExtended = this.export.replyStyle === "extended";
    for (let index = 0; index < depth; index++) this.#slots.push(new NbdSlot(index));
    this.#free.push(...this.#slots.slice().reverse());
    this.#stream = new ReplyStream(env.memory, joined.window, this.#slots, this.export, {
      onReply: (slot) => this.#onReply(slot),
    });
    this.#alarm = env.clock.alarm(() => this.#checkSilence());
    joined.line.ear = this;
    this.#receive();
  }

  get freeCount(): number {
    return this.#end === undefined && this.#farewell === "none" ? this.#free.length : 0;
  }
  get outstanding(): number {
    return this.#slots.length - this.#free.length;
  }

  /**
   * It has owed answers for so long that it may be given up soon: no place for changes, which then could be carried out
   * after they have been repeated on another connection, and after newer ones.
   */
  get isDoubtful(): boolean {
    return this.#silentLooks > SILENT_LOOKS / 2;
  }

  /** A slot to fill in and `send`. There must be a free one. */
  take(): NbdSlot {
    if (this.outstanding === 0) {
      this.#silentLooks = 0;
      this.#lookAgain();
    }
    return this.#free.pop()!;
  }

  /** Sends what `slot.request` says; for a write, with the data at `slot.at`. */
  send(slot: NbdSlot): void {
    this.#sent[slot.index] = false;
    this.#waiting.push(slot);
    this.#env.turn.soon(this.#soon);
  }

  /** Says goodbye and closes. The owner has nothing in flight on it. */
  disconnect(): void {
    if (this.#farewell !== "none") return;
    this.#farewell = "wanted";
    this.#alarm.at = this.#env.clock.now() + FAREWELL_MS;
    this.#env.turn.soon(this.#soon);
  }

  /** Drops the connection: `onLost` follows. */
  drop(end: ConnectionEnd): void {
    if (this.#end !== undefined) return;
    this.#end = end;
    this.#alarm.at = Infinity;
    // What is unanswered is repeated elsewhere: it must not be carried out here when that has long been overwritten.
    if (this.outstanding > 0) this.#joined.line.abort();
    else this.#joined.line.close();
  }

  #sendWaiting(): void {
    if (this.#isSending || this.#end !== undefined) return;
    const { view } = this.#env.memory;
    this.#pieces.clear();
    let count = 0;
    for (; count < this.#waiting.length && this.#pieces.count + 2 <= Pieces.COUNT_MAX; count++) {
      const slot = this.#waiting[count]!;
      const at = this.#headers + slot.index * HEADER_BYTES;
      const isWrite = slot.request.type === Cmd.WRITE;
      // "NBD_CMD_FLAG_PAYLOAD_LEN": with extended headers a write must say that its length is of payload.
      if (isWrite && this.#isExtended) slot.request.flags |= CmdFlag.PAYLOAD_LEN;
      slot.open();
      encodeRequest(slot.request, view, at, this.#isExtended);
      this.#pieces.add(at, requestBytes(this.#isExtended));
      if (isWrite) this.#pieces.add(slot.at, slot.request.length);
      this.#sending.push(slot);
    }
    this.#waiting.splice(0, count);
    if (count === 0 && this.#farewell === "wanted") {
      this.#farewell = "said";
      const at = this.#headers + this.#slots.length * HEADER_BYTES;
      const goodbye = new Request();
      goodbye.type = Cmd.DISC;
      encodeRequest(goodbye, view, at, this.#isExtended);
      this.#pieces.add(at, requestBytes(this.#isExtended));
    }
    if (this.#pieces.count === 0) return;
    this.#isSending = true;
    this.#joined.line.send(this.#pieces);
  }

  onSent(): void {
    this.#isSending = false;
    if (this.#end !== undefined) return;
    if (this.#farewell === "said") {
      this.drop("stopped");
      return;
    }
    this.#silentLooks = 0;
    for (const slot of this.#sending) this.#sent[slot.index] = true;
    this.#sending.length = 0;
    for (const slot of this.#early.splice(0)) this.#finish(slot);
    this.#sendWaiting();
  }

  onReceived(count: number): void {
    if (this.#end !== undefined) return;
    if (count === 0) {
      this.drop("ended");
      return;
    }
    this.#silentLooks = 0;
    const fault = this.#stream.handleReceived(count);
    if (fault !== undefined) this.drop(fault);
    else if (this.#end === undefined) this.#receive();
  }

  onClosed(end: LineEnd): void {
    this.#end ??= end;
    this.#alarm.at = Infinity;
    this.#env.memory.free(this.#joined.window);
    this.#env.memory.free(this.#headers);
    // The order they were taken in does not matter: requests in flight together have none.
    const unanswered = this.#slots.filter((slot) => !this.#free.includes(slot));
    this.#owner.onLost(this, this.#end, unanswered);
  }

  #receive(): void {
    this.#joined.line.receive(this.#stream.receiveAt, this.#stream.receiveBytes);
  }

  #onReply(slot: NbdSlot): void {
    if (slot.error === NbdError.ESHUTDOWN) {
      // "the client SHOULD disconnect": whatever it is going to say now, the request is done again elsewhere.
      this.drop("shutting-down");
      return;
    }
    if (this.#sent[slot.index]) this.#finish(slot);
    else this.#early.push(slot);
  }

  #finish(slot: NbdSlot): void {
    this.#free.push(slot);
    if (this.outstanding === 0) {
      this.#alarm.at = Infinity;
      this.#silentLooks = 0;
    }
    this.#owner.onReply(this, slot);
  }

  #checkSilence(): void {
    if (this.#farewell !== "none") {
      this.drop("stopped");
      return;
    }
    if (this.#end !== undefined || this.outstanding === 0) return;
    if (++this.#silentLooks > SILENT_LOOKS) this.drop("silent");
    else this.#lookAgain();
  }

  #lookAgain(): void {
    this.#alarm.at = this.#env.clock.now() + this.#silenceMs / SILENT_LOOKS;
  }
}
