import assert from "node:assert/strict";
import { test } from "node:test";
import { Cmd, CmdFlag } from "./codes.ts";
import { decodeRequest, EXTENDED_REQUEST, encodeRequest, REQUEST, Request } from "./request.ts";

const hex = (text: string): Uint8Array => Uint8Array.from(Buffer.from(text.replaceAll(/\s/g, ""), "hex"));
const viewOf = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);

test("the layouts have the lengths of the document", () => {
  assert.equal(REQUEST.byteLength, 28);
  assert.equal(EXTENDED_REQUEST.byteLength, 32);
});

test("a compact write request is these bytes, both ways", () => {
  const golden = hex("25609513 0001 0001 0123456789abcdef 0000000100002000 00001000");
  const slot = new Request();
  assert.equal(decodeRequest(slot, viewOf(golden), 0, false), undefined);
  assert.equal(slot.flags, CmdFlag.FUA);
  assert.equal(slot.type, Cmd.WRITE);
  assert.equal(slot.cookieHi, 0x01234567);
  assert.equal(slot.cookieLo, 0x89abcdef);
  assert.equal(slot.offset, 0x1_0000_2000);
  assert.equal(slot.length, 0x1000);
  const made = new Uint8Array(REQUEST.byteLength);
  assert.equal(encodeRequest(slot, viewOf(made), 0, false), 28);
  assert.deepEqual(made, golden);
});

test("an extended trim of more than 4 GiB is these bytes, both ways", () => {
  const golden = hex("21e41c71 0000 0004 ffffffff00000001 0000000000000000 0000000500000000");
  const slot = new Request();
  assert.equal(decodeRequest(slot, viewOf(golden), 0, true), undefined);
  assert.equal(slot.type, Cmd.TRIM);
  assert.equal(slot.length, 0x5_0000_0000);
  const made = new Uint8Array(EXTENDED_REQUEST.byteLength);
  assert.equal(encodeRequest(slot, viewOf(made), 0, true), 32);
  assert.deepEqual(made, golden);
});

test("a request of the other form, or with any bit of its magic turned, is no request", () => {
  const slot = new Request();
  const bytes = new Uint8Array(EXTENDED_REQUEST.byteLength);
  encodeRequest(slot, viewOf(bytes), 0, false);
  assert.equal(decodeRequest(slot, viewOf(bytes), 0, true), "bad-magic");
  for (let bit = 0; bit < 32; bit++) {
    encodeRequest(slot, viewOf(bytes), 0, false);
    bytes[bit >> 3]! ^= 1 << (bit & 7);
    assert.equal(decodeRequest(slot, viewOf(bytes), 0, false), "bad-magic");
  }
});

test("an offset keeps its two halves, and is at least 2^53 where it is no longer exact", () => {
  const view = viewOf(new Uint8Array(64));
  for (const extended of [false, true])
    for (const [hi, lo] of [
      [0, 0],
      [0, 0xffff_ffff],
      [1, 0],
      [0x001f_ffff, 0xffff_ffff],
      [0x0020_0000, 0],
      [0x0020_0000, 1],
      [0xffff_ffff, 0xffff_ffff],
    ] as const) {
      const slot = new Request();
      slot.offsetHi = hi;
      slot.offsetLo = lo;
      encodeRequest(slot, view, 3, extended);
      const back = new Request();
      decodeRequest(back, view, 3, extended);
      assert.equal(back.offsetHi, hi);
      assert.equal(back.offsetLo, lo);
      if (hi < 0x20_0000) assert.equal(BigInt(back.offset), (BigInt(hi) << 32n) | BigInt(lo));
      else assert.ok(back.offset >= 2 ** 53);
    }
});

test("setOffset fills all three forms", () => {
  const slot = new Request();
  for (const offset of [0, 1, 2 ** 32 - 1, 2 ** 32, 2 ** 40 + 4096, Number.MAX_SAFE_INTEGER]) {
    slot.setOffset(offset);
    assert.equal(slot.offsetHi * 2 ** 32 + slot.offsetLo, offset);
    assert.equal(slot.offset, offset);
  }
});

test("every field at its edges comes back as it went", () => {
  const view = viewOf(new Uint8Array(40));
  for (const extended of [false, true])
    for (const flags of [0, 1, 0x7fff, 0xffff])
      for (const type of [0, 8, 0x7fff, 0xffff])
        for (const cookie of [0, 1, 0x7fff_ffff, 0x8000_0000, 0xffff_ffff])
          for (const length of [0, 1, 0x7fff_ffff, 0xffff_ffff]) {
            const slot = new Request();
            slot.flags = flags;
            slot.type = type;
            slot.cookieHi = cookie;
            slot.cookieLo = 0xffff_ffff - cookie;
            slot.length = extended ? length * 0x1000 : length;
            slot.setOffset(length * 7);
            encodeRequest(slot, view, 8, extended);
            const back = new Request();
            assert.equal(decodeRequest(back, view, 8, extended), undefined);
            assert.deepEqual(back, slot);
          }
});
