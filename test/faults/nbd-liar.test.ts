/** A client that lies in every field of every option and every request. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { join, NbdGuest } from "#test/support/nbd-guest";
import { NbdStage } from "#test/support/nbd-stage";
import { Cmd, CmdFlag, Info, Opt } from "#wire/nbd/codes";
import { encodeInfoRequest, encodeMetaContextRequest, encodeOption } from "#wire/nbd/handshake";

const LIES_32 = [
  0, 1, 0x7f, 0xff, 0x100, 0xffff, 0x1_0000, 0x1_0001, 0x7fff_ffff, 0x8000_0000, 0xffff_fffe, 0xffff_ffff,
];
const OPTIONS: readonly (readonly [number, Uint8Array])[] = [
  [Opt.EXPORT_NAME, new TextEncoder().encode("db")],
  [Opt.ABORT, new Uint8Array(0)],
  [Opt.LIST, new Uint8Array(0)],
  [Opt.STARTTLS, new Uint8Array(0)],
  [Opt.INFO, encodeInfoRequest("db", [Info.NAME, Info.BLOCK_SIZE])],
  [Opt.GO, encodeInfoRequest("db", [Info.NAME, Info.BLOCK_SIZE])],
  [Opt.STRUCTURED_REPLY, new Uint8Array(0)],
  [Opt.EXTENDED_HEADERS, new Uint8Array(0)],
  [Opt.LIST_META_CONTEXT, encodeMetaContextRequest({ name: "db", queries: ["base:", "qemu:allocation-depth"] })],
  [Opt.SET_META_CONTEXT, encodeMetaContextRequest({ name: "db", queries: ["base:allocation"] })],
];

test("no lie in any 32 bits of any option harms the server or its other clients", () => {
  const stage = new NbdStage();
  for (const [option, data] of OPTIONS)
    for (const structured of [false, true]) {
      const whole = encodeOption(option, data);
      for (let at = 0; at + 4 <= whole.length; at++)
        for (const lie of LIES_32) {
          const bytes = whole.slice();
          new DataView(bytes.buffer).setUint32(at, lie);
          const liar = new NbdGuest(stage.env, stage.front);
          liar.greet();
          if (structured) liar.option(Opt.STRUCTURED_REPLY);
          liar.give(bytes);
          // Enough to fill up most lengths that were claimed.
          liar.give(new Uint8Array(70_000));
          liar.line.reset();
          stage.env.settle();
        }
    }
  stage.assertAlone();
  stage.assertServing();
});

test("every bit of the client's flags but the two known ones ends the session", () => {
  const stage = new NbdStage();
  for (let bit = 2; bit < 32; bit++) {
    const liar = new NbdGuest(stage.env, stage.front);
    liar.greet(((1 << bit) | 3) >>> 0);
    assert.equal(liar.line.ended, "stopped");
    assert.equal(stage.lastEnd.why, "violated");
  }
  stage.assertAlone();
});

for (const style of ["simple", "structured", "extended"] as const)
  test(`no lie in any 32 bits of a request harms the server, and what is not fatal is answered (${style})`, () => {
    const stage = new NbdStage();
    const guest = (): NbdGuest => NbdGuest.open(stage.env, stage.front, "db", { style });
    let liar = guest();
    let answered = 0;
    for (const type of [...Object.values(Cmd), 9, 0xffff])
      for (const flags of [0, ...Object.values(CmdFlag), 0x40, 0x8000, 0xffff])
        for (let field = 4; field < (style === "extended" ? 32 : 28); field += 4)
          for (const lie of LIES_32) {
            // The payload that a write of this length needs would be up to 4 GiB: "payload never comes" is another test.
            const bytes = liar.encode(type, 0, 512, flags);
            const view = new DataView(bytes.buffer, bytes.byteOffset);
            view.setUint32(field, lie);
            const hasPayload =
              style === "extended"
                ? (view.getUint16(4) & CmdFlag.PAYLOAD_LEN) !== 0
                : view.getUint16(6) === Cmd.WRITE && view.getUint32(24) > 0;
            if (hasPayload && (style !== "extended" || view.getUint32(24) === 0) && view.getUint32(28 - 4) > 0x2_0000)
              continue;
            const payload = style === "extended" ? view.getUint32(28) : view.getUint32(24);
            liar.line.give(bytes);
            if (hasPayload && payload <= 0x1_0001) liar.line.give(new Uint8Array(payload));
            stage.env.settle();
            if (liar.line.ended !== undefined || (hasPayload && payload > 0x1_0001) || type === Cmd.DISC) {
              liar.line.reset();
              stage.env.settle();
              liar = guest();
            } else {
              assert.ok(liar.pending > 0, `no answer to type ${type} flags ${flags} field ${field} lie ${lie}`);
              liar.take(liar.pending);
              answered++;
            }
          }
    assert.ok(answered > 1000);
    liar.line.reset();
    stage.env.settle();
    stage.assertAlone();
    stage.assertServing();
  });

test("a request whose magic has any bit turned ends the connection, and the reason is logged", () => {
  const stage = new NbdStage();
  for (const style of ["simple", "structured", "extended"] as const)
    for (let bit = 0; bit < 32; bit++) {
      const liar = NbdGuest.open(stage.env, stage.front, "db", { style });
      const bytes = liar.encode(Cmd.READ, 0, 512);
      bytes[bit >> 3]! ^= 1 << (bit & 7);
      liar.give(join(bytes, liar.encode(Cmd.READ, 0, 512)));
      assert.equal(liar.line.ended, "stopped");
      assert.equal(liar.pending, 0);
      assert.equal(stage.lastEnd.why, "violated");
      assert.match(String(stage.lastEnd.detail), /request begins with 0x/);
    }
  stage.assertAlone();
  stage.assertServing();
});

test("a compact header on an extended connection, and the other way round, is no request", () => {
  const stage = new NbdStage();
  for (const [style, other] of [
    ["extended", "simple"],
    ["simple", "extended"],
  ] as const) {
    const liar = NbdGuest.open(stage.env, stage.front, "db", { style });
    liar.style = other;
    liar.give(liar.encode(Cmd.READ, 0, 512));
    liar.give(liar.encode(Cmd.READ, 0, 512));
    assert.equal(stage.lastEnd.why, "violated");
  }
  stage.assertAlone();
});
