/**
 * An Env in which nothing moves unless the test says so: time stands still, lines are fed by hand, and what is sent is
 * kept. For tests of fronts; whole worlds with faults are the simulator's.
 */
import { Memory, type Pieces } from "#base/memory";
import type { Effect } from "#base/task";
import { MIB } from "#base/units";
import type {
  Address,
  Alarm,
  Clock,
  Disk,
  Ear,
  Env,
  Line,
  LineEnd,
  Listener,
  Log,
  Net,
  NetError,
  Peer,
  Random,
  Soon,
  Tls,
  Turn,
} from "#env/env";

export interface LogLine {
  readonly level: "debug" | "info" | "warn" | "error";
  readonly message: string;
  readonly fields: Record<string, unknown>;
}

export class StillEnv implements Env {
  readonly memory: Memory;
  readonly logged: LogLine[] = [];
  readonly clock: Clock;
  readonly random: Random = { below: () => 0, fill: (to) => to.fill(7) };
  readonly turn: Turn;
  readonly net: Net;
  readonly log: Log;
  readonly #alarms: { at: number; ring: () => void }[] = [];
  readonly #soons: Soon[] = [];
  readonly #events: (() => void)[] = [];
  #now = 1000;
  /** What `net.secure` answers; by default the same line, under TLS. */
  secured: (line: StillLine, tls: Tls) => Line | NetError = (line) => line.underTls();
  /** By address, as JSON. */
  readonly listening = new Map<string, (line: Line) => void>();

  constructor(memoryBytes = 16 * MIB) {
    this.memory = new Memory(memoryBytes);
    this.clock = {
      now: () => this.#now,
      date: () => 1_700_000_000_000 + this.#now,
      alarm: (ring) => this.#alarm(ring),
    };
    this.turn = {
      soon: (soon) => {
        if (soon.queued) return;
        soon.queued = true;
        this.#soons.push(soon);
      },
    };
    this.net = {
      listen: (at, accept) => this.#listen(at, accept),
      dial: () => (resume) => resume({ fault: "unsupported", detail: "no dialling here" }),
      secure: (line, tls) => (resume) => this.plan(() => resume(this.secured(line as StillLine, tls))),
    };
    const log = (level: LogLine["level"]) => (fields: object, message: string) => {
      this.logged.push({ level, message, fields: fields as Record<string, unknown> });
    };
    this.log = { debug: log("debug"), info: log("info"), warn: log("warn"), error: log("error") };
  }

  get disk(): Disk {
    throw new Error("there is no disk here");
  }

  #alarm(ring: () => void): Alarm {
    const alarm = { at: Number.POSITIVE_INFINITY, ring };
    this.#alarms.push(alarm);
    return alarm;
  }

  #listen(at: Address, accept: (line: Line) => void): Effect<Listener | NetError> {
    const key = JSON.stringify(at);
    this.listening.set(key, accept);
    return (resume) => resume({ address: at, close: () => this.listening.delete(key) });
  }

  /** Something happens in the next turn. */
  plan(event: () => void): void {
    this.#events.push(event);
  }

  /** One turn: what has happened is told, then what was to run soon runs. False when there was nothing. */
  runTurn(): boolean {
    const events = this.#events.splice(0);
    for (const event of events) event();
    const soons = this.#soons.splice(0);
    for (const soon of soons) {
      soon.queued = false;
      soon.run();
    }
    return events.length + soons.length > 0;
  }

  /** Turns until nothing moves any more; fails if that never comes. */
  settle(turnsMax = 1_000_000): void {
    for (let turn = 0; this.runTurn(); turn++) if (turn === turnsMax) throw new Error("it never comes to rest");
  }

  /** Lets time pass, rings what is due, and settles. */
  advance(ms: number): void {
    for (const end = this.#now + ms; ; ) {
      const next = this.#alarms.reduce((least, alarm) => Math.min(least, alarm.at), end);
      this.#now = Math.max(this.#now, Math.min(next, end));
      for (const alarm of this.#alarms) {
        if (alarm.at > this.#now) continue;
        alarm.at = Number.POSITIVE_INFINITY;
        alarm.ring();
      }
      this.settle();
      if (next >= end) return;
    }
  }
}

/** One end of a connection, of which the test is the other. */
export class StillLine implements Line {
  readonly env: StillEnv;
  readonly peer: Peer;
  ear!: Ear;
  /** At most so many bytes come with one receive. */
  chunkMax = Number.POSITIVE_INFINITY;
  /** The client takes nothing: sends do not end. */
  deaf = false;
  /** How the line ended, once it has. */
  ended: LineEnd | undefined;
  /** How often the other side sent something, and in how many pieces the last time. */
  sends = 0;
  piecesOfLastSend = 0;
  #incoming: Uint8Array[] = [];
  #finished = false;
  #wanted: { at: number; length: number; restAt: number; restLength: number } | undefined;
  #sending: Pieces | undefined;
  #said: Uint8Array[] = [];
  #closing = false;

  constructor(env: StillEnv, peer: Partial<Peer> = {}) {
    this.env = env;
    this.peer = { host: "10.0.0.7", port: 4711, localHost: "10.0.0.1", localPort: 10809, tlsName: "", ...peer };
  }

  /** What the server has asked to receive, in bytes; 0 when it does not want anything. */
  get wants(): number {
    return this.#wanted === undefined ? 0 : this.#wanted.length + this.#wanted.restLength;
  }

  receive(at: number, length: number, restAt = 0, restLength = 0): void {
    if (this.#wanted !== undefined) throw new Error("a second receive at the same time");
    if (length <= 0) throw new Error("a receive of nothing");
    this.#wanted = { at, length, restAt, restLength };
    this.#deliver();
  }

  send(pieces: Pieces): void {
    if (this.#sending !== undefined) throw new Error("a second send at the same time");
    if (pieces.total === 0) throw new Error("a send of nothing");
    this.#sending = pieces;
    this.sends++;
    this.piecesOfLastSend = pieces.count;
    this.#take();
  }

  keepAlive(): void {}

  close(): void {
    this.#end("stopped");
  }
  abort(): void {
    this.close();
  }

  /** The client sends; bytes are those of now, later changes to the array do not matter. */
  give(bytes: Uint8Array): void {
    if (bytes.length > 0) this.#incoming.push(bytes.slice());
    this.#deliver();
  }
  /** The client has finished sending. */
  finish(): void {
    this.#finished = true;
    this.#deliver();
  }
  /** The client is gone. */
  reset(): void {
    this.#end("reset");
  }
  /** The client takes what was sent to it again. */
  listen(): void {
    this.deaf = false;
    this.#take();
  }

  /** What the server has sent since the last time. */
  heard(): Uint8Array {
    const whole = new Uint8Array(this.#said.reduce((sum, part) => sum + part.length, 0));
    let at = 0;
    for (const part of this.#said) {
      whole.set(part, at);
      at += part.length;
    }
    this.#said = [];
    return whole;
  }

  /** The same connection under TLS; this line is not to be used any more. */
  underTls(tlsName = "web1"): StillLine {
    const line = new StillLine(this.env, { ...this.peer, tlsName });
    this.successor = line;
    if (this.#wanted !== undefined || this.#sending !== undefined) throw new Error("TLS begins on a line in use");
    return line;
  }
  successor: StillLine | undefined;

  #deliver(): void {
    const wanted = this.#wanted;
    if (wanted === undefined || this.#closing) return;
    if (this.#incoming.length === 0 && !this.#finished) return;
    this.env.plan(() => {
      if (this.#wanted !== wanted || this.#closing) return;
      let count = 0;
      const most = Math.min(wanted.length + wanted.restLength, this.chunkMax);
      while (count < most && this.#incoming.length > 0) {
        const first = this.#incoming[0]!;
        const behind = count - wanted.length;
        const part = first.subarray(0, behind < 0 ? Math.min(most - count, -behind) : most - count);
        this.env.memory.bytes.set(part, behind < 0 ? wanted.at + count : wanted.restAt + behind);
        count += part.length;
        if (part.length === first.length) this.#incoming.shift();
        else this.#incoming[0] = first.subarray(part.length);
      }
      this.#wanted = undefined;
      this.ear.onReceived(count);
    });
  }

  #take(): void {
    const pieces = this.#sending;
    if (pieces === undefined || this.deaf || this.#closing) return;
    this.env.plan(() => {
      if (this.#sending !== pieces || this.#closing || this.deaf) return;
      for (let index = 0; index < pieces.count; index++)
        this.#said.push(this.env.memory.slice(pieces.at[index]!, pieces.length[index]!).slice());
      this.#sending = undefined;
      this.ear.onSent();
    });
  }

  #end(end: LineEnd): void {
    if (this.#closing) return;
    this.#closing = true;
    this.env.plan(() => {
      this.ended = end;
      this.ear.onClosed(end);
    });
  }
}
