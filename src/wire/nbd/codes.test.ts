import assert from "node:assert/strict";
import { test } from "node:test";
import { Cmd, CmdFlag, errorOf, NBD_STATUS, NbdError, nameOf, statusOf } from "./codes.ts";

test("a write beyond the end is ENOSPC, and a read or trim beyond it EINVAL", () => {
  assert.equal(errorOf("range", Cmd.WRITE, 0), NbdError.ENOSPC);
  assert.equal(errorOf("range", Cmd.WRITE_ZEROES, 0), NbdError.ENOSPC);
  for (const type of [Cmd.READ, Cmd.TRIM, Cmd.CACHE, Cmd.BLOCK_STATUS])
    assert.equal(errorOf("range", type, 0), NbdError.EINVAL);
});

test("ENOTSUP is the answer to FAST_ZERO alone", () => {
  assert.equal(errorOf("unsupported", Cmd.WRITE_ZEROES, CmdFlag.FAST_ZERO), NbdError.ENOTSUP);
  assert.equal(errorOf("unsupported", Cmd.WRITE_ZEROES, 0), NbdError.EINVAL);
  assert.ok(!Object.values(NBD_STATUS).includes(NbdError.ENOTSUP as never));
});

test("only ok is success, in both directions", () => {
  for (const [status, error] of Object.entries(NBD_STATUS)) {
    assert.equal(error === 0, status === "ok", status);
    assert.equal(statusOf(error, Cmd.READ) === "ok", status === "ok", status);
  }
  assert.equal(statusOf(4711, Cmd.WRITE), "invalid");
});

test("a code without a name is called by its number", () => {
  assert.equal(nameOf(Cmd, 6), "WRITE_ZEROES");
  assert.equal(nameOf(Cmd, 600), "600");
});
