/**
 * An NBD client for tests, of its own kind: it shares no line with the product, so that a misreading of the protocol
 * on both sides does not go unseen. Fixed newstyle, simple replies (NBD proto.md, "The newstyle negotiation").
 */
import { connect, type Socket } from "node:net";

const REQUEST_MAGIC = 0x25609513;
const REPLY_MAGIC = 0x67446698;
export const NbdFlag = { FUA: 1, NO_HOLE: 2 } as const;
const CMD = { READ: 0, WRITE: 1, DISC: 2, FLUSH: 3, TRIM: 4, WRITE_ZEROES: 6 } as const;

/** The connection ended before the reply came. */
export class Lost extends Error {
  override readonly name = "Lost";
}
/** The server answered with an error number (NBD proto.md, "Error values"). */
export class NbdError extends Error {
  readonly code: number;
  constructor(code: number, what: string) {
    super(`${what}: NBD error ${code}`);
    this.code = code;
  }
}

interface Waiting {
  readonly what: string;
  readonly read: number;
  resolve(data: Buffer): void;
  reject(error: Error): void;
}

export class TestClient {
  readonly #socket: Socket;
  readonly #waiting = new Map<number, Waiting>();
  #cookie = 1;
  #received: Buffer[] = [];
  #receivedBytes = 0;
  #wanted: { length: number; resolve(data: Buffer): void; reject(error: Error): void } | undefined;
  #end: Error | undefined;
  size = 0;
  flags = 0;

  private constructor(socket: Socket) {
    this.#socket = socket;
    socket.on("data", (chunk) => {
      this.#received.push(chunk);
      this.#receivedBytes += chunk.length;
      this.#give();
    });
    socket.on("error", () => {});
    socket.on("close", () => this.#lose(new Lost("the connection ended")));
  }

  /** Opens an export. Rejects with `Lost` when there is no server, with `NbdError` when it has no such export. */
  static async open(at: string | number, name: string): Promise<TestClient> {
    const socket = typeof at === "string" ? connect(at) : connect(at, "127.0.0.1");
    const client = new TestClient(socket);
    try {
      await new Promise<void>((resolve, reject) => {
        socket.once("connect", resolve);
        socket.once("error", (error) => reject(new Lost(error.message)));
      });
      socket.setNoDelay(true);
      await client.#negotiate(name);
    } catch (error) {
      socket.destroy();
      throw error;
    }
    void client.#pump();
    return client;
  }

  async #negotiate(name: string): Promise<void> {
    const greeting = await this.#take(18);
    if (greeting.toString("latin1", 0, 16) !== "NBDMAGICIHAVEOPT") throw new Error("not a newstyle NBD server");
    const bytes = Buffer.from(name);
    const go = Buffer.alloc(4 + 16 + 4 + bytes.length + 2);
    go.writeUInt32BE(3, 0);
    go.write("IHAVEOPT", 4, "latin1");
    go.writeUInt32BE(7, 12);
    go.writeUInt32BE(4 + bytes.length + 2, 16);
    go.writeUInt32BE(bytes.length, 20);
    bytes.copy(go, 24);
    this.#socket.write(go);
    for (;;) {
      const head = await this.#take(20);
      const type = head.readUInt32BE(12);
      const data = await this.#take(head.readUInt32BE(16));
      if (type >= 0x8000_0000) throw new NbdError(type - 0x8000_0000, `export "${name}" (${data})`);
      if (type === 1) return;
      if (type === 3 && data.readUInt16BE(0) === 0) {
        this.size = Number(data.readBigUInt64BE(2));
        this.flags = data.readUInt16BE(10);
      }
    }
  }

  read(offset: number, length: number): Promise<Buffer> {
    return this.#request(CMD.READ, 0, offset, length, length);
  }
  async write(offset: number, data: Uint8Array, flags = 0): Promise<void> {
    await this.#request(CMD.WRITE, flags, offset, data.length, 0, data);
  }
  async flush(): Promise<void> {
    await this.#request(CMD.FLUSH, 0, 0, 0, 0);
  }
  async trim(offset: number, length: number, flags = 0): Promise<void> {
    await this.#request(CMD.TRIM, flags, offset, length, 0);
  }
  async zero(offset: number, length: number, flags = 0): Promise<void> {
    await this.#request(CMD.WRITE_ZEROES, flags, offset, length, 0);
  }

  /** Says good-bye and hangs up. */
  async close(): Promise<void> {
    if (this.#end !== undefined) return;
    void this.#request(CMD.DISC, 0, 0, 0, 0).catch(() => {});
    await new Promise<void>((resolve) => {
      this.#socket.once("close", () => resolve());
      this.#socket.end();
    });
  }

  #request(
    type: number,
    flags: number,
    offset: number,
    length: number,
    read: number,
    data?: Uint8Array,
  ): Promise<Buffer> {
    if (this.#end !== undefined) return Promise.reject(this.#end);
    const cookie = this.#cookie++;
    const head = Buffer.alloc(28);
    head.writeUInt32BE(REQUEST_MAGIC, 0);
    head.writeUInt16BE(flags, 4);
    head.writeUInt16BE(type, 6);
    head.writeBigUInt64BE(BigInt(cookie), 8);
    head.writeBigUInt64BE(BigInt(offset), 16);
    head.writeUInt32BE(length, 24);
    this.#socket.cork();
    this.#socket.write(head);
    if (data !== undefined) this.#socket.write(data);
    this.#socket.uncork();
    return new Promise((resolve, reject) => {
      this.#waiting.set(cookie, { what: `command ${type} at ${offset}+${length}`, read, resolve, reject });
    });
  }

  async #pump(): Promise<void> {
    try {
      for (;;) {
        const head = await this.#take(16);
        if (head.readUInt32BE(0) !== REPLY_MAGIC) throw new Error("a reply without its magic");
        const cookie = Number(head.readBigUInt64BE(8));
        const waiting = this.#waiting.get(cookie);
        if (waiting === undefined) throw new Error(`a reply to a request that was not made: ${cookie}`);
        const code = head.readUInt32BE(4);
        const data = code === 0 ? await this.#take(waiting.read) : Buffer.alloc(0);
        this.#waiting.delete(cookie);
        if (code === 0) waiting.resolve(data);
        else waiting.reject(new NbdError(code, waiting.what));
      }
    } catch (error) {
      this.#lose(error as Error);
      this.#socket.destroy();
    }
  }

  #take(length: number): Promise<Buffer> {
    return new Promise((resolve, reject) => {
      if (this.#end !== undefined) return reject(this.#end);
      this.#wanted = { length, resolve, reject };
      this.#give();
    });
  }

  #give(): void {
    const wanted = this.#wanted;
    if (wanted === undefined || this.#receivedBytes < wanted.length) return;
    this.#wanted = undefined;
    const all = this.#received.length === 1 ? this.#received[0]! : Buffer.concat(this.#received);
    this.#receivedBytes -= wanted.length;
    this.#received = this.#receivedBytes > 0 ? [all.subarray(wanted.length)] : [];
    wanted.resolve(all.subarray(0, wanted.length));
  }

  #lose(error: Error): void {
    if (this.#end !== undefined) return;
    this.#end = error;
    this.#wanted?.reject(error);
    for (const { reject } of this.#waiting.values()) reject(error);
    this.#waiting.clear();
  }
}
