/** Clients that begin something and do not go on, or take nothing of what is sent to them. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { KIB, MIB } from "#base/units";
import { join, NbdGuest } from "#test/support/nbd-guest";
import { NbdStage } from "#test/support/nbd-stage";
import { Cmd, CmdFlag, Opt } from "#wire/nbd/codes";
import { encodeInfoRequest, encodeOption } from "#wire/nbd/handshake";

test("a handshake that stands still at any byte is ended", () => {
  const stage = new NbdStage({ handshakeMs: 10_000 });
  const bytes = join(
    new Uint8Array([0, 0, 0, 3]),
    encodeOption(Opt.LIST),
    encodeOption(Opt.GO, encodeInfoRequest("db", [])).subarray(0, -1),
  );
  for (let length = 0; length <= bytes.length; length++) {
    const guest = new NbdGuest(stage.env, stage.front);
    stage.env.settle();
    guest.give(bytes.subarray(0, length));
    stage.env.advance(9_000);
    assert.equal(guest.line.ended, undefined);
    stage.env.advance(3_000);
    assert.equal(guest.line.ended, "stopped");
    assert.equal(stage.lastEnd.why, "silent");
  }
  stage.assertAlone();
});

test("a client that gets on with its options may take longer than one of them", () => {
  const stage = new NbdStage({ handshakeMs: 10_000 });
  const guest = new NbdGuest(stage.env, stage.front);
  guest.greet();
  for (let round = 0; round < 20; round++) {
    stage.env.advance(8_000);
    assert.equal(guest.option(Opt.LIST).length, 2);
  }
});

for (const style of ["simple", "structured", "extended"] as const) {
  test(`half a header and then silence ends the connection, whole requests and silence do not (${style})`, () => {
    const stage = new NbdStage({ stallMs: 60_000 });
    const patient = NbdGuest.open(stage.env, stage.front, "db", { style });
    patient.read(0, 512);
    for (let length = 1; length < (style === "extended" ? 32 : 28); length += 3) {
      const guest = NbdGuest.open(stage.env, stage.front, "db", { style });
      guest.give(guest.encode(Cmd.READ, 0, 512).subarray(0, length));
      stage.env.advance(58_000);
      assert.equal(guest.line.ended, undefined);
      stage.env.advance(5_000);
      assert.equal(guest.line.ended, "stopped");
      assert.match(String(stage.lastEnd.detail), /header has not come/);
    }
    stage.env.advance(7 * 24 * 3600_000);
    assert.equal(patient.read(0, 512).length, 512);
  });

  test(`a payload that never comes ends the connection and not the server (${style})`, () => {
    const stage = new NbdStage({ stallMs: 60_000 });
    const payload = style === "extended" ? CmdFlag.PAYLOAD_LEN : 0;
    for (const [length, sent] of [
      [512, 0],
      [4096, 4095],
      [256 * KIB, 1],
      [2 * MIB, 300 * KIB],
    ] as const) {
      const guest = NbdGuest.open(stage.env, stage.front, "db", { style });
      guest.give(guest.encode(Cmd.WRITE, 0, length, payload, new Uint8Array(sent)));
      stage.assertServing();
      stage.env.advance(62_000);
      assert.equal(guest.line.ended, "stopped");
      assert.deepEqual(stage.lastEnd.why, "silent");
      assert.match(String(stage.lastEnd.detail), /payload has not come/);
    }
    // What is refused has to be read as well, and is not waited for either.
    const guest = NbdGuest.open(stage.env, stage.front, "db", { style });
    guest.give(guest.encode(Cmd.WRITE, 1, 4096, payload, new Uint8Array(100)));
    stage.env.advance(62_000);
    assert.equal(stage.lastEnd.why, "silent");
    stage.assertAlone();
  });

  test(`clients that take no answers cannot keep the memory from the others (${style})`, () => {
    const stage = new NbdStage({ stallMs: 60_000 });
    const deaf = Array.from({ length: 8 }, () => NbdGuest.open(stage.env, stage.front, "db", { style }));
    for (const guest of deaf) {
      guest.line.deaf = true;
      for (let round = 0; round < 400; round++) guest.line.give(guest.encode(Cmd.READ, 0, 256 * KIB));
    }
    stage.env.settle();
    assert.ok(stage.env.memory.used > 10 * MIB);
    // Under pressure they are given seconds and not a minute.
    const before = stage.neighbour.lastCookie;
    stage.neighbour.give(stage.neighbour.encode(Cmd.READ, 0, 256 * KIB));
    stage.env.advance(20_000);
    assert.equal(stage.neighbour.answer(before + 1).error, 0);
    stage.env.advance(120_000);
    for (const guest of deaf) assert.equal(guest.line.ended, "stopped");
    stage.assertAlone();
    stage.assertServing();
  });
}

test("payloads that never come cannot keep the memory from the others", () => {
  const stage = new NbdStage({ stallMs: 60_000 });
  const guests = Array.from({ length: 200 }, () => NbdGuest.open(stage.env, stage.front, "db"));
  for (const guest of guests) guest.give(guest.encode(Cmd.WRITE, 0, 256 * KIB, 0, new Uint8Array(1)));
  assert.ok(stage.front.figures.waiting > 0);
  stage.neighbour.give(stage.neighbour.encode(Cmd.READ, 0, 64 * KIB));
  stage.env.advance(30_000);
  assert.equal(stage.neighbour.answer(stage.neighbour.lastCookie).error, 0);
  for (const guest of guests) guest.line.reset();
  stage.env.settle();
  stage.assertAlone();
  stage.assertServing();
});

test("an idle connection is closed when a limit is set, and only then", () => {
  const stage = new NbdStage({ idleMs: 5 * 60_000 });
  const guest = NbdGuest.open(stage.env, stage.front, "db");
  for (let minute = 0; minute < 20; minute++) {
    stage.env.advance(60_000);
    assert.equal(guest.read(0, 512).length, 512);
    assert.equal(stage.neighbour.read(0, 512).length, 512);
  }
  stage.env.advance(6 * 60_000);
  assert.equal(guest.line.ended, "stopped");
  assert.deepEqual(stage.lastEnd, { why: "silent", detail: "nothing has happened for 300 s" });
});

test("nothing is watched while all is quiet", () => {
  const stage = new NbdStage();
  stage.assertServing();
  stage.env.advance(10_000);
  let rung = 0;
  const { clock } = stage.env;
  const before = clock.now();
  // A day in one step: if an alarm were set each second, this would take 86,400 of them.
  const plain = stage.env.runTurn.bind(stage.env);
  stage.env.runTurn = () => {
    rung++;
    return plain();
  };
  stage.env.advance(24 * 3600_000);
  assert.equal(clock.now() - before, 24 * 3600_000);
  assert.ok(rung < 10, String(rung));
});
