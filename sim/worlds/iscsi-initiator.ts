/**
 * A small iSCSI initiator for simulated worlds: one initiator port with one session of one or two connections. It takes
 * commands, sends them in the order of their CmdSN over its connections, and tells how each ended. It holds the target to
 * what RFC 7143 says of numbers: StatSN without gaps, data in order, no answer without a question. When a connection is
 * lost it ends the session and logs in again (session reinstatement).
 */
import { Pieces } from "#base/memory";
import { perform, start } from "#base/task";
import { type Ear, isNetError, type Line, type LineEnd } from "#env/env";
import {
  BHS,
  BHS_BYTES,
  DATA_IN,
  DATA_OUT,
  dataLength,
  isBefore,
  LOGIN_REQUEST,
  LOGIN_RESPONSE,
  LOGOUT_RESPONSE,
  nextSn,
  opcodeOf,
  padded,
  R2T,
  REQUEST,
  RESPONSE,
  SCSI_COMMAND,
  SCSI_RESPONSE,
  TASK_REQUEST,
  TASK_RESPONSE,
} from "#wire/iscsi/bhs";
import {
  CommandFlag,
  DataInFlag,
  LogoutReason,
  LogoutResponse,
  Opcode,
  RESERVED_TAG,
  TaskFunction,
} from "#wire/iscsi/codes";
import { encodeText, parseText } from "#wire/iscsi/text";
import type { SimProcess } from "../env/sim-process.ts";
import { Violation } from "../violation.ts";

export interface InitiatorSettings {
  readonly name: string;
  /** 12 hex digits. */
  readonly isid: string;
  readonly targetName: string;
  readonly server: string;
  readonly port: number;
  readonly connections: number;
  readonly immediateData: boolean;
  readonly initialR2t: boolean;
  readonly errorRecoveryLevel: number;
  readonly burst: number;
  /** How long a command may take before it is aborted, and a task management function before the session is given up. */
  readonly patienceMs: number;
}

/** How a command ended. "unknown": it was aborted, or its session is over; it has happened or not, and no longer will. */
export type Answer =
  | {
      readonly kind: "status";
      readonly status: number;
      readonly key: number;
      readonly asc: number;
      readonly info: number;
    }
  | { readonly kind: "unknown" };

export type CommandAttribute = "simple" | "ordered" | "head-of-queue";
const ATTRIBUTE = { simple: 1, ordered: 2, "head-of-queue": 3 } as const;

export interface Command {
  /** The unit that it is for. */
  readonly lun: number;
  readonly cdb: Uint8Array;
  readonly attribute: CommandAttribute;
  /** In the process' memory: what is sent, and where what is received goes. */
  readonly at: number;
  readonly outLength: number;
  readonly inLength: number;
  /** It leaves; with a number of its own each time that it does. */
  onSent(flight: Flight): void;
  onAnswer(answer: Answer): void;
}

/** A command on its way. */
export interface Flight {
  readonly command: Command;
  readonly tag: number;
  readonly cmdSn: number;
  /** Goes up with each login of the initiator. */
  readonly session: number;
  readonly sentAt: number;
}
class InFlight implements Flight {
  readonly command: Command;
  readonly tag: number;
  readonly cmdSn: number;
  readonly session: number;
  readonly sentAt: number;
  readonly connection: Connection;
  pdu: Uint8Array = new Uint8Array(0);
  received = 0;
  dataSn = 0;
  isAborting = false;

  constructor(command: Command, tag: number, cmdSn: number, connection: Connection, session: number, now: number) {
    this.command = command;
    this.tag = tag;
    this.cmdSn = cmdSn;
    this.connection = connection;
    this.session = session;
    this.sentAt = now;
  }
}

export type ManageKind = "abort-task" | "abort-task-set" | "clear-task-set" | "lun-reset" | "target-reset";
export interface Management {
  readonly function: ManageKind;
  /** The unit that it is about; ABORT TASK and a target reset choose their own. */
  readonly lun: number;
  readonly immediate: boolean;
  onAnswer(response: number | undefined): void;
}
const FUNCTION = {
  "abort-task": TaskFunction.ABORT_TASK,
  "abort-task-set": TaskFunction.ABORT_TASK_SET,
  "clear-task-set": TaskFunction.CLEAR_TASK_SET,
  "lun-reset": TaskFunction.LOGICAL_UNIT_RESET,
  "target-reset": TaskFunction.TARGET_WARM_RESET,
} as const;

export interface InitiatorWatcher {
  /** A login begins: what waits for the nexus from now on belongs to the new session. */
  onLogin(): void;
  /** The session stands; nothing of an earlier one happens any more. */
  onSession(): void;
  /** These were given up, and the target has said so: nothing of them happens any more. */
  onEnded(flights: readonly Flight[]): void;
}

const FINAL = 0x80;
const IMMEDIATE = 0x40;
const LOGIN_FLAGS = 0x87;
const RETRY_MS = 20;
const LOOK_MS = 50;
const RECEIVE_BYTES = 65_536;
const PIECE_BYTES = 8192;

export class SimInitiator {
  readonly env: SimProcess;
  readonly settings: InitiatorSettings;
  readonly #watcher: InitiatorWatcher;
  readonly #flights = new Map<number, InFlight>();
  readonly #managing = new Map<number, { readonly management: Management; readonly about: InFlight[]; at: number }>();
  #waiting: Command[] = [];
  #connections: Connection[] = [];
  /** Of sessions before: their fate is known when the next session stands. */
  #lost: InFlight[] = [];
  state: "down" | "login" | "up" = "down";
  session = 0;
  tsih = 0;
  cmdSn = 0;
  maxCmdSn = 0;
  #expCmdSn = 0;
  #tag = 0;
  #isStopped = false;
  /** Logins that were begun: a dial of an earlier one that is answered late is nobody's. */
  #attempt = 0;
  #logoutTag = -1;
  /** What was agreed. */
  immediateData = false;
  initialR2t = true;
  burst = 0;
  firstBurst = 0;

  constructor(env: SimProcess, settings: InitiatorSettings, watcher: InitiatorWatcher) {
    this.env = env;
    this.settings = settings;
    this.#watcher = watcher;
    this.#look();
  }

  get inFlight(): number {
    return this.#flights.size + this.#waiting.length + this.#lost.length + this.#managing.size;
  }
  get chance() {
    return this.env.world.chance;
  }
  say(what: string): void {
    this.env.world.say(this.env, what);
  }

  submit(command: Command): void {
    this.#waiting.push(command);
    this.pump();
  }

  /** Asks for a task management function; ABORT TASK for `of`, or some command in flight. False: there is nothing to do. */
  manage(management: Management, of?: Flight): boolean {
    if (this.state !== "up") return false;
    const flights = [...this.#flights.values()];
    const chosen = (of as InFlight | undefined) ?? (flights.length === 0 ? undefined : this.chance.pick(flights));
    const isAbort = management.function === "abort-task";
    if (isAbort && (chosen === undefined || chosen.isAborting)) return false;
    const connection = isAbort ? chosen!.connection : this.chance.pick(this.#connections);
    // Other connections may still carry what was sent before: of that a function for many says nothing.
    const isForAll = management.function === "target-reset";
    const about = isAbort
      ? [chosen!]
      : flights.filter(
          (flight) => flight.connection === connection && (isForAll || flight.command.lun === management.lun),
        );
    if (isAbort) chosen!.isAborting = true;
    const tag = this.#nextTag();
    const pdu = connection.request(Opcode.TASK_MANAGEMENT_REQUEST, FINAL | FUNCTION[management.function], 0);
    const view = viewOf(pdu);
    if (management.immediate) pdu[0]! |= IMMEDIATE;
    if (!isForAll) view.setUint16(BHS.lun, isAbort ? chosen!.command.lun : management.lun);
    view.setUint32(BHS.taskTag, tag);
    view.setUint32(TASK_REQUEST.referencedTag, isAbort ? chosen!.tag : RESERVED_TAG);
    view.setUint32(TASK_REQUEST.cmdSn, this.cmdSn);
    if (isAbort) view.setUint32(TASK_REQUEST.refCmdSn, chosen!.cmdSn);
    if (!management.immediate) this.cmdSn = nextSn(this.cmdSn);
    this.#managing.set(tag, { management, about, at: this.env.world.now });
    connection.send(pdu);
    return true;
  }

  /** Sends a command that is in flight again, as it was (§7.2.1): the target has it, and must not do it twice. */
  resend(): boolean {
    const flight = [...this.#flights.values()].find(({ isAborting }) => !isAborting);
    if (flight === undefined || this.state !== "up") return false;
    this.say(`sends command ${flight.cmdSn} again`);
    flight.connection.send(flight.pdu.slice());
    return true;
  }

  /** Ends the session without a word, and logs in again. */
  drop(why: string): void {
    if (this.state === "down") return;
    this.say(`ends its session: ${why}`);
    this.state = "down";
    this.#logoutTag = -1;
    for (const connection of this.#connections.splice(0)) connection.close();
    for (const { management } of this.#managing.values()) management.onAnswer(undefined);
    this.#managing.clear();
    this.#lost.push(...this.#flights.values());
    this.#flights.clear();
    if (!this.#isStopped) this.env.plan(this.chance.span(RETRY_MS), () => this.login());
  }

  /** Ends the session as it should be ended (§11.14), and logs in again. False: there is none, or it is ending already. */
  logOut(): boolean {
    if (this.state !== "up" || this.#logoutTag >= 0) return false;
    const connection = this.chance.pick(this.#connections);
    this.#logoutTag = this.#nextTag();
    this.#logoutAt = this.env.world.now;
    const pdu = connection.request(Opcode.LOGOUT_REQUEST | IMMEDIATE, FINAL | LogoutReason.CLOSE_SESSION, 0);
    viewOf(pdu).setUint32(BHS.taskTag, this.#logoutTag);
    viewOf(pdu).setUint32(REQUEST.cmdSn, this.cmdSn);
    connection.send(pdu);
    return true;
  }

  #takeLogout(tag: number, response: number): void {
    if (tag !== this.#logoutTag || response !== LogoutResponse.CLOSED)
      throw new Violation(`a logout is answered with ${response} for task ${tag}`);
    const ended = [...this.#flights.values()];
    this.#flights.clear();
    this.#watcher.onEnded(ended);
    this.drop("it has logged out");
    for (const { command } of ended) command.onAnswer({ kind: "unknown" });
  }

  /** The server is dead, and everything in it: what was in flight has happened by now or never. What waits is given up. */
  serverDied(): void {
    const lost = [...this.#lost.splice(0), ...this.#flights.values()].map(({ command }) => command);
    lost.push(...this.#waiting.splice(0));
    this.#flights.clear();
    this.drop("the server has died");
    for (const command of lost) command.onAnswer({ kind: "unknown" });
  }

  stop(): void {
    this.#isStopped = true;
    this.drop("the world ends");
  }

  /* ------------------------------------------------------------------------------ login */

  login(): void {
    if (this.state !== "down" || this.#isStopped) return;
    this.state = "login";
    this.#attempt++;
    this.#watcher.onLogin();
    this.tsih = 0;
    // Numbers that soon wrap around.
    this.cmdSn = this.chance.often(0.5) ? 0xffff_fff0 : this.chance.below(0x1_0000_0000);
    this.#expCmdSn = this.cmdSn;
    this.maxCmdSn = this.cmdSn;
    this.#connect(0);
  }

  #connect(index: number): void {
    const attempt = this.#attempt;
    const { server, port, patienceMs } = this.settings;
    const stillWanted = (): boolean => this.state === "login" && this.#attempt === attempt;
    start(
      perform(this.env.net.dial({ host: server, port }, { timeoutMs: patienceMs })),
      (line) => {
        if (isNetError(line)) {
          if (stillWanted()) this.drop(line.detail);
        } else if (!stillWanted()) {
          line.ear = { onReceived: () => {}, onSent: () => {}, onClosed: () => {} };
          line.close();
        } else this.#connections.push(new Connection(this, line, index + 1));
      },
      (error) => {
        throw error;
      },
    );
  }

  /** A connection is logged in. */
  joined(connection: Connection): void {
    if (connection.cid < this.settings.connections) return this.#connect(connection.cid);
    this.state = "up";
    this.session++;
    this.say(`is logged in with ${connection.cid} connections`);
    this.#watcher.onSession();
    const lost = this.#lost.splice(0);
    this.#watcher.onEnded(lost);
    for (const { command } of lost) command.onAnswer({ kind: "unknown" });
    this.pump();
  }

  /* --------------------------------------------------------------------------- commands */

  pump(): void {
    while (
      this.state === "up" &&
      this.#logoutTag < 0 &&
      this.#waiting.length > 0 &&
      !isBefore(this.maxCmdSn, this.cmdSn)
    )
      this.#send(this.#waiting.shift()!);
  }

  #send(command: Command): void {
    const connection = this.chance.pick(this.#connections);
    const { outLength, inLength, at } = command;
    const { memory } = this.env;
    const flight = new InFlight(command, this.#nextTag(), this.cmdSn, connection, this.session, this.env.world.now);
    this.cmdSn = nextSn(this.cmdSn);
    this.#flights.set(flight.tag, flight);
    const immediate = this.immediateData && this.chance.often(0.7) ? Math.min(outLength, this.firstBurst) : 0;
    const unsolicited = this.initialR2t ? immediate : Math.min(outLength, this.firstBurst);
    const isFinal = unsolicited === immediate;
    const direction = outLength > 0 ? CommandFlag.WRITE : inLength > 0 ? CommandFlag.READ : 0;
    const flags = (isFinal ? FINAL : 0) | direction | ATTRIBUTE[command.attribute];
    const pdu = connection.request(Opcode.SCSI_COMMAND, flags, immediate);
    const view = viewOf(pdu);
    view.setUint16(BHS.lun, command.lun);
    view.setUint32(BHS.taskTag, flight.tag);
    view.setUint32(SCSI_COMMAND.expectedLength, outLength > 0 ? outLength : inLength);
    view.setUint32(SCSI_COMMAND.cmdSn, flight.cmdSn);
    pdu.set(command.cdb, SCSI_COMMAND.cdb);
    pdu.set(memory.bytes.subarray(at, at + immediate), BHS_BYTES);
    flight.pdu = pdu;
    command.onSent(flight);
    connection.send(pdu);
    if (!isFinal) this.#sendData(flight, RESERVED_TAG, immediate, unsolicited);
  }

  #sendData(flight: InFlight, transferTag: number, from: number, to: number): void {
    const { memory } = this.env;
    for (let offset = from, dataSn = 0; offset < to; dataSn++) {
      const length = Math.min(PIECE_BYTES, to - offset);
      const pdu = flight.connection.request(Opcode.DATA_OUT, offset + length === to ? FINAL : 0, length);
      const view = viewOf(pdu);
      view.setUint32(BHS.taskTag, flight.tag);
      view.setUint32(DATA_OUT.transferTag, transferTag);
      view.setUint32(DATA_OUT.dataSn, dataSn);
      view.setUint32(DATA_OUT.offset, offset);
      const at = flight.command.at + offset;
      pdu.set(memory.bytes.subarray(at, at + length), BHS_BYTES);
      flight.connection.send(pdu);
      offset += length;
    }
  }

  /* ----------------------------------------------------------------------------- answers */

  take(connection: Connection, head: DataView, data: Uint8Array): void {
    const tag = head.getUint32(BHS.taskTag);
    this.#takeWindow(head);
    switch (opcodeOf(head, 0)) {
      case Opcode.SCSI_RESPONSE:
        return this.#takeResponse(this.#flightOf(connection, tag), head, data);
      case Opcode.DATA_IN:
        return this.#takeDataIn(this.#flightOf(connection, tag), head, data);
      case Opcode.R2T: {
        const flight = this.#flightOf(connection, tag);
        const offset = head.getUint32(R2T.offset);
        const length = head.getUint32(R2T.length);
        if (length === 0 || offset + length > flight.command.outLength)
          throw new Violation(`an R2T asks for ${offset} + ${length} of ${flight.command.outLength} bytes`);
        return this.#sendData(flight, head.getUint32(R2T.transferTag), offset, offset + length);
      }
      case Opcode.TASK_MANAGEMENT_RESPONSE:
        return this.#takeManaged(tag, head.getUint8(TASK_RESPONSE.response));
      case Opcode.LOGOUT_RESPONSE:
        return this.#takeLogout(tag, head.getUint8(LOGOUT_RESPONSE.response));
      case Opcode.NOP_IN: {
        if (head.getUint32(REQUEST.transferTag) === RESERVED_TAG) return;
        const pdu = connection.request(Opcode.NOP_OUT | IMMEDIATE, FINAL, 0);
        const view = viewOf(pdu);
        view.setUint32(BHS.taskTag, RESERVED_TAG);
        view.setUint32(REQUEST.transferTag, head.getUint32(REQUEST.transferTag));
        view.setUint32(REQUEST.cmdSn, this.cmdSn);
        connection.send(pdu);
        return;
      }
      case Opcode.ASYNC_MESSAGE:
        return;
      case Opcode.REJECT:
        return this.#takeReject(head, data);
      default:
        throw new Violation(`the target sends PDU ${opcodeOf(head, 0)}`);
    }
  }

  /** A command that was sent again while it still runs may be refused; nothing else is. */
  #takeReject(head: DataView, data: Uint8Array): void {
    throw new Violation(`the target rejects PDU ${data[0]} (reason ${head.getUint8(2)})`);
  }

  #takeWindow(head: DataView): void {
    const exp = head.getUint32(RESPONSE.expCmdSn);
    const max = head.getUint32(RESPONSE.maxCmdSn);
    if (isBefore(this.cmdSn, exp)) throw new Violation(`ExpCmdSN is ${exp}, and ${this.cmdSn} was never sent`);
    // §4.2.2.1: what is smaller than what was heard before comes late, by another connection.
    if (isBefore(this.#expCmdSn, exp)) this.#expCmdSn = exp;
    if (isBefore(this.maxCmdSn, max)) this.maxCmdSn = max;
    this.pump();
  }

  #flightOf(connection: Connection, tag: number): InFlight {
    const flight = this.#flights.get(tag);
    if (flight === undefined) throw new Violation(`the target answers task ${tag}, which is none`);
    if (flight.connection !== connection) throw new Violation(`task ${tag} is answered on another connection`);
    return flight;
  }

  #takeDataIn(flight: InFlight, head: DataView, data: Uint8Array): void {
    const { command } = flight;
    const offset = head.getUint32(DATA_IN.offset);
    if (head.getUint32(DATA_IN.dataSn) !== flight.dataSn++) throw new Violation("a Data-In PDU is out of order");
    if (offset !== flight.received || offset + data.length > command.inLength)
      throw new Violation(`data-in of ${data.length} bytes at ${offset}, after ${flight.received}`);
    this.env.memory.bytes.set(data, command.at + offset);
    flight.received += data.length;
    const flags = head.getUint8(BHS.flags);
    if ((flags & DataInFlag.STATUS) === 0) return;
    this.#end(flight, head.getUint8(DATA_IN.status), new Uint8Array(0));
  }

  #takeResponse(flight: InFlight, head: DataView, data: Uint8Array): void {
    if (head.getUint8(SCSI_RESPONSE.response) !== 0) throw new Violation("a command did not complete at the target");
    this.#end(flight, head.getUint8(SCSI_RESPONSE.status), data.subarray(2));
  }

  #end(flight: InFlight, status: number, sense: Uint8Array): void {
    const { command } = flight;
    this.#flights.delete(flight.tag);
    if (status === 0 && flight.received !== command.inLength && command.inLength > 0 && !isShortAnswer(command))
      throw new Violation(`a read of ${command.inLength} bytes ends well with ${flight.received}`);
    const view = viewOf(sense);
    const answer: Answer = {
      kind: "status",
      status,
      key: sense.length > 2 ? sense[2]! & 0x0f : 0,
      asc: sense.length > 13 ? view.getUint16(12) : 0,
      info: sense.length > 6 ? view.getUint32(3) : 0,
    };
    command.onAnswer(answer);
    this.pump();
  }

  #takeManaged(tag: number, response: number): void {
    const managing = this.#managing.get(tag);
    if (managing === undefined) throw new Violation(`the target answers task management ${tag}, which is none`);
    this.#managing.delete(tag);
    // What had ended before was answered before, on the same connection: the rest is given up.
    const ended = managing.about.filter((flight) => this.#flights.get(flight.tag) === flight);
    for (const flight of ended) this.#flights.delete(flight.tag);
    this.#watcher.onEnded(ended);
    managing.management.onAnswer(response);
    for (const { command } of ended) command.onAnswer({ kind: "unknown" });
    this.pump();
  }

  /* ------------------------------------------------------------------------------ helpers */

  /** What takes too long is aborted; when that takes too long, the session ends. */
  #look(): void {
    this.env.plan(LOOK_MS, () => {
      const { now } = this.env.world;
      const { patienceMs } = this.settings;
      if (this.#logoutTag >= 0 && now - this.#logoutAt > patienceMs) this.drop("a logout is not answered");
      if (this.state === "up") {
        for (const { at } of this.#managing.values())
          if (now - at > patienceMs) {
            this.drop("a task management function is not answered");
            break;
          }
        for (const flight of [...this.#flights.values()])
          if (now - flight.sentAt > patienceMs && !flight.isAborting && this.state === "up")
            this.manage({ function: "abort-task", lun: 0, immediate: true, onAnswer: () => {} }, flight);
      } else if (this.state === "login" && now - this.loginAt > 2 * patienceMs) this.drop("the login takes too long");
      if (!this.#isStopped) this.#look();
    });
  }
  loginAt = 0;
  #logoutAt = 0;

  #nextTag(): number {
    do this.#tag = (this.#tag + 1) & 0xffff;
    while (this.#flights.has(this.#tag) || this.#managing.has(this.#tag));
    return this.#tag;
  }
}

/** Commands whose answer is as long as it happens to be. */
const isShortAnswer = (command: Command): boolean => command.cdb[0] === 0x5e;

const viewOf = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

/** One connection of the initiator. */
class Connection implements Ear {
  readonly cid: number;
  readonly #initiator: SimInitiator;
  readonly #line: Line;
  readonly #receiveAt: number;
  #received = new Uint8Array(0);
  #outgoing: Uint8Array[] = [];
  #sending = 0;
  #isFull = false;
  #isClosed = false;
  #expStatSn = 0;

  constructor(initiator: SimInitiator, line: Line, cid: number) {
    this.#initiator = initiator;
    this.#line = line;
    this.cid = cid;
    this.#receiveAt = initiator.env.memory.allocate(RECEIVE_BYTES);
    line.ear = this;
    line.receive(this.#receiveAt, RECEIVE_BYTES);
    this.#login();
  }

  close(): void {
    this.#isClosed = true;
    this.#line.close();
  }

  /** A PDU with room for `length` bytes of data. */
  request(opcode: number, flags: number, length: number): Uint8Array {
    const pdu = new Uint8Array(BHS_BYTES + padded(length));
    const view = viewOf(pdu);
    pdu[BHS.opcode] = opcode;
    pdu[BHS.flags] = flags;
    view.setUint32(BHS.ahsWords, length);
    view.setUint32(REQUEST.expStatSn, this.#expStatSn);
    return pdu;
  }

  send(pdu: Uint8Array): void {
    if (this.#isClosed) return;
    this.#say("sends", viewOf(pdu));
    this.#outgoing.push(pdu);
    if (this.#sending === 0) this.#sendNext();
  }

  #sendNext(): void {
    const { memory } = this.#initiator.env;
    const total = this.#outgoing.reduce((sum, pdu) => sum + pdu.length, 0);
    const at = memory.allocate(total);
    if (at === 0) throw new Error("the simulated initiator has no memory");
    let end = at;
    for (const pdu of this.#outgoing.splice(0)) {
      memory.bytes.set(pdu, end);
      end += pdu.length;
    }
    this.#sending = at;
    const pieces = new Pieces();
    pieces.add(at, total);
    this.#line.send(pieces);
  }

  onSent(): void {
    this.#initiator.env.memory.free(this.#sending);
    this.#sending = 0;
    if (this.#outgoing.length > 0 && !this.#isClosed) this.#sendNext();
  }

  onClosed(end: LineEnd): void {
    const { memory } = this.#initiator.env;
    memory.free(this.#receiveAt);
    if (this.#sending !== 0) memory.free(this.#sending);
    if (this.#isClosed) return;
    this.#isClosed = true;
    this.#initiator.drop(`a connection was lost (${end})`);
  }

  onReceived(count: number): void {
    if (this.#isClosed) return;
    if (count === 0) {
      this.#initiator.drop("the target has closed a connection");
      return;
    }
    const { memory } = this.#initiator.env;
    const all = new Uint8Array(this.#received.length + count);
    all.set(this.#received);
    all.set(memory.bytes.subarray(this.#receiveAt, this.#receiveAt + count), this.#received.length);
    let at = 0;
    while (!this.#isClosed && all.length - at >= BHS_BYTES) {
      const head = new DataView(all.buffer, at, BHS_BYTES);
      const length = dataLength(head, 0);
      const end = at + BHS_BYTES + padded(length);
      if (end > all.length) break;
      this.#take(head, all.subarray(at + BHS_BYTES, at + BHS_BYTES + length));
      at = end;
    }
    this.#received = all.slice(at);
    if (!this.#isClosed) this.#line.receive(this.#receiveAt, RECEIVE_BYTES);
  }

  #say(what: string, head: DataView): void {
    const { env } = this.#initiator;
    if (env.world.onLine === undefined) return;
    const opcode = opcodeOf(head, 0).toString(16);
    const [tag, ...words] = [BHS.taskTag, 20, 24, 28, 32].map((at) => head.getUint32(at).toString(16));
    env.world.say(
      env,
      `${this.cid} ${what} ${opcode}/${head.getUint8(BHS.flags).toString(16)} task ${tag}: ${words.join(" ")}`,
    );
  }

  #take(head: DataView, data: Uint8Array): void {
    this.#say("gets", head);
    const opcode = opcodeOf(head, 0);
    if (opcode === Opcode.LOGIN_RESPONSE) {
      if (this.#isFull) throw new Violation("a login response after the login");
      return this.#takeLogin(head, data);
    }
    if (!this.#isFull) throw new Violation(`PDU ${opcode} before the login has ended`);
    const isPing = opcode === Opcode.NOP_IN && head.getUint32(BHS.taskTag) === RESERVED_TAG;
    const flags = head.getUint8(BHS.flags);
    const hasStatus = opcode === Opcode.DATA_IN ? (flags & DataInFlag.STATUS) !== 0 : opcode !== Opcode.R2T && !isPing;
    const statSn = head.getUint32(RESPONSE.statSn);
    if (hasStatus) {
      if (statSn !== this.#expStatSn) throw new Violation(`StatSN ${statSn} comes when ${this.#expStatSn} is due`);
      this.#expStatSn = nextSn(statSn);
    }
    this.#initiator.take(this, head, data);
  }

  #login(): void {
    const { settings, tsih, cmdSn } = this.#initiator;
    const yesNo = (value: boolean): string => (value ? "Yes" : "No");
    const text: [string, string][] = [
      ["InitiatorName", settings.name],
      ["TargetName", settings.targetName],
      ["SessionType", "Normal"],
      ["HeaderDigest", "None"],
      ["DataDigest", "None"],
      ["MaxRecvDataSegmentLength", `${PIECE_BYTES}`],
    ];
    if (this.cid === 1)
      text.push(
        ["MaxConnections", `${settings.connections}`],
        ["ImmediateData", yesNo(settings.immediateData)],
        ["InitialR2T", yesNo(settings.initialR2t)],
        ["MaxBurstLength", `${settings.burst}`],
        ["FirstBurstLength", `${settings.burst}`],
        ["ErrorRecoveryLevel", `${settings.errorRecoveryLevel}`],
      );
    const keys = encodeText(text);
    const pdu = this.request(Opcode.LOGIN_REQUEST | IMMEDIATE, LOGIN_FLAGS, keys.length);
    const view = viewOf(pdu);
    view.setUint16(LOGIN_REQUEST.isid, Number.parseInt(settings.isid.slice(0, 4), 16));
    view.setUint32(LOGIN_REQUEST.isid + 2, Number.parseInt(settings.isid.slice(4), 16));
    view.setUint16(LOGIN_REQUEST.tsih, tsih);
    view.setUint16(LOGIN_REQUEST.cid, this.cid);
    view.setUint32(LOGIN_REQUEST.cmdSn, cmdSn);
    pdu.set(keys, BHS_BYTES);
    this.#initiator.loginAt = this.#initiator.env.world.now;
    this.send(pdu);
  }

  #takeLogin(head: DataView, data: Uint8Array): void {
    const initiator = this.#initiator;
    const status = head.getUint16(LOGIN_RESPONSE.status);
    if (status !== 0) return initiator.drop(`the login is refused (${status.toString(16)})`);
    const keys = parseText(data);
    if (typeof keys === "string") throw new Violation(`the login's answer is no text: ${keys}`);
    this.#isFull = true;
    this.#expStatSn = nextSn(head.getUint32(LOGIN_RESPONSE.statSn));
    if (this.cid === 1) {
      initiator.tsih = head.getUint16(LOGIN_RESPONSE.tsih);
      initiator.maxCmdSn = head.getUint32(LOGIN_RESPONSE.maxCmdSn);
      initiator.immediateData = keys.get("ImmediateData") === "Yes";
      initiator.initialR2t = keys.get("InitialR2T") !== "No";
      initiator.firstBurst = Number(keys.get("FirstBurstLength") ?? initiator.settings.burst);
    }
    initiator.joined(this);
  }
}
