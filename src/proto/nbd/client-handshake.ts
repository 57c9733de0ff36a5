/**
 * The host's side of an NBD handshake, as stories (fixed newstyle; NBD proto.md "Handshake"). A story yields how many
 * bytes it needs next and is given exactly those, or yields "secure" once the connection is to go on under TLS; what it
 * says goes to `send`, in order. It asks for the most a server can give: extended headers, else structured replies,
 * both contexts of block status, block sizes; and it takes what it is given. Everything a server can lie about is
 * checked here, and there is a limit on every length and count.
 */
import { readU64 } from "#base/layout";
import type { Bytes } from "#base/units";
import {
  BASE_ALLOCATION,
  ClientFlag,
  EXPORT_NAME_ZEROES,
  Flag,
  HandshakeFlag,
  IHAVEOPT,
  Info,
  isRepError,
  MINIMUM_BLOCK_BYTES_MAX,
  NBDMAGIC,
  nameOf,
  OLDSTYLE_MAGIC,
  OPTION_REPLY_MAGIC,
  Opt,
  PAYLOAD_BYTES_DEFAULT,
  QEMU_ALLOCATION_DEPTH,
  Rep,
} from "#wire/nbd/codes";
import {
  type BlockSizes,
  decodeInfoReply,
  decodeMetaContext,
  decodeServerReply,
  EXPORT_NAME_REPLY,
  encodeClientFlags,
  encodeInfoRequest,
  encodeMetaContextRequest,
  encodeOption,
  encodeText,
  GREETING,
  isMagic,
  isOptionFault,
  OPTION_BYTES_MAX,
  OPTION_REPLY,
  readMessage,
  type ServerReply,
} from "#wire/nbd/handshake";
import type { ReplyStyle } from "#wire/nbd/reply";

/** Answers to one option: a list of exports is the longest there is. */
const ANSWERS_MAX = 10_000;
/** Used where a server does not say what it likes; NBD proto.md "Size constraints". */
const PREFERRED_BYTES_DEFAULT = 4096;
const SECTOR_BYTES = 512;

/** What a server has told about an export. */
export interface NbdExport {
  readonly size: Bytes;
  /** Bits of `Flag`. */
  readonly flags: number;
  readonly blockSizes: BlockSizes;
  readonly replyStyle: ReplyStyle;
  /** Ids of the contexts of block status that were agreed on; undefined when there is none. */
  readonly allocationId: number | undefined;
  readonly depthId: number | undefined;
  readonly description: string;
}

export type HandshakeFault =
  /** Whatever speaks there, it is not NBD. */
  | "not-nbd"
  /** It speaks NBD as it was before 2012. */
  | "old-style"
  /** It broke the protocol. */
  | "violated"
  | "unknown-export"
  | "tls-required"
  | "tls-unsupported"
  | "denied"
  | "shutting-down"
  /** It wants something of us that we do not do. */
  | "unsupported";

export interface HandshakeFailure {
  readonly fault: HandshakeFault;
  /** A clause for a person. */
  readonly detail: string;
}
export const isHandshakeFailure = (value: object): value is HandshakeFailure => "fault" in value && "detail" in value;

export type Need = number | "secure";
export type Story<T> = Generator<Need, T, Uint8Array>;
type Send = (bytes: Uint8Array) => void;

export interface HandshakeWish {
  readonly exportName: string;
  /** TLS is a must: a server without it is refused. */
  readonly tls: boolean;
}

/** Opens an export: on success, the next bytes on the connection are of the transmission phase. */
export function* joinExport(wish: HandshakeWish, send: Send): Story<NbdExport | HandshakeFailure> {
  const greeted = yield* greet(wish.tls, send);
  if (typeof greeted === "object") return greeted;
  // Without fixed newstyle, the only option is the one that a server may answer only by closing the connection.
  if ((greeted & HandshakeFlag.FIXED_NEWSTYLE) === 0) return yield* byExportName(wish.exportName, greeted, send);

  let replyStyle: ReplyStyle = "simple";
  const extended = yield* ask(Opt.EXTENDED_HEADERS, send);
  if (isHandshakeFailure(extended)) return extended;
  if (extended.end === Rep.ACK) replyStyle = "extended";
  else {
    if (isFinal(extended.end)) return refusal(extended);
    const structured = yield* ask(Opt.STRUCTURED_REPLY, send);
    if (isHandshakeFailure(structured)) return structured;
    if (structured.end === Rep.ACK) replyStyle = "structured";
    else if (isFinal(structured.end)) return refusal(structured);
  }

  let allocationId: number | undefined;
  let depthId: number | undefined;
  if (replyStyle !== "simple") {
    const queries = [BASE_ALLOCATION, QEMU_ALLOCATION_DEPTH];
    const request = encodeMetaContextRequest({ name: wish.exportName, queries });
    const answers = yield* ask(Opt.SET_META_CONTEXT, send, request);
    if (isHandshakeFailure(answers)) return answers;
    for (const { type, data } of answers.before) {
      const context = type === Rep.META_CONTEXT ? decodeMetaContext(data) : "invalid";
      if (isOptionFault(context)) return violated("an answer to SET_META_CONTEXT makes no sense");
      if (context.name === BASE_ALLOCATION) allocationId = context.id;
      else if (context.name === QEMU_ALLOCATION_DEPTH) depthId = context.id;
      else return violated("it chose a metadata context that was not asked for");
    }
    if (allocationId !== undefined && allocationId === depthId) return violated("two contexts have one id");
    // An error is no reason to stop: GO says what it was, or the export has no block status.
    if (answers.end !== Rep.ACK) allocationId = depthId = undefined;
  }

  const go = yield* ask(Opt.GO, send, encodeInfoRequest(wish.exportName, [Info.BLOCK_SIZE, Info.DESCRIPTION]));
  if (isHandshakeFailure(go)) return go;
  if (go.end === Rep.ERR_UNSUP && replyStyle === "simple") return yield* byExportName(wish.exportName, greeted, send);
  if (go.end !== Rep.ACK) return refusal(go);
  let size: number | undefined;
  let flags = 0;
  let blockSizes: BlockSizes | undefined;
  let description = "";
  for (const { type, data } of go.before) {
    const info = type === Rep.INFO ? decodeInfoReply(data) : "invalid";
    if (isOptionFault(info)) return violated("an answer to GO makes no sense");
    if (info.info === "export") ({ size, flags } = info);
    else if (info.info === "block-size") blockSizes = info;
    else if (info.info === "description") description = info.text;
  }
  if (size === undefined) return violated("it acknowledged GO without telling the size");
  return validated({ size, flags, replyStyle, allocationId, depthId, description }, blockSizes);
}

/** Lists the exports of a server, and ends the session. */
export function* listExports(wish: Pick<HandshakeWish, "tls">, send: Send): Story<ServerReply[] | HandshakeFailure> {
  const greeted = yield* greet(wish.tls, send);
  if (typeof greeted === "object") return greeted;
  if ((greeted & HandshakeFlag.FIXED_NEWSTYLE) === 0) return { fault: "unsupported", detail: "it cannot list exports" };
  const answers = yield* ask(Opt.LIST, send);
  if (isHandshakeFailure(answers)) return answers;
  if (answers.end !== Rep.ACK) return refusal(answers);
  const found: ServerReply[] = [];
  for (const { type, data } of answers.before) {
    const server = type === Rep.SERVER ? decodeServerReply(data) : "invalid";
    if (isOptionFault(server)) return violated("an answer to LIST makes no sense");
    found.push(server);
  }
  // The answer to ABORT is not waited for: "the client may close the connection without waiting".
  send(encodeOption(Opt.ABORT));
  return found;
}

/** The greeting, our flags and, if it is a must, TLS. Returns the server's handshake flags. */
function* greet(tls: boolean, send: Send): Story<number | HandshakeFailure> {
  const greeting = viewOf(yield GREETING.byteLength);
  if (!isMagic(greeting, GREETING.magicHi, NBDMAGIC)) return { fault: "not-nbd", detail: "it does not speak NBD" };
  if (isMagic(greeting, GREETING.optionHi, OLDSTYLE_MAGIC))
    return { fault: "old-style", detail: "it speaks the old style of NBD, which has no export names" };
  if (!isMagic(greeting, GREETING.optionHi, IHAVEOPT)) return violated("its greeting makes no sense");
  const flags = greeting.getUint16(GREETING.flags);
  const fixed = (flags & HandshakeFlag.FIXED_NEWSTYLE) !== 0;
  const noZeroes = (flags & HandshakeFlag.NO_ZEROES) !== 0;
  send(encodeClientFlags((fixed ? ClientFlag.C_FIXED_NEWSTYLE : 0) | (noZeroes ? ClientFlag.C_NO_ZEROES : 0)));
  if (!tls) return flags;
  if (!fixed) return { fault: "tls-unsupported", detail: "it is too old for TLS" };
  const answer = yield* ask(Opt.STARTTLS, send);
  if (isHandshakeFailure(answer)) return answer;
  if (answer.end === Rep.ACK) {
    yield "secure";
    return flags;
  }
  return { fault: "tls-unsupported", detail: `it has no TLS to offer (${nameOf(Rep, answer.end)})` };
}

/** Opens an export by the oldest option. There are no reasons: an unknown export is told by closing the connection. */
function* byExportName(name: string, greeted: number, send: Send): Story<NbdExport | HandshakeFailure> {
  send(encodeOption(Opt.EXPORT_NAME, encodeText(name)));
  const zeroes = (greeted & HandshakeFlag.NO_ZEROES) === 0 ? EXPORT_NAME_ZEROES : 0;
  const answer = viewOf(yield EXPORT_NAME_REPLY.byteLength + zeroes);
  return validated(
    {
      size: readU64(answer, EXPORT_NAME_REPLY.size),
      flags: answer.getUint16(EXPORT_NAME_REPLY.flags),
      replyStyle: "simple",
      allocationId: undefined,
      depthId: undefined,
      description: "",
    },
    undefined,
  );
}

interface Answers {
  readonly option: number;
  readonly before: readonly { readonly type: number; readonly data: Uint8Array }[];
  /** The type of the last answer: ACK or an error. */
  readonly end: number;
  readonly message: string;
}

/** Asks for one option, and collects the answers up to the one that ends them. */
function* ask(option: number, send: Send, data?: Uint8Array): Story<Answers | HandshakeFailure> {
  send(encodeOption(option, data));
  const before: { type: number; data: Uint8Array }[] = [];
  for (let count = 0; count < ANSWERS_MAX; count++) {
    const header = viewOf(yield OPTION_REPLY.byteLength);
    if (!isMagic(header, OPTION_REPLY.magicHi, OPTION_REPLY_MAGIC)) return violated("an answer has a wrong magic");
    if (header.getUint32(OPTION_REPLY.option) !== option) return violated("it answers what was not asked");
    const type = header.getUint32(OPTION_REPLY.type);
    const length = header.getUint32(OPTION_REPLY.length);
    if (length > OPTION_BYTES_MAX) return violated(`an answer is ${length} bytes long`);
    const data = length === 0 ? NOTHING : yield length;
    if (isRepError(type)) return { option, before, end: type, message: readMessage(data) };
    if (type === Rep.ACK) return { option, before, end: type, message: "" };
    before.push({ type, data });
  }
  return violated(`there are more than ${ANSWERS_MAX} answers to ${nameOf(Opt, option)}`);
}
const NOTHING = new Uint8Array(0);

/** Errors after which it makes no sense to ask for anything else. */
const isFinal = (error: number): boolean =>
  error === Rep.ERR_TLS_REQD || error === Rep.ERR_POLICY || error === Rep.ERR_SHUTDOWN;

const REFUSED: Readonly<Record<number, readonly [HandshakeFault, string]>> = {
  [Rep.ERR_UNKNOWN]: ["unknown-export", "it has no such export"],
  [Rep.ERR_TLS_REQD]: ["tls-required", "it insists on TLS"],
  [Rep.ERR_POLICY]: ["denied", "it does not allow that"],
  [Rep.ERR_SHUTDOWN]: ["shutting-down", "it is shutting down"],
  [Rep.ERR_BLOCK_SIZE_REQD]: ["unsupported", "it wants other block sizes"],
  [Rep.ERR_EXT_HEADER_REQD]: ["unsupported", "it insists on extended headers"],
};

function refusal(answers: Answers): HandshakeFailure {
  const [fault, why] = REFUSED[answers.end] ?? ["denied", `it refused ${nameOf(Opt, answers.option)}`];
  const said = answers.message === "" ? nameOf(Rep, answers.end) : answers.message;
  return { fault, detail: `${why} (${said})` };
}

const violated = (detail: string): HandshakeFailure => ({ fault: "violated", detail });
const isPowerOfTwo = (value: number): boolean => value > 0 && Math.log2(value) % 1 === 0;

/** An export whose numbers can be true; "Size constraints" where the server has told some. */
function validated(told: Omit<NbdExport, "blockSizes">, sizes: BlockSizes | undefined): NbdExport | HandshakeFailure {
  if (!Number.isSafeInteger(told.size)) return violated(`the export is said to have ${told.size} bytes`);
  if ((told.flags & Flag.HAS_FLAGS) === 0) return violated("the export's flags are not valid");
  if (sizes === undefined) {
    // A server that tells nothing SHOULD take any byte; but nobody has to rely on that where sectors do.
    const minimum = told.size % SECTOR_BYTES === 0 ? SECTOR_BYTES : 1;
    sizes = { minimum, preferred: PREFERRED_BYTES_DEFAULT, maximumPayload: PAYLOAD_BYTES_DEFAULT };
  } else {
    const { minimum, preferred, maximumPayload } = sizes;
    if (!isPowerOfTwo(minimum) || minimum > MINIMUM_BLOCK_BYTES_MAX)
      return violated(`its minimum block size is ${minimum}`);
    if (maximumPayload < minimum) return violated(`its largest request is ${maximumPayload} bytes`);
    sizes = {
      minimum,
      // A hint only, so that nonsense in it hurts nobody.
      preferred:
        isPowerOfTwo(preferred) && preferred >= minimum ? preferred : Math.max(minimum, PREFERRED_BYTES_DEFAULT),
      maximumPayload: maximumPayload - (maximumPayload % minimum),
    };
  }
  // "the client MUST NOT access the tail": an export that does not end with a whole block ends with the last whole one.
  return { ...told, size: told.size - (told.size % sizes.minimum), blockSizes: sizes };
}

const viewOf = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
