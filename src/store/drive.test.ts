import assert from "node:assert/strict";
import { closeSync, mkdirSync, mkdtempSync, openSync, readFileSync, rmSync, writeFileSync, writeSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, it } from "node:test";
import { DRIVES_EMPTY, type DrivesState, type PartitionRecord, type SectorRange } from "#base/drives";
import { promiseOf } from "#base/task";
import { MIB } from "#base/units";
import { type BlockDevice, BlockOp, type OpKind } from "#device/device";
import { NodeEnv } from "#env/node/node-env";
import { DriveSet } from "./drive-set.ts";
import { allocate, freeRanges, joined, overlap } from "./drive-space.ts";

const quiet = { debug() {}, info() {}, warn() {}, error() {} };
const folder = mkdtempSync(join(tmpdir(), "ashlar-drive-"));
after(() => rmSync(folder, { recursive: true, force: true }));

const part = (name: string, ranges: SectorRange[], zero = false): PartitionRecord => ({
  name,
  uuid: Buffer.from(name.padEnd(16, "0")).toString("hex"),
  ranges,
  zero,
  created: 0,
});
const range = (drive: string, first: number, last: number): SectorRange => ({ drive, first, last });
const state = (partitions: PartitionRecord[], sectors = 8192, drives = ["a", "b"]): DrivesState => ({
  ...DRIVES_EMPTY,
  drives: drives.map((name) => ({ name, path: join(folder, name), sectors })),
  partitions,
});

describe("the space of drives", () => {
  it("gives a partition the smallest free range that holds it", () => {
    const used = state([
      part("x", [range("a", 1000 * 8, 8191)]),
      part("y", [range("b", 512, 1023), range("b", 2048, 8191)]),
    ]);
    assert.deepEqual(freeRanges(used), [range("a", 0, 7999), range("b", 0, 511), range("b", 1024, 2047)]);
    assert.deepEqual(allocate(used, 512), [range("b", 0, 511)]);
    assert.deepEqual(allocate(used, 520), [range("b", 1024, 1543)]);
    assert.deepEqual(allocate(used, 1032), [range("a", 0, 1031)]);
    assert.deepEqual(allocate(used, 512, { drive: "a" }), [range("a", 0, 511)]);
  });

  it("takes several ranges, the largest first, when none is long enough; and nothing when there is too little", () => {
    const used = state([part("y", [range("b", 512, 1023)])], 2048);
    assert.deepEqual(allocate(used, 3072), [range("a", 0, 2047), range("b", 1024, 2047)]);
    assert.deepEqual(allocate(used, 3584), [range("a", 0, 2047), range("b", 1024, 2047), range("b", 0, 511)]);
    assert.equal(allocate(used, 3592), undefined);
  });

  it("goes on where a partition ends when there is room", () => {
    const used = state([part("x", [range("a", 0, 1023)])]);
    assert.deepEqual(allocate(used, 8, { after: range("a", 0, 1023) }), [range("a", 1024, 1031)]);
    assert.deepEqual(joined([range("a", 0, 1023), range("a", 1024, 1031)]), [range("a", 0, 1031)]);
  });

  it("leaves out what a foreign range leaves unaligned", () => {
    const used = state([part("x", [range("a", 3, 10)])], 32, ["a"]);
    assert.deepEqual(allocate(used, 16), [range("a", 16, 31)]);
    assert.equal(allocate(used, 24), undefined);
  });

  it("finds ranges that overlap", () => {
    assert.equal(overlap([range("a", 0, 7), range("a", 8, 15), range("b", 0, 7)]), undefined);
    assert.deepEqual(overlap([range("a", 8, 15), range("a", 0, 8)]), [range("a", 0, 8), range("a", 8, 15)]);
  });
});

describe("partitions of drives", () => {
  const env = new NodeEnv({ memoryBytes: 64 * MIB, log: quiet });
  const maps = join(folder, "maps");
  mkdirSync(maps);
  after(() => env.close());

  const makeDrive = (name: string, fill: number, size = 4 * MIB): void => {
    writeFileSync(join(folder, name), Buffer.alloc(size, fill));
  };
  async function run(device: BlockDevice, kind: OpKind, offset: number, length: number, data?: Uint8Array) {
    const at = env.memory.allocate(Math.max(2 * length, 512));
    if (data !== undefined) env.memory.bytes.set(data, at);
    const op = await new Promise<BlockOp>((resolve) => {
      const one = new BlockOp(resolve);
      Object.assign(one, { kind, offset, length, at });
      device.submit(one);
    });
    const bytes = Buffer.from(env.memory.slice(at, length).slice());
    env.memory.free(at);
    return { status: op.status, result: op.result, bytes };
  }

  it("reads and writes across ranges of several drives, in place", async () => {
    makeDrive("a", 1);
    makeDrive("b", 2);
    const set = new DriveSet(env);
    await promiseOf(set.load(state([part("p", [range("b", 8, 15), range("a", 0, 7), range("b", 0, 7)])]), maps));
    const p = set.devices.get("p")!;
    assert.equal(p.size, 24 * 512);
    const before = await run(p, "read", 0, 24 * 512);
    assert.equal(before.status, "ok");
    assert.equal(before.bytes[0], 2);
    assert.equal(before.bytes[4096], 1);
    assert.equal(before.bytes[8192], 2);
    const data = Buffer.from(Array.from({ length: 8192 }, (_, i) => i % 251));
    assert.equal((await run(p, "write", 2048, 8192, data)).status, "ok");
    assert.deepEqual((await run(p, "read", 2048, 8192)).bytes, data);
    assert.equal((await run(p, "flush", 0, 0)).status, "ok");
    const b = readFileSync(join(folder, "b"));
    assert.deepEqual(b.subarray(4096 + 2048, 8192), data.subarray(0, 2048));
    assert.equal(b[8192], 2, "what lies outside of the partition is not touched");
    assert.deepEqual(readFileSync(join(folder, "a")).subarray(0, 4096), data.subarray(2048, 6144));
    assert.deepEqual(b.subarray(0, 2048), data.subarray(6144));
    assert.equal((await run(p, "read", 24 * 512, 512)).status, "range");
    await promiseOf(set.close());
  });

  it("compares and writes as one, and tells where the difference is", async () => {
    makeDrive("a", 0);
    makeDrive("b", 0);
    const set = new DriveSet(env);
    await promiseOf(set.load(state([part("p", [range("a", 0, 15)])]), maps));
    const p = set.devices.get("p")!;
    const both = Buffer.alloc(1024);
    both.fill(7, 512);
    const results = await Promise.all([
      run(p, "compare-write", 512, 512, both),
      run(p, "compare-write", 512, 512, both),
      run(p, "compare-write", 512, 512, both),
    ]);
    assert.deepEqual(results.map(({ status }) => status).sort(), ["miscompare", "miscompare", "ok"]);
    assert.equal((await run(p, "read", 512, 512)).bytes[511], 7);
    await promiseOf(set.close());
  });

  it("never shows what was there before, also after a crash in the middle of zeroing", async () => {
    makeDrive("a", 0xaa);
    makeDrive("b", 0xaa);
    const wanted = state([part("z", [range("a", 0, 8191)], true)]);
    const set = new DriveSet(env);
    await promiseOf(set.load(wanted, maps));
    const z = set.devices.get("z")!;
    const data = Buffer.alloc(4096, 0x55);
    assert.equal((await run(z, "write", 2 * MIB + 4096, 4096, data)).status, "ok");
    const around = await run(z, "read", 2 * MIB, 12288);
    assert(around.bytes.subarray(0, 4096).every((byte) => byte === 0));
    assert.deepEqual(around.bytes.subarray(4096, 8192), data);
    // A crash: the files are as they are, and another process opens them.
    const again = new DriveSet(env);
    await promiseOf(again.load(wanted, maps));
    const reopened = again.devices.get("z")!;
    assert.deepEqual((await run(reopened, "read", 2 * MIB + 4096, 4096)).bytes, data, "what was written is not zeroed");
    const whole = await run(reopened, "read", 0, 4 * MIB);
    assert(!whole.bytes.includes(0xaa));
    assert.equal(again.facts().partitions[0]!.zeroLeft, 0);
    await promiseOf(again.close());
    await promiseOf(set.close());
  });

  it("answers gone once it is deleted, and gives back its space only when nothing is in flight", async () => {
    makeDrive("a", 3);
    makeDrive("b", 3);
    const set = new DriveSet(env);
    await promiseOf(set.load(state([part("p", [range("a", 0, 8191)])]), maps));
    const p = set.devices.get("p")!;
    const changes: string[] = [];
    p.watch((change) => changes.push(change));
    const writes = Array.from({ length: 16 }, (_, i) => run(p, "write", i * 65536, 65536, Buffer.alloc(65536, 9)));
    await promiseOf(set.load(state([]), maps));
    assert.equal(p.inFlight, 0);
    for (const { status } of await Promise.all(writes)) assert.equal(status, "ok");
    assert.equal((await run(p, "read", 0, 512)).status, "gone");
    assert.deepEqual(changes, ["gone"]);
    await promiseOf(set.close());
  });

  it("grows while it is used", async () => {
    makeDrive("a", 3);
    makeDrive("b", 4);
    const set = new DriveSet(env);
    await promiseOf(set.load(state([part("p", [range("a", 0, 7)])]), maps));
    const p = set.devices.get("p")!;
    const changes: string[] = [];
    p.watch((change) => changes.push(change));
    await promiseOf(set.load(state([part("p", [range("a", 0, 7), range("b", 0, 7)])]), maps));
    assert.deepEqual(changes, ["resized"]);
    assert.equal(p.size, 8192);
    assert.equal((await run(p, "read", 4096, 4096)).bytes[0], 4);
    await promiseOf(set.close());
  });

  it("takes only the partitions of a missing or shorter drive away, and says why", async () => {
    makeDrive("a", 1);
    makeDrive("b", 1, MIB);
    const set = new DriveSet(env);
    const facts = await promiseOf(
      set.load(state([part("p", [range("a", 0, 7)]), part("q", [range("b", 0, 7)])]), maps),
    );
    assert.match(facts.drives[1]!.fault!, /has only 1048576 of 4194304 bytes/);
    assert.deepEqual(
      facts.partitions.map(({ name, online }) => [name, online]),
      [
        ["p", true],
        ["q", false],
      ],
    );
    const file = openSync(join(folder, "a"), "r+");
    writeSync(file, "x");
    closeSync(file);
    assert.equal((await run(set.devices.get("p")!, "read", 0, 512)).bytes[0], "x".charCodeAt(0));
    await promiseOf(set.close());
  });

  it("gives back all memory", () => assert.equal(env.memory.used, 0));
});
