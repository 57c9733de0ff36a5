/**
 * Everything on a connection that is not a SCSI command or its data: login, text, NOPs, task management, logout, SNACKs,
 * rejects and asynchronous messages. RFC 7143 §11. These PDUs are few, so they are made as they come.
 */
import type { LoginRequest } from "#proto/iscsi/login";
import { Negotiation } from "#proto/iscsi/negotiate";
import {
  ASYNC,
  BHS,
  BHS_BYTES,
  isBefore,
  isImmediate,
  LOGIN_REQUEST,
  LOGIN_RESPONSE,
  LOGOUT_REQUEST,
  LOGOUT_RESPONSE,
  REJECT,
  REQUEST,
  RESPONSE,
  readLun,
  SNACK,
  TASK_REQUEST,
  TASK_RESPONSE,
} from "#wire/iscsi/bhs";
import {
  AsyncEvent,
  LoginStatus,
  LogoutReason,
  LogoutResponse,
  Opcode,
  RESERVED_TAG,
  RejectReason,
  SnackType,
  TaskFunction,
} from "#wire/iscsi/codes";
import { encodeText, parseText, type TextFault } from "#wire/iscsi/text";
import type { IscsiConnection } from "./iscsi-connection.ts";
import type { Outbox, Sendable } from "./iscsi-outbox.ts";

const FINAL = 0x80;
const CONTINUE = 0x40;
const NOTHING = new Uint8Array(0);
/** What a text negotiation may grow to over several PDUs. */
const TEXT_BYTES_MAX = 65_536;
/** What one text response carries: all initiators take this much. */
const TEXT_SEGMENT_BYTES = 8192;

/** A response made on the spot; with recovery it is kept until it has been acknowledged. */
class ControlPdu implements Sendable {
  queued = false;
  statSn = -1;
  readonly #opcode: number;
  readonly #flags: number;
  readonly #data: Uint8Array;
  readonly #fill: (view: DataView, at: number) => void;
  /** Consumes a StatSN; a NOP-In that pings does not: §11.19. */
  readonly #hasStatus: boolean;
  onWritten: (() => void) | undefined;

  constructor(
    opcode: number,
    flags: number,
    data: Uint8Array,
    hasStatus: boolean,
    fill: (view: DataView, at: number) => void,
  ) {
    this.#opcode = opcode;
    this.#flags = flags;
    this.#data = data;
    this.#hasStatus = hasStatus;
    this.#fill = fill;
  }

  write(outbox: Outbox): boolean {
    const at = outbox.header(this.#opcode, this.#flags, this.#data.length);
    if (at === 0) return false;
    this.#fill(outbox.view, at);
    if (this.#hasStatus && this.statSn < 0) this.statSn = outbox.takeStatSn();
    outbox.view.setUint32(at + RESPONSE.statSn, this.#hasStatus ? this.statSn : outbox.statSn);
    outbox.endHeader(at);
    // Without memory for its data, the connection cannot go on: the header has been written.
    if (!outbox.copy(this.#data)) outbox.endAfter = true;
    this.onWritten?.();
    this.onWritten = undefined;
    return true;
  }
}

export class ControlPdus {
  readonly #connection: IscsiConnection;
  /** Sent, and not known to have been received. */
  readonly #unacknowledged: ControlPdu[] = [];
  #text: Uint8Array[] = [];
  #textBytes = 0;
  /** The rest of a long answer, and the tag under which it is fetched. */
  #rest: Uint8Array | undefined;
  #restTag = 0;
  #firstStatSn = true;

  constructor(connection: IscsiConnection) {
    this.#connection = connection;
  }

  acknowledge(expStatSn: number): void {
    while (this.#unacknowledged.length > 0 && isBefore(this.#unacknowledged[0]!.statSn, expStatSn))
      this.#unacknowledged.shift();
  }

  #send(
    opcode: number,
    flags: number,
    data: Uint8Array,
    hasStatus: boolean,
    fill: (view: DataView, at: number) => void,
  ): ControlPdu {
    const pdu = new ControlPdu(opcode, flags, data, hasStatus, fill);
    const { session, outbox } = this.#connection;
    outbox.push(pdu);
    if (hasStatus && (session?.parameters.errorRecoveryLevel ?? 0) > 0) {
      pdu.onWritten = () => this.#unacknowledged.push(pdu);
    }
    return pdu;
  }

  /* ------------------------------------------------------------------------------ login */

  login(text: Uint8Array, fields: Omit<LoginRequest, "text">): void {
    const connection = this.#connection;
    const { login, outbox, head } = connection;
    const { view } = outbox;
    if (login === undefined) return;
    if (this.#firstStatSn) {
      this.#firstStatSn = false;
      outbox.statSn = view.getUint32(head + LOGIN_REQUEST.expStatSn);
    }
    connection.loginCmdSn = view.getUint32(head + LOGIN_REQUEST.cmdSn);
    connection.cid = fields.cid;
    const tag = view.getUint32(head + BHS.taskTag);
    const reply = login.take({ ...fields, text: text.slice() });
    const { loginCmdSn } = connection;
    const send = (): void => {
      if (connection.isClosing) return;
      const pdu = this.#send(Opcode.LOGIN_RESPONSE, reply.flags, reply.text, true, (to, at) => {
        let isidAt: number = at + LOGIN_RESPONSE.isid;
        for (let index = 0; index < 12; index += 2)
          to.setUint8(isidAt++, Number.parseInt(fields.isid.slice(index, index + 2), 16));
        to.setUint16(at + LOGIN_RESPONSE.tsih, reply.done ? login.tsih : fields.tsih);
        to.setUint32(at + LOGIN_RESPONSE.taskTag, tag);
        to.setUint16(at + LOGIN_RESPONSE.status, reply.status);
        if (connection.session === undefined) {
          to.setUint32(at + LOGIN_RESPONSE.expCmdSn, loginCmdSn);
          to.setUint32(at + LOGIN_RESPONSE.maxCmdSn, loginCmdSn);
        }
      });
      if (reply.status !== LoginStatus.SUCCESS) {
        outbox.endAfter = true;
        connection.reason = "refused";
        connection.home.loginRefused(connection, login, reply.status);
      } else if (reply.done) {
        // Digests start with the PDU after this one.
        pdu.onWritten = () => connection.startDigests();
        connection.login = undefined;
      }
    };
    // What an earlier session of this initiator port still has in flight must not touch the units after this answer.
    if (reply.done && connection.session !== undefined) connection.whenReady(send);
    else send();
  }

  /* ------------------------------------------------------------------- full feature phase */

  /** A PDU that is neither a command nor data; its data segment lies in `data`, until this returns. */
  take(opcode: number, data: Uint8Array): void {
    const connection = this.#connection;
    const session = connection.session!;
    const { head } = connection;
    const { view } = connection.outbox;
    if (opcode === Opcode.SNACK_REQUEST) return this.#snack();
    const isKnown =
      opcode === Opcode.NOP_OUT ||
      opcode === Opcode.TEXT_REQUEST ||
      opcode === Opcode.TASK_MANAGEMENT_REQUEST ||
      opcode === Opcode.LOGOUT_REQUEST;
    if (!isKnown) {
      // §11.17.1: a login request here is a protocol error, which ends the connection.
      if (opcode === Opcode.LOGIN_REQUEST) return connection.close("violated", "a login request in full feature phase");
      return this.reject(RejectReason.COMMAND_NOT_SUPPORTED, head);
    }
    const expStatSn = view.getUint32(head + REQUEST.expStatSn);
    if (session.parameters.errorRecoveryLevel > 0) {
      session.acknowledge(connection, expStatSn);
      this.acknowledge(expStatSn);
    }
    const cmdSn = view.getUint32(head + REQUEST.cmdSn);
    const immediate = isImmediate(view, head);
    const turn = session.turnOf(cmdSn, immediate);
    if (turn === "drop") return;
    // Whatever waits for its turn needs its header and data later.
    const header = new DataView(new Uint8Array(connection.home.memory.bytes.slice(head, head + BHS_BYTES)).buffer);
    const content = data.slice();
    const run = (): void => this.#run(opcode, header, content);
    if (turn === "early") return session.keep(cmdSn, run);
    if (!immediate) session.advance();
    run();
    if (!immediate) session.drainEarly();
  }

  #run(opcode: number, header: DataView, data: Uint8Array): void {
    if (this.#connection.isClosing) return;
    if (opcode === Opcode.NOP_OUT) this.#nopOut(header, data);
    else if (opcode === Opcode.TEXT_REQUEST) this.#textRequest(header, data);
    else if (opcode === Opcode.LOGOUT_REQUEST) this.#logout(header);
    else this.#manage(header);
  }

  /** §11.18: a ping is echoed; the answer to one of ours has no tag and says only that somebody is there. */
  #nopOut(header: DataView, data: Uint8Array): void {
    const tag = header.getUint32(BHS.taskTag);
    if (tag === RESERVED_TAG) return;
    const { sendMax } = this.#connection.parameters;
    this.#send(Opcode.NOP_IN, FINAL, data.subarray(0, sendMax), true, (view, at) => {
      view.setUint32(at + BHS.lun, header.getUint32(BHS.lun));
      view.setUint32(at + BHS.lun + 4, header.getUint32(BHS.lun + 4));
      view.setUint32(at + BHS.taskTag, tag);
      view.setUint32(at + RESPONSE.transferTag, RESERVED_TAG);
    });
  }

  /** §11.19: asks the initiator for a sign of life. */
  ping(): void {
    const transferTag = this.#connection.session!.nextTransferTag();
    this.#send(Opcode.NOP_IN, FINAL, NOTHING, false, (view, at) => {
      view.setUint32(at + BHS.taskTag, RESERVED_TAG);
      view.setUint32(at + RESPONSE.transferTag, transferTag);
    });
  }

  #manage(header: DataView): void {
    const connection = this.#connection;
    const session = connection.session!;
    const FUNCTION_MASK = 0x7f;
    const wanted = header.getUint8(BHS.flags) & FUNCTION_MASK;
    const tag = header.getUint32(BHS.taskTag);
    const respond = (response: number): void => {
      if (connection.isClosing) return;
      this.#send(Opcode.TASK_MANAGEMENT_RESPONSE, FINAL, NOTHING, true, (view, at) => {
        view.setUint8(at + TASK_RESPONSE.response, response);
        view.setUint32(at + BHS.taskTag, tag);
      });
    };
    const referencedTag = header.getUint32(TASK_REQUEST.referencedTag);
    const expDataSn = header.getUint32(TASK_REQUEST.expDataSn);
    if (wanted === TaskFunction.TASK_REASSIGN) return respond(session.reassign(connection, referencedTag, expDataSn));
    session.manage(
      {
        function: wanted,
        lun: readLun(header, BHS.lun),
        referencedTag,
        refCmdSn: header.getUint32(TASK_REQUEST.refCmdSn),
        expDataSn,
        cmdSn: header.getUint32(REQUEST.cmdSn),
      },
      respond,
    );
  }

  /* ------------------------------------------------------------------------------- text */

  #textRequest(header: DataView, data: Uint8Array): void {
    const flags = header.getUint8(BHS.flags);
    const tag = header.getUint32(BHS.taskTag);
    const transferTag = header.getUint32(REQUEST.transferTag);
    if (this.#rest !== undefined && transferTag === this.#restTag) return this.#answerText(tag, this.#rest);
    this.#rest = undefined;
    this.#textBytes += data.length;
    if (this.#textBytes > TEXT_BYTES_MAX) return this.#rejectText(header, "too-long");
    this.#text.push(data);
    if ((flags & CONTINUE) !== 0) {
      // §11.10.2: an empty answer asks for the next part.
      this.#restTag = this.#connection.session!.nextTransferTag();
      this.#sendText(tag, NOTHING, 0, this.#restTag);
      return;
    }
    const whole = new Uint8Array(this.#textBytes);
    let at = 0;
    for (const piece of this.#text) {
      whole.set(piece, at);
      at += piece.length;
    }
    this.#text = [];
    this.#textBytes = 0;
    const keys = parseText(whole);
    if (typeof keys === "string") return this.#rejectText(header, keys);
    this.#answerText(tag, encodeText(this.#answersTo(keys)));
  }

  #answersTo(keys: ReadonlyMap<string, string>): (readonly [string, string])[] {
    const connection = this.#connection;
    const answers: (readonly [string, string])[] = [];
    const negotiation = new Negotiation(
      connection.session!.parameters,
      connection.parameters,
      connection.authority.limits,
      false,
    );
    for (const [key, value] of keys) {
      if (key === "SendTargets") answers.push(...connection.home.sendTargets(connection, value));
      else if (key === "MaxRecvDataSegmentLength") {
        const answer = negotiation.take(key, value);
        if (answer !== "no-answer") answers.push([key, answer.value]);
      } else {
        // §13: nothing else of ours may change in full feature phase.
        const answer = negotiation.take(key, "Reject");
        answers.push([key, answer !== "no-answer" && answer.value === "NotUnderstood" ? "NotUnderstood" : "Reject"]);
      }
    }
    return answers;
  }

  #answerText(tag: number, text: Uint8Array): void {
    const segment = Math.min(TEXT_SEGMENT_BYTES, this.#connection.parameters.sendMax);
    if (text.length <= segment) {
      this.#rest = undefined;
      this.#sendText(tag, text, FINAL, RESERVED_TAG);
      return;
    }
    this.#rest = text.subarray(segment);
    this.#restTag = this.#connection.session!.nextTransferTag();
    this.#sendText(tag, text.subarray(0, segment), CONTINUE, this.#restTag);
  }
  #sendText(tag: number, text: Uint8Array, flags: number, transferTag: number): void {
    this.#send(Opcode.TEXT_RESPONSE, flags, text, true, (view, at) => {
      view.setUint32(at + BHS.taskTag, tag);
      view.setUint32(at + RESPONSE.transferTag, transferTag);
    });
  }
  #rejectText(header: DataView, _fault: TextFault): void {
    this.#text = [];
    this.#textBytes = 0;
    this.#rejectHeader(RejectReason.PROTOCOL_ERROR, header);
  }

  /* ----------------------------------------------------------------------------- logout */

  #logout(header: DataView): void {
    const connection = this.#connection;
    const session = connection.session!;
    const REASON_MASK = 0x7f;
    const reason = header.getUint8(LOGOUT_REQUEST.reason) & REASON_MASK;
    const cid = header.getUint16(LOGOUT_REQUEST.cid);
    const tag = header.getUint32(BHS.taskTag);
    let response: number = LogoutResponse.CLOSED;
    let endsThis = false;
    let ready = (then: () => void): void => then();
    if (reason === LogoutReason.CLOSE_SESSION) {
      endsThis = true;
      // §11.14: what is still running is given up, before the answer says that all is over.
      ready = (then) => session.quiesce(connection, then);
    } else if (reason === LogoutReason.CLOSE_CONNECTION) {
      const other = session.connections.get(cid);
      if (other === undefined) response = LogoutResponse.CID_NOT_FOUND;
      else if (other === connection) {
        endsThis = true;
        ready = (then) => session.quiesce(connection, then, connection);
      } else other.close("logout");
    } else if (reason === LogoutReason.REMOVE_FOR_RECOVERY) {
      if (session.parameters.errorRecoveryLevel < 2) response = LogoutResponse.RECOVERY_UNSUPPORTED;
      else if (session.connections.get(cid) === connection) response = LogoutResponse.CLEANUP_FAILED;
      else if (!session.removeForRecovery(cid)) response = LogoutResponse.CID_NOT_FOUND;
    } else {
      return this.#rejectHeader(RejectReason.PROTOCOL_ERROR, header);
    }
    ready(() => {
      if (connection.isClosing) return;
      this.#send(Opcode.LOGOUT_RESPONSE, FINAL, NOTHING, true, (view, at) => {
        view.setUint8(at + LOGOUT_RESPONSE.response, response);
        view.setUint32(at + BHS.taskTag, tag);
        view.setUint16(at + LOGOUT_RESPONSE.time2Wait, session.parameters.time2Wait);
        view.setUint16(at + LOGOUT_RESPONSE.time2Retain, session.parameters.time2Retain);
      });
      if (!endsThis) return;
      connection.loggedOut = reason === LogoutReason.CLOSE_SESSION ? "session" : "connection";
      connection.outbox.endAfter = true;
    });
  }

  /* ------------------------------------------------------------------------------ SNACK */

  /** §11.16: data, R2Ts and statuses that the initiator has missed are sent again. */
  #snack(): void {
    const connection = this.#connection;
    const session = connection.session!;
    const { head } = connection;
    const { view } = connection.outbox;
    const TYPE_MASK = 0x0f;
    const type = view.getUint8(head + BHS.flags) & TYPE_MASK;
    const tag = view.getUint32(head + BHS.taskTag);
    const begin = view.getUint32(head + SNACK.begin);
    const count = view.getUint32(head + SNACK.runLength);
    const transferTag = view.getUint32(head + SNACK.transferTag);
    if (session.parameters.errorRecoveryLevel === 0) return this.reject(RejectReason.SNACK_REJECT, head);
    const task = session.tasks.get(tag);
    let isDone = false;
    if (type === SnackType.STATUS) isDone = this.#resendStatus(begin, count);
    else if (type === SnackType.DATA_ACK) isDone = count === 0 && this.#acknowledgeData(transferTag, begin);
    else if (task === undefined || task.connection !== connection) isDone = false;
    else if (type === SnackType.R_DATA) isDone = begin === 0 && count === 0 && task.resegment(transferTag);
    else if (type !== SnackType.DATA_OR_R2T) isDone = false;
    else if (task.isWrite) isDone = task.resendR2ts(begin, count);
    else {
      const resend = task.resendData(begin, count);
      isDone = resend !== undefined;
      if (resend !== undefined) connection.outbox.push(resend);
    }
    // §11.16: what was not sent, or is acknowledged, cannot be asked for.
    if (!isDone) this.reject(RejectReason.PROTOCOL_ERROR, head);
  }

  /** §11.16.2. False when what it says cannot be. */
  #acknowledgeData(transferTag: number, begin: number): boolean {
    const connection = this.#connection;
    for (const task of connection.session!.tasks.values())
      if (task.connection === connection && task.ackTag === transferTag && transferTag !== RESERVED_TAG)
        return task.acknowledgeData(begin);
    // Its status may have been acknowledged before, and then the command is over.
    return true;
  }

  #resendStatus(begin: number, count: number): boolean {
    const connection = this.#connection;
    const session = connection.session!;
    // 0 and 0: everything that has not been acknowledged. §11.16.6.
    const isAll = begin === 0 && count === 0;
    const isWanted = (statSn: number): boolean =>
      statSn >= 0 && (isAll || (!isBefore(statSn, begin) && (count === 0 || isBefore(statSn, (begin + count) >>> 0))));
    let found = 0;
    for (const pdu of this.#unacknowledged)
      if (isWanted(pdu.statSn)) {
        connection.outbox.push(pdu);
        found++;
      }
    for (const task of session.tasks.values())
      if (task.connection === connection && task.answered && !task.queued && isWanted(task.statSn)) {
        task.resendStatus();
        found++;
      }
    return found > 0;
  }

  /* ------------------------------------------------------------- what nobody asked for */

  /** §11.17: refuses the PDU whose header lies at `head`. */
  reject(reason: number, head: number): void {
    const { memory } = this.#connection.home;
    this.#rejectHeader(reason, new DataView(memory.bytes.slice(head, head + BHS_BYTES).buffer));
  }
  #rejectHeader(reason: number, header: DataView): void {
    const data = new Uint8Array(header.buffer.slice(header.byteOffset, header.byteOffset + BHS_BYTES));
    this.#send(Opcode.REJECT, FINAL, data, true, (view, at) => {
      view.setUint8(at + REJECT.reason, reason);
      view.setUint32(at + REJECT.taskTag, RESERVED_TAG);
    });
  }

  /** §11.9. `seconds`: how long the initiator is to wait before it comes back; and how long its tasks are kept. */
  announce(event: number, waitSeconds = 0, retainSeconds = 0): void {
    const ALL_UNITS = RESERVED_TAG;
    this.#send(Opcode.ASYNC_MESSAGE, FINAL, NOTHING, true, (view, at) => {
      view.setUint32(at + BHS.taskTag, ALL_UNITS);
      view.setUint8(at + ASYNC.event, event);
      view.setUint16(at + ASYNC.parameter1, event === AsyncEvent.LOGOUT_REQUESTED ? 0 : this.#connection.cid);
      view.setUint16(at + ASYNC.parameter2, waitSeconds);
      view.setUint16(at + ASYNC.parameter3, event === AsyncEvent.LOGOUT_REQUESTED ? waitSeconds : retainSeconds);
    });
  }
}
