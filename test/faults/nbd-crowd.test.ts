/** Ten thousand connections at once, of clients that say nothing, something, or everything. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { MIB } from "#base/units";
import { NbdGuest } from "#test/support/nbd-guest";
import { NbdStage } from "#test/support/nbd-stage";
import { StillLine } from "#test/support/still-env";
import { Cmd } from "#wire/nbd/codes";

const CROWD = 10_000;

test("ten thousand strangers who say nothing make room for who comes after them", () => {
  const stage = new NbdStage({ connectionsMax: 2000 }, 64 * MIB);
  const lines = Array.from({ length: CROWD }, () => new StillLine(stage.env));
  for (const line of lines) stage.front.accept(line);
  stage.env.settle();
  const { handshaking, connected } = stage.front.figures;
  assert.equal(handshaking + connected, 2000);
  assert.equal(lines.filter((line) => line.ended === undefined).length, 1999);
  const late = NbdGuest.open(stage.env, stage.front, "db");
  assert.equal(late.read(0, 512).length, 512);
  stage.assertServing();
  stage.env.advance(40_000);
  late.line.reset();
  stage.env.settle();
  stage.assertAlone();
  // The log tells of some, and how many more there were.
  const ends = stage.env.logged.filter((line) => line.message === "NBD connection ended").length;
  assert.ok(ends < 1000, String(ends));
  const more = stage.env.logged.filter((line) => line.message.startsWith("More NBD connections"));
  assert.ok(more.length > 0);
});

test("ten thousand connections are served, each in turn", () => {
  const stage = new NbdStage({ connectionsMax: CROWD + 1 }, 128 * MIB);
  const guests = Array.from({ length: CROWD }, () => NbdGuest.open(stage.env, stage.front, "db"));
  assert.ok(stage.env.memory.used < 64 * MIB);
  for (const guest of guests) guest.line.give(guest.encode(Cmd.READ, 0, 4096));
  stage.env.settle();
  for (const guest of guests) {
    assert.equal(guest.answer(guest.lastCookie).error, 0);
    guest.line.give(guest.encode(Cmd.DISC, 0, 0));
  }
  const refused = new StillLine(stage.env);
  stage.front.accept(refused);
  stage.env.settle();
  stage.assertAlone();
  stage.assertServing();
});

test("when no memory is left for another connection it is turned away, and the others go on", () => {
  const stage = new NbdStage({}, 4 * MIB);
  const lines = Array.from({ length: 2000 }, () => new StillLine(stage.env));
  for (const line of lines) stage.front.accept(line);
  stage.env.settle();
  const away = lines.filter((line) => line.ended !== undefined);
  assert.ok(away.length > 0 && away.length < 2000);
  for (const line of lines) line.reset();
  stage.env.settle();
  stage.assertAlone();
  stage.assertServing();
});
