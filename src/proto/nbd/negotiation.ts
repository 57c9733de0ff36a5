/**
 * The server's side of NBD's handshake, from the greeting to the transmission phase: NBD proto.md "Handshake", fixed
 * newstyle. It is a story without I/O: it takes bytes as they come, in pieces of any size, and says what to send. Who
 * may see and have which export it asks its `Doorkeeper`; TLS it asks its driver for.
 *
 * Promises: an option that is wrong in itself is answered and the next one is read in step; only what the document
 * says must end the session does. Nothing agreed on before STARTTLS holds after it. Memory follows the bytes that
 * have really arrived, and not what a length claims.
 */

import { writeU64 } from "#base/layout";
import {
  BASE_ALLOCATION,
  ClientFlag,
  EXPORT_NAME_ZEROES,
  Flag,
  HandshakeFlag,
  IHAVEOPT,
  Info,
  nameOf,
  Opt,
  QEMU_ALLOCATION_DEPTH,
  Rep,
} from "#wire/nbd/codes";
import {
  CLIENT_FLAGS,
  decodeInfoRequest,
  decodeMetaContextRequest,
  EXPORT_NAME_REPLY,
  encodeGreeting,
  encodeInfoBlockSize,
  encodeInfoExport,
  encodeInfoString,
  encodeMetaContext,
  encodeOptionReply,
  encodeServerReply,
  encodeText,
  isMagic,
  isOptionFault,
  type MetaContext,
  OPTION,
  OPTION_BYTES_MAX,
  type OptionFault,
  readText,
  type ServerReply,
} from "#wire/nbd/handshake";
import type { ReplyStyle } from "#wire/nbd/reply";

/** An option with more data than this is taken for an attack: it is not worth reading to the end. Bytes. */
const OPTION_BYTES_READ_MAX = 0x200_0000;

/** An export as this peer may have it. */
export interface Offer {
  readonly name: string;
  readonly description: string;
  readonly readOnly: boolean;
  /** Bytes. */
  readonly size: number;
  /** Offsets and lengths are multiples of it, in bytes. */
  readonly blockSize: number;
  readonly preferredBlockSize: number;
}
export type OfferRefusal = "not-found" | "tls-required" | "denied" | "away" | "shutting-down";
const isRefusal = (value: Offer | OfferRefusal): value is OfferRefusal => typeof value === "string";

/** What a negotiation needs to know of its server, for the peer at the other end. */
export interface Doorkeeper {
  /** "off": not to be had; "allow": if the client wants; "require": nothing else before it. */
  readonly tls: "off" | "allow" | "require";
  /** The client must ask for the block sizes of exports whose blocks are larger than 512 bytes. */
  readonly blockSizesRequired: boolean;
  /** The largest payload of a request, in bytes. */
  readonly maximumPayload: number;
  readonly draining: boolean;
  list(): Iterable<ServerReply>;
  find(name: string): Offer | OfferRefusal;
}

/** Metadata contexts, with the id each of them has on every connection. */
export const CONTEXTS: readonly MetaContext[] = [
  { id: 1, name: BASE_ALLOCATION },
  { id: 2, name: QEMU_ALLOCATION_DEPTH },
];

/** What both sides have agreed on for the transmission phase. Plain data: it can go to another lane. */
export interface Agreement {
  readonly name: string;
  readonly style: ReplyStyle;
  readonly contexts: readonly MetaContext[];
  readonly readOnly: boolean;
  /** The export's size as it was told, in bytes. */
  readonly size: number;
  /**
   * What the client keeps to, in bytes. It is 1 for a client that did not ask for block sizes: "If size constraints
   * have not been advertised […] a server SHOULD support a default minimum block size of 1".
   */
  readonly blockSize: number;
  readonly maximumPayload: number;
}

export type Outcome =
  | { readonly kind: "agreed"; readonly agreement: Agreement }
  /** "stopped": the client wanted it so. "violated": it broke the protocol. "refused": it cannot have what it wants. */
  | { readonly kind: "ended"; readonly why: "stopped" | "violated" | "refused"; readonly detail: string };

type Story = Generator<number | "secure", Outcome, Uint8Array>;

/** One connection's handshake. The driver sends `takeOutput()`, then acts on `stage`. */
export class Negotiation {
  readonly #keeper: Doorkeeper;
  readonly #story: Story;
  #output: Uint8Array[] = [];
  /** Bytes that the story waits for, and those of them that have come. */
  #wanted = 0;
  #got: Uint8Array[] = [];
  #gotBytes = 0;
  #stage: "reading" | "securing" | "over" = "reading";
  #outcome: Outcome | undefined;
  #options = 0;

  #fixed = false;
  #noZeroes = false;
  #secure = false;
  #style: ReplyStyle = "simple";
  #contexts: { readonly exportName: string; readonly chosen: readonly MetaContext[] } | undefined;

  constructor(keeper: Doorkeeper) {
    this.#keeper = keeper;
    this.#story = this.#tell();
    this.#advance(new Uint8Array(0));
  }

  /** "securing": once all output is sent, start TLS, and call `secured`. "over": see `outcome`. */
  get stage(): "reading" | "securing" | "over" {
    return this.#stage;
  }
  get outcome(): Outcome | undefined {
    return this.#outcome;
  }
  /** How many options have been read: the handshake moves as long as this grows. */
  get options(): number {
    return this.#options;
  }

  /** Takes bytes in; returns how many it took. It takes no more than it needs, and none unless it is reading. */
  feed(bytes: Uint8Array): number {
    let used = 0;
    while (this.#stage === "reading" && used < bytes.length) {
      const part = bytes.subarray(used, used + this.#wanted - this.#gotBytes);
      used += part.length;
      this.#gotBytes += part.length;
      if (this.#gotBytes === this.#wanted && this.#got.length === 0) {
        this.#advance(part);
      } else {
        this.#got.push(part.slice());
        if (this.#gotBytes === this.#wanted) this.#advance(joined(this.#got, this.#gotBytes));
      }
    }
    return used;
  }

  /** TLS is up. */
  secured(): void {
    this.#secure = true;
    this.#stage = "reading";
    this.#advance(new Uint8Array(0));
  }

  /** What is to be sent, in order; it is handed out once. */
  takeOutput(): Uint8Array[] {
    const output = this.#output;
    this.#output = [];
    return output;
  }

  #advance(given: Uint8Array): void {
    this.#got = [];
    this.#gotBytes = 0;
    for (let bytes = given; ; bytes = new Uint8Array(0)) {
      const step = this.#story.next(bytes);
      if (step.done === true) {
        this.#outcome = step.value;
        this.#stage = "over";
        return;
      }
      if (step.value === "secure") {
        this.#stage = "securing";
        return;
      }
      this.#wanted = step.value;
      if (step.value > 0) return;
    }
  }

  *#tell(): Story {
    this.#send(encodeGreeting(HandshakeFlag.FIXED_NEWSTYLE | HandshakeFlag.NO_ZEROES));
    const flags = viewOf(yield CLIENT_FLAGS.byteLength).getUint32(CLIENT_FLAGS.flags);
    if ((flags & ~(ClientFlag.C_FIXED_NEWSTYLE | ClientFlag.C_NO_ZEROES)) !== 0)
      return violated(`the client set unknown handshake flags: 0x${flags.toString(16)}`);
    this.#fixed = (flags & ClientFlag.C_FIXED_NEWSTYLE) !== 0;
    this.#noZeroes = (flags & ClientFlag.C_NO_ZEROES) !== 0;

    for (;;) {
      const head = viewOf(yield OPTION.byteLength);
      if (!isMagic(head, OPTION.magicHi, IHAVEOPT)) return violated("what should be an option does not begin like one");
      const option = head.getUint32(OPTION.option);
      const length = head.getUint32(OPTION.length);
      if (length > OPTION_BYTES_READ_MAX) return violated(`option ${nameOf(Opt, option)} has ${length} bytes of data`);
      if (!this.#fixed && option !== Opt.EXPORT_NAME)
        return violated(`option ${nameOf(Opt, option)} from a client that does not speak fixed newstyle`);
      let data: Uint8Array | undefined;
      if (length <= OPTION_BYTES_MAX) data = length === 0 ? new Uint8Array(0) : yield length;
      else for (let left = length; left > 0; left -= OPTION_BYTES_MAX) yield Math.min(left, OPTION_BYTES_MAX);
      this.#options++;

      const outcome = this.#answer(option, data);
      if (outcome === "secure") {
        yield "secure";
        // "the server MUST NOT preserve any negotiation state issued before this command".
        this.#style = "simple";
        this.#contexts = undefined;
      } else if (outcome !== undefined) {
        return outcome;
      }
    }
  }

  /** @param data undefined when there was more of it than any option can need. */
  #answer(option: number, data: Uint8Array | undefined): Outcome | "secure" | undefined {
    if (option === Opt.ABORT) {
      this.#reply(option, Rep.ACK);
      return { kind: "ended", why: "stopped", detail: "the client ended the handshake" };
    }
    if (option === Opt.EXPORT_NAME) return this.#exportName(data);
    if (this.#keeper.draining) return this.#error(option, Rep.ERR_SHUTDOWN, "the server is shutting down");
    if (option === Opt.STARTTLS) return this.#startTls(data);
    if (this.#keeper.tls === "require" && !this.#secure)
      return this.#error(option, Rep.ERR_TLS_REQD, "this server requires TLS");
    if (data === undefined) return this.#error(option, Rep.ERR_TOO_BIG, "the option has too much data");
    switch (option) {
      case Opt.LIST:
        return this.#list(data);
      case Opt.INFO:
      case Opt.GO:
        return this.#info(option, data);
      case Opt.STRUCTURED_REPLY:
        return this.#structuredReply(data);
      case Opt.EXTENDED_HEADERS:
        if (data.length > 0) return this.#error(option, Rep.ERR_INVALID, "the option has no data");
        this.#style = "extended";
        return this.#reply(option, Rep.ACK);
      case Opt.LIST_META_CONTEXT:
      case Opt.SET_META_CONTEXT:
        return this.#metaContext(option, data);
      default:
        return this.#error(option, Rep.ERR_UNSUP, "this server does not know the option");
    }
  }

  #startTls(data: Uint8Array | undefined): "secure" | undefined {
    const option = Opt.STARTTLS;
    if (data === undefined || data.length > 0) return this.#error(option, Rep.ERR_INVALID, "the option has no data");
    if (this.#secure) return this.#error(option, Rep.ERR_INVALID, "TLS is in use already");
    if (this.#keeper.tls === "off") return this.#error(option, Rep.ERR_POLICY, "TLS is not set up on this server");
    this.#reply(option, Rep.ACK);
    return "secure";
  }

  #list(data: Uint8Array): undefined {
    if (data.length > 0) return this.#error(Opt.LIST, Rep.ERR_INVALID, "the option has no data");
    for (const server of this.#keeper.list()) this.#reply(Opt.LIST, Rep.SERVER, encodeServerReply(server));
    return this.#reply(Opt.LIST, Rep.ACK);
  }

  #structuredReply(data: Uint8Array): undefined {
    const option = Opt.STRUCTURED_REPLY;
    if (data.length > 0) return this.#error(option, Rep.ERR_INVALID, "the option has no data");
    if (this.#style === "extended")
      return this.#error(option, Rep.ERR_EXT_HEADER_REQD, "extended headers are in use, and go further");
    this.#style = "structured";
    return this.#reply(option, Rep.ACK);
  }

  #info(option: number, data: Uint8Array): Outcome | undefined {
    const request = decodeInfoRequest(data);
    if (isOptionFault(request)) return this.#fault(option, request);
    const offer = this.#keeper.find(request.name);
    if (isRefusal(offer)) return this.#refuse(option, request.name, offer);

    if (request.infos.includes(Info.NAME)) this.#sendInfo(option, encodeInfoString(Info.NAME, offer.name));
    if (request.infos.includes(Info.DESCRIPTION) && offer.description !== "")
      this.#sendInfo(option, encodeInfoString(Info.DESCRIPTION, offer.description));
    // Told also to who did not ask: it is allowed, and who asked for nothing may learn it all the same.
    const { blockSize, preferredBlockSize } = offer;
    const { maximumPayload } = this.#keeper;
    this.#sendInfo(
      option,
      encodeInfoBlockSize({ minimum: blockSize, preferred: Math.max(preferredBlockSize, blockSize), maximumPayload }),
    );
    if (this.#keeper.blockSizesRequired && blockSize > 512 && !request.infos.includes(Info.BLOCK_SIZE)) {
      const message = `the export has blocks of ${blockSize} bytes: ask for NBD_INFO_BLOCK_SIZE, and keep to it`;
      return this.#error(option, Rep.ERR_BLOCK_SIZE_REQD, message);
    }
    const chosen = this.#chosenFor(request.name);
    this.#sendInfo(option, encodeInfoExport(offer.size, this.#flagsOf(offer, chosen.length > 0)));
    this.#reply(option, Rep.ACK);
    return option === Opt.GO ? this.#agreed(offer, chosen, request.infos.includes(Info.BLOCK_SIZE)) : undefined;
  }

  #exportName(data: Uint8Array | undefined): Outcome {
    if (this.#style === "extended") return violated("NBD_OPT_EXPORT_NAME after extended headers were agreed on");
    const name = data === undefined ? "too-big" : readText(data);
    if (isOptionFault(name)) return violated("the name of the export is no valid text");
    if (this.#keeper.tls === "require" && !this.#secure) return refused("this server requires TLS");
    if (this.#keeper.draining) return refused("the server is shutting down");
    const offer = this.#keeper.find(name.text);
    if (isRefusal(offer)) return refused(`export "${name.text}": ${REFUSALS[offer].text}`);
    if (this.#keeper.blockSizesRequired && offer.blockSize > 512)
      return refused(`export "${offer.name}" has blocks of ${offer.blockSize} bytes, which the client did not ask for`);
    const chosen = this.#chosenFor(name.text);
    const reply = new Uint8Array(EXPORT_NAME_REPLY.byteLength + (this.#noZeroes ? 0 : EXPORT_NAME_ZEROES));
    const view = viewOf(reply);
    writeU64(view, EXPORT_NAME_REPLY.size, offer.size);
    view.setUint16(EXPORT_NAME_REPLY.flags, this.#flagsOf(offer, chosen.length > 0));
    this.#send(reply);
    return this.#agreed(offer, chosen, false);
  }

  #metaContext(option: number, data: Uint8Array): undefined {
    const sets = option === Opt.SET_META_CONTEXT;
    // "replaces all previously-set metadata contexts (including when this command fails)".
    if (sets) this.#contexts = undefined;
    if (this.#style === "simple")
      return this.#error(option, Rep.ERR_INVALID, "structured replies or extended headers must be agreed on first");
    const request = decodeMetaContextRequest(data);
    if (isOptionFault(request)) return this.#fault(option, request);
    for (const query of request.queries)
      if (query.indexOf(":") < 1) return this.#error(option, Rep.ERR_INVALID, "a query has no namespace");
    const offer = this.#keeper.find(request.name);
    if (isRefusal(offer)) return this.#refuse(option, request.name, offer);

    const all = !sets && request.queries.length === 0;
    const chosen = CONTEXTS.filter(
      (context) => all || request.queries.some((query) => matches(query, context.name, !sets)),
    );
    for (const { id, name } of chosen)
      this.#reply(option, Rep.META_CONTEXT, encodeMetaContext({ id: sets ? id : 0, name }));
    if (sets) this.#contexts = { exportName: request.name, chosen };
    return this.#reply(option, Rep.ACK);
  }

  /** The contexts set for exactly this name, which is the condition for using them. */
  #chosenFor(name: string): readonly MetaContext[] {
    return this.#contexts?.exportName === name ? this.#contexts.chosen : [];
  }

  #flagsOf(offer: Offer, contexts: boolean): number {
    let flags: number = Flag.HAS_FLAGS | Flag.SEND_FLUSH | Flag.SEND_FUA | Flag.CAN_MULTI_CONN | Flag.SEND_CACHE;
    if (offer.readOnly) flags |= Flag.READ_ONLY;
    else flags |= Flag.SEND_TRIM | Flag.SEND_WRITE_ZEROES | Flag.SEND_FAST_ZERO;
    if (this.#style !== "simple") flags |= Flag.SEND_DF;
    if (this.#style === "extended" && contexts) flags |= Flag.BLOCK_STATUS_PAYLOAD;
    return flags;
  }

  /** @param asked whether the client asked for block sizes: only then it has to keep to them. */
  #agreed(offer: Offer, contexts: readonly MetaContext[], asked: boolean): Outcome {
    const { name, readOnly, size } = offer;
    const blockSize = asked ? offer.blockSize : 1;
    const { maximumPayload } = this.#keeper;
    const agreement = { name, style: this.#style, contexts, readOnly, size, blockSize, maximumPayload };
    return { kind: "agreed", agreement };
  }

  #refuse(option: number, name: string, refusal: OfferRefusal): undefined {
    const { rep, text } = REFUSALS[refusal];
    // "The server MUST NOT send NBD_REP_ERR_TLS_REQD in reply to any option if TLS has already been negotiated."
    const type = rep === Rep.ERR_TLS_REQD && (this.#secure || this.#keeper.tls === "off") ? Rep.ERR_POLICY : rep;
    return this.#error(option, type, `export "${name}": ${text}`);
  }

  #fault(option: number, fault: OptionFault): undefined {
    if (fault === "too-big") return this.#error(option, Rep.ERR_TOO_BIG, "the option asks for too much");
    return this.#error(option, Rep.ERR_INVALID, "the option's data make no sense");
  }

  #sendInfo(option: number, info: Uint8Array): void {
    this.#reply(option, Rep.INFO, info);
  }
  #error(option: number, type: number, message: string): undefined {
    this.#reply(option, type, encodeText(message));
  }
  #reply(option: number, type: number, data?: Uint8Array): undefined {
    this.#send(encodeOptionReply(option, type, data));
  }
  #send(bytes: Uint8Array): void {
    this.#output.push(bytes);
  }
}

const REFUSALS = {
  "not-found": { rep: Rep.ERR_UNKNOWN, text: "there is no such export" },
  "tls-required": { rep: Rep.ERR_TLS_REQD, text: "it requires TLS" },
  denied: { rep: Rep.ERR_POLICY, text: "this client has no right to it" },
  away: { rep: Rep.ERR_POLICY, text: "it is not available at the moment" },
  "shutting-down": { rep: Rep.ERR_SHUTDOWN, text: "the server is shutting down" },
} as const satisfies Record<OfferRefusal, { rep: number; text: string }>;

/** "an empty leaf-name makes sense as a wildcard during LIST, but SHOULD NOT select any contexts during SET". */
function matches(query: string, name: string, wildcard: boolean): boolean {
  return query === name || (wildcard && query.endsWith(":") && name.startsWith(query));
}

const violated = (detail: string): Outcome => ({ kind: "ended", why: "violated", detail });
const refused = (detail: string): Outcome => ({ kind: "ended", why: "refused", detail });
const viewOf = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

function joined(parts: readonly Uint8Array[], length: number): Uint8Array {
  const whole = new Uint8Array(length);
  let at = 0;
  for (const part of parts) {
    whole.set(part, at);
    at += part.length;
  }
  return whole;
}
