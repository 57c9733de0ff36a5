import assert from "node:assert/strict";
import { test } from "node:test";
import { Info, Opt, Rep, STRING_BYTES_MAX } from "./codes.ts";
import {
  decodeInfoReply,
  decodeInfoRequest,
  decodeMetaContext,
  decodeMetaContextRequest,
  decodeServerReply,
  encodeClientFlags,
  encodeGreeting,
  encodeInfoBlockSize,
  encodeInfoExport,
  encodeInfoRequest,
  encodeInfoString,
  encodeMetaContext,
  encodeMetaContextRequest,
  encodeOption,
  encodeOptionReply,
  encodeServerReply,
  encodeText,
  isExportName,
  isOptionFault,
  QUERIES_MAX,
  readMessage,
  readText,
} from "./handshake.ts";

const hex = (text: string): Uint8Array => Uint8Array.from(Buffer.from(text.replaceAll(/\s/g, ""), "hex"));
const bytesOf = (text: string): Uint8Array => new TextEncoder().encode(text);

test("greeting, client flags, option and answer are these bytes", () => {
  assert.deepEqual(encodeGreeting(3), hex("4e42444d41474943 49484156454f5054 0003"));
  assert.deepEqual(encodeClientFlags(3), hex("00000003"));
  assert.deepEqual(encodeOption(Opt.LIST), hex("49484156454f5054 00000003 00000000"));
  assert.deepEqual(
    encodeOptionReply(Opt.LIST, Rep.ERR_INVALID, bytesOf("no")),
    hex("0003e889045565a9 00000003 80000003 00000002 6e6f"),
  );
});

test("a request to GO is these bytes, both ways", () => {
  const golden = hex("00000002 6462 0002 0000 0003");
  assert.deepEqual(encodeInfoRequest("db", [Info.EXPORT, Info.BLOCK_SIZE]), golden);
  assert.deepEqual(decodeInfoRequest(golden), { name: "db", infos: [0, 3] });
});

test("a request to GO with any byte missing or one too many is invalid", () => {
  const whole = encodeInfoRequest("volume@snapshot", [0, 1, 2, 3, 0xffff]);
  for (let length = 0; length < whole.length; length++)
    assert.equal(decodeInfoRequest(whole.subarray(0, length)), "invalid");
  assert.equal(decodeInfoRequest(new Uint8Array([...whole, 0])), "invalid");
  for (const lie of [0x7fff_ffff, 0xffff_ffff, whole.length, 0]) {
    const bytes = whole.slice();
    new DataView(bytes.buffer).setUint32(0, lie);
    assert.equal(decodeInfoRequest(bytes), "invalid");
  }
});

test("a name must be text: NUL, broken UTF-8 and 4097 bytes are refused", () => {
  assert.deepEqual(readText(bytesOf("Zürich \u{1f4be}")), { text: "Zürich \u{1f4be}" });
  assert.equal(readText(hex("6100")), "invalid");
  assert.equal(readText(hex("ff")), "invalid");
  assert.equal(readText(hex("c3")), "invalid");
  assert.deepEqual(readText(new Uint8Array(STRING_BYTES_MAX).fill(97)), { text: "a".repeat(STRING_BYTES_MAX) });
  assert.equal(readText(new Uint8Array(STRING_BYTES_MAX + 1).fill(97)), "too-big");
  assert.equal(isExportName("a".repeat(STRING_BYTES_MAX)), true);
  assert.equal(isExportName("a".repeat(STRING_BYTES_MAX + 1)), false);
  assert.equal(isExportName("a\0b"), false);
});

test("text too long for the protocol is cut between characters", () => {
  const cut = encodeText("ü".repeat(3000));
  assert.equal(cut.length, STRING_BYTES_MAX);
  assert.deepEqual(readText(encodeText("a" + "ü".repeat(3000))), { text: "a" + "ü".repeat(2047) });
});

test("a message of the other side cannot break a log", () => {
  assert.equal(readMessage(hex("6f6b 0a 1b5b33316d 00 ff")), "ok [31m \ufffd");
});

test("information comes back as it went, and of the wrong length is invalid", () => {
  assert.deepEqual(decodeInfoReply(encodeInfoExport(2 ** 40 + 512, 0x1fff)), {
    info: "export",
    size: 2 ** 40 + 512,
    flags: 0x1fff,
  });
  const sizes = { minimum: 512, preferred: 4096, maximumPayload: 0x200_0000 };
  assert.deepEqual(decodeInfoReply(encodeInfoBlockSize(sizes)), { info: "block-size", ...sizes });
  assert.deepEqual(decodeInfoReply(encodeInfoString(Info.NAME, "db")), { info: "name", text: "db" });
  assert.deepEqual(decodeInfoReply(encodeInfoString(Info.DESCRIPTION, "")), { info: "description", text: "" });
  assert.deepEqual(decodeInfoReply(hex("7fff 01 02")), { info: "unknown", code: 0x7fff });
  for (const whole of [encodeInfoExport(1, 1), encodeInfoBlockSize(sizes)])
    for (let length = 0; length < whole.length; length++)
      assert.equal(decodeInfoReply(whole.subarray(0, length)), "invalid");
});

test("a description of an export comes back as it went", () => {
  const server = { name: "db@monday", description: "snapshot of db" };
  const whole = encodeServerReply(server);
  assert.deepEqual(whole.subarray(0, 6), hex("00000009 6462"));
  assert.deepEqual(decodeServerReply(whole), server);
  for (let length = 0; length < 4 + 9; length++) assert.equal(decodeServerReply(whole.subarray(0, length)), "invalid");
});

test("queries for metadata contexts are these bytes, both ways", () => {
  const golden = hex("00000001 61 00000002 00000005 626173653a 00000000");
  const request = { name: "a", queries: ["base:", ""] };
  assert.deepEqual(encodeMetaContextRequest(request), golden);
  assert.deepEqual(decodeMetaContextRequest(golden), request);
  for (let length = 0; length < golden.length; length++)
    assert.equal(decodeMetaContextRequest(golden.subarray(0, length)), "invalid");
  assert.equal(decodeMetaContextRequest(new Uint8Array([...golden, 0])), "invalid");
});

test("no lie in any length of a query is believed", () => {
  const whole = encodeMetaContextRequest({ name: "db", queries: ["base:allocation", "qemu:"] });
  for (let at = 0; at + 4 <= whole.length; at++)
    for (const lie of [0x7fff_ffff, 0x8000_0000, 0xffff_ffff, 0xffff_fffc]) {
      const bytes = whole.slice();
      new DataView(bytes.buffer).setUint32(at, lie);
      const answer = decodeMetaContextRequest(bytes);
      if (isOptionFault(answer)) assert.equal(answer, "invalid");
    }
  const many = encodeMetaContextRequest({ name: "db", queries: Array.from({ length: QUERIES_MAX + 1 }, () => "") });
  assert.equal(decodeMetaContextRequest(many), "too-big");
});

test("a metadata context comes back as it went", () => {
  const context = { id: 0xdeadbeef, name: "base:allocation" };
  assert.deepEqual(decodeMetaContext(encodeMetaContext(context)), context);
  for (let length = 0; length <= 4; length++)
    assert.equal(decodeMetaContext(encodeMetaContext(context).subarray(0, length)), "invalid");
});
