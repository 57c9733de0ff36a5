/**
 * An NBD client for tests of the front, in the test's own hands: it shakes hands as told, makes any request, also wrong
 * ones, and takes the answers apart. It holds the server to the document: a reply out of step fails the test.
 */
import assert from "node:assert/strict";
import type { NbdFront } from "#target/nbd-front";
import { Cmd, CmdFlag, Info, Opt, Rep, ReplyFlag, ReplyType } from "#wire/nbd/codes";
import {
  decodeInfoReply,
  decodeMetaContext,
  encodeClientFlags,
  encodeInfoRequest,
  encodeMetaContextRequest,
  encodeOption,
} from "#wire/nbd/handshake";
import { decodeError, decodeReply, ErrorChunk, Reply, type ReplyStyle, replyBytes } from "#wire/nbd/reply";
import { encodeRequest, Request } from "#wire/nbd/request";
import { type StillEnv, StillLine } from "./still-env.ts";

export interface Chunk {
  readonly type: number;
  readonly done: boolean;
  readonly payload: Uint8Array;
}
/** All that came in answer to one request. */
export interface Answer {
  readonly error: number;
  readonly chunks: Chunk[];
  /** Of a simple reply to a read. */
  readonly data: Uint8Array;
}
export interface OptionAnswer {
  readonly option: number;
  readonly type: number;
  readonly data: Uint8Array;
}

export const join = (...parts: Uint8Array[]): Uint8Array => new Uint8Array(Buffer.concat(parts));
const viewOf = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

export class NbdGuest {
  readonly env: StillEnv;
  line: StillLine;
  style: ReplyStyle = "simple";
  size = 0;
  flags = 0;
  contexts = new Map<string, number>();
  #heard: Uint8Array = new Uint8Array(0);
  #cookie = 1;
  /** Lengths of reads in flight, by cookie: a simple reply does not tell how long it is. */
  readonly #reads = new Map<number, number>();
  /** Chunks of answers that are not over yet. */
  readonly #open = new Map<number, Chunk[]>();
  readonly answers = new Map<number, Answer>();

  constructor(env: StillEnv, front: NbdFront, line = new StillLine(env)) {
    this.env = env;
    this.line = line;
    front.accept(line);
  }

  /** Shakes hands and opens `name`; then the front's connection is in the transmission phase. */
  static open(
    env: StillEnv,
    front: NbdFront,
    name: string,
    options: { style?: ReplyStyle; contexts?: string[]; line?: StillLine; asksSizes?: boolean } = {},
  ): NbdGuest {
    const guest = new NbdGuest(env, front, options.line);
    guest.greet();
    guest.agree(options.style ?? "simple", options.contexts ?? [], name, options.asksSizes ?? true);
    return guest;
  }

  greet(flags = 3): void {
    this.env.settle();
    assert.equal(this.take(18).length, 18);
    this.give(encodeClientFlags(flags));
  }

  agree(style: ReplyStyle, contexts: string[], name: string, asksSizes: boolean): void {
    this.style = style;
    if (style === "structured") assert.equal(this.option(Opt.STRUCTURED_REPLY).at(-1)!.type, Rep.ACK);
    if (style === "extended") assert.equal(this.option(Opt.EXTENDED_HEADERS).at(-1)!.type, Rep.ACK);
    if (contexts.length > 0)
      for (const answer of this.option(Opt.SET_META_CONTEXT, encodeMetaContextRequest({ name, queries: contexts }))) {
        if (answer.type !== Rep.META_CONTEXT) continue;
        const context = decodeMetaContext(answer.data);
        assert.ok(typeof context !== "string");
        this.contexts.set(context.name, context.id);
      }
    const answers = this.option(Opt.GO, encodeInfoRequest(name, asksSizes ? [Info.BLOCK_SIZE] : []));
    assert.equal(answers.at(-1)!.type, Rep.ACK, `GO ${name}`);
    for (const answer of answers) {
      if (answer.type !== Rep.INFO) continue;
      const info = decodeInfoReply(answer.data);
      if (typeof info !== "string" && info.info === "export") [this.size, this.flags] = [info.size, info.flags];
    }
  }

  /** Sends an option; returns all that is said in answer. */
  option(option: number, data?: Uint8Array): OptionAnswer[] {
    this.give(encodeOption(option, data));
    const answers: OptionAnswer[] = [];
    while (this.pending >= 20) {
      const head = viewOf(this.take(20));
      assert.equal(head.getUint32(0), 0x0003e889);
      assert.equal(head.getUint32(4), 0x045565a9);
      assert.equal(head.getUint32(8), option);
      answers.push({ option, type: head.getUint32(12), data: this.take(head.getUint32(16)) });
    }
    return answers;
  }

  give(bytes: Uint8Array): void {
    this.line.give(bytes);
    this.env.settle();
  }

  #listen(): void {
    const heard = this.line.heard();
    if (heard.length > 0) this.#heard = join(this.#heard, heard);
  }
  /** Bytes that the server has said and the test has not taken. */
  get pending(): number {
    this.#listen();
    return this.#heard.length;
  }
  take(count: number): Uint8Array {
    this.#listen();
    assert.ok(this.#heard.length >= count, `${count} bytes expected, ${this.#heard.length} there`);
    const taken = this.#heard.subarray(0, count);
    this.#heard = this.#heard.subarray(count);
    return taken;
  }

  /** The bytes of a request, with its payload. Fields may lie: `length` need not be the payload's. */
  encode(type: number, offset: number, length: number, flags = 0, payload: Uint8Array = new Uint8Array(0)): Uint8Array {
    const request = new Request();
    request.type = type;
    request.flags = flags;
    request.cookieHi = 0xabcd;
    request.cookieLo = this.#cookie++;
    request.setOffset(offset);
    request.length = length;
    if (type === Cmd.READ) this.#reads.set(request.cookieLo, length);
    const bytes = new Uint8Array(this.style === "extended" ? 32 : 28);
    encodeRequest(request, viewOf(bytes), 0, this.style === "extended");
    return payload.length === 0 ? bytes : join(bytes, payload);
  }
  get lastCookie(): number {
    return this.#cookie - 1;
  }

  /** Makes a request and settles; the answer must be there. */
  ask(type: number, offset: number, length: number, flags = 0, payload?: Uint8Array): Answer {
    this.give(this.encode(type, offset, length, flags, payload));
    return this.answer(this.lastCookie);
  }
  read(offset: number, length: number, flags = 0): Uint8Array {
    const answer = this.ask(Cmd.READ, offset, length, flags);
    assert.equal(answer.error, 0);
    return this.assemble(answer, offset, length);
  }
  write(offset: number, data: Uint8Array, flags = 0): number {
    const more = this.style === "extended" ? CmdFlag.PAYLOAD_LEN : 0;
    return this.ask(Cmd.WRITE, offset, data.length, flags | more, data).error;
  }

  /** The data of a read's answer; each byte must have been told exactly once. */
  assemble(answer: Answer, offset: number, length: number): Uint8Array {
    if (this.style === "simple") return answer.data;
    const data = new Uint8Array(length);
    let told = 0;
    for (const chunk of answer.chunks) {
      const view = viewOf(chunk.payload);
      if (chunk.type === ReplyType.OFFSET_DATA) {
        data.set(chunk.payload.subarray(8), Number(view.getBigUint64(0)) - offset);
        told += chunk.payload.length - 8;
      } else if (chunk.type === ReplyType.OFFSET_HOLE) {
        told += view.getUint32(8);
      }
    }
    assert.equal(told, length);
    return data;
  }

  answer(cookie: number): Answer {
    this.collect();
    const answer = this.answers.get(cookie);
    assert.ok(answer !== undefined, `no answer to request ${cookie}`);
    return answer;
  }

  /** Takes apart all that has been said. */
  collect(): void {
    while (this.pending >= 4) {
      const bytes = replyBytes(viewOf(this.#heard).getUint32(0));
      assert.ok(bytes > 0, "the stream is out of step");
      if (this.pending < bytes) return;
      const reply = new Reply();
      decodeReply(reply, viewOf(this.#heard), 0);
      assert.equal(reply.cookieHi, 0xabcd);
      const payload =
        reply.style !== "simple" ? reply.length : reply.error === 0 ? (this.#reads.get(reply.cookieLo) ?? 0) : 0;
      if (this.pending < bytes + payload) return;
      this.take(bytes);
      this.#file(reply, this.take(payload));
    }
  }

  #file(reply: Reply, payload: Uint8Array): void {
    if (reply.style === "simple") {
      assert.notEqual(this.style, "extended");
      this.answers.set(reply.cookieLo, { error: reply.error, chunks: [], data: payload });
      return;
    }
    assert.equal(reply.style, this.style);
    const chunks = this.#open.get(reply.cookieLo) ?? [];
    this.#open.set(reply.cookieLo, chunks);
    const done = (reply.flags & ReplyFlag.DONE) !== 0;
    chunks.push({ type: reply.type, done, payload });
    if (!done) return;
    this.#open.delete(reply.cookieLo);
    let error = 0;
    for (const chunk of chunks) {
      const slot = new ErrorChunk();
      if (chunk.type >= 0x8000) {
        assert.equal(decodeError(slot, chunk.type, viewOf(chunk.payload), 0, chunk.payload.length), undefined);
        error ||= slot.error;
      }
    }
    this.answers.set(reply.cookieLo, { error, chunks, data: new Uint8Array(0) });
  }
}
