/**
 * A load generator for iSCSI: `iscsi-perf` only reads, and libiscsi knows no data digests. One thread, one socket for
 * each session, no object per command. What it sends carries the digests that were agreed on; of what it receives it
 * looks at headers only, so that the processor time that digests cost is the target's.
 */
import { connect, type Socket } from "node:net";
import { crc32c, header, TUR, text } from "#test/support/iscsi-client";
import { KIB } from "#test/support/temp";

const BHS_BYTES = 48;
const DIGEST_BYTES = 4;
const SECTOR = 512;
/** All sessions receive into one buffer: what has come is looked at before anything else is received. */
const RECEIVED = Buffer.allocUnsafeSlow(512 * KIB);
/** A parameter that libiscsi offers too. */
const BURST_BYTES = 256 * KIB;
const FINAL = 0x80;
const Opcode = { SCSI_RESPONSE: 0x21, LOGIN_RESPONSE: 0x23, DATA_IN: 0x25, R2T: 0x31, NOP_IN: 0x20 } as const;

export interface IscsiLoad {
  readonly kind: "read" | "write";
  /** Bytes per command. */
  readonly block: number;
  /** Commands in flight in each session. */
  readonly depth: number;
  readonly seconds: number;
  /** Where the next command of a session goes, in bytes. */
  next(session: number): number;
}
export interface IscsiTarget {
  readonly port: number;
  readonly iqn: string;
}
/** One session: who logs in, and which units it uses, one after the other. */
export interface IscsiUser {
  readonly initiator: string;
  readonly luns: readonly number[];
}
export interface IscsiOutcome {
  readonly operations: number;
  readonly rate: number;
}

/** Sessions that stay logged in over several runs. */
export class IscsiSessions {
  readonly #lines: readonly Line[];

  private constructor(lines: readonly Line[]) {
    this.#lines = lines;
  }

  static async open(target: IscsiTarget, users: readonly IscsiUser[], digests: boolean): Promise<IscsiSessions> {
    const lines = users.map((user, index) => new Line(target, user, index, digests));
    await Promise.all(lines.map((line) => line.open()));
    return new IscsiSessions(lines);
  }

  async run(load: IscsiLoad): Promise<IscsiOutcome> {
    const startedMs = performance.now();
    const timer = setTimeout(() => {
      for (const line of this.#lines) line.isEnding = true;
    }, load.seconds * 1000);
    try {
      await Promise.all(this.#lines.map((line) => line.run(load)));
    } finally {
      clearTimeout(timer);
    }
    const seconds = (performance.now() - startedMs) / 1000;
    const operations = this.#lines.reduce((sum, line) => sum + line.operations, 0);
    return { operations, rate: operations / seconds };
  }

  close(): void {
    for (const line of this.#lines) line.close();
  }
}

class Line {
  operations = 0;
  isEnding = false;
  readonly #target: IscsiTarget;
  readonly #user: IscsiUser;
  readonly #index: number;
  readonly #digests: boolean;
  readonly #socket: Socket;
  readonly #head = Buffer.alloc(BHS_BYTES);
  readonly #keys = new Map<string, string>();
  /** Of the PDU that comes: bytes so far, and of the whole. */
  #got = 0;
  #whole = BHS_BYTES;
  /** Data segments are kept only while logging in. */
  #kept: Buffer[] | undefined = [];
  #load: IscsiLoad | undefined;
  #payload: Buffer = Buffer.alloc(0);
  /** The digest of the first bytes of the payload, by their number. */
  readonly #crcs = new Map<number, Buffer>();
  #template: Buffer = Buffer.alloc(0);
  #inFlight = 0;
  #cmdSn = 1;
  #expStatSn = 0;
  #tag = 1;
  /** What the target takes in one PDU, and without being asked. */
  #segmentMax = 8 * KIB;
  #immediateMax = 0;
  #resolve: () => void = () => {};
  #reject: (error: Error) => void = () => {};
  #take: (head: Buffer) => void = () => {};

  constructor(target: IscsiTarget, user: IscsiUser, index: number, digests: boolean) {
    this.#target = target;
    this.#user = user;
    this.#index = index;
    this.#digests = digests;
    this.#socket = connect({
      port: target.port,
      host: "127.0.0.1",
      noDelay: true,
      onread: {
        buffer: RECEIVED,
        callback: (count, buffer) => {
          this.#receive(buffer as Buffer, count);
          return true;
        },
      },
    });
    this.#socket.on("error", (error) => this.#reject(error));
    this.#socket.on("close", () => this.#reject(new Error("the target closed the connection")));
  }

  close(): void {
    this.#reject = () => {};
    this.#socket.destroy();
  }

  /* ------------------------------------------------------------------------------ login */

  async open(): Promise<void> {
    const digest = this.#digests ? "CRC32C" : "None";
    let keys: Record<string, string> = {
      InitiatorName: this.#user.initiator,
      TargetName: this.#target.iqn,
      SessionType: "Normal",
      HeaderDigest: digest,
      DataDigest: digest,
      ImmediateData: "Yes",
      InitialR2T: "No",
      MaxRecvDataSegmentLength: String(BURST_BYTES),
      MaxBurstLength: String(BURST_BYTES),
      FirstBurstLength: String(BURST_BYTES),
      MaxOutstandingR2T: "1",
      ErrorRecoveryLevel: "0",
    };
    for (let steps = 0; ; steps++) {
      const head = header(0x43, 0x87, { 16: 1, 20: 1 << 16, 24: this.#cmdSn, 28: this.#expStatSn });
      head.writeUInt32BE(0x80_00_00_00, 8);
      head.writeUInt16BE(this.#index, 12);
      const data = text(keys);
      head.writeUInt32BE(data.length, 4);
      const answer = await this.#ask(Buffer.concat([head, data, Buffer.alloc(-data.length & 3)]));
      const status = answer.readUInt16BE(36);
      if (status !== 0 || steps > 5) throw new Error(`the login failed: ${status.toString(16)}`);
      for (const pair of Buffer.concat(this.#kept!).toString("latin1").split("\0")) {
        const at = pair.indexOf("=");
        if (at > 0) this.#keys.set(pair.slice(0, at), pair.slice(at + 1));
      }
      // Into the full feature phase: RFC 7143 §11.13.3.
      if ((answer[1]! & 0x83) === 0x83) break;
      keys = {};
    }
    if (this.#digests && (this.#keys.get("HeaderDigest") !== "CRC32C" || this.#keys.get("DataDigest") !== "CRC32C"))
      throw new Error("the target agrees to no digests");
    this.#segmentMax = Math.min(Number(this.#keys.get("MaxRecvDataSegmentLength") ?? 8 * KIB), BURST_BYTES);
    const firstBurst = Math.min(Number(this.#keys.get("FirstBurstLength") ?? 64 * KIB), BURST_BYTES);
    this.#immediateMax = this.#keys.get("ImmediateData") === "No" ? 0 : Math.min(firstBurst, this.#segmentMax);
    for (const lun of this.#user.luns) await this.#settle(lun);
    this.#kept = undefined;
  }

  /** Fetches unit attentions, until the unit is ready. */
  async #settle(lun: number): Promise<void> {
    for (let tries = 0; ; tries++) {
      const head = this.#command(0x81, 0);
      head.writeUInt16BE(lunWord(lun), 8);
      head.set(TUR, 32);
      this.#cmdSn++;
      const answer = await this.#ask(this.#withDigest(head));
      if (answer[3] === 0) return;
      if (tries > 8) throw new Error(`unit ${lun} does not become ready`);
    }
  }

  /** Sends a PDU during the login and waits for the next one. */
  #ask(message: Buffer): Promise<Buffer> {
    this.#kept = [];
    return new Promise((resolve, reject) => {
      this.#reject = reject;
      this.#take = (head) => {
        this.#expStatSn = (head.readUInt32BE(24) + 1) >>> 0;
        resolve(Buffer.from(head));
      };
      this.#socket.write(message);
    });
  }

  /* ------------------------------------------------------------------------------- load */

  run(load: IscsiLoad): Promise<void> {
    this.#load = load;
    this.operations = 0;
    this.isEnding = false;
    this.#payload = Buffer.alloc(load.block, "ashlar");
    this.#template = this.#command(load.kind === "read" ? 0xc1 : 0xa1, load.block);
    this.#template[32] = load.kind === "read" ? 0x28 : 0x2a;
    this.#template.writeUInt16BE(load.block / SECTOR, 39);
    if (load.kind === "write") this.#template.writeUInt32BE(this.#immediateLength, 4);
    return new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
      this.#take = (head) => this.#answered(head);
      this.#send(load.depth);
    });
  }
  get #immediateLength(): number {
    return Math.min(this.#immediateMax, this.#load!.block);
  }

  /** A command's header but for its unit and its CDB. */
  #command(flags: number, expected: number): Buffer {
    return header(0x01, flags, { 16: this.#tag++, 20: expected, 24: this.#cmdSn, 28: this.#expStatSn });
  }

  #send(count: number): void {
    const load = this.#load!;
    const { luns } = this.#user;
    const size = BHS_BYTES + (this.#digests ? DIGEST_BYTES : 0);
    const heads = Buffer.allocUnsafe(count * size);
    let at = 0;
    if (load.kind === "write") this.#socket.cork();
    for (; count > 0 && !this.isEnding; count--) {
      this.#template.copy(heads, at);
      heads.writeUInt16BE(lunWord(luns[this.#tag % luns.length]!), at + 8);
      heads.writeUInt32BE(this.#tag++ >>> 0, at + 16);
      heads.writeUInt32BE(this.#cmdSn, at + 24);
      this.#cmdSn = (this.#cmdSn + 1) >>> 0;
      heads.writeUInt32BE(this.#expStatSn, at + 28);
      heads.writeUInt32BE(load.next(this.#index) / SECTOR, at + 34);
      if (this.#digests) heads.writeUInt32LE(crc32c(heads.subarray(at, at + BHS_BYTES)), at + BHS_BYTES);
      if (load.kind === "write") {
        this.#socket.write(heads.subarray(at, at + size));
        this.#writeData(this.#immediateLength);
      }
      at += size;
      this.#inFlight++;
    }
    if (load.kind === "write") this.#socket.uncork();
    else if (at > 0) this.#socket.write(at === heads.length ? heads : heads.subarray(0, at));
    if (this.isEnding && this.#inFlight === 0) this.#resolve();
  }

  #writeData(length: number): void {
    if (length === 0) return;
    this.#socket.write(this.#payload.subarray(0, length));
    if (this.#digests) this.#socket.write(this.#crcOf(length));
  }
  #crcOf(length: number): Buffer {
    let crc = this.#crcs.get(length);
    if (crc === undefined) {
      crc = Buffer.alloc(DIGEST_BYTES);
      crc.writeUInt32LE(crc32c(this.#payload.subarray(0, length)));
      this.#crcs.set(length, crc);
    }
    return crc;
  }
  #withDigest(head: Buffer): Buffer {
    if (!this.#digests) return head;
    const digest = Buffer.alloc(DIGEST_BYTES);
    digest.writeUInt32LE(crc32c(head));
    return Buffer.concat([head, digest]);
  }

  #answerR2t(r2t: Buffer): void {
    const [offset, length] = [r2t.readUInt32BE(40), r2t.readUInt32BE(44)];
    this.#socket.cork();
    for (let done = 0, sn = 0; done < length; sn++) {
      const part = Math.min(this.#segmentMax, length - done);
      const flags = done + part === length ? FINAL : 0;
      const words = { 4: part, 16: r2t.readUInt32BE(16), 20: r2t.readUInt32BE(20), 36: sn, 40: offset + done };
      const head = header(0x05, flags, { ...words, 28: this.#expStatSn });
      // The unit as the R2T has it.
      r2t.copy(head, 8, 8, 16);
      this.#socket.write(this.#withDigest(head));
      this.#writeData(part);
      done += part;
    }
    this.#socket.uncork();
  }

  #answered(head: Buffer): void {
    const opcode = head[0]! & 0x3f;
    if (opcode === Opcode.R2T) return this.#answerR2t(head);
    if (opcode === Opcode.NOP_IN || (opcode === Opcode.DATA_IN && (head[1]! & 1) === 0)) return;
    if ((opcode !== Opcode.DATA_IN && opcode !== Opcode.SCSI_RESPONSE) || head.readUInt16BE(2) !== 0)
      return this.#reject(new Error(`a reply is not well: ${head.toString("hex")}`));
    this.#expStatSn = (head.readUInt32BE(24) + 1) >>> 0;
    this.operations++;
    this.#inFlight--;
    this.#answeredNow++;
  }
  /** Commands answered by the bytes in hand: as many follow, in one write. */
  #answeredNow = 0;

  #receive(buffer: Buffer, count: number): void {
    for (let at = 0; at < count; ) {
      if (this.#got < BHS_BYTES) {
        const piece = Math.min(BHS_BYTES - this.#got, count - at);
        buffer.copy(this.#head, this.#got, at, at + piece);
        this.#got += piece;
        at += piece;
        if (this.#got < BHS_BYTES) break;
        const data = this.#head.readUInt32BE(4) & 0xffffff;
        // No digests before the full feature phase, RFC 7143 §13.1: login responses have none.
        const digest = this.#digests && (this.#head[0]! & 0x3f) !== Opcode.LOGIN_RESPONSE ? DIGEST_BYTES : 0;
        this.#whole = BHS_BYTES + digest + ((data + 3) & ~3) + (data > 0 ? digest : 0);
      }
      const rest = Math.min(this.#whole - this.#got, count - at);
      if (rest > 0) this.#kept?.push(Buffer.from(buffer.subarray(at, at + rest)));
      this.#got += rest;
      at += rest;
      if (this.#got === this.#whole) {
        this.#got = 0;
        this.#take(this.#head);
      }
    }
    const answered = this.#answeredNow;
    this.#answeredNow = 0;
    if (answered > 0) this.#send(answered);
  }
}

/** SAM-5 §4.7: peripheral addressing up to 255, flat space addressing beyond. */
const lunWord = (lun: number): number => (lun < 256 ? lun : 0x4000 | lun);
