import assert from "node:assert/strict";
import { test } from "node:test";
import { EXTENDED_REPLY_MAGIC, ReplyFlag, ReplyType, SIMPLE_REPLY_MAGIC, STRUCTURED_REPLY_MAGIC } from "./codes.ts";
import {
  BLOCK_STATUS,
  BLOCK_STATUS_EXT,
  DESCRIPTOR,
  DESCRIPTOR_EXT,
  decodeError,
  decodeReply,
  ErrorChunk,
  encodeChunk,
  encodeDescriptor,
  encodeSimpleReply,
  OFFSET_DATA,
  OFFSET_HOLE,
  Reply,
  replyBytes,
} from "./reply.ts";
import { Request } from "./request.ts";

const hex = (text: string): Uint8Array => Uint8Array.from(Buffer.from(text.replaceAll(/\s/g, ""), "hex"));
const viewOf = (bytes: Uint8Array): DataView => new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
const request = Object.assign(new Request(), {
  cookieHi: 0x01234567,
  cookieLo: 0x89abcdef,
  offsetHi: 0xfedcba98,
  offsetLo: 0x76543210,
});

test("headers and payloads have the lengths of the document", () => {
  assert.equal(replyBytes(SIMPLE_REPLY_MAGIC), 16);
  assert.equal(replyBytes(STRUCTURED_REPLY_MAGIC), 20);
  assert.equal(replyBytes(EXTENDED_REPLY_MAGIC), 32);
  assert.equal(replyBytes(0x12345678), 0);
  assert.equal(OFFSET_DATA.byteLength, 8);
  assert.equal(OFFSET_HOLE.byteLength, 12);
  assert.equal(BLOCK_STATUS.byteLength + DESCRIPTOR.byteLength, 12);
  assert.equal(BLOCK_STATUS_EXT.byteLength + DESCRIPTOR_EXT.byteLength, 24);
});

test("a simple reply is these bytes, both ways", () => {
  const made = new Uint8Array(16);
  assert.equal(encodeSimpleReply(request, 28, viewOf(made), 0), 16);
  assert.deepEqual(made, hex("67446698 0000001c 0123456789abcdef"));
  const slot = new Reply();
  assert.equal(decodeReply(slot, viewOf(made), 0), undefined);
  assert.equal(slot.style, "simple");
  assert.equal(slot.error, 28);
  assert.equal(slot.cookieHi, 0x01234567);
  assert.equal(slot.cookieLo, 0x89abcdef);
});

test("a structured chunk is these bytes, both ways", () => {
  const made = new Uint8Array(20);
  assert.equal(encodeChunk(request, ReplyFlag.DONE, ReplyType.OFFSET_DATA, 0x1008, viewOf(made), 0, false), 20);
  assert.deepEqual(made, hex("668e33ef 0001 0001 0123456789abcdef 00001008"));
  const slot = new Reply();
  assert.equal(decodeReply(slot, viewOf(made), 0), undefined);
  assert.deepEqual(
    { ...slot },
    {
      style: "structured",
      error: 0,
      flags: 1,
      type: 1,
      cookieHi: 0x01234567,
      cookieLo: 0x89abcdef,
      offset: 0,
      length: 0x1008,
    },
  );
});

test("an extended chunk echoes the request's offset to the last bit", () => {
  const made = new Uint8Array(32);
  assert.equal(encodeChunk(request, 0, ReplyType.ERROR, 6, viewOf(made), 0, true), 32);
  assert.deepEqual(made, hex("6e8a278c 0000 8001 0123456789abcdef fedcba9876543210 0000000000000006"));
  const slot = new Reply();
  assert.equal(decodeReply(slot, viewOf(made), 0), undefined);
  assert.equal(slot.style, "extended");
  assert.equal(slot.length, 6);
});

test("a reply with an unknown magic is none", () => {
  assert.equal(decodeReply(new Reply(), viewOf(new Uint8Array(32)), 0), "bad-magic");
});

test("descriptors have both widths", () => {
  const made = new Uint8Array(24);
  assert.equal(encodeDescriptor(0xffff_ffff, 3, viewOf(made), 0, false), 8);
  assert.equal(encodeDescriptor(0x10_0000_0000, 2, viewOf(made), 8, true), 24);
  assert.deepEqual(made, hex("ffffffff 00000003 0000001000000000 0000000000000002"));
});

test("an error chunk is read with its message and offset, and a lie about its length is found", () => {
  const slot = new ErrorChunk();
  const plain = viewOf(hex("00000005 0003 616263"));
  assert.equal(decodeError(slot, ReplyType.ERROR, plain, 0, 9), undefined);
  assert.equal(slot.error, 5);
  assert.equal(slot.messageAt, 6);
  assert.equal(slot.messageLength, 3);
  assert.equal(slot.offset, -1);
  for (let length = 0; length < 9; length++)
    assert.equal(decodeError(slot, ReplyType.ERROR, plain, 0, length), "bad-chunk");
  const offset = viewOf(hex("00000005 0001 61 0000000100000200"));
  assert.equal(decodeError(slot, ReplyType.ERROR_OFFSET, offset, 0, 15), undefined);
  assert.equal(slot.offset, 0x1_0000_0200);
  for (let length = 0; length < 15; length++)
    assert.equal(decodeError(slot, ReplyType.ERROR_OFFSET, offset, 0, length), "bad-chunk");
  assert.equal(decodeError(slot, ReplyType.NONE, offset, 0, 15), "bad-chunk");
  // An error type of the future begins in the same way, and may go on after that.
  assert.equal(decodeError(slot, 0x8777, offset, 0, 15), undefined);
});
