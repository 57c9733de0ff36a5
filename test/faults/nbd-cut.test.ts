/** Clients that go away at every byte of a conversation, in every way there is. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { KIB } from "#base/units";
import { join, NbdGuest } from "#test/support/nbd-guest";
import { NbdStage } from "#test/support/nbd-stage";
import { Cmd, CmdFlag } from "#wire/nbd/codes";

const CONTEXTS = ["base:allocation", "qemu:allocation-depth"];

function conversation(guest: NbdGuest): Uint8Array {
  const payload = guest.style === "extended" ? CmdFlag.PAYLOAD_LEN : 0;
  return join(
    guest.encode(Cmd.READ, 0, 4096),
    guest.encode(Cmd.WRITE, 0, 64, payload, new Uint8Array(64)),
    guest.encode(Cmd.WRITE, 512, 512, payload, new Uint8Array(512).fill(1)),
    guest.encode(Cmd.READ, 0, 300 * KIB),
    guest.encode(Cmd.BLOCK_STATUS, 0, 65536),
    guest.encode(Cmd.WRITE_ZEROES, 8192, 4096, CmdFlag.FUA),
    guest.encode(Cmd.TRIM, 8192, 4096),
    guest.encode(99, 0, 0),
    guest.encode(Cmd.FLUSH, 0, 0),
  );
}

for (const style of ["simple", "structured", "extended"] as const)
  for (const way of ["reset", "finish"] as const)
    for (const device of ["at once", "late"] as const)
      test(`a client that goes (${way}) after any byte leaves nothing behind (${style}, device done ${device})`, () => {
        const stage = new NbdStage();
        const options = style === "simple" ? { style } : { style, contexts: CONTEXTS };
        const bytes = conversation(NbdGuest.open(stage.env, stage.front, "db", options));
        for (const connection of stage.front.connections)
          if (connection.requests === 0 && connection.agreement.style === style && stage.front.connections.size > 1)
            if (connection !== [...stage.front.connections][0])
              connection.abort("stopped", "only its bytes were wanted");
        stage.env.settle();
        for (let length = 0; length <= bytes.length; length++) {
          const guest = NbdGuest.open(stage.env, stage.front, "db", options);
          stage.device.auto = device === "at once";
          guest.line.deaf = length % 2 === 1;
          guest.give(bytes.subarray(0, length));
          if (way === "reset") guest.line.reset();
          else guest.line.finish();
          stage.env.settle();
          while (stage.device.held.length > 0) stage.device.release(stage.device.held.length >> 1);
          stage.env.settle();
          if (way === "finish") {
            guest.line.listen();
            stage.env.settle();
          }
          assert.ok(guest.line.ended !== undefined, `still there after ${length} bytes`);
          assert.equal(stage.lastEnd.why, "lost");
          stage.device.auto = true;
        }
        stage.assertAlone();
        stage.assertServing();
      });

test("a client that finishes sending still gets all answers it has asked for", () => {
  const stage = new NbdStage();
  const guest = NbdGuest.open(stage.env, stage.front, "db");
  stage.device.auto = false;
  guest.give(join(guest.encode(Cmd.READ, 0, 512), guest.encode(Cmd.READ, 512, 512)));
  guest.line.finish();
  stage.env.settle();
  assert.equal(guest.line.ended, undefined);
  stage.device.release();
  stage.device.release();
  stage.env.settle();
  assert.equal(guest.answer(1).error, 0);
  assert.equal(guest.answer(2).error, 0);
  assert.equal(guest.line.ended, "stopped");
});
