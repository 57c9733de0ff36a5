/**
 * An iSCSI initiator that does what a test says, right or wrong: it builds PDUs from numbers and shares no code with the
 * target but the names of things.
 */
import { createHash } from "node:crypto";
import { connect, type Socket } from "node:net";

export interface Pdu {
  readonly opcode: number;
  readonly flags: number;
  readonly tag: number;
  readonly head: DataView;
  readonly data: Buffer;
}

const WAIT_MS = 10_000;
const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let crc = byte;
  for (let bit = 0; bit < 8; bit++) crc = crc & 1 ? (crc >>> 1) ^ 0x82f63b78 : crc >>> 1;
  return crc >>> 0;
});
export function crc32c(bytes: Uint8Array): number {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = CRC_TABLE[(crc ^ byte) & 0xff]! ^ (crc >>> 8);
  return ~crc >>> 0;
}

/** A header: opcode, flags, and 32-bit words at their offsets. */
export function header(opcode: number, flags: number, words: Record<number, number> = {}): Buffer {
  const head = Buffer.alloc(48);
  head[0] = opcode;
  head[1] = flags;
  for (const [at, value] of Object.entries(words)) head.writeUInt32BE(value >>> 0, Number(at));
  return head;
}

export interface LoginOptions {
  readonly initiator: string;
  readonly target?: string;
  readonly isid?: number;
  readonly tsih?: number;
  readonly cid?: number;
  readonly cmdSn?: number;
  readonly keys?: Record<string, string>;
  readonly chap?: { readonly user: string; readonly secret: string; readonly algorithm?: number };
  /** Asks the target to prove itself; the secret with which it must. */
  readonly mutual?: { readonly user: string; readonly secret: string };
}

const HASHES: Record<number, string> = { 5: "md5", 6: "sha1", 7: "sha256", 8: "sha3-256" };

export class RawInitiator {
  readonly socket: Socket;
  #received = Buffer.alloc(0);
  #wake: (() => void) | undefined;
  isClosed = false;
  headerDigest = false;
  dataDigest = false;
  cmdSn = 1;
  expStatSn = 0;
  tsih = 0;
  /** The unit that commands go to. */
  lun = 0;
  nextTag = 1;
  /** What the target answered in the login. */
  readonly answers = new Map<string, string>();

  private constructor(socket: Socket) {
    this.socket = socket;
    socket.on("data", (chunk) => {
      this.#received = Buffer.concat([this.#received, chunk]);
      this.#wake?.();
    });
    socket.on("close", () => {
      this.isClosed = true;
      this.#wake?.();
    });
    socket.on("error", () => {});
  }

  static connect(port: number): Promise<RawInitiator> {
    return new Promise((resolve, reject) => {
      const socket = connect({ host: "127.0.0.1", port }, () => resolve(new RawInitiator(socket)));
      socket.setNoDelay(true);
      socket.once("error", reject);
    });
  }

  close(): void {
    this.socket.destroy();
  }

  /** Waits until the target has closed the connection. */
  async closed(): Promise<void> {
    const end = Date.now() + WAIT_MS;
    while (!this.isClosed) {
      if (Date.now() > end) throw new Error("the target did not close the connection");
      await this.#more(50);
    }
  }

  send(head: Buffer, data: Uint8Array = Buffer.alloc(0), damage: "none" | "header" | "data" = "none"): void {
    head.writeUInt32BE((head.readUInt32BE(4) & 0xff000000) | data.length, 4);
    const parts: Uint8Array[] = [head];
    if (this.headerDigest) parts.push(digest(crc32c(head) ^ (damage === "header" ? 1 : 0)));
    if (data.length > 0) {
      const body = Buffer.alloc((data.length + 3) & ~3);
      body.set(data);
      parts.push(body);
      if (this.dataDigest) parts.push(digest(crc32c(body) ^ (damage === "data" ? 1 : 0)));
    }
    this.socket.write(Buffer.concat(parts));
  }

  /** The next PDU; undefined when the connection has ended instead. */
  async tryRead(waitMs = WAIT_MS): Promise<Pdu | undefined> {
    const end = Date.now() + waitMs;
    for (;;) {
      const pdu = this.#cut();
      if (pdu !== undefined) {
        this.#note(pdu);
        return pdu;
      }
      if (this.isClosed || Date.now() >= end) return undefined;
      await this.#more(end - Date.now());
    }
  }
  async read(): Promise<Pdu> {
    const pdu = await this.tryRead();
    if (pdu === undefined)
      throw new Error(this.isClosed ? "the target closed the connection" : "the target said nothing");
    return pdu;
  }

  #cut(): Pdu | undefined {
    const all = this.#received;
    if (all.length < 48) return undefined;
    const length = all.readUInt32BE(4) & 0xffffff;
    const start = 48 + 4 * all[4]! + (this.headerDigest ? 4 : 0);
    const end = start + ((length + 3) & ~3) + (this.dataDigest && length > 0 ? 4 : 0);
    if (all.length < end) return undefined;
    if (this.headerDigest && crc32c(all.subarray(0, 48)) !== all.readUInt32LE(48))
      throw new Error("a header digest of the target is wrong");
    const padded = all.subarray(start, start + ((length + 3) & ~3));
    if (this.dataDigest && length > 0 && crc32c(padded) !== all.readUInt32LE(end - 4))
      throw new Error("a data digest of the target is wrong");
    const head = Buffer.from(all.subarray(0, 48));
    const data = Buffer.from(all.subarray(start, start + length));
    this.#received = all.subarray(end);
    return {
      opcode: head[0]! & 0x3f,
      flags: head[1]!,
      tag: head.readUInt32BE(16),
      head: new DataView(head.buffer, head.byteOffset, 48),
      data,
    };
  }
  #note(pdu: Pdu): void {
    const DATA_IN = 0x25;
    const R2T = 0x31;
    const hasStatus = pdu.opcode === DATA_IN ? (pdu.flags & 1) !== 0 : pdu.opcode !== R2T;
    const isPing = pdu.opcode === 0x20 && pdu.tag === 0xffffffff;
    if (hasStatus && !isPing) this.expStatSn = (pdu.head.getUint32(24) + 1) >>> 0;
  }
  #more(ms: number): Promise<void> {
    return new Promise((resolve) => {
      const timer = setTimeout(done, ms);
      const self = this;
      function done(): void {
        clearTimeout(timer);
        self.#wake = undefined;
        resolve();
      }
      this.#wake = done;
    });
  }

  /* ------------------------------------------------------------------------------ login */

  /** One login request and its answer. */
  async loginStep(options: LoginOptions, flags: number, keys: Record<string, string>): Promise<Pdu> {
    const head = header(0x43, flags, {
      16: 0x100,
      20: (options.cid ?? 1) << 16,
      24: options.cmdSn ?? this.cmdSn,
      28: this.expStatSn,
    });
    head.writeUInt32BE(0x80_00_00_00, 8);
    head.writeUInt16BE(options.isid ?? 1, 12);
    head.writeUInt16BE(options.tsih ?? 0, 14);
    this.send(head, text(keys));
    const answer = await this.read();
    for (const pair of answer.data.toString("latin1").split("\0")) {
      const at = pair.indexOf("=");
      if (at > 0) this.answers.set(pair.slice(0, at), pair.slice(at + 1));
    }
    return answer;
  }

  /** A whole login. Returns its status, 0 when it went well. */
  async login(options: LoginOptions): Promise<number> {
    const statusOf = (pdu: Pdu): number => pdu.head.getUint16(36);
    const names: Record<string, string> = {
      InitiatorName: options.initiator,
      ...(options.target === undefined
        ? { SessionType: "Discovery" }
        : { TargetName: options.target, SessionType: "Normal" }),
    };
    let answer = await this.loginStep(options, 0x81, {
      ...names,
      AuthMethod: options.chap === undefined ? "None" : "CHAP,None",
    });
    if (statusOf(answer) !== 0) return statusOf(answer);
    if (this.answers.get("AuthMethod") === "CHAP") {
      const status = await this.#chap(options);
      if (status !== 0) return status;
    }
    const keys = { HeaderDigest: "None", DataDigest: "None", ...options.keys };
    answer = await this.loginStep(options, 0x87, keys);
    if (statusOf(answer) !== 0) return statusOf(answer);
    this.tsih = answer.head.getUint16(14);
    this.headerDigest = this.answers.get("HeaderDigest") === "CRC32C";
    this.dataDigest = this.answers.get("DataDigest") === "CRC32C";
    return 0;
  }

  async #chap(options: LoginOptions): Promise<number> {
    const { user, secret, algorithm = 5 } = options.chap!;
    let answer = await this.loginStep(options, 0x00, { CHAP_A: String(algorithm) });
    if (answer.head.getUint16(36) !== 0) return answer.head.getUint16(36);
    const respond = (id: number, key: string, challenge: Buffer): string =>
      `0x${createHash(HASHES[algorithm]!)
        .update(Buffer.from([id]))
        .update(key)
        .update(challenge)
        .digest("hex")}`;
    const challenge = Buffer.from(this.answers.get("CHAP_C")!.slice(2), "hex");
    const keys: Record<string, string> = {
      CHAP_N: user,
      CHAP_R: respond(Number(this.answers.get("CHAP_I")), secret, challenge),
    };
    const own = Buffer.alloc(16, 0x5a);
    if (options.mutual !== undefined) Object.assign(keys, { CHAP_I: "7", CHAP_C: `0x${own.toString("hex")}` });
    answer = await this.loginStep(options, 0x81, keys);
    if (answer.head.getUint16(36) !== 0) return answer.head.getUint16(36);
    if (options.mutual !== undefined) {
      if (this.answers.get("CHAP_N") !== options.mutual.user) throw new Error("the target gives another name");
      if (this.answers.get("CHAP_R") !== respond(7, options.mutual.secret, own))
        throw new Error("the target does not prove itself");
    }
    return 0;
  }

  /* --------------------------------------------------------------------------- commands */

  /** A SCSI command's header; `data` goes with it as immediate data. */
  command(cdb: readonly number[], expected: number, direction: "read" | "write" | "none", final = true): Buffer {
    const flags = (final ? 0x80 : 0) | (direction === "read" ? 0x40 : direction === "write" ? 0x20 : 0) | 1;
    const head = header(0x01, flags, { 16: this.nextTag++, 20: expected, 24: this.cmdSn++, 28: this.expStatSn });
    head.writeUInt16BE(this.lun, 8);
    head.set(cdb, 32);
    return head;
  }

  /** Sends a command and collects its answer: data-in and status. Answers R2Ts from `out`. */
  async run(
    cdb: readonly number[],
    options: { read?: number; write?: Uint8Array; immediate?: number } = {},
  ): Promise<{ status: number; data: Buffer; sense: Buffer }> {
    const out = Buffer.from(options.write ?? Buffer.alloc(0));
    const direction = options.write !== undefined ? "write" : options.read !== undefined ? "read" : "none";
    const head = this.command(cdb, options.write?.length ?? options.read ?? 0, direction);
    const tag = head.readUInt32BE(16);
    this.send(head, out.subarray(0, options.immediate ?? 0));
    const data: Buffer[] = [];
    for (;;) {
      const pdu = await this.read();
      if (pdu.tag !== tag) continue;
      if (pdu.opcode === 0x31) this.answerR2t(pdu, out);
      if (pdu.opcode === 0x25) {
        data.push(pdu.data);
        if ((pdu.flags & 1) !== 0)
          return { status: pdu.head.getUint8(3), data: Buffer.concat(data), sense: Buffer.alloc(0) };
      }
      if (pdu.opcode === 0x21)
        return { status: pdu.head.getUint8(3), data: Buffer.concat(data), sense: pdu.data.subarray(2) };
    }
  }

  /** The most R2Ts of one command that waited for an answer at a time. */
  r2tsAtOnce = 0;

  /** A write whose first bytes come unasked: up to `immediate` with the command, up to `unsolicited` after it. */
  async write(
    cdb: readonly number[],
    out: Buffer,
    immediate: number,
    unsolicited: number,
  ): Promise<{ status: number; sense: Buffer }> {
    const follows = unsolicited > immediate;
    const head = this.command(cdb, out.length, "write", !follows);
    const tag = head.readUInt32BE(16);
    this.send(head, out.subarray(0, immediate));
    const piece = 1024;
    for (let at = immediate, sn = 0; at < unsolicited; at += piece, sn++) {
      const end = Math.min(unsolicited, out.length, at + piece);
      const isLast = end >= Math.min(unsolicited, out.length);
      const words = { 16: tag, 20: 0xffffffff, 28: this.expStatSn, 36: sn, 40: at };
      this.send(header(0x05, isLast ? 0x80 : 0, words), out.subarray(at, end));
      if (isLast) break;
    }
    for (const waiting: Pdu[] = []; ; ) {
      const pdu = waiting.length > 0 ? await this.tryRead(0) : await this.read();
      if (pdu === undefined) this.answerR2t(waiting.shift()!, out);
      else if (pdu.opcode === 0x31) this.r2tsAtOnce = Math.max(this.r2tsAtOnce, waiting.push(pdu));
      else if (pdu.opcode === 0x21 && pdu.tag === tag)
        return { status: pdu.head.getUint8(3), sense: pdu.data.subarray(2) };
    }
  }

  answerR2t(r2t: Pdu, out: Uint8Array): void {
    const offset = r2t.head.getUint32(40);
    const length = r2t.head.getUint32(44);
    const piece = 4096;
    for (let done = 0, sn = 0; done < length; done += piece, sn++) {
      const part = out.subarray(offset + done, offset + Math.min(length, done + piece));
      const words = { 16: r2t.tag, 20: r2t.head.getUint32(20), 28: this.expStatSn, 36: sn, 40: offset + done };
      this.send(header(0x05, done + piece >= length ? 0x80 : 0, words), part);
    }
  }

  /** Asks for targets (RFC 7143 Appendix C); the text of the answer. */
  async sendTargets(what: string): Promise<string> {
    const words = { 16: this.nextTag++, 20: 0xffffffff, 24: this.cmdSn++, 28: this.expStatSn };
    this.send(header(0x04, 0x80, words), text({ SendTargets: what }));
    for (;;) {
      const pdu = await this.read();
      if (pdu.opcode === 0x24) return pdu.data.toString("latin1").replaceAll("\0", "\n");
    }
  }

  /** Fetches unit attentions until there are none. */
  async settle(): Promise<void> {
    for (let tries = 0; tries < 10; tries++) if ((await this.run(TUR)).status === 0) return;
    throw new Error("the unit does not become ready");
  }
}

export const TUR = [0, 0, 0, 0, 0, 0];
const u32 = (value: number): number[] => [
  (value >>> 24) & 0xff,
  (value >>> 16) & 0xff,
  (value >>> 8) & 0xff,
  value & 0xff,
];
export const read10 = (lba: number, blocks: number): number[] => [
  0x28,
  0,
  ...u32(lba),
  0,
  blocks >> 8,
  blocks & 0xff,
  0,
];
export const write10 = (lba: number, blocks: number): number[] => [
  0x2a,
  0,
  ...u32(lba),
  0,
  blocks >> 8,
  blocks & 0xff,
  0,
];

export const text = (keys: Record<string, string>): Buffer =>
  Buffer.from(
    Object.entries(keys)
      .map(([key, value]) => `${key}=${value}\0`)
      .join(""),
    "latin1",
  );
function digest(crc: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32LE(crc >>> 0);
  return bytes;
}
