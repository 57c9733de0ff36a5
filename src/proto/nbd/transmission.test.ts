import assert from "node:assert/strict";
import { test } from "node:test";
import { Cmd, CmdFlag, NbdError } from "#wire/nbd/codes";
import type { ReplyStyle } from "#wire/nbd/reply";
import { Request } from "#wire/nbd/request";
import { CONTEXTS } from "./negotiation.ts";
import { payloadBytes, validateRequest } from "./transmission.ts";

const SIZE = 1 << 30;
const MAX = 32 << 20;
const agreement = (style: ReplyStyle, readOnly = false, blockSize = 512, contexts = CONTEXTS) => ({
  name: "db",
  style,
  contexts,
  readOnly,
  size: SIZE,
  blockSize,
  maximumPayload: MAX,
});
function request(type: number, offset = 0, length = 4096, flags = 0): Request {
  const made = Object.assign(new Request(), { type, length, flags });
  made.setOffset(offset);
  return made;
}
const STYLES: readonly ReplyStyle[] = ["simple", "structured", "extended"];

test("a payload follows a compact write, and an extended request that says so", () => {
  for (const type of Object.values(Cmd)) {
    assert.equal(payloadBytes(request(type), agreement("simple")), type === Cmd.WRITE ? 4096 : 0);
    assert.equal(payloadBytes(request(type), agreement("extended")), 0);
    assert.equal(payloadBytes(request(type, 0, 4096, CmdFlag.PAYLOAD_LEN), agreement("extended")), 4096);
    assert.equal(payloadBytes(request(type, 0, MAX + 1, CmdFlag.PAYLOAD_LEN), agreement("extended")), -1);
  }
  assert.equal(payloadBytes(request(Cmd.WRITE, 0, 0xffff_ffff), agreement("structured")), 0xffff_ffff);
});

test("each command takes its own flags, FUA is for all of them, and no other flag for any", () => {
  const own: Record<number, number> = {
    [Cmd.READ]: CmdFlag.DF,
    [Cmd.WRITE]: CmdFlag.PAYLOAD_LEN,
    [Cmd.WRITE_ZEROES]: CmdFlag.NO_HOLE | CmdFlag.FAST_ZERO,
    [Cmd.BLOCK_STATUS]: CmdFlag.REQ_ONE | CmdFlag.PAYLOAD_LEN,
  };
  for (const type of [Cmd.READ, Cmd.WRITE, Cmd.TRIM, Cmd.CACHE, Cmd.WRITE_ZEROES, Cmd.BLOCK_STATUS])
    for (let bit = 0; bit < 16; bit++) {
      const flag = 1 << bit;
      const needed = type === Cmd.WRITE ? CmdFlag.PAYLOAD_LEN : 0;
      const found = validateRequest(request(type, 0, 4096, flag | needed), agreement("extended"), SIZE);
      const allowed = flag === CmdFlag.FUA || (flag & (own[type] ?? 0)) !== 0;
      assert.equal(found?.error, allowed ? undefined : NbdError.EINVAL, `${type} ${bit}`);
    }
});

test("DF needs chunks, and the payload's flag extended headers", () => {
  const ask = (style: ReplyStyle, type: number, flags: number) =>
    validateRequest(request(type, 0, 4096, flags), agreement(style), SIZE)?.error;
  assert.equal(ask("simple", Cmd.READ, CmdFlag.DF), NbdError.EINVAL);
  assert.equal(ask("structured", Cmd.READ, CmdFlag.DF), undefined);
  assert.equal(ask("structured", Cmd.WRITE, CmdFlag.PAYLOAD_LEN), NbdError.EINVAL);
  assert.equal(ask("extended", Cmd.WRITE, 0), NbdError.EINVAL);
});

test("ranges end where the device does now, with the document's error for each command", () => {
  for (const style of STYLES) {
    const flags = (type: number) => (style === "extended" && type === Cmd.WRITE ? CmdFlag.PAYLOAD_LEN : 0);
    const ask = (type: number, offset: number, length: number, size = SIZE) =>
      validateRequest(request(type, offset, length, flags(type)), agreement(style), size)?.error;
    for (const type of [Cmd.READ, Cmd.WRITE, Cmd.TRIM, Cmd.CACHE, Cmd.WRITE_ZEROES, Cmd.BLOCK_STATUS]) {
      const beyond = type === Cmd.WRITE || type === Cmd.WRITE_ZEROES ? NbdError.ENOSPC : NbdError.EINVAL;
      assert.equal(ask(type, SIZE - 512, 512), undefined);
      assert.equal(ask(type, SIZE - 512, 1024), beyond);
      assert.equal(ask(type, SIZE, 512), beyond);
      assert.equal(ask(type, SIZE, 512, SIZE + 512), undefined);
      assert.equal(ask(type, Number.MAX_SAFE_INTEGER - 511, 512), beyond);
      assert.equal(ask(type, 0, 0), NbdError.EINVAL);
      assert.equal(ask(type, 1, 512), NbdError.EINVAL);
      assert.equal(ask(type, 512, 513), NbdError.EINVAL);
    }
  }
});

test("an offset too large for a number is beyond the end", () => {
  const far = request(Cmd.READ, 0, 512);
  far.offsetHi = far.offsetLo = 0xffff_ffff;
  far.offset = 0xffff_ffff * 2 ** 32 + 0xffff_ffff;
  assert.equal(validateRequest(far, agreement("extended"), SIZE)?.error, NbdError.EINVAL);
});

test("only what has a payload is limited by it", () => {
  for (const type of [Cmd.TRIM, Cmd.CACHE, Cmd.WRITE_ZEROES, Cmd.BLOCK_STATUS])
    assert.equal(validateRequest(request(type, 0, SIZE), agreement("structured"), SIZE), undefined);
  assert.equal(validateRequest(request(Cmd.READ, 0, MAX), agreement("simple"), SIZE), undefined);
  assert.equal(validateRequest(request(Cmd.READ, 0, MAX + 512), agreement("simple"), SIZE)?.error, NbdError.EINVAL);
  assert.equal(
    validateRequest(request(Cmd.READ, 0, MAX + 512), agreement("structured"), SIZE)?.error,
    NbdError.EOVERFLOW,
  );
});

test("a read-only export refuses what writes, and status needs a context", () => {
  for (const type of [Cmd.WRITE, Cmd.TRIM, Cmd.WRITE_ZEROES])
    assert.equal(validateRequest(request(type), agreement("simple", true), SIZE)?.error, NbdError.EPERM);
  assert.equal(validateRequest(request(Cmd.READ), agreement("simple", true), SIZE), undefined);
  const none = agreement("structured", false, 512, []);
  assert.equal(validateRequest(request(Cmd.BLOCK_STATUS), none, SIZE)?.error, NbdError.EINVAL);
});
