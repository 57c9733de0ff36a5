import assert from "node:assert/strict";
import { test } from "node:test";
import { perform, type Task } from "#base/task";
import { MIB } from "#base/units";
import { BlockOp, Extents, type OpKind } from "#device/device";
import { isDiskFault } from "#env/env";
import { drawPowerCut } from "#sim/env/power-cuts";
import type { SimProcess } from "#sim/env/sim-process";
import { Resources, World } from "#sim/env/world";
import { DirectoryStore, RoomLimit, transfer } from "./segment-store.ts";
import type { Version } from "./version.ts";
import { type SetOptions, VersionSet } from "./version-set.ts";

const resources = new Resources();
const OPTIONS: SetOptions = { segmentBlocks: 128, checkpointBytes: 1024 * 1024, deadRatio: 0.15 };
const BLOCK = 4096;

class Rig {
  readonly world: World;
  env: SimProcess;
  set!: VersionSet;
  constructor(seed: number) {
    this.world = new World(seed, resources);
    this.env = this.world.node("server").start();
  }
  finish<T>(task: Task<T>): T {
    return this.world.finish(task);
  }
  create(options: SetOptions = OPTIONS): VersionSet {
    const store = new DirectoryStore(this.env, "/set");
    assert.equal(this.finish(store.make()), undefined);
    this.set = this.finish(VersionSet.create(this.env, store, options));
    return this.set;
  }
  open(options: SetOptions = OPTIONS): VersionSet {
    this.set = this.finish(VersionSet.open(this.env, new DirectoryStore(this.env, "/set"), options));
    return this.set;
  }
  /** Makes a range what another one is, by sharing. */
  copy(version: Version, offset: number, length: number, source: Version, from: number): void {
    let ended = false;
    const op = new BlockOp(() => {
      ended = true;
    });
    Object.assign(op, { kind: "write", offset, length });
    version.copyFrom(op, source, from);
    assert.ok(
      this.world.runUntil(() => ended),
      "the copy never ends",
    );
    assert.equal(op.status, "ok");
  }
  /** Runs one operation to its end; `data` is written, or what was read is returned. */
  run(
    version: Version,
    kind: OpKind,
    offset: number,
    length: number,
    data?: Uint8Array,
    more: Partial<BlockOp> = {},
  ): Uint8Array {
    let ended = false;
    const op = new BlockOp(() => {
      ended = true;
    });
    Object.assign(op, { kind, offset, length, ...more });
    op.at = this.env.memory.allocate(Math.max(length, data?.length ?? 0, 1));
    if (data !== undefined) this.env.memory.bytes.set(data, op.at);
    version.submit(op);
    assert.ok(
      this.world.runUntil(() => ended),
      `${kind} never ends`,
    );
    const out = this.env.memory.bytes.slice(op.at, op.at + length);
    this.env.memory.free(op.at);
    this.last = op;
    return out;
  }
  last!: BlockOp;
  ok(
    version: Version,
    kind: OpKind,
    offset: number,
    length: number,
    data?: Uint8Array,
    more: Partial<BlockOp> = {},
  ): Uint8Array {
    const out = this.run(version, kind, offset, length, data, more);
    assert.equal(this.last.status, "ok", `${kind} at ${offset}`);
    return out;
  }
}

const filled = (length: number, seed: number): Uint8Array =>
  Uint8Array.from({ length }, (_, index) => (index * 7 + seed * 13 + (index >> 8)) & 255);

test("what was written is read, holes are zeroes, and both are the same after closing and opening", () => {
  const rig = new Rig(1);
  rig.create();
  const db = rig.finish(rig.set.createVolume({ name: "db", size: 64 * BLOCK }));
  rig.ok(db, "write", 4 * BLOCK, 3 * BLOCK, filled(3 * BLOCK, 1));
  const check = (version: Version): void => {
    assert.deepEqual(rig.ok(version, "read", 4 * BLOCK, 3 * BLOCK), filled(3 * BLOCK, 1));
    assert.deepEqual(rig.ok(version, "read", 0, 4 * BLOCK), new Uint8Array(4 * BLOCK));
  };
  check(db);
  rig.finish(rig.set.close());
  check(rig.open().version("db"));
  rig.world.end();
});

test("a block that was read is read from memory, also when the disk has lost it; a scrub reads the disk", () => {
  const rig = new Rig(1);
  rig.create();
  const db = rig.finish(rig.set.createVolume({ name: "db", size: 64 * BLOCK }));
  for (const block of [4, 5]) rig.ok(db, "write", block * BLOCK, BLOCK, filled(BLOCK, block));
  rig.ok(db, "flush", 0, 0);
  const read = (block: number): Uint8Array => rig.ok(db, "read", block * BLOCK, BLOCK);
  assert.deepEqual(read(4), filled(BLOCK, 4));
  const { files } = rig.world.node("server");
  for (const { path } of files.files("/set")) {
    if (!path.includes("segment-")) continue;
    const file = rig.finish(perform(rig.env.disk.open(path, "write")));
    assert.ok(!isDiskFault(file));
    const at = rig.env.memory.allocate(16 * BLOCK);
    rig.env.memory.bytes.fill(9, at, at + 16 * BLOCK);
    assert.equal(rig.finish(transfer(rig.env.disk, "write", file, 0, at, 16 * BLOCK)), undefined);
    rig.env.memory.free(at);
    rig.finish(perform(rig.env.disk.close(file)));
  }
  assert.deepEqual(read(4), filled(BLOCK, 4));
  rig.run(db, "read", 5 * BLOCK, BLOCK);
  assert.equal(rig.last.status, "medium", "what was not read before is damaged");
  const report = rig.finish(rig.set.scrub(undefined, () => {}));
  assert.deepEqual(report.damaged, [{ version: "db", offset: 4 * BLOCK, length: 2 * BLOCK }]);
  // What replaces it is what is read then.
  rig.ok(db, "write", 4 * BLOCK, BLOCK, filled(BLOCK, 44));
  assert.deepEqual(read(4), filled(BLOCK, 44));
  rig.world.end();
});

test("a segment that is missing behind the checkpoint is damage, though only a late group knows of the flush", () => {
  const rig = new Rig(2);
  rig.create();
  const db = rig.finish(rig.set.createVolume({ name: "db", size: 512 * BLOCK }));
  const parts = 24;
  const length = 16 * BLOCK;
  for (let part = 0; part < parts; part++) rig.ok(db, "write", part * length, length, filled(length, part));
  rig.ok(db, "flush", 0, 0);
  rig.ok(db, "write", parts * length, length, filled(length, parts));
  rig.env.crash();
  const { files } = rig.world.node("server");
  const segments = files.files("/set").flatMap(({ path }) => (path.includes("segment-") ? [path] : []));
  assert.ok(segments.length >= 4);
  const missing = segments.sort()[1]!;
  files.remove(missing, "file");

  rig.env = rig.world.node("server").start();
  const after = rig.open();
  assert.match(after.readOnly ?? "", /are missing before/);
  // What lies before and behind the missing segment is there.
  for (const part of [0, parts - 1])
    assert.deepEqual(rig.ok(after.version("db"), "read", part * length, length), filled(length, part));
  rig.run(after.version("db"), "write", 0, BLOCK, filled(BLOCK, 1));
  assert.notEqual(rig.last.status, "ok");
  // The last write may be in the page cache only, and nothing is written to a damaged log: no flush can vouch for it.
  assert.deepEqual(rig.ok(after.version("db"), "read", parts * length, length), filled(length, parts));
  rig.run(after.version("db"), "flush", 0, 0);
  assert.equal(rig.last.status, "failed");
  rig.finish(after.close());
  rig.world.end();
});

test("a checkpoint that one start could not open is not what the next one goes by", () => {
  /** The disk does not give the newest checkpoint back, this time. */
  class Blind extends DirectoryStore {
    override *openCheckpoint(number: number): ReturnType<DirectoryStore["openCheckpoint"]> {
      const numbers = yield* this.listCheckpoints();
      if (!isDiskFault(numbers) && number === numbers.at(-1)) return "io";
      return yield* super.openCheckpoint(number);
    }
  }
  const rig = new Rig(2);
  rig.create();
  const db = rig.finish(rig.set.createVolume({ name: "db", size: 512 * BLOCK }));
  rig.ok(db, "write", 0, BLOCK, filled(BLOCK, 1));
  rig.finish(rig.set.checkpoint());
  rig.env.crash();
  rig.env = rig.world.node("server").start();
  // A segment of a run that was cut short: the log is to go on behind its number, and only the newest checkpoint knows.
  const segment = rig.finish(perform(rig.env.disk.open("/set/segment-000000000007", "create")));
  assert.ok(!isDiskFault(segment));
  rig.finish(perform(rig.env.disk.close(segment)));
  rig.open();
  rig.finish(rig.set.close());

  rig.set = rig.finish(VersionSet.open(rig.env, new Blind(rig.env, "/set"), OPTIONS));
  assert.match(rig.set.damage.join(), /checkpoint-\d+ cannot be opened: io/);
  assert.equal(rig.set.readOnly, undefined);
  rig.ok(rig.set.version("db"), "write", BLOCK, BLOCK, filled(BLOCK, 2));
  rig.ok(rig.set.version("db"), "flush", 0, 0);
  rig.env.crash();

  rig.env = rig.world.node("server").start();
  const after = rig.open().version("db");
  assert.deepEqual(rig.ok(after, "read", 0, BLOCK), filled(BLOCK, 1));
  assert.deepEqual(rig.ok(after, "read", BLOCK, BLOCK), filled(BLOCK, 2));
  rig.finish(rig.set.close());
  rig.world.end();
});

test("a snapshot keeps what it froze, clones start from it, and rolling back brings it back", () => {
  const rig = new Rig(2);
  const set = rig.create();
  const db = rig.finish(set.createVolume({ name: "db", size: 64 * BLOCK }));
  rig.ok(db, "write", 0, 8 * BLOCK, filled(8 * BLOCK, 1));
  const monday = rig.finish(set.snapshot("db@monday"));
  rig.ok(db, "write", 0, 4 * BLOCK, filled(4 * BLOCK, 2));
  rig.ok(db, "trim", 4 * BLOCK, 2 * BLOCK);
  assert.deepEqual(rig.ok(monday, "read", 0, 8 * BLOCK), filled(8 * BLOCK, 1));
  const copy = rig.finish(set.clone("db@monday", "copy"));
  rig.ok(copy, "write", 7 * BLOCK, BLOCK, filled(BLOCK, 3));
  assert.deepEqual(rig.ok(copy, "read", 0, 7 * BLOCK), filled(8 * BLOCK, 1).slice(0, 7 * BLOCK));
  assert.deepEqual(rig.ok(db, "read", 4 * BLOCK, 2 * BLOCK), new Uint8Array(2 * BLOCK));
  rig.run(monday, "write", 0, BLOCK, filled(BLOCK, 9));
  assert.equal(rig.last.status, "denied");

  assert.deepEqual(rig.finish(set.accounting("db")), {
    provisioned: 64 * BLOCK,
    mapped: 6 * BLOCK,
    exclusive: 4 * BLOCK,
    shared: 2 * BLOCK,
  });
  // Blocks 0 to 6 are still in the clone; block 7 is in the volume: nothing is the snapshot's alone.
  assert.equal(rig.finish(set.accounting("db@monday")).exclusive, 0);
  rig.finish(set.rollback("db@monday"));
  assert.deepEqual(rig.ok(db, "read", 0, 8 * BLOCK), filled(8 * BLOCK, 1));
  rig.world.run(10_000);
  assert.deepEqual(set.checkCounts(), []);
  assert.equal(set.parentOf("db"), "db@monday");
  rig.finish(set.remove("db@monday"));
  rig.world.run(10_000);
  assert.deepEqual(set.checkCounts(), []);
  assert.deepEqual(rig.ok(db, "read", 0, 8 * BLOCK), filled(8 * BLOCK, 1));
  assert.deepEqual(rig.ok(copy, "read", 7 * BLOCK, BLOCK), filled(BLOCK, 3));
  rig.world.end();
});

test("parts of blocks, compare-and-write and block status", () => {
  const rig = new Rig(3);
  const set = rig.create();
  const db = rig.finish(set.createVolume({ name: "db", size: 64 * BLOCK, blockSize: 512 }));
  rig.ok(db, "write", 512, 512, filled(512, 1));
  rig.ok(db, "write", 3 * BLOCK - 1024, BLOCK + 1024, filled(BLOCK + 1024, 2));
  assert.deepEqual(rig.ok(db, "read", 512, 512), filled(512, 1));
  assert.deepEqual(rig.ok(db, "read", 0, 512), new Uint8Array(512));
  assert.deepEqual(rig.ok(db, "read", 3 * BLOCK - 1024, BLOCK + 1024), filled(BLOCK + 1024, 2));
  rig.ok(db, "compare-write", 512, 512, Uint8Array.from([...filled(512, 1), ...filled(512, 5)]));
  assert.deepEqual(rig.ok(db, "read", 512, 512), filled(512, 5));
  const wrong = filled(512, 5);
  wrong[100]! ^= 1;
  rig.run(db, "compare-write", 512, 512, Uint8Array.from([...wrong, ...filled(512, 6)]));
  assert.deepEqual([rig.last.status, rig.last.result], ["miscompare", 100]);
  rig.ok(db, "zero", 600 - 88, 512);
  assert.deepEqual(rig.ok(db, "read", 512, 512), new Uint8Array(512));
  const extents = new Extents(16);
  rig.finish(set.snapshot("db@s"));
  rig.ok(db, "write", 3 * BLOCK, BLOCK, filled(BLOCK, 7));
  rig.ok(db, "status", 0, 8 * BLOCK, undefined, { extents });
  const rows = Array.from({ length: extents.count }, (_, i) => [extents.length[i], extents.flags[i], extents.depth[i]]);
  assert.deepEqual(rows, [
    [BLOCK, 0, 2],
    [BLOCK, 3, 0],
    [BLOCK, 0, 2],
    [BLOCK, 0, 1],
    [4 * BLOCK, 3, 0],
  ]);
  rig.world.end();
});

/** Random operations against a model; `end` closes, kills, or cuts the power, and then all is opened and compared. */
for (const ending of ["close", "kill", "power"] as const)
  test(`random histories with snapshots, cleaning and checkpoints, ended by ${ending}`, () => {
    for (let seed = 1; seed <= 12; seed++) {
      const rig = new Rig(seed * 100 + ending.length);
      const { chance } = rig.world;
      rig.create();
      const blocks = 300;
      const names = ["v0"];
      const models = new Map<string, number[]>([["v0", new Array(blocks).fill(0)]]);
      rig.finish(rig.set.createVolume({ name: "v0", size: blocks * BLOCK }));
      let stamp = 1;
      const data = (count: number): Uint8Array => {
        const bytes = new Uint8Array(count * BLOCK);
        for (let index = 0; index < count; index++)
          bytes.fill((stamp * 31 + (stamp >> 8)) & 255, index * BLOCK, (index + 1) * BLOCK);
        for (let index = 0; index < count; index++) new DataView(bytes.buffer).setUint32(index * BLOCK, stamp);
        return bytes;
      };
      const compare = (): void => {
        assert.deepEqual([...rig.set.versions.keys()].sort(), [...models.keys()].sort());
        for (const [name, model] of models) {
          const version = rig.set.version(name);
          const bytes = rig.ok(version, "read", 0, blocks * BLOCK);
          const view = new DataView(bytes.buffer);
          for (let block = 0; block < blocks; block++)
            assert.equal(view.getUint32(block * BLOCK), model[block], `seed ${seed}: ${name} block ${block}`);
        }
      };
      for (let life = 0; life < 3; life++) {
        for (let step = 0; step < 150; step++) {
          const name = names[chance.below(names.length)]!;
          const volume = rig.set.version(name);
          const model = models.get(name)!;
          const block = chance.below(blocks);
          const count = Math.min(1 + chance.below(chance.below(4) === 0 ? 200 : 6), blocks - block);
          const pick = chance.below(100);
          if (pick < 12) {
            const sources = [...models.keys()];
            const source = chance.below(3) === 0 ? name : sources[chance.below(sources.length)]!;
            const from = chance.below(3) === 0 ? block : chance.below(blocks - count + 1);
            const there = models.get(source)!.slice(from, from + count);
            rig.copy(volume, block * BLOCK, count * BLOCK, rig.set.version(source), from * BLOCK);
            model.splice(block, count, ...there);
          } else if (pick < 75) {
            rig.ok(volume, "write", block * BLOCK, count * BLOCK, data(count));
            model.fill(stamp++, block, block + count);
          } else if (pick < 82) {
            rig.ok(volume, "trim", block * BLOCK, count * BLOCK);
            model.fill(0, block, block + count);
          } else if (pick < 87) {
            const snapshot = `${name}@s${stamp++}`;
            rig.finish(rig.set.snapshot(snapshot));
            models.set(snapshot, [...model]);
          } else if (pick < 95) {
            const snapshots = [...models.keys()].filter((each) => each.includes("@"));
            const one = snapshots[chance.below(Math.max(1, snapshots.length))];
            if (one === undefined) continue;
            const action = chance.below(4);
            if (action === 0 && names.length < 4) {
              const clone = `v${stamp++}`;
              rig.finish(rig.set.clone(one, clone));
              models.set(clone, [...models.get(one)!]);
              names.push(clone);
            } else if (action === 1) {
              rig.finish(rig.set.rollback(one));
              models.set(one.split("@")[0]!, [...models.get(one)!]);
            } else {
              rig.finish(rig.set.remove(one));
              models.delete(one);
            }
          } else rig.world.run(chance.below(400));
        }
        compare();
        rig.world.run(3000);
        assert.deepEqual(rig.set.checkCounts(), [], `seed ${seed}`);
        rig.ok(rig.set.version("v0"), "flush", 0, 0);
        if (ending === "close") rig.finish(rig.set.close());
        else if (ending === "kill") rig.env.crash();
        else rig.world.node("server").losePower(drawPowerCut(chance));
        if (rig.env.dead) rig.env = rig.world.node("server").start();
        rig.open();
        assert.deepEqual(rig.set.damage, []);
        compare();
      }
      const space = rig.finish(rig.set.space());
      assert.ok(space.segments < 60, `seed ${seed}: ${space.segments} segments for ${space.live / BLOCK} live blocks`);
      rig.world.end();
    }
  });

test("a volume that fits is overwritten on, though hosts fill the space before anybody has looked after it", () => {
  const rig = new Rig(11);
  const limit = new RoomLimit();
  const store = new DirectoryStore(rig.env, "/set", limit);
  const segmentBytes = OPTIONS.segmentBlocks! * BLOCK;
  assert.equal(rig.finish(store.make()), undefined);
  // Nothing cleans in the background: all there is comes from what is done when there is no room.
  const set = rig.finish(VersionSet.create(rig.env, store, { ...OPTIONS, background: false }));
  const size = 8 * segmentBytes;
  const db = rig.finish(set.createVolume({ name: "db", size, blockSize: 4096 }));
  limit.onAsked();
  limit.tell(24 * segmentBytes, 24 * segmentBytes);
  const length = 16 * BLOCK;
  for (let count = 0; count < (6 * size) / length; count++) {
    const offset = rig.world.chance.below(size / length) * length;
    rig.run(db, "write", offset, length, new Uint8Array(length).fill(count));
    assert.equal(rig.last.status, "ok", `write ${count}`);
  }
  // The first segment and checkpoints are counted when the limit is told anew, which it is not here.
  assert.ok(rig.finish(set.space()).disk <= 26 * segmentBytes);
  // What is told anew counts: with nothing left, data is refused, and what frees space is not.
  limit.tell(24 * segmentBytes, -24 * segmentBytes);
  let status = "ok";
  for (let count = 0; count < size / length && status === "ok"; count++) {
    rig.run(db, "write", count * length, length, new Uint8Array(length).fill(1));
    status = rig.last.status;
  }
  assert.equal(status, "full");
  rig.run(db, "trim", 0, size);
  assert.equal(rig.last.status, "ok");
});

test("a process that may open no more files refuses what needs one, and takes nothing for damaged", () => {
  class StarvedStore extends DirectoryStore {
    starved = false;
    override *create(number: number) {
      return this.starved ? "too-many-files" : yield* super.create(number);
    }
    override *open(number: number) {
      return this.starved ? "too-many-files" : yield* super.open(number);
    }
  }
  const rig = new Rig(12);
  const set = rig.create();
  rig.finish(set.createVolume({ name: "db", size: 4096 * BLOCK, blockSize: 4096 }));
  const piece = (fill: number) => new Uint8Array(64 * BLOCK).fill(fill);
  for (let at = 0; at < 8; at++) rig.run(set.version("db"), "write", at * 64 * BLOCK, 64 * BLOCK, piece(at + 1));
  rig.finish(set.close());

  const store = new StarvedStore(rig.env, "/set");
  rig.set = rig.finish(VersionSet.open(rig.env, store, OPTIONS));
  store.starved = true;
  const db = rig.set.version("db");
  rig.run(db, "read", 0, 64 * BLOCK);
  assert.equal(rig.last.status, "busy");
  const statuses = Array.from({ length: 8 }, (_, at) => {
    rig.run(db, "write", at * 64 * BLOCK, 64 * BLOCK, piece(at + 1));
    return rig.last.status;
  });
  assert.equal(statuses.at(-1), "full");
  store.starved = false;
  assert.deepEqual(rig.run(db, "read", 7 * 64 * BLOCK, 64 * BLOCK), piece(8));
  rig.run(db, "write", 0, 64 * BLOCK, piece(100));
  assert.equal(rig.last.status, "ok");
  assert.deepEqual(rig.set.damage, []);
  assert.equal(rig.set.trouble, undefined);
});

test("a segment that was thrown away at a start and comes back with a power cut hides nothing that was flushed since", () => {
  const rig = new Rig(14);
  const options = { ...OPTIONS, background: false };
  const db = () => rig.set.version("db");
  rig.create(options);
  rig.finish(rig.set.createVolume({ name: "db", size: 4096 * BLOCK, blockSize: 4096 }));
  rig.ok(db(), "write", 0, 64 * BLOCK, filled(64 * BLOCK, 1));
  rig.finish(rig.set.close());

  // What has no room where the log ended begins the next segment, and of its group only the segment's header arrives.
  rig.open(options);
  rig.ok(db(), "write", 0, 100 * BLOCK, filled(100 * BLOCK, 2));
  const path = "/set/segment-000000000002";
  rig.env.crash();
  rig.env = rig.world.node("server").start();
  let at = rig.env.memory.allocate(2 * BLOCK);
  const header = (mode: "create" | "write", kind: "read" | "write", count: number): void => {
    const file = rig.finish(perform(rig.env.disk.open(path, mode)));
    assert.ok(!isDiskFault(file), String(file));
    assert.equal(rig.finish(transfer(rig.env.disk, kind, file, 0, at, count * BLOCK)), undefined);
    rig.finish(perform(rig.env.disk.close(file)));
  };
  header("write", "read", 1);
  rig.env.memory.bytes.fill(0, at + BLOCK, at + 2 * BLOCK);
  header("write", "write", 2);

  rig.open(options);
  rig.ok(db(), "write", 0, BLOCK, filled(BLOCK, 3));
  rig.ok(db(), "flush", 0, 0);
  const thrownAway = rig.env.memory.bytes.slice(at, at + BLOCK);
  rig.env.crash();
  rig.env = rig.world.node("server").start();
  at = rig.env.memory.allocate(2 * BLOCK);
  rig.env.memory.bytes.set(thrownAway, at);
  header("create", "write", 1);

  rig.open(options);
  assert.deepEqual(rig.ok(db(), "read", 0, BLOCK), filled(BLOCK, 3));
  rig.world.end();
});

test("a burst is what the disk takes in two seconds, where there is room: more after quick checkpoints, less after slow ones", () => {
  const rig = new Rig(15);
  const { cleaner } = rig.create({ segmentBlocks: 128 });
  const burst = (): number => {
    rig.finish(cleaner.aim(false));
    return cleaner.burstBytes / MIB;
  };
  assert.equal(burst(), 256);
  for (let time = 0; time < 4; time++) cleaner.noteSync(2048 * MIB, 50);
  assert.equal(burst(), 2048);
  cleaner.noteSync(MIB, 4000);
  assert.equal(burst(), 2048);
  cleaner.noteSync(2048 * MIB, 4000);
  assert.equal(burst(), 1024);
  cleaner.noteSync(1024 * MIB, 60_000);
  assert.equal(burst(), 256);
  rig.world.end();
});
