/**
 * The ceiling: an NBD server that stores nothing, on one of the real Envs. What it reaches is what sockets, the loop and
 * the client allow; what a real volume costs is the difference. With a file, reads are answered with what is there, and
 * nothing is checked: what reading costs without map, log and checksums. Writes are thrown away.
 *
 *   node dist/bench/null-server.js --env uring|node [--port N | --socket PATH] [--size GIB] [--file PATH]
 */
import { parseArgs } from "node:util";
import { readU64 } from "#base/layout";
import { Pieces } from "#base/memory";
import { perform, promiseOf, type Task } from "#base/task";
import { GIB, KIB, MIB } from "#base/units";
import { chooseEnv, type EnvWish } from "#env/choose";
import {
  DiskOp,
  type Ear,
  type Env,
  type File,
  isDiskFault,
  isNetError,
  type Line,
  type Listener,
  type NetError,
  Soon,
} from "#env/env";
import { makeEnv } from "#env/make-env";

const RECEIVE_BYTES = 256 * KIB;
/** Requests in flight per connection; a reply of up to 4 KiB lies in one piece, as in the real server. */
const SLOTS = 64;
const SLOT_BYTES = 4608;
const DATA_BYTES_MAX = 32 * MIB;
/** NBD proto.md: lengths of a request, of a reply's header (simple, or of a chunk with data), of an option's. */
const REQUEST_BYTES = 28;
const SIMPLE_BYTES = 16;
const CHUNK_BYTES = 28;
const OPTION_BYTES = 16;
const OPTION = { EXPORT_NAME: 1, INFO: 6, GO: 7, STRUCTURED_REPLY: 8 } as const;
const REPLY = { ACK: 1, INFO: 3, UNSUPPORTED: 0x80000001 } as const;
/** Has flags, flush, FUA; may be used by several connections. */
const EXPORT_FLAGS = 0b1_0000_1101;

/** One connection. Replies of a turn leave in one send. */
class NullConnection implements Ear {
  readonly #env: Env;
  readonly #line: Line;
  readonly #size: number;
  readonly #in: number;
  readonly #replies: number;
  readonly #flush = new Soon(() => this.#sendReplies());
  #stage: "flags" | "options" | "requests" = "flags";
  /** Reads are answered with chunks, as the peers do it for whoever asks: libnbd takes twice as many calls for one. */
  #structured = false;
  #requests = 0;
  #filled = 0;
  /** Bytes of a write's payload still to be thrown away. */
  #skip = 0;
  /** The slots of replies that are being sent are one half, those of the next send the other. */
  #half = 0;
  #used = 0;
  #building = new Pieces();
  #leaving = new Pieces();
  #sending = false;
  #receiving = false;
  /** With a file: reads that have no answer yet, and the buffers of those that are being built or sent. */
  #reading = 0;
  #builtBuffers: number[] = [];
  #leavingBuffers: number[] = [];
  readonly #spares: FileRead[] = [];
  #closed = false;

  constructor(env: Env, line: Line, size: number) {
    this.#env = env;
    this.#line = line;
    this.#size = size;
    line.ear = this;
    this.#in = env.memory.allocate(RECEIVE_BYTES);
    this.#replies = env.memory.allocate(2 * SLOTS * SLOT_BYTES);
    const greeting = this.#slot();
    env.memory.view.setBigUint64(greeting, 0x4e42444d41474943n);
    env.memory.view.setBigUint64(greeting + 8, 0x49484156454f5054n);
    env.memory.view.setUint16(greeting + 16, 3);
    this.#building.add(greeting, 18);
    env.turn.soon(this.#flush);
    this.#receive();
  }

  onReceived(count: number): void {
    this.#receiving = false;
    if (count === 0) {
      this.#line.close();
      return;
    }
    this.#filled += count;
    this.#cut();
    this.#receive();
  }

  onSent(): void {
    this.#sending = false;
    for (const at of this.#leavingBuffers.splice(0)) this.#env.memory.free(at);
    this.#sendReplies();
    this.#cut();
    this.#receive();
  }

  onClosed(): void {
    this.#closed = true;
    for (const at of [this.#in, this.#replies, ...this.#builtBuffers, ...this.#leavingBuffers])
      this.#env.memory.free(at);
  }

  #readFile(from: File, position: number, length: number, at: number): void {
    const read = this.#spares.pop() ?? new FileRead((done) => this.#onRead(done));
    read.at = this.#env.memory.allocate(CHUNK_BYTES + length);
    if (read.at === 0) throw new Error("no memory for a read");
    read.header = this.#writeHeader(read.at, at, length);
    const { op } = read;
    op.kind = "read";
    op.file = from;
    op.position = position;
    op.at = read.at + read.header;
    op.length = length;
    this.#reading++;
    this.#env.disk.submit(op);
  }

  #onRead(read: FileRead): void {
    this.#reading--;
    if (this.#closed) return this.#env.memory.free(read.at);
    if (read.op.fault !== undefined) throw new Error(`the file cannot be read: ${read.op.fault}`);
    this.#building.add(read.at, read.header + read.op.length);
    this.#builtBuffers.push(read.at);
    this.#spares.push(read);
    this.#env.turn.soon(this.#flush);
  }

  /** The header of the answer to the request at `request`; `data` follow it if it is a read. Returns its length. */
  #writeHeader(at: number, request: number, data: number): number {
    const { view } = this.#env.memory;
    const isChunk = this.#structured && view.getUint16(request + 6) === 0;
    view.setUint32(at, isChunk ? 0x668e33ef : 0x67446698);
    // A chunk: the last one (DONE), OFFSET_DATA.
    view.setUint32(at + 4, isChunk ? 0x0001_0001 : 0);
    view.setUint32(at + 8, view.getUint32(request + 8));
    view.setUint32(at + 12, view.getUint32(request + 12));
    if (!isChunk) return SIMPLE_BYTES;
    view.setUint32(at + 16, 8 + data);
    view.setUint32(at + 20, view.getUint32(request + 16));
    view.setUint32(at + 24, view.getUint32(request + 20));
    return CHUNK_BYTES;
  }

  #receive(): void {
    if (this.#receiving || this.#filled === RECEIVE_BYTES) return;
    this.#receiving = true;
    if (this.#filled === 0) {
      this.#line.gather?.(this.#requests);
      this.#requests = 0;
    }
    this.#line.receive(this.#in + this.#filled, RECEIVE_BYTES - this.#filled);
  }

  #cut(): void {
    let at = this.#in;
    const end = at + this.#filled;
    for (let next = -1; next !== at; ) {
      const part = Math.min(this.#skip, end - at);
      at += part;
      this.#skip -= part;
      if (this.#skip > 0) break;
      next = at;
      at = this.#stage === "requests" ? this.#takeRequest(at, end) : this.#takeOption(at, end);
    }
    if (at === this.#in) return;
    this.#env.memory.bytes.copyWithin(this.#in, at, end);
    this.#filled = end - at;
  }

  #takeRequest(at: number, end: number): number {
    if (end - at < REQUEST_BYTES || this.#used + this.#reading >= SLOTS) return at;
    const { view } = this.#env.memory;
    const type = view.getUint16(at + 6);
    const length = view.getUint32(at + 24);
    if (readU64(view, at + 16) + length > this.#size || type === 2) {
      this.#line.close();
      return at;
    }
    this.#requests++;
    if (file !== undefined && type === 0) {
      this.#readFile(file, readU64(view, at + 16), length, at);
      return at + REQUEST_BYTES;
    }
    const reply = this.#slot();
    const header = this.#writeHeader(reply, at, length);
    if (type === 0 && length <= SLOT_BYTES - CHUNK_BYTES) {
      this.#building.add(reply, header + length);
    } else {
      this.#building.add(reply, header);
      if (type === 0) this.#building.add(zeroes, length);
      if (type === 1) this.#skip = length;
    }
    this.#env.turn.soon(this.#flush);
    return at + REQUEST_BYTES;
  }

  #takeOption(at: number, end: number): number {
    const { view } = this.#env.memory;
    if (this.#stage === "flags") {
      if (end - at < 4) return at;
      this.#stage = "options";
      return at + 4;
    }
    if (end - at < OPTION_BYTES) return at;
    const option = view.getUint32(at + 8);
    const length = view.getUint32(at + 12);
    if (end - at < OPTION_BYTES + length) return at;
    if (option === OPTION.EXPORT_NAME) this.#replyExportName();
    else if (option === OPTION.INFO || option === OPTION.GO) this.#replyInfo(option);
    else if (option === OPTION.STRUCTURED_REPLY) {
      this.#structured = true;
      this.#replyOption(this.#slot(), option, REPLY.ACK, 0);
    } else this.#replyOption(this.#slot(), option, REPLY.UNSUPPORTED, 0);
    if (option === OPTION.EXPORT_NAME || option === OPTION.GO) this.#stage = "requests";
    this.#env.turn.soon(this.#flush);
    return at + OPTION_BYTES + length;
  }

  #replyExportName(): void {
    const at = this.#slot();
    this.#env.memory.view.setBigUint64(at, BigInt(this.#size));
    this.#env.memory.view.setUint16(at + 8, EXPORT_FLAGS);
    this.#building.add(at, 10);
  }

  #replyInfo(option: number): void {
    const { view } = this.#env.memory;
    const at = this.#slot();
    view.setUint16(at + 20, 0);
    view.setBigUint64(at + 22, BigInt(this.#size));
    view.setUint16(at + 30, EXPORT_FLAGS);
    this.#replyOption(at, option, REPLY.INFO, 12);
    this.#replyOption(this.#slot(), option, REPLY.ACK, 0);
  }

  #replyOption(at: number, option: number, type: number, length: number): void {
    const { view } = this.#env.memory;
    view.setBigUint64(at, 0x0003e889045565a9n);
    view.setUint32(at + 8, option);
    view.setUint32(at + 12, type);
    view.setUint32(at + 16, length);
    this.#building.add(at, 20 + length);
  }

  #slot(): number {
    return this.#replies + (this.#half * SLOTS + this.#used++) * SLOT_BYTES;
  }

  #sendReplies(): void {
    if (this.#sending || this.#building.count === 0) return;
    this.#sending = true;
    const pieces = this.#building;
    this.#building = this.#leaving;
    this.#leaving = pieces;
    this.#building.clear();
    const buffers = this.#builtBuffers;
    this.#builtBuffers = this.#leavingBuffers;
    this.#leavingBuffers = buffers;
    this.#half ^= 1;
    this.#used = 0;
    this.#line.send(pieces);
  }
}

class FileRead {
  at = 0;
  /** Bytes in front of its data. */
  header = 0;
  readonly op: DiskOp;
  constructor(done: (read: FileRead) => void) {
    this.op = new DiskOp(() => done(this));
  }
}

const { values } = parseArgs({
  options: {
    env: { type: "string", default: "auto" },
    port: { type: "string", default: "0" },
    socket: { type: "string" },
    size: { type: "string", default: "1" },
    file: { type: "string" },
  },
});
const { kind, why } = chooseEnv(values.env as EnvWish);
const silent = { debug() {}, info() {}, warn() {}, error() {} };
const env = makeEnv(kind, { memoryBytes: 1024 * MIB, log: silent });
/** What every read is answered with. */
const zeroes = env.memory.allocate(DATA_BYTES_MAX);
const address =
  values.socket === undefined ? { host: "127.0.0.1", port: Number(values.port) } : { path: values.socket };

function* serve(): Task<Listener | NetError> {
  return yield* perform(
    env.net.listen(address, (line) => void new NullConnection(env, line, Number(values.size) * GIB)),
  );
}

const opened = values.file === undefined ? undefined : await promiseOf(perform(env.disk.open(values.file, "read")));
if (opened !== undefined && isDiskFault(opened)) throw new Error(`${values.file}: ${opened}`);
const file = opened;

const listener = await promiseOf(serve());
if (isNetError(listener)) throw new Error(listener.detail);
console.log(`${kind} (${why}) listens on ${JSON.stringify(listener.address)}`);
