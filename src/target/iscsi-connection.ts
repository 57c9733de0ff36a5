/**
 * One connection: cuts PDUs out of the stream, checks digests, and hands each to whom it concerns: the login, the
 * session, a task. RFC 7143 §11. A PDU's data goes straight to where it belongs; what belongs nowhere is skipped.
 */
import { canary } from "#base/canary";
import type { Memory } from "#base/memory";
import type { Bytes, Millis } from "#base/units";
import type { Ear, Line, LineEnd, Turn } from "#env/env";
import { Login, type LoginAuthority } from "#proto/iscsi/login";
import { ConnectionParameters } from "#proto/iscsi/negotiate";
import { TRANSFER_BYTES_MAX } from "#scsi/unit";
import {
  ahsLength,
  BHS,
  BHS_BYTES,
  DATA_OUT,
  dataLength,
  isFinal,
  isImmediate,
  LOGIN_REQUEST,
  opcodeOf,
  padded,
  REQUEST,
  readLun,
  SCSI_COMMAND,
} from "#wire/iscsi/bhs";
import { Attribute, CommandFlag, DIGEST_BYTES, Opcode, RejectReason } from "#wire/iscsi/codes";
import { Asc, SamStatus } from "#wire/scsi/codes";
import { ControlPdus } from "./iscsi-control.ts";
import { OUTBOX_BYTES, Outbox } from "./iscsi-outbox.ts";
import type { IscsiSession } from "./iscsi-session.ts";
import type { IscsiTask } from "./iscsi-task.ts";
import type { Resting, Rounds } from "./rounds.ts";

/** Bytes of a connection's receive buffer: a class of `Memory`. */
const RECEIVE_BYTES = 33_280;
/** From this much on, data is received where it belongs, and not by way of the receive buffer. */
const DIRECT_BYTES_MIN = 8192;
/** Additional header segments of which we know: none needs more. */
const AHS_BYTES_MAX = 512;
/** The memory that a connection takes, without what its commands do. */
export const CONNECTION_BYTES: Bytes = RECEIVE_BYTES + BHS_BYTES + AHS_BYTES_MAX + OUTBOX_BYTES;
/** Control PDUs that wait to be sent; beyond that nothing is received until they have left. */
const CONTROL_WAITING_MAX = 64;

export type ConnectionEndReason =
  | "logout"
  | "lost"
  | "violated"
  | "digest"
  | "silent"
  | "refused"
  | "replaced"
  | "session-ended"
  | "stopped"
  | "no-memory";

export interface ConnectionHome {
  readonly memory: Memory;
  readonly turn: Turn;
  readonly rounds: Rounds;
  now(): Millis;
  authority(connection: IscsiConnection): LoginAuthority;
  connectionClosed(connection: IscsiConnection): void;
  loginRefused(connection: IscsiConnection, login: Login, status: number): void;
  /** What a discovery session is told: §13.8. */
  sendTargets(connection: IscsiConnection, what: string): readonly (readonly [string, string])[];
}

type Stage = "header" | "data" | "tail";
/** What becomes of a PDU's data. */
type Sink = "skip" | "task" | "bulk";

export class IscsiConnection implements Ear, Resting {
  readonly home: ConnectionHome;
  readonly line: Line;
  readonly outbox: Outbox;
  readonly control: ControlPdus;
  readonly openedAt: Millis;
  parameters = new ConnectionParameters();
  /** Digests apply from the first PDU after the login on: §13.1. */
  readonly #digests = new ConnectionParameters();
  login: Login | undefined;
  session: IscsiSession | undefined;
  cid = 0;
  /** The CmdSN of the last login request: with which the session starts. */
  loginCmdSn = 0;
  /** How far a logout reaches, once its answer has left. */
  loggedOut: "session" | "connection" | undefined;
  isFullFeature = false;
  /** The last time that anything came; when a ping was sent that is not answered. */
  heardAt: Millis;
  pingedAt: Millis = 0;
  bytesIn: Bytes = 0;
  isClosed = false;
  reason: ConnectionEndReason = "lost";
  why = "";
  #closing = false;

  readonly #memory: Memory;
  readonly #view: DataView;
  readonly #rx: number;
  /** The header of the PDU in hand. */
  readonly head: number;
  #start = 0;
  #end = 0;
  #receiving = false;
  #paused = false;
  /** The rest of what was received waits for the next round. */
  #resting = false;
  #stage: Stage = "header";
  #opcode = 0;
  #length = 0;
  #done = 0;
  #sink: Sink = "skip";
  #to = 0;
  #bulk = 0;
  #task: IscsiTask | undefined;
  #sequence: ReturnType<IscsiTask["sequenceOf"]>;
  #immediateData = false;
  #ignored = false;

  constructor(home: ConnectionHome, line: Line) {
    this.home = home;
    this.line = line;
    this.#memory = home.memory;
    this.#view = home.memory.view;
    this.openedAt = home.now();
    this.heardAt = this.openedAt;
    this.outbox = new Outbox(home.memory, line, home.turn, this.#digests, (task) => task.session.answerSent(task));
    this.control = new ControlPdus(this);
    this.#rx = this.outbox.isReady ? home.memory.allocate(RECEIVE_BYTES) : 0;
    this.head = this.#rx === 0 ? 0 : home.memory.allocate(BHS_BYTES + AHS_BYTES_MAX);
    line.ear = this;
  }

  /** Starts to receive. Without memory, the connection ends at once. */
  start(): void {
    if (this.head === 0) return this.close("no-memory");
    this.login = new Login(this.home.authority(this));
    this.outbox.onDrained = () => this.#resume();
    this.#receive();
  }

  get peer(): string {
    const { host, port } = this.line.peer;
    return host.includes(":") ? `[${host}]:${port}` : `${host}:${port}`;
  }

  close(reason: ConnectionEndReason, why = ""): void {
    if (this.#closing) return;
    this.#closing = true;
    this.reason = reason;
    this.why = why;
    this.line.close();
  }
  get isClosing(): boolean {
    return this.#closing;
  }

  /** Calls `ready` when the session that this connection has just opened may start: its predecessor is over. */
  whenReady(ready: () => void): void {
    if (this.predecessor === undefined || canary.armed === "iscsi-welcome-early") ready();
    else this.predecessor.whenEnded(ready);
  }
  /** The session of the same initiator port that this one replaces. */
  predecessor: IscsiSession | undefined;

  /** Full feature phase: what was negotiated holds from the next PDU on. */
  enter(session: IscsiSession): void {
    this.session = session;
    this.isFullFeature = true;
    this.outbox.window = session;
    this.#digests.sendMax = this.parameters.sendMax;
  }
  /** The last login reply has been written: from here on with digests. */
  startDigests(): void {
    this.#digests.headerDigest = this.parameters.headerDigest;
    this.#digests.dataDigest = this.parameters.dataDigest;
  }

  /* ------------------------------------------------------------------------------- line */

  onReceived(count: number): void {
    this.#receiving = false;
    if (this.#closing) return;
    if (count === 0) return this.close("lost", "the initiator closed the connection");
    this.heardAt = this.home.now();
    this.pingedAt = 0;
    this.bytesIn += count;
    if (this.#isDirect) this.#done += count;
    else this.#end += count;
    this.#isDirect = false;
    this.#drain();
    this.#receive();
  }
  #isDirect = false;
  /** SCSI commands that have come since the line was last told. */
  #gathered = 0;

  onSent(): void {
    if (this.outbox.sent()) this.close(this.isFullFeature ? "logout" : "refused");
  }

  onClosed(end: LineEnd): void {
    if (!this.#closing) {
      this.#closing = true;
      this.why = end;
    }
    this.isClosed = true;
    this.outbox.close();
    this.#task?.unpin();
    this.#task = undefined;
    for (const at of [this.#rx, this.head, this.#bulk]) if (at !== 0) this.#memory.free(at);
    this.#bulk = 0;
    this.home.connectionClosed(this);
  }

  #receive(): void {
    if (this.#receiving || this.#closing || this.#paused || this.#resting) return;
    if (this.outbox.waiting > CONTROL_WAITING_MAX + 256) {
      this.#paused = true;
      return;
    }
    this.#receiving = true;
    const left = this.#length - this.#done;
    if (this.#stage === "data" && this.#start === this.#end && this.#to !== 0 && left >= DIRECT_BYTES_MIN) {
      this.#isDirect = true;
      this.line.receive(this.#to + this.#done, left);
      return;
    }
    if (this.#start === this.#end) {
      this.#start = this.#end = 0;
    } else if (this.#start > 0) {
      this.#memory.bytes.copyWithin(this.#rx, this.#rx + this.#start, this.#rx + this.#end);
      this.#end -= this.#start;
      this.#start = 0;
    }
    if (this.#stage === "header" && this.#end === 0) {
      this.line.gather?.(this.#gathered);
      this.#gathered = 0;
    }
    this.line.receive(this.#rx + this.#end, RECEIVE_BYTES - this.#end);
  }
  #resume(): void {
    if (!this.#paused || this.outbox.waiting > CONTROL_WAITING_MAX) return;
    this.#paused = false;
    this.#drain();
    this.#receive();
  }

  /* ------------------------------------------------------------------------------- PDUs */

  #rest(): void {
    this.#resting = true;
    this.home.rounds.rest(this);
  }
  /** Of `Rounds`. */
  goOn(): void {
    this.#resting = false;
    if (this.#closing) return;
    this.#drain();
    this.#receive();
  }

  #drain(): void {
    if (this.home.rounds.isFull && this.isFullFeature && !this.#resting && !this.#paused) this.#rest();
    for (let going = true; going && !this.#closing && !this.#paused && !this.#resting; ) {
      if (this.#stage === "header") going = this.#takeHeader();
      else if (this.#stage === "data") going = this.#takeData();
      else going = this.#takeTail();
    }
  }

  #takeHeader(): boolean {
    const at = this.#rx + this.#start;
    const available = this.#end - this.#start;
    if (available < BHS_BYTES) return false;
    const view = this.#view;
    const ahs = ahsLength(view, at);
    const digest = this.#digests.headerDigest ? DIGEST_BYTES : 0;
    const whole = BHS_BYTES + ahs + digest;
    if (ahs > AHS_BYTES_MAX) {
      this.close("violated", "the additional header segments are too long");
      return false;
    }
    if (available < whole) return false;
    if (digest > 0 && this.#memory.crc32c(at, BHS_BYTES + ahs) !== view.getUint32(at + BHS_BYTES + ahs, true)) {
      // §7.8: nothing in a damaged header can be trusted, its length neither.
      this.close("digest", "a header digest is wrong");
      return false;
    }
    this.#length = dataLength(view, at);
    const { authority } = this;
    if (this.#length > authority.limits.receiveMax) {
      this.close("violated", `a data segment of ${this.#length} bytes is too long`);
      return false;
    }
    this.#memory.bytes.copyWithin(this.head, at, at + BHS_BYTES + ahs);
    this.#start += whole;
    this.#opcode = opcodeOf(view, this.head);
    if (this.#opcode === Opcode.SCSI_COMMAND) this.#gathered++;
    this.#done = 0;
    this.#sink = "skip";
    this.#to = 0;
    this.#task = undefined;
    this.#sequence = undefined;
    this.#immediateData = false;
    this.#ignored = false;
    if (!this.#prepare()) return false;
    this.#stage = "data";
    return true;
  }
  get authority(): LoginAuthority {
    this.#authority ??= this.home.authority(this);
    return this.#authority;
  }
  #authority: LoginAuthority | undefined;

  #takeData(): boolean {
    const left = this.#length - this.#done;
    if (left > 0) {
      const count = Math.min(left, this.#end - this.#start);
      if (count === 0) return false;
      const from = this.#rx + this.#start;
      if (this.#to !== 0) this.#memory.bytes.copyWithin(this.#to + this.#done, from, from + count);
      this.#start += count;
      this.#done += count;
      if (this.#done < this.#length) return false;
    }
    this.#stage = "tail";
    return true;
  }

  #takeTail(): boolean {
    const padding = padded(this.#length) - this.#length;
    const digest = this.#digests.dataDigest && this.#length > 0 ? DIGEST_BYTES : 0;
    if (this.#end - this.#start < padding + digest) return false;
    const at = this.#rx + this.#start;
    this.#start += padding + digest;
    this.#stage = "header";
    let isIntact = true;
    if (digest > 0 && this.#to !== 0) {
      const crc = this.#memory.crc32c(at, padding, this.#memory.crc32c(this.#to, this.#length));
      isIntact = crc === this.#view.getUint32(at + padding, true);
    }
    this.#dispatch(isIntact);
    this.#task = undefined;
    if (this.#bulk !== 0) {
      this.#memory.free(this.#bulk);
      this.#bulk = 0;
    }
    return !this.#closing;
  }

  /* ----------------------------------------------------- before the data: where it goes */

  #prepare(): boolean {
    const view = this.#view;
    if (!this.isFullFeature) {
      if (this.#opcode !== Opcode.LOGIN_REQUEST) {
        this.close("violated", `PDU ${this.#opcode} before the login`);
        return false;
      }
      return this.#takeBulk();
    }
    switch (this.#opcode) {
      case Opcode.SCSI_COMMAND:
        this.#acknowledge(view.getUint32(this.head + REQUEST.expStatSn));
        return this.#prepareCommand();
      case Opcode.DATA_OUT:
        this.#acknowledge(view.getUint32(this.head + DATA_OUT.expStatSn));
        return this.#prepareDataOut();
      case Opcode.NOP_OUT:
      case Opcode.TEXT_REQUEST:
        return this.#takeBulk();
      default:
        return true;
    }
  }

  #takeBulk(): boolean {
    if (this.#length === 0) return true;
    this.#bulk = this.#memory.allocate(this.#length);
    if (this.#bulk === 0) {
      this.close("no-memory");
      return false;
    }
    this.#to = this.#bulk;
    this.#sink = "bulk";
    return true;
  }

  #acknowledge(expStatSn: number): void {
    const session = this.session!;
    if (session.parameters.errorRecoveryLevel > 0) {
      session.acknowledge(this, expStatSn);
      this.control.acknowledge(expStatSn);
    }
  }

  #prepareCommand(): boolean {
    const session = this.session!;
    const view = this.#view;
    const { head } = this;
    const tag = view.getUint32(head + BHS.taskTag);
    const cmdSn = view.getUint32(head + REQUEST.cmdSn);
    const immediate = isImmediate(view, head);
    const turn = session.turnOf(cmdSn, immediate);
    if (session.isDiscovery) {
      this.close("violated", "a SCSI command in a discovery session");
      return false;
    }
    if (turn === "drop" || session.nexus === undefined) {
      this.#ignored = true;
      return true;
    }
    const flags = view.getUint8(head + BHS.flags);
    const expected = view.getUint32(head + SCSI_COMMAND.expectedLength);
    const isWrite = (flags & CommandFlag.WRITE) !== 0;
    const isRead = (flags & CommandFlag.READ) !== 0;
    const attribute = flags & CommandFlag.ATTRIBUTE_MASK;
    const { immediateData, initialR2t, firstBurst } = session.parameters;
    const isLast = (flags & CommandFlag.FINAL) !== 0;
    // What §11.3 forbids. The number is used up all the same: the command has come, and is refused.
    const isWrong =
      (this.#length > 0 && (!isWrite || !immediateData || this.#length > Math.min(firstBurst, expected))) ||
      (!isLast && (!isWrite || initialR2t)) ||
      (isWrite && isRead) ||
      attribute >= Attribute.ACA;
    const isTaken = session.isTagTaken(tag);
    const task = isWrong || isTaken ? undefined : session.startTask(this, tag, immediate);
    if (task === undefined) {
      const reason = isTaken
        ? RejectReason.TASK_IN_PROGRESS
        : isWrong
          ? RejectReason.INVALID_PDU_FIELD
          : RejectReason.IMMEDIATE_COMMAND_REJECT;
      this.control.reject(reason, head);
      this.#ignored = true;
      if (!immediate && turn === "now") {
        session.advance();
        session.drainEarly();
      } else if (turn === "early") session.keep(cmdSn, () => undefined);
      return true;
    }
    task.lunHigh = view.getUint32(head + BHS.lun);
    task.lunLow = view.getUint32(head + BHS.lun + 4);
    task.cmdSn = cmdSn;
    task.expectedLength = expected;
    task.isRead = isRead;
    task.isWrite = isWrite;
    task.held = turn === "early";
    task.startedAt = this.heardAt;
    const { scsi } = task;
    for (let at = 0; at < 16; at += 4) scsi.cdb.setUint32(at, view.getUint32(head + SCSI_COMMAND.cdb + at));
    scsi.attribute =
      attribute === Attribute.ORDERED ? "ordered" : attribute === Attribute.HEAD_OF_QUEUE ? "head-of-queue" : "simple";
    scsi.outMax = isWrite ? expected : 0;
    scsi.inMax = isRead ? expected : 0;
    task.unsolicited = !isLast;
    task.unsolicitedMax = Math.min(firstBurst, expected);
    this.#task = task;
    if (isWrite && (this.#length > 0 || task.unsolicited)) {
      // Unsolicited data cannot wait for memory. Without any, it is skipped and the command told to come again.
      const size = Math.min(expected, TRANSFER_BYTES_MAX);
      scsi.at = size === 0 ? 0 : this.#memory.allocate(size);
      scsi.capacity = scsi.at === 0 ? 0 : size;
      task.noRoom = scsi.at === 0 && size > 0;
    }
    if (this.#length > 0) {
      this.#to = this.#length <= scsi.capacity ? scsi.at : 0;
      this.#sink = "task";
      this.#immediateData = true;
      task.pinned = this.#to !== 0;
    }
    return true;
  }

  #prepareDataOut(): boolean {
    const view = this.#view;
    const { head } = this;
    const task = this.session!.tasks.get(view.getUint32(head + BHS.taskTag));
    // For a command that never was, or is over: §11.7 has it discarded.
    if (task === undefined || task.connection !== this) return true;
    const sequence = task.sequenceOf(view.getUint32(head + DATA_OUT.transferTag));
    if (sequence === undefined) return true;
    this.#task = task;
    this.#sequence = sequence;
    this.#sink = "task";
    this.#to = task.placeOf(view.getUint32(head + DATA_OUT.offset), this.#length);
    // Data in the wrong place is not put anywhere.
    if (
      task.judge(sequence, view.getUint32(head + DATA_OUT.dataSn), view.getUint32(head + DATA_OUT.offset), this.#length)
    )
      this.#to = 0;
    task.pinned = this.#to !== 0;
    return true;
  }

  /* --------------------------------------------------------------- after the data: what it means */

  #dispatch(isIntact: boolean): void {
    if (!this.isFullFeature) return this.control.login(this.#bulkBytes(), this.#readLogin());
    if (this.#ignored) return;
    if (this.#opcode === Opcode.SCSI_COMMAND) return this.#command(isIntact);
    if (this.#opcode === Opcode.DATA_OUT) return this.#dataOut(isIntact);
    if (!isIntact) {
      // §7.8: the initiator sends it again, since its number is not used up.
      if (this.session!.parameters.errorRecoveryLevel === 0) return this.close("digest", "a data digest is wrong");
      return this.control.reject(RejectReason.DATA_DIGEST_ERROR, this.head);
    }
    this.control.take(this.#opcode, this.#bulkBytes());
  }

  #bulkBytes(): Uint8Array {
    return this.#sink === "bulk" ? this.#memory.slice(this.#bulk, this.#length) : NO_BYTES;
  }

  #readLogin(): { isid: string; tsih: number; cid: number; flags: number; versionMin: number } {
    const view = this.#view;
    let isid = "";
    for (let index = 0; index < 6; index++)
      isid += view
        .getUint8(this.head + LOGIN_REQUEST.isid + index)
        .toString(16)
        .padStart(2, "0");
    return {
      isid,
      tsih: view.getUint16(this.head + LOGIN_REQUEST.tsih),
      cid: view.getUint16(this.head + LOGIN_REQUEST.cid),
      flags: view.getUint8(this.head + BHS.flags),
      versionMin: view.getUint8(this.head + LOGIN_REQUEST.versionMin),
    };
  }

  #command(isIntact: boolean): void {
    const session = this.session!;
    const task = this.#task!;
    task.unpin();
    if (!isIntact) {
      session.endTask(task);
      if (session.parameters.errorRecoveryLevel === 0) return this.close("digest", "a data digest is wrong");
      return this.control.reject(RejectReason.DATA_DIGEST_ERROR, this.head);
    }
    if (this.#immediateData) task.received = this.#length;
    if (task.isImmediate) return this.#deliver(task);
    // While its data came, those before it may have come on other connections.
    if (task.held && session.turnOf(task.cmdSn, false) !== "now") {
      if (canary.armed === "iscsi-any-order") {
        session.keep(task.cmdSn, () => {});
        return this.#deliver(task);
      }
      // Aborted while it waits, its slot may be another command's when this turn comes.
      const { cmdSn } = task;
      session.keep(cmdSn, () => {
        if (session.tasks.get(task.tag) === task && task.cmdSn === cmdSn) this.#deliver(task);
      });
      return;
    }
    if (task.isRead && this.home.rounds.begin(task.expectedLength)) this.#rest();
    session.advance();
    this.#deliver(task);
    if (session.hasEarly) session.drainEarly();
  }

  #deliver(task: IscsiTask): void {
    const { scsi } = task;
    // It may have been aborted while it waited for its turn.
    const { nexus, units } = task.session;
    if (scsi.stage !== "idle" || task.orphan || nexus === undefined || units === undefined) return;
    task.held = false;
    scsi.nexus = nexus;
    const view = units.find(lunOf(task));
    scsi.unit = view?.unit;
    scsi.device = view?.device;
    task.meter = view?.meter;
    if (task.noRoom) {
      task.noRoom = false;
      scsi.status = SamStatus.BUSY;
      scsi.stage = "done";
      return task.finish();
    }
    scsi.server.deliver(scsi);
  }

  #dataOut(isIntact: boolean): void {
    const task = this.#task;
    const sequence = this.#sequence;
    if (task === undefined || sequence === undefined) return;
    const view = this.#view;
    const final = isFinal(view, this.head);
    const offset = view.getUint32(this.head + DATA_OUT.offset);
    const recovers = task.session.parameters.errorRecoveryLevel > 0;
    task.unpin();
    if (task.session.tasks.get(task.tag) !== task) return;
    const fault = task.judge(sequence, view.getUint32(this.head + DATA_OUT.dataSn), offset, this.#length);
    if (!isIntact || (fault !== undefined && recovers && fault !== "too-much")) {
      // §7.8, §7.2.1: with recovery the rest of the sequence is asked for again; without, the command fails.
      if (!isIntact) this.control.reject(RejectReason.DATA_DIGEST_ERROR, this.head);
      if (recovers) return final || !isIntact ? this.#recover(task, sequence, offset) : undefined;
      return task.spoil(sequence, Asc.PROTOCOL_SERVICE_CRC_ERROR, final);
    }
    if (fault !== undefined) {
      const asc =
        fault === "offset"
          ? Asc.DATA_OFFSET_ERROR
          : fault === "too-much"
            ? Asc.UNEXPECTED_UNSOLICITED_DATA
            : Asc.DATA_PHASE_ERROR;
      return task.spoil(sequence, asc, final);
    }
    task.arrived(sequence, this.#length, final);
  }

  #recover(task: IscsiTask, sequence: NonNullable<ReturnType<IscsiTask["sequenceOf"]>>, offset: number): void {
    task.recover(sequence, Math.max(offset + this.#length, task.unsolicitedMax));
  }
}

const NO_BYTES = new Uint8Array(0);
const LUN_SCRATCH = new DataView(new ArrayBuffer(8));
function lunOf(task: IscsiTask): number {
  LUN_SCRATCH.setUint32(0, task.lunHigh);
  LUN_SCRATCH.setUint32(4, task.lunLow);
  return readLun(LUN_SCRATCH, 0);
}
