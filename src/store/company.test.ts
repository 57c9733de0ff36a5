/** What comes together is done together: counted in operations of the disk, not in time. */
import assert from "node:assert/strict";
import { test } from "node:test";
import { BlockOp, type OpKind } from "#device/device";
import type { DiskOp, File } from "#env/env";
import type { SimProcess } from "#sim/env/sim-process";
import { Resources, World } from "#sim/env/world";
import { DirectoryStore } from "./segment-store.ts";
import type { Version } from "./version.ts";
import { type SetOptions, VersionSet } from "./version-set.ts";

const resources = new Resources();
const BLOCK = 4096;

/** A set with one volume, and what it asks of its disk. */
class Counted {
  readonly world: World;
  readonly env: SimProcess;
  readonly set: VersionSet;
  readonly volume: Version;
  readonly asked: { readonly kind: string; readonly file: File; readonly bytes: number }[] = [];
  #pending = 0;
  readonly #used: number[] = [];

  constructor(seed: number, options: SetOptions = {}) {
    this.world = new World(seed, resources);
    this.env = this.world.node("server").start();
    const store = new DirectoryStore(this.env, "/set");
    this.world.finish(store.make());
    this.set = this.world.finish(VersionSet.create(this.env, store, options));
    this.volume = this.world.finish(this.set.createVolume({ name: "db", size: 4096 * BLOCK }));
    this.world.run(5000);
    const { disk } = this.env;
    const submit = disk.submit.bind(disk);
    disk.submit = (op: DiskOp) => {
      this.asked.push({ kind: op.kind, file: op.file, bytes: op.pieces?.total ?? op.length });
      submit(op);
    };
  }

  /** Submits an operation; it is done after `settle`. */
  submit(kind: OpKind, block = 0, count = 0): void {
    const op = new BlockOp(() => {
      assert.equal(op.status, "ok");
      this.#pending--;
    });
    const at = this.env.memory.allocate(Math.max(count * BLOCK, 1));
    this.env.memory.bytes.fill(block + 1, at, at + count * BLOCK);
    Object.assign(op, { kind, at, offset: block * BLOCK, length: count * BLOCK });
    this.#used.push(at);
    this.#pending++;
    this.volume.submit(op);
  }

  settle(): void {
    assert.ok(this.world.runUntil(() => this.#pending === 0));
    for (const at of this.#used.splice(0)) this.env.memory.free(at);
  }

  /** What has been asked of the disk since the last time. */
  take(kind: string): { readonly file: File; readonly bytes: number }[] {
    const taken = this.asked.filter((each) => each.kind === kind);
    this.asked.length = 0;
    return taken;
  }

  end(): void {
    this.world.finish(this.set.close());
    this.world.end();
  }
}

test("writes that arrive together are one append, and what they wrote side by side is one read", () => {
  const counted = new Counted(1);
  for (let block = 0; block < 32; block++) counted.submit("write", block, 1);
  counted.settle();
  assert.deepEqual(
    counted.take("write").map(({ bytes }) => bytes),
    [33 * BLOCK],
  );
  counted.submit("read", 0, 32);
  counted.settle();
  assert.deepEqual(
    counted.take("read").map(({ bytes }) => bytes),
    [32 * BLOCK],
  );
  counted.end();
});

test("flushes that wait together share one fdatasync, and one that promises nothing new needs none", () => {
  const counted = new Counted(2);
  counted.submit("write", 0, 1);
  counted.settle();
  for (let each = 0; each < 16; each++) counted.submit("flush");
  counted.settle();
  assert.equal(counted.take("sync").length, 1);
  counted.submit("flush");
  counted.settle();
  assert.equal(counted.take("sync").length, 0);
  counted.end();
});

test("syncs that run at once have a descriptor each, and never more than four run", () => {
  const counted = new Counted(3);
  counted.world.node("server").diskFaults.syncMs = 50;
  const { syncer } = counted.set.log;
  let most = 0;
  const files = new Set<File>();
  for (let round = 0; round < 400; round++) {
    counted.submit("write", round, 1);
    counted.world.run(2);
    counted.submit("flush");
    const running = counted.asked.filter(({ kind }) => kind === "sync").length;
    if (running > 0) for (const { file } of counted.take("sync")) files.add(file);
    most = Math.max(most, counted.set.log.current!.syncs);
  }
  counted.settle();
  assert.equal(most, 4);
  assert.ok(files.size >= 4);
  assert.equal(syncer.synced, syncer.appended);
  assert.ok(syncer.count < 300, `${syncer.count} syncs for 400 flushes`);
  counted.end();
});

test("where flushes are small, appends write zeroes ahead, and only in files that are new", () => {
  const counted = new Counted(4, { segmentBlocks: 128, checkpointBytes: 1024 * 1024, deadRatio: 0.15 });
  const { log } = counted.set;
  let round = 0;
  const writeAndFlush = (): void => {
    counted.submit("write", round++ % 8, 1);
    counted.settle();
    counted.submit("flush");
    counted.settle();
  };
  while (log.current?.rewritten !== true && round < 5000) writeAndFlush();
  const { zeroBlocks, headBlocks, dataBlocks } = log.counters;
  assert.ok(zeroBlocks > 64 && zeroBlocks < 1.5 * (headBlocks + dataBlocks), `${zeroBlocks} blocks of zeroes`);
  for (const end = round + 200; round < end; ) writeAndFlush();
  assert.equal(log.counters.zeroBlocks, zeroBlocks);
  for (let block = 0; block < 8; block++) {
    const at = counted.env.memory.allocate(BLOCK);
    const op = new BlockOp(() => {});
    Object.assign(op, { kind: "read", at, offset: block * BLOCK, length: BLOCK });
    counted.volume.submit(op);
    counted.world.run(1000);
    assert.equal(op.status, "ok");
    assert.ok(counted.env.memory.bytes.subarray(at, at + BLOCK).every((byte) => byte === block + 1));
    counted.env.memory.free(at);
  }
  counted.end();
});

test("where there is no room for zeroes ahead, what was to be written is written without them", () => {
  const counted = new Counted(5);
  const { log } = counted.set;
  const { files } = counted.world.node("server");
  for (let round = 0; round < 200; round++) {
    // The first segment of a set has no space of its own yet: room for what is written, and for nothing more.
    files.capacity = files.used + 3 * BLOCK;
    counted.submit("write", round % 8, 1);
    counted.settle();
    counted.submit("flush");
    counted.settle();
  }
  assert.equal(log.counters.zeroBlocks, 0);
  counted.end();
});
