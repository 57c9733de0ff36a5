/**
 * A load generator that costs little: hundreds of connections of 4 KiB requests from one thread. It builds no object per
 * request and looks only at what could be wrong. fio measures against the peers; this is for what fio cannot do: many
 * volumes, many connections, and chosen places.
 */
import { connect, type Socket } from "node:net";
import { KIB } from "#test/support/temp";

const REQUEST_BYTES = 28;
const REPLY_BYTES = 16;
const REQUEST_MAGIC = 0x25609513;
const REPLY_MAGIC = 0x67446698;
const BLOCK = 4 * KIB;
const RECEIVE_BYTES = 256 * KIB;
/** Of all connections: what comes is looked at before the next one is read. One that each has would be out of the cache. */
const RECEIVED = Buffer.allocUnsafeSlow(RECEIVE_BYTES);

export interface LoadOptions {
  readonly kind: "read" | "write";
  readonly port: number;
  /** One connection for each name. */
  readonly volumes: readonly string[];
  readonly depth: number;
  /** Where the next request goes, in bytes; undefined when there are no more. */
  next(): number | undefined;
  /** Ends by itself after this long; otherwise when `next` does. */
  readonly seconds?: number;
  /** All connections are there, and the load begins. */
  onOpen?(): void;
}
export interface LoadResult {
  readonly operations: number;
  readonly seconds: number;
  readonly rate: number;
}

/** Runs the load to its end. Rejects when a connection ends, or a reply is an error. */
export async function generate(options: LoadOptions): Promise<LoadResult> {
  const lines = await Promise.all(options.volumes.map((volume) => Line.open(options, volume)));
  options.onOpen?.();
  const startedMs = performance.now();
  const timer =
    options.seconds === undefined
      ? undefined
      : setTimeout(() => {
          for (const line of lines) line.isEnding = true;
        }, options.seconds * 1000);
  try {
    await Promise.all(lines.map((line) => line.run()));
  } finally {
    clearTimeout(timer);
    for (const line of lines) line.close();
  }
  const seconds = (performance.now() - startedMs) / 1000;
  const operations = lines.reduce((sum, line) => sum + line.operations, 0);
  return { operations, seconds, rate: operations / seconds };
}

class Line {
  operations = 0;
  isEnding = false;
  readonly #options: LoadOptions;
  readonly #socket: Socket;
  readonly #isWrite: boolean;
  /** Bytes of a whole reply, and how many of the current one have come. */
  readonly #replyBytes: number;
  readonly #head = Buffer.alloc(REPLY_BYTES);
  #got = 0;
  #inFlight = 0;
  #resolve: () => void = () => {};
  #reject: (error: Error) => void = () => {};
  #onHandshake: ((chunk: Buffer) => void) | undefined;

  private constructor(options: LoadOptions) {
    this.#options = options;
    this.#isWrite = options.kind === "write";
    this.#replyBytes = REPLY_BYTES + (this.#isWrite ? 0 : BLOCK);
    this.#socket = connect({
      port: options.port,
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
    this.#socket.on("close", () => this.#reject(new Error("the connection ended")));
  }

  static async open(options: LoadOptions, volume: string): Promise<Line> {
    const line = new Line(options);
    await new Promise<void>((resolve, reject) => {
      line.#reject = reject;
      let told = Buffer.alloc(0);
      let stage = 0;
      line.#onHandshake = (chunk) => {
        told = Buffer.concat([told, chunk]);
        if (stage === 0 && told.length >= 18) {
          stage = 1;
          told = told.subarray(18);
          line.#socket.write(go(volume));
        }
        // Replies to GO, each a header of 20 bytes with its length at the end; type 1 is the last word.
        while (stage === 1 && told.length >= 20 && told.length >= 20 + told.readUInt32BE(16)) {
          const type = told.readUInt32BE(12);
          told = told.subarray(20 + told.readUInt32BE(16));
          if (type >= 0x8000_0000) reject(new Error(`volume "${volume}" was refused`));
          if (type === 1) {
            line.#onHandshake = undefined;
            resolve();
          }
        }
      };
    });
    return line;
  }

  run(): Promise<void> {
    return new Promise((resolve, reject) => {
      this.#resolve = resolve;
      this.#reject = reject;
      this.#send(this.#options.depth);
    });
  }

  close(): void {
    this.#reject = () => {};
    this.#socket.destroy();
  }

  #send(count: number): void {
    const bytes = REQUEST_BYTES + (this.#isWrite ? BLOCK : 0);
    const message = Buffer.allocUnsafe(count * bytes);
    const view = new DataView(message.buffer, message.byteOffset, message.byteLength);
    let at = 0;
    for (; count > 0 && !this.isEnding; count--) {
      const offset = this.#options.next();
      if (offset === undefined) {
        this.isEnding = true;
        break;
      }
      view.setUint32(at, REQUEST_MAGIC);
      view.setUint32(at + 4, this.#isWrite ? 1 : 0);
      view.setUint32(at + 8, 0);
      view.setUint32(at + 12, this.operations + count);
      view.setUint32(at + 16, Math.floor(offset / 0x1_0000_0000));
      view.setUint32(at + 20, offset >>> 0);
      view.setUint32(at + 24, BLOCK);
      // The payload is whatever was in the buffer: not zeroes, and not the same everywhere.
      if (this.#isWrite) view.setFloat64(at + 28, offset + 1);
      at += bytes;
      this.#inFlight++;
    }
    if (at > 0) this.#socket.write(at === message.length ? message : message.subarray(0, at));
    if (this.isEnding && this.#inFlight === 0) this.#resolve();
  }

  #receive(buffer: Buffer, count: number): void {
    if (this.#onHandshake !== undefined) {
      this.#onHandshake(Buffer.from(buffer.subarray(0, count)));
      return;
    }
    let done = 0;
    for (let at = 0; at < count; ) {
      if (this.#got < REPLY_BYTES) {
        const piece = Math.min(REPLY_BYTES - this.#got, count - at);
        buffer.copy(this.#head, this.#got, at, at + piece);
        this.#got += piece;
        at += piece;
        if (
          this.#got === REPLY_BYTES &&
          (this.#head.readUInt32BE(0) !== REPLY_MAGIC || this.#head.readUInt32BE(4) !== 0)
        ) {
          this.#reject(new Error(`a reply is not well: ${this.#head.toString("hex")}`));
          return;
        }
      }
      const rest = Math.min(this.#replyBytes - this.#got, count - at);
      this.#got += rest;
      at += rest;
      if (this.#got === this.#replyBytes) {
        this.#got = 0;
        done++;
      }
    }
    this.operations += done;
    this.#inFlight -= done;
    if (done > 0) this.#send(done);
  }
}

function go(volume: string): Buffer {
  const name = Buffer.from(volume);
  const message = Buffer.alloc(26 + name.length);
  message.writeUInt32BE(3, 0);
  message.write("IHAVEOPT", 4, "latin1");
  message.writeUInt32BE(7, 12);
  message.writeUInt32BE(6 + name.length, 16);
  message.writeUInt32BE(name.length, 20);
  name.copy(message, 24);
  return message;
}

/** Random multiples of `stride` below `end`: quick, and good enough to spread. */
export function scattered(end: number, stride: number, seed = 1): () => number {
  let state = seed;
  const count = Math.floor(end / stride);
  return () => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 0x1_0000_0000) * count) * stride;
  };
}

/** Every multiple of `stride` in [from, end) once, in an order that is neither ascending nor local. */
export function everyOnce(from: number, end: number, stride: number): () => number | undefined {
  const count = Math.floor((end - from) / stride);
  // A step that has no factor in common with the count visits each place once.
  let step = Math.floor(count * 0.6180339887) | 1;
  while (greatestCommonDivisor(step, count) !== 1) step += 2;
  let index = 0;
  let place = 0;
  return () => {
    if (index++ >= count) return undefined;
    place = (place + step) % count;
    return from + place * stride;
  };
}

const greatestCommonDivisor = (a: number, b: number): number => (b === 0 ? a : greatestCommonDivisor(b, a % b));
