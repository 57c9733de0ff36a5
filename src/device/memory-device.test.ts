import assert from "node:assert/strict";
import { test } from "node:test";
import { Memory } from "#base/memory";
import { MIB } from "#base/units";
import { BlockOp, ExtentFlag, Extents, type OpKind } from "./device.ts";
import { MemoryDevice } from "./memory-device.ts";

const memory = new Memory(4 * MIB);
const at = memory.allocate(MIB);

function run(device: MemoryDevice, kind: OpKind, offset: number, length: number, more: Partial<BlockOp> = {}): BlockOp {
  let done = 0;
  const op = new BlockOp(() => done++);
  Object.assign(op, { kind, offset, length, at, ...more });
  device.submit(op);
  assert.equal(done, 1);
  return op;
}

test("what was written is read, across chunks and at odd sectors; the rest is zeroes", () => {
  const device = new MemoryDevice(memory, 10 * MIB);
  for (const [offset, length] of [
    [512, 512],
    [65024, 1024],
    [4096, 131072],
    [10 * MIB - 512, 512],
  ] as const) {
    memory.bytes.fill(0xa5, at, at + length);
    assert.equal(run(device, "write", offset, length).status, "ok");
    memory.bytes.fill(0x11, at, at + length);
    assert.equal(run(device, "read", offset, length).status, "ok");
    assert.ok(memory.bytes.subarray(at, at + length).every((byte) => byte === 0xa5));
  }
  assert.ok(device.peek(0, 512).every((byte) => byte === 0));
});

test("a trimmed block is a hole, a zeroed one with noHole takes space, and both read as zeroes", () => {
  const device = new MemoryDevice(memory, MIB);
  memory.bytes.fill(1, at, at + 65536);
  run(device, "write", 0, 65536);
  run(device, "trim", 4096, 4096);
  run(device, "zero", 8192, 4096, { noHole: true });
  run(device, "zero", 12800, 512);
  const extents = new Extents(10);
  assert.equal(run(device, "status", 0, 65536, { extents }).status, "ok");
  assert.deepEqual([...extents.length.subarray(0, extents.count)], [4096, 4096, 4096, 65536 - 12288]);
  assert.deepEqual(
    [...extents.flags.subarray(0, extents.count)],
    [0, ExtentFlag.HOLE | ExtentFlag.ZERO, ExtentFlag.ZERO, 0],
  );
  assert.ok(device.peek(4096, 8192).every((byte) => byte === 0));
  assert.equal(device.peek(12288, 1024)[511], 1);
  assert.equal(device.peek(12288, 1024)[512], 0);
});

test("a device over a parent shows what it has not written, one level deeper", () => {
  const base = new MemoryDevice(memory, MIB);
  base.poke(0, new Uint8Array(8192).fill(7));
  const child = new MemoryDevice(memory, 2 * MIB, { parent: base });
  child.poke(4096, new Uint8Array(512).fill(9));
  assert.equal(child.peek(0, 1)[0], 7);
  assert.equal(child.peek(4096, 1)[0], 9);
  assert.equal(child.peek(4096 + 512, 1)[0], 7);
  const extents = new Extents(10);
  run(child, "status", 0, 16384, { extents });
  assert.deepEqual([...extents.depth.subarray(0, extents.count)], [2, 1, 0]);
  run(child, "trim", 0, 4096);
  assert.equal(child.peek(0, 1)[0], 0);
  assert.equal(base.peek(0, 1)[0], 7);
});

test("compare-and-write writes only over what was expected, and tells where it differed", () => {
  const device = new MemoryDevice(memory, MIB);
  device.poke(0, new Uint8Array(512).fill(3));
  memory.bytes.fill(3, at, at + 512);
  memory.bytes.fill(4, at + 512, at + 1024);
  assert.equal(run(device, "compare-write", 0, 512).status, "ok");
  assert.equal(device.peek(0, 1)[0], 4);
  memory.bytes.fill(4, at, at + 100);
  const op = run(device, "compare-write", 0, 512);
  assert.equal(op.status, "miscompare");
  assert.equal(op.result, 100);
});

test("what does not fit the device is refused with the right word", () => {
  const device = new MemoryDevice(memory, MIB, { blockSize: 4096 });
  assert.equal(run(device, "read", MIB, 4096).status, "range");
  assert.equal(run(device, "read", 512, 4096).status, "invalid");
  assert.equal(run(device, "read", 0, 0).status, "invalid");
  device.makeReadOnly();
  assert.equal(run(device, "write", 0, 4096).status, "denied");
  assert.equal(run(device, "read", 0, 4096).status, "ok");
});

test("operations wait when told to, and are done in the order of release", () => {
  const device = new MemoryDevice(memory, MIB);
  device.auto = false;
  const order: number[] = [];
  for (const id of [1, 2, 3]) {
    const op = new BlockOp(() => order.push(id));
    op.kind = "flush";
    device.submit(op);
  }
  device.release(1);
  device.release();
  device.release();
  assert.deepEqual(order, [2, 1, 3]);
});
