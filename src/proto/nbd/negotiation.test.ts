import assert from "node:assert/strict";
import { test } from "node:test";
import { Flag, Info, nameOf, Opt, Rep } from "#wire/nbd/codes";
import {
  decodeInfoReply,
  decodeMetaContext,
  decodeServerReply,
  encodeClientFlags,
  encodeInfoRequest,
  encodeMetaContextRequest,
  encodeOption,
} from "#wire/nbd/handshake";
import { type Doorkeeper, Negotiation, type Offer, type OfferRefusal } from "./negotiation.ts";

const DB: Offer = {
  name: "db",
  description: "the database",
  readOnly: false,
  size: 1 << 30,
  blockSize: 512,
  preferredBlockSize: 4096,
};

class Keeper implements Doorkeeper {
  tls: Doorkeeper["tls"] = "off";
  blockSizesRequired = false;
  maximumPayload = 32 << 20;
  draining = false;
  offers = new Map<string, Offer | OfferRefusal>([
    ["db", DB],
    ["", DB],
    ["big", { ...DB, name: "big", blockSize: 4096 }],
    ["db@monday", { ...DB, name: "db@monday", description: "", readOnly: true }],
    ["secret", "denied"],
    ["private", "tls-required"],
    ["moving", "away"],
  ]);
  list() {
    return [DB, { name: "db@monday", description: "" }];
  }
  find(name: string) {
    return this.offers.get(name) ?? "not-found";
  }
}

/** A handshake with the test as its client: options in, answers out as words. */
class Talk {
  readonly keeper: Keeper;
  readonly negotiation: Negotiation;
  answers: { type: number; data: Uint8Array }[] = [];

  constructor(change: Partial<Keeper> = {}, flags: number | undefined = 3) {
    this.keeper = Object.assign(new Keeper(), change);
    this.negotiation = new Negotiation(this.keeper);
    assert.deepEqual(
      this.negotiation.takeOutput().map((bytes) => Buffer.from(bytes).toString("hex")),
      ["4e42444d4147494349484156454f50540003"],
    );
    if (flags !== undefined) this.negotiation.feed(encodeClientFlags(flags));
  }

  /** The answers' types, with a readable form of their data. */
  say(option: number, data?: Uint8Array): string[] {
    const bytes = encodeOption(option, data);
    const used = this.negotiation.feed(bytes);
    if (this.negotiation.stage === "reading") assert.equal(used, bytes.length);
    return this.hear(option);
  }

  hear(option: number): string[] {
    const said: string[] = [];
    for (const bytes of this.negotiation.takeOutput()) {
      const view = new DataView(bytes.buffer, bytes.byteOffset);
      if (view.getUint32(0) !== 0x0003e889) {
        said.push(Buffer.from(bytes).toString("hex"));
        continue;
      }
      assert.equal(view.getUint32(8), option);
      assert.equal(view.getUint32(16), bytes.length - 20);
      said.push(describe(view.getUint32(12), bytes.subarray(20)));
    }
    return said;
  }
}

function describe(type: number, data: Uint8Array): string {
  const name = nameOf(Rep, type);
  if (type === Rep.SERVER) return `${name} ${JSON.stringify(decodeServerReply(data))}`;
  if (type === Rep.INFO) return `${name} ${JSON.stringify(decodeInfoReply(data))}`;
  if (type === Rep.META_CONTEXT) return `${name} ${JSON.stringify(decodeMetaContext(data))}`;
  return type >= 0x8000_0000 ? `${name} "${new TextDecoder().decode(data)}"` : name;
}
const words = (said: string[]): string[] => said.map((one) => one.split(" ")[0]!);
const go = (name: string, infos: number[] = [Info.BLOCK_SIZE]) => encodeInfoRequest(name, infos);
const contexts = (name: string, ...queries: string[]) => encodeMetaContextRequest({ name, queries });

test("GO tells the export, its block sizes and what was asked for, and ends the handshake", () => {
  const talk = new Talk();
  assert.deepEqual(talk.say(Opt.GO, go("db", [Info.NAME, Info.DESCRIPTION, Info.BLOCK_SIZE, 77])), [
    'INFO {"info":"name","text":"db"}',
    'INFO {"info":"description","text":"the database"}',
    'INFO {"info":"block-size","minimum":512,"preferred":4096,"maximumPayload":33554432}',
    `INFO {"info":"export","size":1073741824,"flags":${
      Flag.HAS_FLAGS |
      Flag.SEND_FLUSH |
      Flag.SEND_FUA |
      Flag.SEND_TRIM |
      Flag.SEND_WRITE_ZEROES |
      Flag.SEND_FAST_ZERO |
      Flag.SEND_CACHE |
      Flag.CAN_MULTI_CONN
    }}`,
    "ACK",
  ]);
  assert.deepEqual(talk.negotiation.outcome, {
    kind: "agreed",
    agreement: {
      name: "db",
      style: "simple",
      contexts: [],
      readOnly: false,
      size: 1 << 30,
      blockSize: 512,
      maximumPayload: 32 << 20,
    },
  });
});

test("INFO tells the same and goes on", () => {
  const talk = new Talk();
  const info = talk.say(Opt.INFO, go("db"));
  assert.equal(talk.negotiation.stage, "reading");
  assert.deepEqual(talk.say(Opt.GO, go("db")), info);
});

test("a snapshot is read-only, and offers nothing that writes", () => {
  const talk = new Talk();
  const said = talk.say(Opt.GO, go("db@monday", [Info.DESCRIPTION]));
  const flags = JSON.parse(said.at(-2)!.slice(5)).flags;
  assert.ok((flags & Flag.READ_ONLY) !== 0 && (flags & Flag.CAN_MULTI_CONN) !== 0);
  assert.equal(flags & (Flag.SEND_TRIM | Flag.SEND_WRITE_ZEROES | Flag.SEND_FAST_ZERO), 0);
});

test("EXPORT_NAME is answered with and without 124 zeroes, as the client wishes", () => {
  const name = new TextEncoder().encode("db");
  const short = new Talk({}, 3);
  assert.deepEqual(short.say(Opt.EXPORT_NAME, name), ["0000000040000000" + "0d6d"]);
  const long = new Talk({}, 0);
  assert.deepEqual(long.say(Opt.EXPORT_NAME, name), ["0000000040000000" + "0d6d" + "00".repeat(124)]);
  assert.equal(long.negotiation.outcome?.kind, "agreed");
});

test("who did not ask for block sizes need not keep to them", () => {
  const agreedOn = (option: number, data: Uint8Array) => {
    const talk = new Talk();
    talk.say(option, data);
    const { outcome } = talk.negotiation;
    assert.ok(outcome?.kind === "agreed");
    return outcome.agreement.blockSize;
  };
  assert.equal(agreedOn(Opt.GO, go("big", [Info.BLOCK_SIZE])), 4096);
  assert.equal(agreedOn(Opt.GO, go("big", [Info.NAME])), 1);
  assert.equal(agreedOn(Opt.EXPORT_NAME, new TextEncoder().encode("big")), 1);
});

test("EXPORT_NAME for what cannot be had ends the session, since it cannot be answered", () => {
  for (const name of ["nothing", "secret", "private", "moving"]) {
    const talk = new Talk();
    assert.deepEqual(talk.say(Opt.EXPORT_NAME, new TextEncoder().encode(name)), []);
    assert.equal(talk.negotiation.outcome?.kind, "ended");
  }
});

test("unknown client flags, and any option but EXPORT_NAME without fixed newstyle, end the session", () => {
  for (const flags of [4, 7, 0x8000_0000]) assert.equal(new Talk({}, flags).negotiation.outcome?.kind, "ended");
  const talk = new Talk({}, 2);
  talk.say(Opt.LIST);
  assert.equal(talk.negotiation.outcome?.kind, "ended");
});

test("LIST shows every export, and takes no data", () => {
  const talk = new Talk();
  assert.deepEqual(talk.say(Opt.LIST), [
    'SERVER {"name":"db","description":"the database"}',
    'SERVER {"name":"db@monday","description":""}',
    "ACK",
  ]);
  assert.deepEqual(words(talk.say(Opt.LIST, new Uint8Array(1))), ["ERR_INVALID"]);
});

test("ABORT is acknowledged, also with data, and ends the session", () => {
  const talk = new Talk();
  assert.deepEqual(talk.say(Opt.ABORT, new Uint8Array(3)), ["ACK"]);
  assert.deepEqual(talk.negotiation.outcome, {
    kind: "ended",
    why: "stopped",
    detail: "the client ended the handshake",
  });
});

test("refusals name their reason, and the client may go on", () => {
  const talk = new Talk();
  assert.deepEqual(words(talk.say(Opt.GO, go("nothing"))), ["ERR_UNKNOWN"]);
  assert.deepEqual(words(talk.say(Opt.INFO, go("secret"))), ["ERR_POLICY"]);
  assert.deepEqual(words(talk.say(Opt.GO, go("moving"))), ["ERR_POLICY"]);
  // TLS_REQD makes no sense where TLS is not to be had.
  assert.deepEqual(words(talk.say(Opt.GO, go("private"))), ["ERR_POLICY"]);
  assert.deepEqual(words(talk.say(Opt.PEEK_EXPORT)), ["ERR_UNSUP"]);
  assert.deepEqual(words(talk.say(0)), ["ERR_UNSUP"]);
  assert.deepEqual(words(talk.say(0xffff_ffff, new Uint8Array(100))), ["ERR_UNSUP"]);
  assert.equal(talk.say(Opt.GO, go("db")).at(-1), "ACK");
});

test("data that contradict themselves are invalid, and the next option is read in step", () => {
  const talk = new Talk();
  const broken = go("db");
  new DataView(broken.buffer).setUint32(0, 0xffff_ffff);
  for (const data of [new Uint8Array(0), new Uint8Array(5), broken, new Uint8Array([0, 0, 0, 1, 0, 0, 0])]) {
    assert.deepEqual(words(talk.say(Opt.GO, data)), ["ERR_INVALID"]);
    assert.deepEqual(words(talk.say(Opt.INFO, data)), ["ERR_INVALID"]);
  }
  for (const option of [Opt.STRUCTURED_REPLY, Opt.EXTENDED_HEADERS])
    assert.deepEqual(words(talk.say(option, new Uint8Array(1))), ["ERR_INVALID"]);
  assert.deepEqual(words(talk.say(Opt.GO, new Uint8Array(70_000))), ["ERR_TOO_BIG"]);
  assert.equal(talk.say(Opt.GO, go("db")).at(-1), "ACK");
});

test("an option that claims a gigabyte of data ends the session, as does garbage", () => {
  const talk = new Talk();
  const option = encodeOption(Opt.GO);
  new DataView(option.buffer).setUint32(12, 1 << 30);
  talk.negotiation.feed(option);
  assert.equal(talk.negotiation.outcome?.kind, "ended");
  const other = new Talk();
  other.negotiation.feed(new Uint8Array(16).fill(0x41));
  assert.equal(other.negotiation.outcome?.kind, "ended");
});

test("cut at any byte, a handshake says the same", () => {
  const bytes = [
    encodeClientFlags(3),
    encodeOption(Opt.STRUCTURED_REPLY),
    encodeOption(Opt.SET_META_CONTEXT, contexts("db", "base:allocation")),
    encodeOption(Opt.GO, go("db", [0, 1, 2, 3])),
  ].flatMap((part) => [...part]);
  const run = (size: number) => {
    const negotiation = new Negotiation(new Keeper());
    for (let at = 0; at < bytes.length; at += size) {
      const part = Uint8Array.from(bytes.slice(at, at + size));
      assert.equal(negotiation.feed(part), part.length);
    }
    assert.equal(negotiation.stage, "over");
    return Buffer.concat(negotiation.takeOutput()).toString("hex");
  };
  const whole = run(bytes.length);
  for (let size = 1; size < 40; size++) assert.equal(run(size), whole);
});

test("what comes after GO belongs to the transmission phase", () => {
  const talk = new Talk();
  const option = encodeOption(Opt.GO, go("db"));
  const both = new Uint8Array(option.length + 28);
  both.set(option);
  assert.equal(talk.negotiation.feed(both), option.length);
});

test("structured replies bring DF, and extended headers the payload form once contexts are chosen", () => {
  const flagsAfter = (...steps: (readonly [number, Uint8Array?])[]) => {
    const talk = new Talk();
    for (const [option, data] of steps) assert.equal(talk.say(option, data).at(-1), "ACK");
    return JSON.parse(talk.say(Opt.GO, go("db")).at(-2)!.slice(5)).flags;
  };
  assert.equal(flagsAfter() & Flag.SEND_DF, 0);
  assert.notEqual(flagsAfter([Opt.STRUCTURED_REPLY]) & Flag.SEND_DF, 0);
  const extended = flagsAfter([Opt.EXTENDED_HEADERS]);
  assert.equal(extended & (Flag.SEND_DF | Flag.BLOCK_STATUS_PAYLOAD), Flag.SEND_DF);
  const both = flagsAfter([Opt.EXTENDED_HEADERS], [Opt.SET_META_CONTEXT, contexts("db", "base:allocation")]);
  assert.notEqual(both & Flag.BLOCK_STATUS_PAYLOAD, 0);
});

test("extended headers go before structured replies, and not with EXPORT_NAME", () => {
  const talk = new Talk();
  assert.deepEqual(talk.say(Opt.STRUCTURED_REPLY), ["ACK"]);
  assert.deepEqual(talk.say(Opt.EXTENDED_HEADERS), ["ACK"]);
  assert.deepEqual(words(talk.say(Opt.STRUCTURED_REPLY)), ["ERR_EXT_HEADER_REQD"]);
  talk.say(Opt.EXPORT_NAME, new TextEncoder().encode("db"));
  assert.equal(talk.negotiation.outcome?.kind, "ended");
});

test("metadata contexts: listed with wildcards, set by name, and only after structured replies", () => {
  const talk = new Talk();
  assert.deepEqual(words(talk.say(Opt.LIST_META_CONTEXT, contexts("db"))), ["ERR_INVALID"]);
  assert.deepEqual(words(talk.say(Opt.SET_META_CONTEXT, contexts("db", "base:allocation"))), ["ERR_INVALID"]);
  talk.say(Opt.STRUCTURED_REPLY);
  const both = [
    'META_CONTEXT {"id":0,"name":"base:allocation"}',
    'META_CONTEXT {"id":0,"name":"qemu:allocation-depth"}',
    "ACK",
  ];
  assert.deepEqual(talk.say(Opt.LIST_META_CONTEXT, contexts("db")), both);
  assert.deepEqual(talk.say(Opt.LIST_META_CONTEXT, contexts("db", "base:", "qemu:")), both);
  assert.deepEqual(talk.say(Opt.LIST_META_CONTEXT, contexts("db", "x-other:", "base:nothing")), ["ACK"]);
  assert.deepEqual(talk.say(Opt.SET_META_CONTEXT, contexts("db", "base:", "qemu:")), ["ACK"]);
  assert.deepEqual(talk.say(Opt.SET_META_CONTEXT, contexts("db")), ["ACK"]);
  assert.deepEqual(words(talk.say(Opt.SET_META_CONTEXT, contexts("db", "allocation"))), ["ERR_INVALID"]);
  assert.deepEqual(words(talk.say(Opt.SET_META_CONTEXT, contexts("nothing", "base:allocation"))), ["ERR_UNKNOWN"]);
  assert.deepEqual(talk.say(Opt.SET_META_CONTEXT, contexts("db", "qemu:allocation-depth", "base:allocation")), [
    'META_CONTEXT {"id":1,"name":"base:allocation"}',
    'META_CONTEXT {"id":2,"name":"qemu:allocation-depth"}',
    "ACK",
  ]);
});

test("contexts hold for the export they were set for, and a failed setting clears them", () => {
  const agreed = (after: (talk: Talk) => void, name = "db") => {
    const talk = new Talk();
    talk.say(Opt.STRUCTURED_REPLY);
    talk.say(Opt.SET_META_CONTEXT, contexts("db", "base:allocation"));
    after(talk);
    talk.say(Opt.GO, go(name));
    const { outcome } = talk.negotiation;
    assert.ok(outcome?.kind === "agreed");
    return outcome.agreement.contexts.length;
  };
  assert.equal(
    agreed(() => {}),
    1,
  );
  assert.equal(
    agreed(() => {}, "big"),
    0,
  );
  assert.equal(
    agreed((talk) => talk.say(Opt.LIST_META_CONTEXT, contexts("big"))),
    1,
  );
  assert.equal(
    agreed((talk) => talk.say(Opt.SET_META_CONTEXT, new Uint8Array(3))),
    0,
  );
  assert.equal(
    agreed((talk) => talk.say(Opt.SET_META_CONTEXT, contexts("nothing", "base:allocation"))),
    0,
  );
});

test("with TLS required, everything but STARTTLS and ABORT waits for it", () => {
  const talk = new Talk({ tls: "require" });
  for (const option of [Opt.LIST, Opt.STRUCTURED_REPLY, Opt.EXTENDED_HEADERS, 99])
    assert.deepEqual(words(talk.say(option)), ["ERR_TLS_REQD"]);
  assert.deepEqual(words(talk.say(Opt.GO, go("db"))), ["ERR_TLS_REQD"]);
  assert.deepEqual(words(talk.say(Opt.GO, go("nothing"))), ["ERR_TLS_REQD"]);
  assert.deepEqual(words(talk.say(Opt.STARTTLS, new Uint8Array(1))), ["ERR_INVALID"]);
  assert.deepEqual(talk.say(Opt.STARTTLS), ["ACK"]);
  assert.equal(talk.negotiation.stage, "securing");
  assert.equal(talk.negotiation.feed(encodeOption(Opt.LIST)), 0);
  talk.negotiation.secured();
  assert.deepEqual(words(talk.say(Opt.STARTTLS)), ["ERR_INVALID"]);
  // "MUST NOT send NBD_REP_ERR_TLS_REQD if TLS has already been negotiated".
  assert.deepEqual(words(talk.say(Opt.GO, go("private"))), ["ERR_POLICY"]);
  assert.equal(talk.say(Opt.GO, go("db")).at(-1), "ACK");
  const other = new Talk({ tls: "require" });
  other.say(Opt.EXPORT_NAME, new TextEncoder().encode("db"));
  assert.equal(other.negotiation.outcome?.kind, "ended");
});

test("nothing agreed on before TLS holds after it", () => {
  const talk = new Talk({ tls: "allow" });
  talk.say(Opt.STRUCTURED_REPLY);
  talk.say(Opt.SET_META_CONTEXT, contexts("db", "base:allocation"));
  assert.deepEqual(words(talk.say(Opt.GO, go("private"))), ["ERR_TLS_REQD"]);
  assert.deepEqual(talk.say(Opt.STARTTLS), ["ACK"]);
  talk.negotiation.secured();
  talk.say(Opt.GO, go("db"));
  const { outcome } = talk.negotiation;
  assert.ok(outcome?.kind === "agreed");
  assert.equal(outcome.agreement.style, "simple");
  assert.deepEqual(outcome.agreement.contexts, []);
});

test("without TLS, STARTTLS is refused by policy", () => {
  assert.deepEqual(words(new Talk().say(Opt.STARTTLS)), ["ERR_POLICY"]);
});

test("while the server shuts down, every option but ABORT is told so", () => {
  const talk = new Talk({ draining: true });
  for (const option of [Opt.LIST, Opt.GO, Opt.STARTTLS, Opt.STRUCTURED_REPLY])
    assert.deepEqual(words(talk.say(option)), ["ERR_SHUTDOWN"]);
  assert.deepEqual(talk.say(Opt.ABORT), ["ACK"]);
});

test("where block sizes are required, who does not ask for them is told them and refused", () => {
  const talk = new Talk({ blockSizesRequired: true });
  assert.deepEqual(words(talk.say(Opt.GO, go("big", []))), ["INFO", "ERR_BLOCK_SIZE_REQD"]);
  assert.equal(talk.say(Opt.INFO, go("db", [])).at(-1), "ACK");
  assert.equal(talk.say(Opt.GO, go("big", [Info.BLOCK_SIZE])).at(-1), "ACK");
  assert.equal(new Talk().say(Opt.GO, go("big", [])).at(-1), "ACK");
});
