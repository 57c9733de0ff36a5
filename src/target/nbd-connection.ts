/**
 * One NBD connection in the transmission phase: its `Intake` cuts requests out of the stream, its `Answers` hold what
 * the device does and what is to be sent; this is how it goes on, stands still, and ends.
 *
 * A connection ends in one of two ways: quietly, once all that is in flight has been answered, or at once. Either way
 * buffers of operations in flight are freed only when the device is done with them.
 */
import type { Bytes, Millis } from "#base/units";
import type { Meter } from "#device/meter";
import type { Ear, Env, Line, LineEnd } from "#env/env";
import type { Agreement } from "#proto/nbd/negotiation";
import type { OpenExport } from "./exports.ts";
import { Answers } from "./nbd-answers.ts";
import type { ConnectionEnd, ConnectionHome, EndReason, MemoryUser } from "./nbd-home.ts";
import { Intake } from "./nbd-intake.ts";
import { Replies } from "./nbd-slot.ts";
import type { Resting, Rounds } from "./rounds.ts";

export class NbdConnection implements Ear, MemoryUser, Resting {
  readonly agreement: Agreement;
  readonly peer: string;
  readonly since: Millis;
  readonly #env: Env;
  readonly #line: Line;
  readonly #export: OpenExport;
  readonly #meter: Meter;
  readonly #rounds: Rounds;
  readonly #intake: Intake;
  readonly #answers: Answers;
  readonly #unwatch: () => void;
  readonly #onEnded: (connection: NbdConnection, end: ConnectionEnd) => void;
  #heardAt: Millis;
  /** Set once it has been decided that, and why, the connection ends. */
  #ending: ConnectionEnd | undefined;
  #lineClosed = false;
  #over = false;

  held: Bytes = 0;
  waiting = false;
  overShare = false;

  /** @param bufferAt a receive buffer of RECEIVE_BYTES_SMALL, which holds `unread` bytes at its beginning. */
  constructor(
    home: ConnectionHome,
    line: Line,
    agreement: Agreement,
    opened: OpenExport,
    meter: Meter,
    bufferAt: number,
    unread: number,
    onEnded: (connection: NbdConnection, end: ConnectionEnd) => void,
  ) {
    const { device } = opened;
    this.#env = home.env;
    this.#rounds = home.rounds;
    this.#line = line;
    this.agreement = agreement;
    this.peer = peerName(line);
    this.#export = opened;
    this.#meter = meter;
    this.#onEnded = onEnded;
    const replies = new Replies(home.env.memory, agreement);
    this.#answers = new Answers(home, this, line, device, replies, meter, () => this.#look());
    this.#intake = new Intake(home, this, line, agreement, device, replies, this.#answers, bufferAt, unread);
    this.since = this.#heardAt = home.env.clock.now();
    this.#unwatch = device.watch((change) => {
      if (change === "gone") this.end("refused", "the export is gone, or the client's right to it has ended");
    });
    meter.connections++;
    line.ear = this;
  }

  get requests(): number {
    return this.#intake.requests;
  }
  get bytesIn(): Bytes {
    return this.#intake.bytesIn;
  }
  get bytesOut(): Bytes {
    return this.#answers.bytesOut;
  }

  start(): void {
    this.#pump();
  }

  /** Ends the connection once what is in flight has been answered; takes nothing new in. */
  end(why: EndReason, detail: string): void {
    if (this.#ending !== undefined) return;
    this.#ending = { why, detail };
    this.#look();
  }

  /** Ends the connection now: what is in flight is done by the device and not answered. */
  abort(why: EndReason, detail: string): void {
    this.#ending ??= { why, detail };
    this.#line.close();
  }

  /** Answers what is in flight, refuses what has come and not begun, and ends. */
  drain(): void {
    if (this.#ending !== undefined) return;
    this.#intake.draining = true;
    this.#intake.resting = false;
    if (!this.waiting && !this.overShare) this.#intake.takeAll(this.#env.clock.now());
    this.end("stopped", "the server is shutting down");
  }

  retry(): void {
    this.waiting = false;
    this.#pump();
  }

  refuseForMemory(): void {
    this.#intake.refuseForMemory();
  }

  /** Ends the connection if something in it stands still for longer than `stallMs`. True if that must be watched. */
  checkTime(now: Millis, stallMs: Millis, idleMs: Millis): boolean {
    if (this.#over) return false;
    const { sending, sentAt } = this.#answers;
    if (sending && now - sentAt > stallMs) {
      this.abort("silent", `the client has not taken an answer for ${Math.round((now - sentAt) / 1000)} s`);
      return false;
    }
    const what = this.waiting || this.overShare ? undefined : this.#intake.owed;
    const owes = what !== undefined;
    if (owes && now - this.#heardAt > stallMs) {
      this.abort(
        "silent",
        `the rest of a request's ${what} has not come for ${Math.round((now - this.#heardAt) / 1000)} s`,
      );
      return false;
    }
    const idle = !owes && this.#answers.idle;
    if (idle && now - Math.max(this.#heardAt, sentAt) > idleMs) {
      this.end("silent", `nothing has happened for ${Math.round(idleMs / 1000)} s`);
      return false;
    }
    return sending || owes || idleMs !== Number.POSITIVE_INFINITY;
  }

  onReceived(count: number): void {
    this.#heardAt = this.#env.clock.now();
    if (count === 0) {
      const clean = this.#intake.owed === undefined;
      this.end("lost", clean ? "the client went without goodbye" : "the client went in the middle of a request");
      return;
    }
    this.#intake.received(count);
    this.#pump();
  }

  onSent(): void {
    this.#answers.sent();
  }

  onClosed(end: LineEnd): void {
    this.#lineClosed = true;
    this.#ending ??= { why: "lost", detail: end === "reset" ? "the client reset the connection" : "the line broke" };
    this.#unwatch();
    this.#answers.lineClosed();
    this.#look();
  }

  /** Of `Rounds`. */
  goOn(): void {
    this.#intake.resting = false;
    this.#pump();
  }

  #pump(): void {
    const intake = this.#intake;
    if (this.#lineClosed || this.waiting || intake.resting) return;
    if (this.#ending === undefined) {
      if (this.#rounds.isFull) intake.resting = true;
      else intake.takeAll(this.#env.clock.now());
      if (intake.resting) this.#rounds.rest(this);
    }
    if (intake.broken !== undefined) this.abort("violated", intake.broken);
    else if (intake.goodbye) this.end("stopped", "the client said goodbye");
    else if (this.#ending !== undefined) this.#look();
    else if (!this.waiting && !this.overShare && !intake.resting) intake.receive();
  }

  /** Takes the next step of ending, if the connection ends and nothing stands in the way. */
  #look(): void {
    if (this.#ending === undefined || this.#over) return;
    if (!this.#lineClosed) {
      if (this.#answers.idle) this.#line.close();
      return;
    }
    if (this.#answers.inFlight > 0) return;
    this.#over = true;
    this.#intake.close();
    this.#meter.connections--;
    this.#export.close();
    this.#onEnded(this, this.#ending);
  }
}

/** "10.0.0.1:4711", "[::1]:4711", or "local" on a Unix socket. */
export function peerName(line: Line): string {
  const { host, port } = line.peer;
  if (host === "") return "local";
  return host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`;
}
