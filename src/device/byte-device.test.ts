import assert from "node:assert/strict";
import { test } from "node:test";
import { Memory } from "#base/memory";
import { KIB, MIB } from "#base/units";
import { ByteDevice } from "./byte-device.ts";
import { type BlockDevice, BlockOp, Extents, type OpKind } from "./device.ts";
import { MemoryDevice } from "./memory-device.ts";

function world(blockSize: 512 | 4096 = 4096) {
  const memory = new Memory(4 * MIB);
  const device = new MemoryDevice(memory, MIB, { blockSize });
  return { memory, device, bytes: new ByteDevice(device, memory), at: memory.allocate(256 * KIB) };
}

function run(device: BlockDevice, kind: OpKind, offset: number, length: number, more: Partial<BlockOp> = {}): BlockOp {
  let done = 0;
  const op = new BlockOp(() => done++);
  Object.assign(op, { kind, offset, length, ...more });
  device.submit(op);
  assert.equal(done, 1);
  return op;
}

test("any run of bytes is written and read, and its neighbours stay", () => {
  for (const blockSize of [512, 4096] as const) {
    const { memory, device, bytes, at } = world(blockSize);
    const used = memory.used;
    let fill = 1;
    for (const offset of [0, 1, 511, 512, 4095, 4096, 5000, MIB - 20_000])
      for (const length of [1, 2, 100, 511, 512, 513, 4096, 4097, 8191, 8192, 12_345]) {
        const before = device.peek(0, MIB);
        memory.bytes.fill(++fill, at, at + length);
        assert.equal(run(bytes, "write", offset, length, { at }).status, "ok");
        const after = device.peek(0, MIB);
        before.fill(fill, offset, offset + length);
        assert.equal(Buffer.compare(before, after), 0, `${offset}+${length}`);
        memory.bytes.fill(0, at, at + length);
        assert.equal(run(bytes, "read", offset, length, { at }).status, "ok");
        assert.ok(memory.bytes.subarray(at, at + length).every((byte) => byte === (fill & 0xff)));
      }
    assert.equal(memory.used, used);
  }
});

test("what is aligned goes through as it is", () => {
  const { device, bytes, at } = world();
  run(bytes, "write", 4096, 8192, { at });
  run(bytes, "flush", 0, 0);
  assert.equal(device.submitted, 2);
});

test("a block that somebody changes in between is read again, and neither change is lost", () => {
  const { memory, device, bytes, at } = world();
  memory.bytes.fill(0xaa, at, at + 100);
  let meddled = 0;
  device.fault = (op) => {
    // Just before the block is put back, its neighbour's bytes are written by another path.
    if (op.kind === "compare-write" && meddled++ < 3) device.poke(2000, new Uint8Array(10).fill(meddled));
    return undefined;
  };
  assert.equal(run(bytes, "write", 1000, 100, { at }).status, "ok");
  assert.equal(meddled, 4);
  assert.equal(
    device.peek(1000, 100).every((byte) => byte === 0xaa),
    true,
  );
  assert.equal(
    device.peek(2000, 10).every((byte) => byte === 3),
    true,
  );
});

test("many at the same block take turns, and none of them is lost or refused", () => {
  const { memory, device, bytes } = world();
  device.auto = false;
  const ops = Array.from({ length: 300 }, (_, index) => {
    const op = new BlockOp(() => {});
    op.kind = "write";
    op.offset = 3 * index;
    op.length = 3;
    op.at = memory.allocate(3);
    memory.bytes.fill(index, op.at, op.at + 3);
    bytes.submit(op);
    return op;
  });
  let seed = 1;
  for (let steps = 0; device.held.length > 0; steps++) {
    assert.ok(steps < 1000);
    seed = (seed * 48271) % 0x7fffffff;
    device.release(seed % device.held.length);
  }
  assert.ok(ops.every((op) => op.status === "ok"));
  const now = device.peek(0, 900);
  assert.ok(now.every((byte, index) => byte === (Math.floor(index / 3) & 0xff)));
});

test("ten thousand that wait at a block of a device that fails are all told", () => {
  const { memory, device, bytes, at } = world();
  device.auto = false;
  let told = 0;
  for (let count = 0; count < 10_000; count++) {
    const op = new BlockOp(() => told++);
    Object.assign(op, { kind: "write", offset: 1, length: 1, at });
    bytes.submit(op);
  }
  device.auto = true;
  device.fault = () => "failed";
  const used = memory.used;
  device.release();
  assert.equal(told, 10_000);
  assert.ok(memory.used < used);
});

test("a block that never rests is answered with busy", () => {
  const { device, bytes, at } = world();
  device.fault = (op) => (op.kind === "compare-write" ? "miscompare" : undefined);
  assert.equal(run(bytes, "write", 1, 1, { at }).status, "busy");
});

test("zeroes reach parts of blocks, quick ones only whole blocks; trims are rounded inwards", () => {
  const { device, bytes } = world();
  device.poke(0, new Uint8Array(64 * KIB).fill(1));
  assert.equal(run(bytes, "zero", 1000, 10_000).status, "ok");
  const after = device.peek(0, 16 * KIB);
  assert.deepEqual([after[999], after[1000], after[10_999], after[11_000]], [1, 0, 0, 1]);
  assert.equal(run(bytes, "zero", 20_000, 10_000, { fastOnly: true }).status, "unsupported");
  assert.equal(run(bytes, "trim", 20_000, 10_000).status, "ok");
  const trimmed = device.peek(16 * KIB, 16 * KIB);
  assert.deepEqual(
    [trimmed[20_479 - 16_384], trimmed[20_480 - 16_384], trimmed[28_671 - 16_384], trimmed[28_672 - 16_384]],
    [1, 0, 0, 1],
  );
  assert.equal(run(bytes, "trim", 100, 200).status, "ok");
});

test("block status begins where it was asked for", () => {
  const { device, bytes } = world();
  device.poke(8192, new Uint8Array(4096).fill(1));
  const extents = new Extents(10);
  assert.equal(run(bytes, "status", 5000, 10_000, { extents }).status, "ok");
  assert.deepEqual([...extents.length.subarray(0, extents.count)], [8192 - 5000, 4096, 4096]);
});

test("beyond the end, too little memory, and errors below are told", () => {
  const { memory, device, bytes, at } = world();
  assert.equal(run(bytes, "write", MIB - 10, 11, { at }).status, "range");
  assert.equal(run(bytes, "read", 5, 0, { at }).status, "invalid");
  assert.equal(run(bytes, "compare-write", 5, 10, { at }).status, "invalid");
  device.fault = (op) => (op.offset >= 4096 ? "medium" : undefined);
  assert.equal(run(bytes, "read", 4000, 200, { at }).status, "medium");
  device.fault = undefined;
  const taken: number[] = [];
  for (const size of [MIB - 1, 64 * KIB, 16 * KIB])
    for (let got = memory.allocate(size); got !== 0; got = memory.allocate(size)) taken.push(got);
  assert.equal(run(bytes, "write", 1, 1, { at }).status, "busy");
  for (const each of taken) memory.free(each);
  assert.equal(run(bytes, "write", 1, 1, { at }).status, "ok");
});
