import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { Memory } from "#base/memory";
import { KIB, MIB } from "#base/units";
import { Cmd, ReplyFlag, ReplyType } from "#wire/nbd/codes";
import { encodeChunk, encodeDescriptor, encodeSimpleReply, type ReplyStyle } from "#wire/nbd/reply";
import { NbdSlot, type ReplyFault, ReplyStream, WINDOW_BYTES } from "./client-replies.ts";

const memory = new Memory(8 * MIB);
const window = memory.allocate(WINDOW_BYTES);
const dataAt = memory.allocate(512 * KIB);
const view = new DataView(new ArrayBuffer(MIB));

/** A conversation: replies to eight requests, as one run of bytes, and what must come of them. */
function conversation(style: ReplyStyle): { slots: NbdSlot[]; bytes: Uint8Array; answered: number[] } {
  const slots = Array.from({ length: 8 }, (_, index) => new NbdSlot(index));
  const extended = style === "extended";
  let at = 0;
  const put = (bytes: Uint8Array): void => {
    new Uint8Array(view.buffer).set(bytes, at);
    at += bytes.length;
  };
  for (const slot of slots) {
    slot.at = dataAt + slot.index * 40 * KIB;
    slot.request.type = slot.index % 3 === 2 ? Cmd.BLOCK_STATUS : slot.index % 3 === 1 ? Cmd.WRITE : Cmd.READ;
    slot.request.setOffset(slot.index * MIB);
    slot.request.length = 512 + slot.index * 2500;
    slot.descriptorsMax = 16;
    if (style === "simple" && slot.request.type === Cmd.BLOCK_STATUS) slot.request.type = Cmd.FLUSH;
    slot.open();
  }
  const answered: number[] = [];
  for (const slot of [...slots].reverse()) {
    const { request } = slot;
    const data = new Uint8Array(request.length).map((_, index) => slot.index * 31 + index);
    if (style === "simple") {
      at = encodeSimpleReply(request, slot.index === 4 ? 5 : 0, view, at);
      if (request.type === Cmd.READ && slot.index !== 4) put(data);
    } else if (request.type === Cmd.READ) {
      // The second half first, and between the two a hole's worth of somebody else's.
      const half = Math.floor(request.length / 2);
      for (const [start, end, flags] of [
        [half, request.length, 0],
        [0, half, ReplyFlag.DONE],
      ] as const) {
        at = encodeChunk(request, flags, ReplyType.OFFSET_DATA, end - start + 8, view, at, extended);
        view.setBigUint64(at, BigInt(request.offset + start));
        at += 8;
        put(data.subarray(start, end));
      }
    } else if (request.type === Cmd.BLOCK_STATUS) {
      const type = extended ? ReplyType.BLOCK_STATUS_EXT : ReplyType.BLOCK_STATUS;
      const length = (extended ? 8 : 4) + 3 * (extended ? 16 : 8);
      at = encodeChunk(request, ReplyFlag.DONE, type, length, view, at, extended);
      view.setUint32(at, 7);
      at += 4;
      if (extended) {
        view.setUint32(at, 3);
        at += 4;
      }
      for (const run of [100, 200, 300]) at = encodeDescriptor(run, run & 3, view, at, extended);
    } else at = encodeChunk(request, ReplyFlag.DONE, ReplyType.NONE, 0, view, at, extended);
    answered.push(slot.index);
  }
  return { slots, bytes: new Uint8Array(view.buffer).slice(0, at), answered };
}

/** Gives the stream its bytes in pieces of the lengths given, over and over. */
function feed(stream: ReplyStream, bytes: Uint8Array, lengths: readonly number[]): ReplyFault | undefined {
  for (let from = 0, turn = 0; from < bytes.length; turn++) {
    const count = Math.min(lengths[turn % lengths.length]!, stream.receiveBytes, bytes.length - from);
    assert.ok(count > 0, "it wants nothing, and has not all");
    memory.bytes.set(bytes.subarray(from, from + count), stream.receiveAt);
    const fault = stream.handleReceived(count);
    if (fault !== undefined) return fault;
    from += count;
  }
  return undefined;
}

for (const style of ["simple", "structured", "extended"] as const)
  test(`${style} replies mean the same wherever the stream is cut`, () => {
    fc.assert(
      fc.property(
        fc.array(fc.oneof(fc.integer({ min: 1, max: 40 }), fc.integer({ min: 1, max: 70_000 })), { minLength: 1 }),
        (lengths) => {
          const { slots, bytes, answered } = conversation(style);
          const order: number[] = [];
          const facts = { replyStyle: style, allocationId: 7, depthId: undefined };
          const stream = new ReplyStream(memory, window, slots, facts, { onReply: (slot) => order.push(slot.index) });
          memory.bytes.fill(0xee, dataAt, dataAt + 512 * KIB);
          assert.equal(feed(stream, bytes, lengths), undefined);
          assert.deepEqual(order, answered);
          for (const slot of slots) {
            const { request } = slot;
            assert.equal(slot.error, style === "simple" && slot.index === 4 ? 5 : 0);
            if (request.type === Cmd.READ && slot.error === 0)
              for (let index = 0; index < request.length; index += 97)
                assert.equal(memory.bytes[slot.at + index], (slot.index * 31 + index) & 0xff);
            // Not a byte behind what was asked for.
            assert.equal(memory.bytes[slot.at + (request.type === Cmd.READ ? request.length : 0)], 0xee);
            if (request.type === Cmd.BLOCK_STATUS)
              assert.deepEqual([...slot.allocation.length.subarray(0, slot.allocation.count)], [100, 200, 300]);
          }
        },
      ),
      { numRuns: 15 },
    );
  });

test("noise never touches memory outside of the window and of reads in flight", () => {
  fc.assert(
    fc.property(fc.uint8Array({ minLength: 1, maxLength: 400 }), fc.nat(2), (noise, kind) => {
      const { slots, bytes } = conversation("structured");
      // Right at first, then noise; or noise in the place of a few bytes.
      const spoiled = kind === 0 ? noise : bytes.slice();
      if (kind > 0) spoiled.set(noise, (noise[0]! * 211) % (spoiled.length - noise.length));
      const facts = { replyStyle: "structured", allocationId: 7, depthId: 8 } as const;
      const stream = new ReplyStream(memory, window, slots, facts, { onReply: () => {} });
      const guard = memory.allocate(64 * KIB);
      memory.bytes.fill(0x77, guard, guard + 64 * KIB);
      feed(stream, spoiled, [1000]);
      assert.ok(memory.bytes.subarray(guard, guard + 64 * KIB).every((byte) => byte === 0x77));
      memory.free(guard);
    }),
    { numRuns: 40 },
  );
});

test("what there is no room for in the list of extents is left out, and the stream stays in step", () => {
  const { slots, bytes } = conversation("extended");
  for (const slot of slots) slot.descriptorsMax = 2;
  let answers = 0;
  const facts = { replyStyle: "extended", allocationId: 7, depthId: undefined } as const;
  const stream = new ReplyStream(memory, window, slots, facts, { onReply: () => answers++ });
  assert.equal(feed(stream, bytes, [WINDOW_BYTES]), undefined);
  assert.equal(answers, 8);
  assert.equal(slots[2]!.allocation.count, 2);
});
