/** Clients that send noise: before, during and after the handshake; and ones whose every message is slightly wrong. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { join, NbdGuest } from "#test/support/nbd-guest";
import { NbdStage } from "#test/support/nbd-stage";
import { Cmd, CmdFlag, Opt } from "#wire/nbd/codes";
import { encodeInfoRequest, encodeMetaContextRequest, encodeOption } from "#wire/nbd/handshake";

/** xorshift32: the same noise from the same seed. */
function noise(seed: number): () => number {
  let state = seed * 2654435761 || 1;
  return () => {
    state ^= state << 13;
    state ^= state >>> 17;
    state ^= state << 5;
    return state >>> 0;
  };
}

test("garbage instead of a handshake ends the session", () => {
  const stage = new NbdStage();
  for (let seed = 1; seed <= 200; seed++) {
    const next = noise(seed);
    const guest = new NbdGuest(stage.env, stage.front);
    stage.env.settle();
    guest.give(Uint8Array.from({ length: next() % 5000 }, () => next()));
    guest.line.reset();
    stage.env.settle();
  }
  for (const text of [
    "GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    "SSH-2.0-OpenSSH_9.2\r\n",
    "\x16\x03\x01\x02\x00\x01\x00\x01",
  ]) {
    const guest = new NbdGuest(stage.env, stage.front);
    stage.env.settle();
    guest.give(new TextEncoder().encode(text));
    assert.equal(guest.line.ended, "stopped", text);
    assert.equal(stage.lastEnd.why, "violated");
  }
  stage.assertAlone();
  stage.assertServing();
});

test("garbage after GO ends the connection, and what came before it is answered", () => {
  const stage = new NbdStage();
  for (let seed = 1; seed <= 100; seed++) {
    const next = noise(seed);
    const guest = NbdGuest.open(stage.env, stage.front, "db", { style: "structured" });
    guest.read(0, 512);
    guest.give(Uint8Array.from({ length: 28 + (next() % 200_000) }, () => next()));
    assert.equal(guest.line.ended, "stopped");
    assert.equal(stage.lastEnd.why, "violated");
  }
  stage.assertAlone();
  stage.assertServing();
});

test("conversations with random bytes changed, in random pieces, never break the server", () => {
  for (let seed = 1; seed <= 400; seed++) {
    const next = noise(seed);
    const stage = new NbdStage({}, 8 << 20);
    const guest = new NbdGuest(stage.env, stage.front);
    const style = (["simple", "structured", "extended"] as const)[seed % 3]!;
    guest.style = style;
    const payload = style === "extended" ? CmdFlag.PAYLOAD_LEN : 0;
    const option = { simple: Opt.LIST, structured: Opt.STRUCTURED_REPLY, extended: Opt.EXTENDED_HEADERS }[style];
    const bytes = join(
      new Uint8Array([0, 0, 0, 3]),
      encodeOption(option),
      encodeOption(Opt.SET_META_CONTEXT, encodeMetaContextRequest({ name: "db", queries: ["base:allocation"] })),
      encodeOption(Opt.GO, encodeInfoRequest("db", [3])),
      ...Array.from({ length: 30 }, () =>
        join(
          guest.encode(Cmd.READ, (next() % 4096) * 512, 512 * (1 + (next() % 100)), next() % 5 === 0 ? CmdFlag.DF : 0),
          guest.encode(Cmd.WRITE, (next() % 4096) * 512, 1024, payload, new Uint8Array(1024)),
          guest.encode(Cmd.BLOCK_STATUS, 0, 65536),
          guest.encode(Cmd.TRIM, 4096, 4096),
        ),
      ),
    );
    for (let change = next() % 6; change > 0; change--) bytes[next() % bytes.length] = next();
    stage.env.settle();
    stage.device.auto = next() % 2 === 0;
    for (let at = 0; at < bytes.length; ) {
      const length = 1 + (next() % 3000);
      guest.line.chunkMax = 1 + (next() % 2000);
      guest.line.give(bytes.subarray(at, at + length));
      at += length;
      stage.env.runTurn();
      if (stage.device.held.length > 0 && next() % 2 === 0) stage.device.release(next() % stage.device.held.length);
    }
    stage.env.settle();
    if (next() % 2 === 0) guest.line.reset();
    else guest.line.finish();
    stage.device.auto = true;
    while (stage.device.held.length > 0) stage.device.release();
    stage.env.settle();
    stage.env.advance(120_000);
    stage.assertAlone();
    stage.assertServing();
  }
});
