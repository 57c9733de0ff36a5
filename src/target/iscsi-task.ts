/**
 * One SCSI command of an iSCSI session: its slot. It knows which data of the initiator is still to come (RFC 7143 §4.2.5,
 * §11.7, §11.8), and writes its own Data-In, R2T and Response PDUs when the connection has room for them.
 */
import { canary } from "#base/canary";
import type { Millis } from "#base/units";
import type { Meter } from "#device/meter";
import { kindOf } from "#scsi/kinds";
import type { DeviceServer } from "#scsi/server";
import { ScsiTask, type TaskTransport } from "#scsi/task";
import { BHS, DATA_IN, isBefore, R2T, SCSI_RESPONSE } from "#wire/iscsi/bhs";
import { DataInFlag, Opcode, RESERVED_TAG, ResponseFlag } from "#wire/iscsi/codes";
import { SamStatus, SenseKey } from "#wire/scsi/codes";
import { statusOf } from "#wire/scsi/status";
import type { IscsiConnection } from "./iscsi-connection.ts";
import type { Outbox, Sendable } from "./iscsi-outbox.ts";
import { DataResend } from "./iscsi-resend.ts";
import type { IscsiSession } from "./iscsi-session.ts";

/** The most R2Ts that one command has out at a time: what `TARGET_LIMITS.maxOutstandingR2t` may be at most. */
export const R2T_MAX = 8;
const FINAL = 0x80;

/** A sequence of data that was asked for. */
class Solicited {
  tag = 0;
  r2tSn = 0;
  offset = 0;
  length = 0;
  received = 0;
  dataSn = 0;
  open = false;
  /** Whether the R2T itself waits to be sent. */
  unsent = false;
}

export type DataFault = "data-sn" | "offset" | "too-much" | "unexpected";

export class IscsiTask implements Sendable, TaskTransport {
  readonly scsi: ScsiTask;
  session!: IscsiSession;
  /** The connection that it owes its answer to: §4.2.2.1 (allegiance). */
  connection!: IscsiConnection;
  tag = 0;
  lunHigh = 0;
  lunLow = 0;
  cmdSn = 0;
  expectedLength = 0;
  isRead = false;
  isWrite = false;
  isImmediate = false;
  /** Waits for commands with smaller numbers from other connections. */
  held = false;

  /** Data-out in order from the start, in bytes. */
  received = 0;
  /** The initiator sends unsolicited data up to a final PDU; and how far it may go. */
  unsolicited = false;
  unsolicitedMax = 0;
  unsolicitedSn = 0;
  readonly solicited: Solicited[] = Array.from({ length: R2T_MAX }, () => new Solicited());
  /** What was asked for, in bytes from the start; and what the command wants in all. */
  asked = 0;
  wanted = 0;
  collecting = false;
  #r2tSn = 0;
  /** A fault in the data: the command ends with this sense once the sequence is over. */
  fault = 0;

  /** The outcome is known; it waits until no more data is on its way. */
  ended = false;
  queued = false;
  /** Of the answer: what was sent, and with which number. */
  dataSn = 0;
  sent = 0;
  statSn = -1;
  answered = false;
  /** Under which the initiator acknowledges data (§11.7.4): the same in all of its PDUs, however often they are sent. */
  ackTag: number = RESERVED_TAG;
  /** The first Data-In PDU that is not acknowledged, and where its data begins. */
  #ackedSn = 0;
  #ackedAt = 0;
  /** Data-In PDUs have this much data, from number `#cutSn` and byte `#cutAt` on. 0 while there are none. */
  #segment = 0;
  #cutSn = 0;
  #cutAt = 0;
  /** Goes up when data is cut anew: what was to be sent again as it was before, is not. */
  cuts = 0;
  /** Of the last R-Data SNACK, or 0: the status is to carry it. §11.4.4. */
  #snackTag = 0;
  /** There was no memory for its unsolicited data: it is told to come again. */
  noRoom = false;
  /** Nobody waits for the answer any more. */
  orphan = false;
  /** A line is receiving into its buffer. */
  pinned = false;
  /** It is over, but a line or a queue still knows it. */
  endWhenFree = false;
  /** Its answer is in a batch that the line has not taken whole: its buffer must stay, whatever the initiator says. */
  leaving = false;
  /** It was over before its answer had left. */
  endsWithBatch = false;
  /** Of its unit; and when its header had come. */
  meter: Meter | undefined = undefined;
  startedAt: Millis = 0;

  constructor(server: DeviceServer) {
    this.scsi = new ScsiTask(server, this);
  }

  begin(session: IscsiSession, connection: IscsiConnection): void {
    this.session = session;
    this.connection = connection;
    this.held = false;
    this.received = 0;
    this.unsolicited = false;
    this.unsolicitedSn = 0;
    this.asked = 0;
    this.wanted = 0;
    this.collecting = false;
    this.#r2tSn = 0;
    this.fault = 0;
    this.ended = false;
    this.queued = false;
    this.dataSn = 0;
    this.sent = 0;
    this.statSn = -1;
    this.answered = false;
    this.ackTag = RESERVED_TAG;
    this.#ackedSn = this.#ackedAt = 0;
    this.#segment = 0;
    this.cuts++;
    this.#snackTag = 0;
    this.orphan = false;
    this.noRoom = false;
    this.pinned = false;
    this.endWhenFree = false;
    this.leaving = false;
    this.endsWithBatch = false;
    this.meter = undefined;
    for (const one of this.solicited) one.open = one.unsent = false;
  }

  /* ------------------------------------------------------------ data from the initiator */

  /** The device server wants `scsi.outLength` bytes. */
  collect(): void {
    this.collecting = true;
    this.wanted = this.scsi.outLength;
    this.#goOn();
  }

  /** Where the bytes of a Data-Out PDU go in memory, 0 for nowhere; or what is wrong with the PDU. */
  placeOf(offset: number, length: number): number {
    const { at, capacity } = this.scsi;
    return at !== 0 && offset + length <= capacity ? at + offset : 0;
  }

  /** The sequence that a Data-Out PDU belongs to: unsolicited, one that was asked for, or none. */
  sequenceOf(transferTag: number): Solicited | "unsolicited" | undefined {
    if (transferTag === RESERVED_TAG) return this.unsolicited ? "unsolicited" : undefined;
    return this.solicited.find((one) => one.open && !one.unsent && one.tag === transferTag);
  }

  /** Checks a Data-Out PDU against its sequence: in order, without gaps, inside what was asked for. */
  judge(sequence: Solicited | "unsolicited", dataSn: number, offset: number, length: number): DataFault | undefined {
    if (sequence === "unsolicited") {
      if (dataSn !== this.unsolicitedSn) return "data-sn";
      if (offset !== this.received) return "offset";
      return offset + length > this.unsolicitedMax ? "too-much" : undefined;
    }
    if (dataSn !== sequence.dataSn) return "data-sn";
    if (offset !== sequence.offset + sequence.received) return "offset";
    return sequence.received + length > sequence.length ? "too-much" : undefined;
  }

  /** A Data-Out PDU is in memory. */
  arrived(sequence: Solicited | "unsolicited", length: number, final: boolean): void {
    if (sequence === "unsolicited") {
      this.unsolicitedSn++;
      this.received += length;
      if (final) this.unsolicited = false;
    } else {
      sequence.dataSn++;
      sequence.received += length;
      this.received = Math.max(this.received, sequence.offset + sequence.received);
      if (final) {
        sequence.open = false;
        // §11.8: the rest of a sequence that ends early is asked for again.
        if (sequence.received < sequence.length && this.fault === 0)
          this.#ask(sequence.offset + sequence.received, sequence.length - sequence.received);
      }
    }
    this.#goOn();
  }

  /** A Data-Out PDU was lost or wrong. With recovery, its sequence is asked for again; otherwise the command fails. */
  spoil(sequence: Solicited | "unsolicited", asc: number, final: boolean): void {
    if (this.fault === 0) this.fault = asc;
    if (final) {
      if (sequence === "unsolicited") this.unsolicited = false;
      else sequence.open = false;
    }
    this.#goOn();
  }

  /** §7.2.1 (within-command recovery): asks again for the data from `offset` on of a sequence that has a hole. */
  recover(sequence: Solicited | "unsolicited", until: number): void {
    if (sequence === "unsolicited") {
      this.unsolicited = false;
      if (until > this.received) this.#ask(this.received, until - this.received);
      this.asked = Math.max(this.asked, until);
    } else {
      sequence.open = false;
      this.#ask(sequence.offset + sequence.received, sequence.length - sequence.received);
    }
    this.#goOn();
  }

  /** The line has let go of the buffer. */
  unpin(): void {
    this.pinned = false;
    if (this.endWhenFree) this.session.endTask(this);
  }
  /** The outbox has let go of the task. */
  left(): void {
    if (this.endWhenFree) this.session.endTask(this);
  }

  /** No data is on its way any more. */
  get isQuiet(): boolean {
    if (this.unsolicited) return false;
    for (const one of this.solicited) if (one.open && !one.unsent) return false;
    return true;
  }

  /** Asks for the next data, starts the command, or answers it. */
  #goOn(): void {
    if (this.ended) return this.#answer();
    if (!this.collecting || this.unsolicited) return;
    if (this.fault !== 0) {
      if (!this.isQuiet) return;
      this.collecting = false;
      return this.scsi.server.collectFailed(this.scsi, SenseKey.ABORTED_COMMAND, this.fault);
    }
    if (this.received >= this.wanted && this.isQuiet) {
      this.collecting = false;
      return this.scsi.server.collected(this.scsi);
    }
    this.asked = Math.max(this.asked, this.received);
    const { maxBurst, maxOutstandingR2t } = this.session.parameters;
    for (let count = this.#outstanding(); count < maxOutstandingR2t && this.asked < this.wanted; count++) {
      const length = Math.min(maxBurst, this.wanted - this.asked);
      this.#ask(this.asked, length);
      this.asked += length;
    }
  }

  #outstanding(): number {
    let count = 0;
    for (const one of this.solicited) if (one.open) count++;
    return count;
  }

  #ask(offset: number, length: number): void {
    const one = this.solicited.find((candidate) => !candidate.open);
    if (one === undefined) return;
    one.tag = this.session.nextTransferTag();
    one.r2tSn = this.#r2tSn++;
    one.offset = offset;
    one.length = length;
    one.received = 0;
    one.dataSn = 0;
    one.open = true;
    one.unsent = true;
    this.connection.outbox.push(this);
  }

  /** §11.16: R2Ts that the initiator has not seen are sent again. False when one of them is over. */
  resendR2ts(begin: number, count: number): boolean {
    let found = 0;
    for (const one of this.solicited)
      if (one.open && one.r2tSn >= begin && (count === 0 || one.r2tSn < begin + count)) {
        one.unsent = true;
        found++;
      }
    if (found > 0) this.connection.outbox.push(this);
    return found > 0;
  }

  /** The connection is gone: what was asked for on it never comes. The rest is asked for again on another one. */
  loseSequences(): void {
    this.unsolicited = false;
    for (const one of this.solicited) one.open = one.unsent = false;
    this.asked = this.received;
  }

  /** The task has another connection now: §7.2.2. */
  reassign(connection: IscsiConnection, expDataSn: number): void {
    this.connection = connection;
    this.queued = false;
    if (!this.ended) {
      this.#r2tSn = 0;
      return this.#goOn();
    }
    // §11.5.6: 0 leaves what was acknowledged before, and so does a number that cannot be.
    this.acknowledgeData(expDataSn);
    this.#snackTag = 0;
    this.#startOver();
    this.#answer();
  }

  /* -------------------------------------------------------------------------- the answer */

  finish(): void {
    this.ended = true;
    this.#answer();
  }

  #answer(): void {
    // §11.4.2: not before the last data that is on its way has come.
    if (!this.isQuiet) return;
    if (this.scsi.aborted || this.orphan) return this.session.endTask(this);
    for (const one of this.solicited) one.open = one.unsent = false;
    if (!this.queued && !this.answered) this.connection.outbox.push(this);
  }

  /** Finds the data of PDU `dataSn`, of those that are cut as they are now. */
  #seek(dataSn: number): void {
    this.sent = this.#cutAt;
    this.dataSn = this.#cutSn;
    while (this.dataSn < dataSn && this.sent < this.scsi.inLength) {
      this.sent += this.#lengthAt(this.sent);
      this.dataSn++;
    }
  }

  /** What the Data-In PDU carries that starts at `sent`: no more than the initiator takes, and not over a burst's end. */
  #lengthAt(sent: number): number {
    const { maxBurst } = this.session.parameters;
    return Math.min(this.#segment, maxBurst - (sent % maxBurst), this.scsi.inLength - sent);
  }

  /** From here on data is cut to what the initiator takes now: it may have changed that, or be on another connection. */
  #cut(): void {
    this.#segment = this.connection.parameters.sendMax;
    this.#cutSn = this.dataSn;
    this.#cutAt = this.sent;
    this.cuts++;
  }

  /** §11.16.2: data before PDU `dataSn` has arrived. False when that cannot be. */
  acknowledgeData(dataSn: number): boolean {
    if (dataSn < this.#ackedSn || dataSn > this.dataSn) return false;
    // Before the last cut nobody knows any more where a PDU was: that it has arrived can be left out.
    if (dataSn < this.#cutSn || this.#segment === 0) return true;
    const { sent, dataSn: next } = this;
    this.#seek(dataSn);
    this.#ackedSn = this.dataSn;
    this.#ackedAt = this.sent;
    this.sent = sent;
    this.dataSn = next;
    return true;
  }

  /** §11.16: these PDUs again as they were, or undefined when they were not sent, or cannot be sent so now. 0, 0: all. */
  resendData(begin: number, count: number): DataResend | undefined {
    const first = begin === 0 && count === 0 ? this.#ackedSn : begin;
    const end = count === 0 ? this.dataSn : begin + count;
    const isThere = first < end && end <= this.dataSn && first >= Math.max(this.#ackedSn, this.#cutSn);
    // §11.16.3: who takes less in a PDU than before must send an R-Data SNACK.
    return isThere && this.#segment <= this.connection.parameters.sendMax
      ? new DataResend(this, first, end)
      : undefined;
  }

  /** The status again, as it was. */
  resendStatus(): void {
    if (this.scsi.inLength > 0 && this.#sendsStatusWithData) {
      const last = this.resendData(this.dataSn - 1, 1);
      if (last !== undefined) return this.connection.outbox.push(last);
    }
    this.answered = false;
    this.connection.outbox.push(this);
  }

  /**
   * §11.16.3 (R-Data SNACK): all data that is not acknowledged is sent again, cut to what the initiator takes now, and then
   * the status, in a response that carries the tag. False when nothing was sent that could have been missed.
   */
  resegment(snackTag: number): boolean {
    if (!this.isRead || !this.ended || (this.dataSn === 0 && !this.answered)) return false;
    if (this.scsi.aborted || this.orphan) return false;
    if (snackTag === 0 || snackTag === RESERVED_TAG || snackTag === this.#snackTag) return false;
    this.#snackTag = snackTag;
    this.#startOver();
    this.connection.outbox.push(this);
    return true;
  }

  #startOver(): void {
    this.answered = false;
    this.sent = this.#ackedAt;
    this.dataSn = this.#ackedSn;
    this.#cut();
  }

  /** Writes one Data-In PDU again, as it was. */
  rewriteDataIn(outbox: Outbox, dataSn: number): "written" | "no-room" | "beyond" {
    const { sent, dataSn: next } = this;
    this.#seek(dataSn);
    const length = this.sent < this.scsi.inLength ? this.#lengthAt(this.sent) : 0;
    const isThere = length > 0 && this.dataSn === dataSn && dataSn < next;
    const isLast = this.sent + length === this.scsi.inLength;
    const isFinal = isLast || (this.sent + length) % this.session.parameters.maxBurst === 0;
    const hasStatus = isLast && this.answered && this.#sendsStatusWithData;
    const written = isThere && this.#writeDataIn(outbox, length, isLast, isFinal, hasStatus);
    this.sent = sent;
    this.dataSn = next;
    if (!isThere) return "beyond";
    return written ? "written" : "no-room";
  }
  get #sendsStatusWithData(): boolean {
    if (this.#snackTag !== 0) return false;
    return this.scsi.status === SamStatus.GOOD || this.scsi.status === SamStatus.CONDITION_MET;
  }

  /** Writes what there is to send. False when there was no more room: it is asked again. */
  write(outbox: Outbox): boolean {
    for (const one of this.solicited)
      if (one.open && one.unsent) {
        if (!this.#writeR2t(outbox, one)) return false;
        one.unsent = false;
      }
    if (!this.ended || this.answered || !this.isQuiet) return true;
    if (this.scsi.aborted || this.orphan) return true;
    return this.#writeAnswer(outbox);
  }

  #writeR2t(outbox: Outbox, one: Solicited): boolean {
    const at = outbox.header(Opcode.R2T, FINAL, 0);
    if (at === 0) return false;
    const { view } = outbox;
    view.setUint32(at + BHS.lun, this.lunHigh);
    view.setUint32(at + BHS.lun + 4, this.lunLow);
    view.setUint32(at + BHS.taskTag, this.tag);
    view.setUint32(at + R2T.transferTag, one.tag);
    view.setUint32(at + R2T.statSn, outbox.statSn);
    view.setUint32(at + R2T.r2tSn, one.r2tSn);
    view.setUint32(at + R2T.offset, one.offset);
    view.setUint32(at + R2T.length, one.length);
    outbox.endHeader(at);
    return true;
  }

  #writeAnswer(outbox: Outbox): boolean {
    const { scsi } = this;
    const hasStatus = this.#sendsStatusWithData;
    while (this.sent < scsi.inLength) {
      if (this.#segment !== this.connection.parameters.sendMax) this.#cut();
      const length = this.#lengthAt(this.sent);
      const isLast = this.sent + length === scsi.inLength;
      const isFinal = isLast || (this.sent + length) % this.session.parameters.maxBurst === 0;
      if (!this.#writeDataIn(outbox, length, isLast, isFinal, isLast && hasStatus)) return false;
      this.dataSn++;
      this.sent += length;
      if (isLast && hasStatus) {
        this.#answered(outbox);
        return true;
      }
    }
    if (!this.#writeResponse(outbox)) return false;
    this.#answered(outbox);
    return true;
  }
  #answered(outbox: Outbox): void {
    this.answered = true;
    if (this.meter !== undefined) this.#note(this.meter);
    // However often it is answered, it was one command.
    this.meter = undefined;
    outbox.finished(this);
  }

  #note(meter: Meter): void {
    const { scsi } = this;
    const kind = kindOf(scsi);
    if (kind === undefined) return;
    const took = scsi.server.env.clock.now() - this.startedAt;
    meter.note(kind, scsi.total, took, statusOf(scsi.status, scsi.sense));
  }

  #writeDataIn(outbox: Outbox, length: number, isLast: boolean, isFinal: boolean, withStatus: boolean): boolean {
    const asksAck = isFinal && !isLast && this.session.parameters.errorRecoveryLevel > 0;
    let flags = (isFinal ? DataInFlag.FINAL : 0) | (asksAck ? DataInFlag.ACKNOWLEDGE : 0);
    if (withStatus) flags |= DataInFlag.STATUS | this.#residualFlags();
    const at = outbox.header(Opcode.DATA_IN, flags, length);
    if (at === 0) return false;
    const { view } = outbox;
    view.setUint32(at + BHS.taskTag, this.tag);
    view.setUint32(at + DATA_IN.transferTag, RESERVED_TAG);
    if (asksAck) {
      view.setUint32(at + BHS.lun, this.lunHigh);
      view.setUint32(at + BHS.lun + 4, this.lunLow);
      if (this.ackTag === RESERVED_TAG) this.ackTag = this.session.nextTransferTag();
      view.setUint32(at + DATA_IN.transferTag, this.ackTag);
    }
    if (withStatus) {
      view.setUint8(at + DATA_IN.status, this.scsi.status);
      view.setUint32(at + DATA_IN.statSn, this.#takeStatSn(outbox));
      view.setUint32(at + DATA_IN.residual, this.#residual());
    }
    view.setUint32(at + DATA_IN.dataSn, this.dataSn);
    view.setUint32(at + DATA_IN.offset, this.sent);
    outbox.endHeader(at);
    outbox.data(this.scsi.at + this.sent, length);
    return true;
  }

  #writeResponse(outbox: Outbox): boolean {
    const { scsi } = this;
    const SENSE_LENGTH_BYTES = 2;
    const dataLength = scsi.senseLength > 0 ? scsi.senseLength + SENSE_LENGTH_BYTES : 0;
    const at = outbox.header(Opcode.SCSI_RESPONSE, FINAL | this.#residualFlags(), dataLength);
    if (at === 0) return false;
    const { view } = outbox;
    view.setUint8(at + SCSI_RESPONSE.status, scsi.status);
    view.setUint32(at + SCSI_RESPONSE.taskTag, canary.armed === "iscsi-wrong-tag" ? this.tag ^ 1 : this.tag);
    view.setUint32(at + SCSI_RESPONSE.snackTag, this.#snackTag);
    view.setUint32(at + SCSI_RESPONSE.statSn, this.#takeStatSn(outbox));
    view.setUint32(at + SCSI_RESPONSE.expDataSn, this.dataSn + this.#r2tSn);
    view.setUint32(at + SCSI_RESPONSE.residual, this.#residual());
    outbox.endHeader(at);
    if (dataLength > 0) outbox.sense(scsi.senseBytes, scsi.senseLength);
    return true;
  }

  /** A status keeps its number when it is sent again on the same connection. */
  #takeStatSn(outbox: Outbox): number {
    if (this.statSn < 0) this.statSn = outbox.takeStatSn();
    return this.statSn;
  }

  /** §11.4.5: what the initiator expected and the command did not move, or the other way round. */
  #residualFlags(): number {
    const { total } = this.scsi;
    if (!this.isRead && !this.isWrite) return total > 0 ? ResponseFlag.OVERFLOW : 0;
    if (this.#moved() > this.expectedLength) return ResponseFlag.OVERFLOW;
    return this.#moved() < this.expectedLength ? ResponseFlag.UNDERFLOW : 0;
  }
  #residual(): number {
    return Math.abs(this.expectedLength - this.#moved());
  }
  #moved(): number {
    return this.scsi.status === SamStatus.GOOD
      ? this.scsi.total
      : this.isRead
        ? this.scsi.inLength
        : Math.min(this.scsi.total, this.expectedLength);
  }

  isAcknowledged(expStatSn: number): boolean {
    return this.statSn >= 0 && isBefore(this.statSn, expStatSn);
  }
  /** For a new connection: its numbers are its own. */
  forgetStatSn(): void {
    this.statSn = -1;
  }
}
