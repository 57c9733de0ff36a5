import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { KIB, MIB } from "#base/units";
import { MemoryDevice } from "#device/memory-device";
import { join, NbdGuest } from "#test/support/nbd-guest";
import { StillEnv, StillLine } from "#test/support/still-env";
import { Cmd, CmdFlag, Flag, NbdError, Opt, Rep, ReplyType } from "#wire/nbd/codes";
import { encodeInfoRequest } from "#wire/nbd/handshake";
import type { ReplyStyle } from "#wire/nbd/reply";
import { OpenExportTable } from "./exports.ts";
import { type Handover, NbdFront, type NbdFrontOptions } from "./nbd-front.ts";

const STYLES: readonly ReplyStyle[] = ["simple", "structured", "extended"];

function world(options: NbdFrontOptions = {}, memoryBytes = 160 * MIB, size = 64 * MIB) {
  const env = new StillEnv(memoryBytes);
  const device = new MemoryDevice(env.memory, size);
  const snapshot = new MemoryDevice(env.memory, MIB, { readOnly: true });
  const table = new OpenExportTable().add("db", device, { description: "the database" }).add("db@monday", snapshot);
  return { env, device, snapshot, table, front: new NbdFront(env, table, options) };
}

/** Bytes that differ from place to place. */
const pattern = (length: number, seed = 1): Uint8Array =>
  new Uint8Array(length).map((_, index) => (index * 31 + (index >> 8) * 7 + seed) & 0xff);
const same = (a: Uint8Array, b: Uint8Array): boolean => Buffer.compare(a, b) === 0;

/** Nothing may be left behind by connections that have ended. */
function assertNothingHeld({ env, front }: { env: StillEnv; front: NbdFront }): void {
  assert.equal(front.connections.size, 0);
  assert.equal(env.memory.used, 0);
}

for (const style of STYLES)
  describe(`an NBD connection with ${style} replies`, () => {
    it("reads what was written, in pieces of all sizes", () => {
      const all = world();
      const guest = NbdGuest.open(all.env, all.front, "db", { style });
      for (const [offset, length] of [
        [0, 512],
        [4096, 4096],
        [65536 - 512, 1024],
        [MIB, 32 * KIB],
        [2 * MIB, 256 * KIB],
        [3 * MIB, 256 * KIB + 512],
        [5 * MIB + 512, 3 * MIB],
      ] as const) {
        const data = pattern(length, offset + length);
        assert.equal(guest.write(offset, data), 0);
        assert.ok(same(guest.read(offset, length), data), `${offset}+${length}`);
        assert.ok(same(all.device.peek(offset, length), data));
      }
      guest.ask(Cmd.FLUSH, 0, 0);
      guest.give(guest.encode(Cmd.DISC, 0, 0));
      assert.equal(guest.line.ended, "stopped");
      assertNothingHeld(all);
    });

    it("serves the largest request there is, 32 MiB", () => {
      const all = world();
      const guest = NbdGuest.open(all.env, all.front, "db", { style });
      const data = pattern(32 * MIB);
      assert.equal(guest.write(MIB, data), 0);
      assert.ok(same(guest.read(MIB, 32 * MIB), data));
      assert.ok(all.env.memory.peak < 80 * MIB);
    });

    it("refuses 32 MiB and one block, and stays in step", () => {
      const { env, front, device } = world();
      const guest = NbdGuest.open(env, front, "db", { style });
      const length = 32 * MIB + 512;
      assert.equal(guest.ask(Cmd.READ, 0, length).error, style === "simple" ? NbdError.EINVAL : NbdError.EOVERFLOW);
      if (style === "extended") {
        guest.give(guest.encode(Cmd.WRITE, 0, length, CmdFlag.PAYLOAD_LEN));
        assert.equal(guest.line.ended, "stopped");
        assert.equal(front.figures.ends.violated, 1);
        return;
      }
      assert.equal(guest.ask(Cmd.WRITE, 0, length, 0, new Uint8Array(length)).error, NbdError.EINVAL);
      assert.equal(device.submitted, 0);
      assert.equal(guest.write(0, pattern(512)), 0);
    });

    it("answers what lies beyond the end, is misaligned, empty or unknown, and stays in step", () => {
      const { env, front, device } = world();
      const guest = NbdGuest.open(env, front, "db", { style });
      const payload = style === "extended" ? CmdFlag.PAYLOAD_LEN : 0;
      const size = 64 * MIB;
      const { EINVAL, ENOSPC } = NbdError;
      assert.equal(guest.ask(Cmd.READ, size, 512).error, EINVAL);
      assert.equal(guest.ask(Cmd.READ, size - 512, 1024).error, EINVAL);
      assert.equal(guest.ask(Cmd.READ, 2 ** 53 - 512, 512).error, EINVAL);
      assert.equal(guest.ask(Cmd.READ, 100, 512).error, EINVAL);
      assert.equal(guest.ask(Cmd.READ, 0, 100).error, EINVAL);
      assert.equal(guest.ask(Cmd.READ, 0, 0).error, EINVAL);
      assert.equal(guest.ask(Cmd.WRITE, size, 512, payload, new Uint8Array(512)).error, ENOSPC);
      assert.equal(guest.ask(Cmd.WRITE, 100, 512, payload, new Uint8Array(512)).error, EINVAL);
      assert.equal(guest.ask(Cmd.WRITE_ZEROES, size, 512).error, ENOSPC);
      assert.equal(guest.ask(Cmd.TRIM, size, 512).error, EINVAL);
      assert.equal(guest.ask(Cmd.TRIM, 0, 0).error, EINVAL);
      assert.equal(guest.ask(Cmd.BLOCK_STATUS, 0, 4096).error, EINVAL);
      assert.equal(guest.ask(Cmd.FLUSH, 512, 0).error, EINVAL);
      assert.equal(guest.ask(Cmd.FLUSH, 0, 512).error, EINVAL);
      for (const type of [Cmd.RESIZE, 9, 0x7fff, 0xffff]) assert.equal(guest.ask(type, 0, 512).error, EINVAL);
      for (const flag of [CmdFlag.NO_HOLE, CmdFlag.REQ_ONE, CmdFlag.FAST_ZERO, 1 << 6, 1 << 15])
        assert.equal(guest.ask(Cmd.READ, 0, 512, flag).error, EINVAL);
      assert.equal(guest.ask(Cmd.TRIM, 0, 512, CmdFlag.NO_HOLE).error, EINVAL);
      assert.equal(device.submitted, 0);
      assert.equal(guest.ask(Cmd.READ, 0, 512, CmdFlag.FUA).error, 0);
    });

    it("keeps FUA for the operation, and makes a long write durable with one flush", () => {
      const { env, front, device } = world();
      const guest = NbdGuest.open(env, front, "db", { style });
      assert.equal(guest.write(0, pattern(4096), CmdFlag.FUA), 0);
      assert.equal(guest.ask(Cmd.TRIM, 0, 4096, CmdFlag.FUA).error, 0);
      assert.equal(guest.ask(Cmd.WRITE_ZEROES, 0, 4096, CmdFlag.FUA).error, 0);
      assert.deepEqual([device.fuas, device.flushes], [3, 0]);
      assert.equal(guest.write(0, pattern(2 * MIB), CmdFlag.FUA), 0);
      assert.deepEqual([device.fuas, device.flushes], [3, 1]);
      assert.equal(guest.ask(Cmd.FLUSH, 0, 0).error, 0);
      assert.equal(device.flushes, 2);
    });

    it("writes nothing to a read-only export", () => {
      const { env, front } = world();
      const guest = NbdGuest.open(env, front, "db@monday", { style });
      assert.ok((guest.flags & Flag.READ_ONLY) !== 0);
      assert.equal(guest.write(0, pattern(4096)), NbdError.EPERM);
      assert.equal(guest.ask(Cmd.TRIM, 0, 4096).error, NbdError.EPERM);
      assert.equal(guest.ask(Cmd.WRITE_ZEROES, 0, 4096).error, NbdError.EPERM);
      assert.equal(guest.ask(Cmd.FLUSH, 0, 0).error, 0);
      assert.equal(guest.read(0, 4096).length, 4096);
    });

    it("tells an error of the device with the right number", () => {
      const { env, front, device } = world();
      const guest = NbdGuest.open(env, front, "db", { style });
      for (const [status, error] of [
        ["medium", 5],
        ["full", 28],
        ["denied", 1],
        ["busy", 12],
        ["gone", 108],
      ] as const) {
        device.fault = () => status;
        assert.equal(guest.ask(Cmd.READ, 0, 512).error, error);
        assert.equal(guest.ask(Cmd.READ, 0, MIB).error, error);
        assert.equal(guest.write(0, pattern(512)), error);
        assert.equal(guest.write(0, pattern(MIB)), error);
        assert.equal(guest.ask(Cmd.FLUSH, 0, 0).error, error);
      }
      device.fault = (op) => (op.fastOnly ? "unsupported" : undefined);
      assert.equal(guest.ask(Cmd.WRITE_ZEROES, 0, 4096, CmdFlag.FAST_ZERO).error, NbdError.ENOTSUP);
      assert.equal(guest.ask(Cmd.WRITE_ZEROES, 0, 4096).error, 0);
      assert.ok(same(guest.read(0, 512), new Uint8Array(512)));
    });

    it("takes a long write to its end when it fails in the middle, and says so once", () => {
      const all = world();
      const guest = NbdGuest.open(all.env, all.front, "db", { style });
      all.device.fault = (op) => (op.kind === "write" && op.offset >= MIB ? "full" : undefined);
      assert.equal(guest.write(0, pattern(3 * MIB)), NbdError.ENOSPC);
      assert.ok(same(all.device.peek(0, MIB), pattern(MIB)));
      assert.equal(guest.write(0, pattern(512)), 0);
      guest.give(guest.encode(Cmd.DISC, 0, 0));
      assertNothingHeld(all);
    });

    it("takes requests cut at any byte", () => {
      const { env, front, device } = world();
      const line = new StillLine(env);
      const guest = NbdGuest.open(env, front, "db", { style, line });
      const payload = style === "extended" ? CmdFlag.PAYLOAD_LEN : 0;
      for (line.chunkMax = 1; line.chunkMax < 70; line.chunkMax++) {
        const data = pattern(1024, line.chunkMax);
        const bad = guest.encode(Cmd.WRITE, 100, 512, payload, new Uint8Array(512));
        const write = guest.encode(Cmd.WRITE, 512, 1024, payload, data);
        guest.give(join(bad, write, guest.encode(Cmd.FLUSH, 0, 0)));
        assert.equal(guest.answer(guest.lastCookie - 2).error, NbdError.EINVAL);
        assert.equal(guest.answer(guest.lastCookie).error, 0);
        assert.ok(same(device.peek(512, 1024), data));
      }
    });

    it("answers a batch of requests in one send", () => {
      const { env, front } = world();
      const guest = NbdGuest.open(env, front, "db", { style });
      guest.read(0, 512);
      // The first receive finds what the small buffer holds; after that the buffer grows.
      const { sends } = guest.line;
      guest.give(join(...Array.from({ length: 32 }, (_, index) => guest.encode(Cmd.READ, index * 4096, 4096))));
      assert.equal(guest.line.sends, sends + 1);
      for (let cookie = guest.lastCookie - 31; cookie <= guest.lastCookie; cookie++)
        assert.equal(guest.answer(cookie).error, 0);
    });

    it("answers in the order in which the device is done, and disconnects when all is answered", () => {
      const all = world();
      const guest = NbdGuest.open(all.env, all.front, "db", { style });
      all.device.auto = false;
      guest.give(
        join(
          guest.encode(Cmd.READ, 0, 4096),
          guest.encode(Cmd.READ, 4096, 4096),
          guest.encode(Cmd.FLUSH, 0, 0),
          guest.encode(Cmd.DISC, 0, 0),
          guest.encode(Cmd.READ, 0, 4096),
        ),
      );
      const first = guest.lastCookie - 4;
      all.device.release(1);
      all.env.settle();
      assert.equal(guest.answer(first + 1).error, 0);
      assert.equal(guest.answers.size, 1);
      assert.equal(guest.line.ended, undefined);
      all.device.release();
      all.device.release();
      all.env.settle();
      guest.collect();
      assert.equal(guest.answers.size, 3);
      assert.equal(guest.line.ended, "stopped");
      assertNothingHeld(all);
    });

    it("frees buffers only when the device is done with them", () => {
      for (const length of [4096, 2 * MIB]) {
        const all = world();
        const guest = NbdGuest.open(all.env, all.front, "db", { style });
        all.device.auto = false;
        const payload = style === "extended" ? CmdFlag.PAYLOAD_LEN : 0;
        guest.give(
          join(
            guest.encode(Cmd.READ, 0, length),
            guest.encode(Cmd.WRITE, 0, length, payload, pattern(length)),
            guest.encode(Cmd.FLUSH, 0, 0),
            guest.encode(Cmd.WRITE, 0, length, payload, pattern(1000)),
          ),
        );
        const held = all.env.memory.used;
        guest.line.reset();
        all.env.settle();
        assert.equal(guest.line.ended, "reset");
        assert.ok(all.env.memory.used >= Math.min(held, 4096));
        assert.equal(all.front.connections.size, 1);
        // A status that looks for holes may be among them.
        while (all.device.held.length > 0) all.device.release(all.device.held.length - 1);
        all.env.settle();
        assertNothingHeld(all);
      }
    });

    it("goes on when memory is free again, whoever waits in between", () => {
      const all = world({}, 8 * MIB);
      const { env, front, device } = all;
      device.poke(0, pattern(8 * MIB));
      const guests = Array.from({ length: 6 }, () => NbdGuest.open(env, front, "db", { style }));
      const payload = style === "extended" ? CmdFlag.PAYLOAD_LEN : 0;
      const rounds = 8;
      for (const [index, guest] of guests.entries()) {
        guest.line.deaf = true;
        const requests: Uint8Array[] = [];
        for (let round = 0; round < rounds; round++) {
          requests.push(guest.encode(Cmd.READ, round * MIB, MIB));
          requests.push(guest.encode(Cmd.WRITE, (8 + index) * MIB, MIB, payload, pattern(MIB, index)));
          requests.push(guest.encode(Cmd.READ, 0, 4096));
        }
        guest.line.give(join(...requests));
      }
      env.settle();
      assert.ok(front.figures.waiting > 0);
      for (const guest of guests) guest.line.listen();
      env.settle();
      for (const [index, guest] of guests.entries()) {
        guest.collect();
        assert.equal(guest.answers.size, 3 * rounds);
        for (const answer of guest.answers.values()) assert.equal(answer.error, 0);
        assert.ok(same(device.peek((8 + index) * MIB, MIB), pattern(MIB, index)));
      }
      assert.equal(front.figures.waiting, 0);
      for (const guest of guests) guest.give(guest.encode(Cmd.DISC, 0, 0));
      assertNothingHeld(all);
    });

    it("refuses what has not begun when the server drains, and answers the rest", () => {
      const all = world();
      const guest = NbdGuest.open(all.env, all.front, "db", { style });
      all.device.auto = false;
      guest.give(guest.encode(Cmd.READ, 0, 4096));
      let drained = false;
      all.front.drain()(() => {
        drained = true;
      });
      all.env.settle();
      assert.equal(drained, false);
      all.device.release();
      all.env.settle();
      assert.equal(guest.answer(guest.lastCookie).error, 0);
      assert.equal(guest.line.ended, "stopped");
      assert.equal(drained, true);
      assertNothingHeld(all);
    });
  });

describe("reads with structured replies", () => {
  it("tell holes as holes, and short ones as data", () => {
    const { env, front, device } = world();
    device.poke(0, pattern(64 * KIB));
    device.poke(MIB, pattern(64 * KIB));
    device.poke(MIB + 72 * KIB, pattern(4096));
    const guest = NbdGuest.open(env, front, "db", { style: "structured" });
    const answer = guest.ask(Cmd.READ, 0, 2 * MIB);
    assert.deepEqual(
      answer.chunks.map((chunk) => chunk.type),
      [ReplyType.OFFSET_DATA, ReplyType.OFFSET_HOLE, ReplyType.OFFSET_DATA, ReplyType.OFFSET_HOLE],
    );
    assert.ok(same(guest.assemble(answer, 0, 2 * MIB), device.peek(0, 2 * MIB)));
    const nothing = guest.ask(Cmd.READ, 8 * MIB, 32 * MIB);
    assert.deepEqual([nothing.chunks.length, nothing.chunks[0]!.type], [1, ReplyType.OFFSET_HOLE]);
  });

  it("with DF come in one piece", () => {
    const { env, front, device } = world();
    for (const style of ["structured", "extended"] as const) {
      const guest = NbdGuest.open(env, front, "db", { style });
      device.poke(MIB, pattern(4096));
      for (const length of [4096, 64 * KIB, 2 * MIB]) {
        const answer = guest.ask(Cmd.READ, 0, length, CmdFlag.DF);
        assert.deepEqual([answer.chunks.length, answer.chunks[0]!.type], [1, ReplyType.OFFSET_DATA]);
        assert.ok(same(guest.assemble(answer, 0, length), device.peek(0, length)));
      }
    }
  });

  it("tell where damaged data lie, and give the rest", () => {
    const { env, front, device } = world();
    device.poke(0, pattern(2 * MIB));
    device.fault = (op) => {
      if (op.kind !== "read" || op.offset > MIB || op.offset + op.length <= MIB) return undefined;
      op.result = MIB - op.offset;
      return "medium";
    };
    const guest = NbdGuest.open(env, front, "db", { style: "structured" });
    for (const flags of [0, CmdFlag.DF]) {
      const answer = guest.ask(Cmd.READ, 0, 2 * MIB, flags);
      assert.equal(answer.error, NbdError.EIO);
      const error = answer.chunks.find((chunk) => chunk.type >= 0x8000)!;
      assert.equal(error.type, ReplyType.ERROR_OFFSET);
      const view = new DataView(error.payload.buffer, error.payload.byteOffset, error.payload.byteLength);
      assert.equal(Number(view.getBigUint64(error.payload.length - 8)), flags === 0 ? MIB : MIB);
      const data = answer.chunks.filter((chunk) => chunk.type === ReplyType.OFFSET_DATA);
      assert.equal(data.length, flags === 0 ? 7 : 0);
    }
  });

  it("give up on holes with a device that takes its time to tell", () => {
    const { env, front, device } = world();
    const guest = NbdGuest.open(env, front, "db", { style: "structured" });
    device.auto = false;
    guest.give(guest.encode(Cmd.READ, 0, 64 * KIB));
    guest.give(guest.encode(Cmd.READ, 0, 64 * KIB));
    assert.deepEqual(
      device.held.map((op) => op.kind),
      ["status", "read", "read"],
    );
    while (device.held.length > 0) device.release();
    env.settle();
    assert.equal(guest.answer(guest.lastCookie).error, 0);
  });
});

describe("block status", () => {
  const CONTEXTS = ["base:allocation", "qemu:allocation-depth"];
  /** [length, flags] of the chunk of a context. */
  function extents(guest: NbdGuest, payload: Uint8Array): { id: number; runs: number[][] } {
    const view = new DataView(payload.buffer, payload.byteOffset, payload.byteLength);
    const runs: number[][] = [];
    if (guest.style === "extended") {
      assert.equal(view.getUint32(4) * 16 + 8, payload.length);
      for (let at = 8; at < payload.length; at += 16)
        runs.push([Number(view.getBigUint64(at)), Number(view.getBigUint64(at + 8))]);
    } else {
      for (let at = 4; at < payload.length; at += 8) runs.push([view.getUint32(at), view.getUint32(at + 4)]);
    }
    return { id: view.getUint32(0), runs };
  }

  for (const style of ["structured", "extended"] as const) {
    it(`tells allocation and depth, each in its own runs (${style})`, () => {
      const env = new StillEnv(64 * MIB);
      const base = new MemoryDevice(env.memory, 16 * MIB);
      base.poke(0, pattern(2 * MIB));
      const device = new MemoryDevice(env.memory, 16 * MIB, { parent: base });
      device.poke(MIB, pattern(2 * MIB));
      const front = new NbdFront(env, new OpenExportTable().add("db", device));
      const guest = NbdGuest.open(env, front, "db", { style, contexts: CONTEXTS });
      const answer = guest.ask(Cmd.BLOCK_STATUS, 0, 16 * MIB);
      assert.equal(answer.chunks.length, 2);
      assert.deepEqual(
        answer.chunks.map((chunk) => extents(guest, chunk.payload)),
        [
          {
            id: guest.contexts.get("base:allocation")!,
            runs: [
              [3 * MIB, 0],
              [13 * MIB, 3],
            ],
          },
          {
            id: guest.contexts.get("qemu:allocation-depth")!,
            runs: [
              [MIB, 2],
              [2 * MIB, 1],
              [13 * MIB, 0],
            ],
          },
        ],
      );
      const one = guest.ask(Cmd.BLOCK_STATUS, 512, MIB, CmdFlag.REQ_ONE);
      assert.deepEqual(
        one.chunks.map((chunk) => extents(guest, chunk.payload).runs),
        [[[MIB, 0]], [[MIB - 512, 2]]],
      );
    });
  }

  it("is limited to the contexts of the payload, and refuses unknown and repeated ones in step", () => {
    const { env, front } = world();
    const guest = NbdGuest.open(env, front, "db", { style: "extended", contexts: CONTEXTS });
    assert.ok((guest.flags & Flag.BLOCK_STATUS_PAYLOAD) !== 0);
    const ask = (length: number, ...ids: number[]) => {
      const payload = new Uint8Array(8 + 4 * ids.length);
      const view = new DataView(payload.buffer);
      view.setBigUint64(0, BigInt(length));
      ids.forEach((id, index) => {
        view.setUint32(8 + 4 * index, id);
      });
      return guest.ask(Cmd.BLOCK_STATUS, 0, payload.length, CmdFlag.PAYLOAD_LEN, payload);
    };
    const depth = guest.contexts.get("qemu:allocation-depth")!;
    const answer = ask(MIB, depth);
    assert.equal(answer.chunks.length, 1);
    assert.equal(extents(guest, answer.chunks[0]!.payload).id, depth);
    assert.equal(ask(MIB, 1, 2).chunks.length, 2);
    for (const ids of [[], [7], [depth, depth], [1, 2, 3], [1, 7], Array.from({ length: 5000 }, () => 1)])
      assert.equal(ask(MIB, ...ids).error, NbdError.EINVAL, String(ids.length));
    assert.equal(ask(65 * MIB, 1).error, NbdError.EINVAL);
    assert.equal(ask(0, 1).error, NbdError.EINVAL);
    assert.equal(guest.ask(Cmd.BLOCK_STATUS, 0, 5, CmdFlag.PAYLOAD_LEN, new Uint8Array(5)).error, NbdError.EINVAL);
    assert.equal(guest.ask(Cmd.READ, 0, 512).error, 0);
  });

  it("of more than 4 GiB is one extent with extended headers, and a whole one that fits with compact ones", () => {
    const env = new StillEnv(64 * MIB);
    const size = 2 ** 40;
    const front = new NbdFront(env, new OpenExportTable().add("big", new HollowDevice(env, size)));
    const extended = NbdGuest.open(env, front, "big", { style: "extended", contexts: ["base:allocation"] });
    assert.equal(extended.size, size);
    const whole = extended.ask(Cmd.BLOCK_STATUS, 0, size);
    assert.deepEqual(extents(extended, whole.chunks[0]!.payload).runs, [[size, 3]]);
    assert.equal(extended.ask(Cmd.TRIM, 0, size).error, 0);
    const compact = NbdGuest.open(env, front, "big", { style: "structured", contexts: ["base:allocation"] });
    const part = compact.ask(Cmd.BLOCK_STATUS, 512, 2 ** 32 - 512);
    assert.deepEqual(extents(compact, part.chunks[0]!.payload).runs, [[0xffff_0000, 3]]);
  });
});

/** A device of any size that is one hole. */
class HollowDevice extends MemoryDevice {
  constructor(env: StillEnv, size: number) {
    super(env.memory, size);
    this.fault = (op) => {
      if (op.kind === "status") {
        op.extents!.clear();
        op.extents!.add(op.length, 3, 0);
      }
      return "ok";
    };
  }
}

describe("the NBD front", () => {
  it("opens an export by EXPORT_NAME", () => {
    const { env, front, device } = world();
    const guest = new NbdGuest(env, front);
    guest.greet(1);
    guest.give(
      join(
        ...[[0x49484156, 0x454f5054, 1, 2]].map((words) =>
          Uint8Array.from(words.flatMap((word) => [word >>> 24, word >>> 16, word >>> 8, word])),
        ),
        new TextEncoder().encode("db"),
      ),
    );
    assert.equal(guest.take(134).length, 134);
    device.poke(0, pattern(512));
    assert.ok(same(guest.read(0, 512), pattern(512)));
  });

  it("counts connections, operations and how they ended, and logs why", () => {
    const { env, front } = world();
    const guest = NbdGuest.open(env, front, "db");
    guest.read(0, 4096);
    guest.write(0, pattern(8192));
    guest.ask(Cmd.READ, 1, 1);
    const meter = front.meters.get("db")!;
    assert.equal(meter.connections, 1);
    assert.equal(meter.measured("read")?.bytes, 4096);
    assert.equal(meter.measured("write")?.bytes, 8192);
    assert.equal(meter.errors.invalid, 1);
    assert.equal(front.figures.connected, 1);
    guest.give(guest.encode(Cmd.DISC, 0, 0));
    assert.equal(meter.connections, 0);
    assert.deepEqual([front.figures.connected, front.figures.ends.stopped], [0, 1]);
    const ended = env.logged.at(-1)!;
    assert.equal(ended.fields["why"], "stopped");
    assert.equal(ended.fields["requests"], 4);
    assert.equal(ended.fields["export"], "db");
  });

  it("goes on under TLS, knows the peer by its proven name, and takes nothing said before for said under it", () => {
    const { env, front } = world({ tls: "require", identity: {} });
    const guest = new NbdGuest(env, front);
    guest.greet();
    assert.equal(guest.option(Opt.GO, encodeInfoRequest("db", [])).at(-1)!.type, Rep.ERR_TLS_REQD);
    assert.deepEqual(
      guest.option(Opt.STARTTLS).map((one) => one.type),
      [Rep.ACK],
    );
    guest.line = guest.line.successor!;
    assert.equal(guest.option(Opt.GO, encodeInfoRequest("db", [])).at(-1)!.type, Rep.ACK);
    assert.equal(guest.read(0, 512).length, 512);
    assert.equal(env.logged.at(-1)!.fields["tlsName"], "web1");

    const sly = new NbdGuest(env, front);
    sly.greet();
    const starttls = Uint8Array.from(Buffer.from("49484156454f50540000000500000000", "hex"));
    sly.give(join(starttls, starttls));
    assert.equal(sly.line.ended, "stopped");
    assert.equal(front.figures.ends.violated, 1);
  });

  it("ends a connection whose TLS fails, with what was wrong", () => {
    const all = world({ tls: "allow", identity: {} });
    all.env.secured = () => ({ fault: "tls-failed", detail: "no shared cipher" });
    const guest = new NbdGuest(all.env, all.front);
    guest.greet();
    guest.option(Opt.STARTTLS);
    assert.equal(all.front.figures.handshaking, 0);
    assert.match(String(all.env.logged.at(-1)!.fields["detail"]), /no shared cipher/);
    assertNothingHeld(all);
  });

  it("gives a connection to the lane that owns the export, with all that was agreed and said", () => {
    const all = world();
    const other = all.table.find("db");
    assert.ok(typeof other !== "string");
    let handover: Handover | undefined;
    const exports = { list: () => [], find: () => ({ ...other, lane: 3 }) };
    const accepting = new NbdFront(all.env, exports, {
      handOver: (given) => {
        handover = given;
      },
    });
    const guest = new NbdGuest(all.env, accepting);
    guest.greet();
    guest.option(Opt.STRUCTURED_REPLY);
    guest.style = "structured";
    all.device.poke(0, pattern(512));
    const go = encodeInfoRequest("db", []);
    guest.give(
      join(Uint8Array.from(Buffer.from("49484156454f50540000000700000008", "hex")), go, guest.encode(Cmd.READ, 0, 512)),
    );
    assert.ok(handover !== undefined);
    assert.deepEqual([handover.lane, handover.agreement.style, handover.unread.length], [3, "structured", 28]);
    assert.equal(guest.line.wants, 0);
    assert.equal(accepting.figures.ends["handed-over"], 1);
    const said = guest.pending;
    guest.take(said);
    all.front.resume(handover.line, handover.agreement, handover.secure, handover.unread);
    all.env.settle();
    assert.ok(same(guest.assemble(guest.answer(guest.lastCookie), 0, 512), pattern(512)));
  });

  it("ends the connections of an export that goes away", () => {
    const all = world();
    const guest = NbdGuest.open(all.env, all.front, "db");
    all.device.vanish();
    all.env.settle();
    assert.equal(guest.line.ended, "stopped");
    assert.equal(all.front.figures.ends.refused, 1);
    assertNothingHeld(all);
  });

  it("serves any offset and length to a client that did not ask for block sizes", () => {
    const { env, front, table } = world();
    const device = new MemoryDevice(env.memory, MIB, { blockSize: 4096 });
    table.add("large blocks", device);
    for (const style of STYLES) {
      const guest = NbdGuest.open(env, front, "large blocks", { style, asksSizes: false });
      const data = pattern(300 * KIB + 7);
      assert.equal(guest.write(513, data), 0);
      assert.ok(same(guest.read(513, data.length), data));
      assert.equal(guest.write(0, pattern(1)), 0);
      assert.ok(same(device.peek(0, 1), pattern(1)));
      assert.equal(guest.ask(Cmd.READ, MIB - 1, 2).error, NbdError.EINVAL);
    }
    const strict = NbdGuest.open(env, front, "large blocks");
    assert.equal(strict.ask(Cmd.READ, 512, 512).error, NbdError.EINVAL);
  });

  it("serves what a volume has grown by", () => {
    const { env, front, device } = world();
    const guest = NbdGuest.open(env, front, "db");
    assert.equal(guest.ask(Cmd.READ, 64 * MIB, 512).error, NbdError.EINVAL);
    device.resize(65 * MIB);
    assert.equal(guest.ask(Cmd.READ, 64 * MIB, 512).error, 0);
  });

  it("drains at once when nobody is connected, and turns newcomers away afterwards", () => {
    const { env, front } = world();
    let drained = false;
    front.drain()(() => {
      drained = true;
    });
    assert.ok(drained);
    const line = new StillLine(env);
    front.accept(line);
    env.settle();
    assert.equal(line.ended, "stopped");
    assert.equal(front.figures.ends.refused, 1);
  });

  it("answers a large request that never finds memory, and goes on", () => {
    const { env, front, device } = world({}, 16 * MIB);
    const guest = NbdGuest.open(env, front, "db");
    // Somebody else has taken nearly everything.
    const taken: number[] = [];
    for (let at = env.memory.allocate(MIB); at !== 0; at = env.memory.allocate(MIB)) taken.push(at);
    env.memory.free(taken.pop()!);
    guest.line.give(guest.encode(Cmd.READ, 0, 4 * MIB));
    env.settle();
    assert.equal(front.figures.waiting, 1);
    env.advance(12_000);
    assert.equal(guest.answer(guest.lastCookie).error, NbdError.ENOMEM);
    for (const at of taken) env.memory.free(at);
    assert.ok(same(guest.read(0, 4 * MIB), device.peek(0, 4 * MIB)));
  });
});
