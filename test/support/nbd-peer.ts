/**
 * An NBD server that does as a test says: lies, stalls, crashes and forgets what was not flushed. It shares no code
 * with ours, and is slow and plain on purpose. Over a Unix socket.
 */
import { rmSync } from "node:fs";
import { createServer, type Server, type Socket } from "node:net";

export const CMD = { READ: 0, WRITE: 1, DISC: 2, FLUSH: 3, TRIM: 4, CACHE: 5, ZERO: 6, STATUS: 7 } as const;
const NAMES = ["read", "write", "disc", "flush", "trim", "cache", "zero", "status"] as const;
export const FLAGS = {
  HAS_FLAGS: 1,
  READ_ONLY: 2,
  FLUSH: 4,
  FUA: 8,
  TRIM: 32,
  ZERO: 64,
  DF: 128,
  MULTI_CONN: 256,
  CACHE: 1024,
  FAST_ZERO: 2048,
} as const;
/** All that a good server offers. */
export const ALL_FLAGS = 1 | 4 | 8 | 32 | 64 | 128 | 256 | 1024 | 2048;

export interface PeerRequest {
  readonly kind: (typeof NAMES)[number];
  readonly flags: number;
  readonly cookie: Buffer;
  readonly offset: number;
  readonly length: number;
  readonly data: Buffer;
  readonly connection: PeerConnection;
}

export interface PeerOptions {
  size?: number;
  flags?: number;
  style?: "simple" | "structured" | "extended";
  /** minimum, preferred, maximum payload. */
  blockSizes?: readonly [number, number, number];
  exportName?: string;
  contexts?: readonly string[];
  /** No fixed newstyle: EXPORT_NAME only. */
  old?: boolean;
}

export class NbdPeer {
  readonly path: string;
  readonly options: Required<Omit<PeerOptions, "blockSizes">> & Pick<PeerOptions, "blockSizes">;
  /** What clients see, and what a crash leaves. */
  data: Buffer;
  stable: Buffer;
  readonly seen: PeerRequest[] = [];
  readonly connections = new Set<PeerConnection>();
  accepted = 0;
  /** Does something else with a request: true if it has been dealt with. */
  intercept: ((request: PeerRequest) => boolean) | undefined;
  /** Speaks instead of the handshake. */
  greet: ((socket: Socket) => void) | undefined;
  #server: Server | undefined;

  constructor(path: string, options: PeerOptions = {}) {
    this.path = path;
    this.options = {
      size: 1 << 20,
      flags: ALL_FLAGS,
      style: "structured",
      exportName: "",
      contexts: ["base:allocation"],
      old: false,
      ...options,
    };
    this.data = Buffer.alloc(this.options.size);
    this.stable = Buffer.alloc(this.options.size);
  }

  get uri(): string {
    return `nbd+unix:///${this.options.exportName}?socket=${this.path}`;
  }

  async start(): Promise<this> {
    this.#server = createServer((socket) => {
      socket.on("error", () => {});
      this.accepted++;
      if (this.greet !== undefined) {
        this.greet(socket);
        return;
      }
      const connection = new PeerConnection(this, socket);
      this.connections.add(connection);
      socket.on("close", () => this.connections.delete(connection));
      connection.run().catch(() => socket.destroy());
    });
    await new Promise<void>((resolve) => this.#server!.listen(this.path, resolve));
    return this;
  }

  /** Ends the process, so to say: connections are cut, and nobody listens. What it holds stays, like a page cache. */
  stop(): void {
    this.#server?.close();
    rmSync(this.path, { force: true });
    this.cut();
  }
  cut(): void {
    for (const { socket } of this.connections) socket.destroy();
  }
  /** Power is lost: what was not flushed is gone. */
  crash(): void {
    this.stop();
    this.data = Buffer.from(this.stable);
  }
  /** Power is lost, and is back in a moment. */
  async crashAndStart(): Promise<void> {
    this.crash();
    await new Promise((resolve) => setTimeout(resolve, 10));
    await this.start();
  }
  kinds(): string[] {
    return this.seen.map(({ kind }) => kind);
  }
  count(kind: PeerRequest["kind"]): number {
    return this.seen.filter((request) => request.kind === kind).length;
  }
}

export class PeerConnection {
  readonly socket: Socket;
  readonly #peer: NbdPeer;
  #bytes = Buffer.alloc(0);
  #wake: (() => void) | undefined;
  #style: "simple" | "structured" | "extended" = "simple";
  #contexts = new Map<string, number>();

  constructor(peer: NbdPeer, socket: Socket) {
    this.#peer = peer;
    this.socket = socket;
    socket.on("data", (chunk: Buffer) => {
      this.#bytes = Buffer.concat([this.#bytes, chunk]);
      this.#wake?.();
    });
  }

  send(bytes: Buffer | number[]): void {
    if (!this.socket.destroyed) this.socket.write(Buffer.from(bytes));
  }

  async #take(length: number): Promise<Buffer> {
    while (this.#bytes.length < length) {
      if (this.socket.destroyed || this.socket.readableEnded) throw new Error("closed");
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
        this.socket.once("close", resolve);
        this.socket.once("end", resolve);
      });
    }
    const taken = this.#bytes.subarray(0, length);
    this.#bytes = this.#bytes.subarray(length);
    return taken;
  }

  async run(): Promise<void> {
    if (!(await this.#handshake())) {
      this.socket.end();
      return;
    }
    for (;;) {
      const extended = this.#style === "extended";
      const header = await this.#take(extended ? 32 : 28);
      if (this.socket.destroyed) return;
      if (header.readUInt32BE(0) !== (extended ? 0x21e41c71 : 0x25609513)) throw new Error("bad magic");
      const type = header.readUInt16BE(6);
      const length = extended ? Number(header.readBigUInt64BE(24)) : header.readUInt32BE(24);
      const request: PeerRequest = {
        kind: NAMES[type]!,
        flags: header.readUInt16BE(4),
        cookie: Buffer.from(header.subarray(8, 16)),
        offset: Number(header.readBigUInt64BE(16)),
        length,
        data: type === CMD.WRITE ? Buffer.from(await this.#take(length)) : Buffer.alloc(0),
        connection: this,
      };
      if (request.kind === "disc") {
        this.socket.end();
        return;
      }
      this.#peer.seen.push(request);
      if (this.#peer.intercept?.(request) !== true) this.serve(request);
    }
  }

  /** Does what a good server does. */
  serve(request: PeerRequest): void {
    const { kind, offset, length, data, flags } = request;
    const peer = this.#peer;
    const end = offset + length;
    if (kind === "write") data.copy(peer.data, offset);
    if (kind === "zero" || kind === "trim") peer.data.fill(0, offset, end);
    if (kind === "flush") peer.data.copy(peer.stable);
    if ((flags & 1) !== 0 && kind !== "read") peer.data.copy(peer.stable, offset, offset, end);
    if (kind === "read") this.replyData(request, peer.data.subarray(offset, end));
    else if (kind === "status") this.replyStatus(request, [[length, 0]]);
    else this.reply(request, 0);
  }

  reply(request: PeerRequest, error: number): void {
    if (this.#style === "extended") {
      if (error === 0) this.chunk(request, 1, 0, Buffer.alloc(0));
      else this.error(request, error);
    } else this.simple(request.cookie, error);
  }
  simple(cookie: Buffer, error: number, data: Buffer = Buffer.alloc(0)): void {
    const header = Buffer.alloc(16);
    header.writeUInt32BE(0x67446698, 0);
    header.writeUInt32BE(error, 4);
    cookie.copy(header, 8);
    this.send(Buffer.concat([header, data]));
  }
  error(request: PeerRequest, error: number, offset?: number): void {
    if (this.#style === "simple") return this.simple(request.cookie, error);
    const payload = Buffer.alloc(offset === undefined ? 6 : 14);
    payload.writeUInt32BE(error, 0);
    if (offset !== undefined) payload.writeBigUInt64BE(BigInt(offset), 6);
    this.chunk(request, 1, offset === undefined ? 0x8001 : 0x8002, payload);
  }
  replyData(request: PeerRequest, data: Buffer): void {
    if (this.#style === "simple") this.simple(request.cookie, 0, data);
    else this.dataChunk(request, 1, request.offset, data);
  }
  dataChunk(request: PeerRequest, flags: number, offset: number, data: Buffer): void {
    this.chunk(request, flags, 1, Buffer.concat([u64(offset), data]));
  }
  holeChunk(request: PeerRequest, flags: number, offset: number, length: number): void {
    this.chunk(request, flags, 2, Buffer.concat([u64(offset), u32(length)]));
  }
  replyStatus(
    request: PeerRequest,
    runs: readonly (readonly [number, number])[],
    name = "base:allocation",
    done = 1,
  ): void {
    const id = this.#contexts.get(name)!;
    const extended = this.#style === "extended";
    const head = extended ? [u32(id), u32(runs.length)] : [u32(id)];
    const body = runs.flatMap(([length, flags]) => (extended ? [u64(length), u64(flags)] : [u32(length), u32(flags)]));
    this.chunk(request, done, extended ? 6 : 5, Buffer.concat([...head, ...body]));
  }
  chunk(
    request: Pick<PeerRequest, "cookie" | "offset">,
    flags: number,
    type: number,
    payload: Buffer,
    length?: number,
  ): void {
    const extended = this.#style === "extended";
    const header = Buffer.alloc(extended ? 32 : 20);
    header.writeUInt32BE(extended ? 0x6e8a278c : 0x668e33ef, 0);
    header.writeUInt16BE(flags, 4);
    header.writeUInt16BE(type, 6);
    request.cookie.copy(header, 8);
    if (extended) {
      u64(request.offset).copy(header, 16);
      u64(length ?? payload.length).copy(header, 24);
    } else header.writeUInt32BE(length ?? payload.length, 16);
    this.send(Buffer.concat([header, payload]));
  }

  async #handshake(): Promise<boolean> {
    const { options } = this.#peer;
    this.send(Buffer.concat([Buffer.from("NBDMAGICIHAVEOPT"), u16(options.old ? 0 : 3)]));
    await this.#take(4);
    for (;;) {
      const header = await this.#take(16);
      const option = header.readUInt32BE(8);
      const data = await this.#take(header.readUInt32BE(12));
      const answer = (type: number, payload: Buffer = Buffer.alloc(0)): void =>
        this.send(Buffer.concat([u64(0x3e889045565a9), u32(option), u32(type), u32(payload.length), payload]));
      if (option === 1) {
        if (data.toString() !== options.exportName) return false;
        this.send(Buffer.concat([u64(options.size), u16(options.flags), Buffer.alloc(options.old ? 124 : 0)]));
        return true;
      }
      if (option === 2) {
        answer(1);
        return false;
      }
      if (option === 11 && options.style === "extended") {
        this.#style = "extended";
        answer(1);
      } else if (option === 8 && options.style !== "simple") {
        this.#style = "structured";
        answer(1);
      } else if (option === 10) {
        options.contexts.forEach((name, index) => {
          this.#contexts.set(name, index + 1);
          answer(4, Buffer.concat([u32(index + 1), Buffer.from(name)]));
        });
        answer(1);
      } else if (option === 7) {
        const name = data.subarray(4, 4 + data.readUInt32BE(0)).toString();
        if (name !== options.exportName) {
          answer(0x80000006);
          continue;
        }
        answer(3, Buffer.concat([u16(0), u64(options.size), u16(options.flags)]));
        if (options.blockSizes !== undefined) answer(3, Buffer.concat([u16(3), ...options.blockSizes.map(u32)]));
        answer(1);
        return true;
      } else answer(0x80000001);
    }
  }
}

export function u16(value: number): Buffer {
  const bytes = Buffer.alloc(2);
  bytes.writeUInt16BE(value);
  return bytes;
}
export function u32(value: number): Buffer {
  const bytes = Buffer.alloc(4);
  bytes.writeUInt32BE(value >>> 0);
  return bytes;
}
export function u64(value: number): Buffer {
  const bytes = Buffer.alloc(8);
  bytes.writeBigUInt64BE(BigInt(value));
  return bytes;
}
