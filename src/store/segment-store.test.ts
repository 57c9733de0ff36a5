import assert from "node:assert/strict";
import { test } from "node:test";
import type { Task } from "#base/task";
import { type Disk, type Env, type File, isDiskFault } from "#env/env";
import { Resources, World } from "#sim/env/world";
import { DirectoryStore, type NewSegment, RoomLimit } from "./segment-store.ts";

const resources = new Resources();
const SEGMENT_BYTES = 64 * 1024;

/** A directory of segments, of which the calls to the disk are counted, and opening may fail. */
class Rig {
  readonly world = new World(21, resources);
  readonly env: Env;
  readonly limit = new RoomLimit();
  readonly store: DirectoryStore;
  nameSyncs = 0;
  starved = false;

  constructor() {
    const real = this.world.node("server").start();
    const rig = this;
    const disk: Disk = new Proxy(real.disk, {
      get(target, name, receiver) {
        if (name === "syncDirectory") rig.nameSyncs++;
        if (name === "open" && rig.starved) return () => (resume: (fault: string) => void) => resume("too-many-files");
        const value = Reflect.get(target, name, receiver);
        return typeof value === "function" ? value.bind(target) : value;
      },
    });
    this.env = new Proxy(real, {
      get: (target, name, receiver) => (name === "disk" ? disk : Reflect.get(target, name, receiver)),
    });
    this.store = new DirectoryStore(this.env, "/set", this.limit);
    assert.equal(this.finish(this.store.make()), undefined);
    this.nameSyncs = 0;
  }
  finish<T>(task: Task<T>): T {
    return this.world.finish(task);
  }
  make(number: number): NewSegment {
    const made = this.finish(this.store.create(number));
    assert.ok(!isDiskFault(made), `segment ${number}: ${made}`);
    assert.equal(this.finish(this.store.reserve(made, SEGMENT_BYTES)), undefined);
    return made;
  }
  /** Makes segments of new files, and retires them: so many spares. */
  spares(count: number): void {
    const files = Array.from({ length: count }, (_, at): File => this.make(at + 1).file);
    for (const [at, file] of files.entries())
      assert.equal(this.finish(this.store.retire(at + 1, file, SEGMENT_BYTES)), undefined);
    assert.equal(this.store.spareCount, count);
    this.nameSyncs = 0;
  }
  list(): number[] {
    const numbers = this.finish(this.store.list());
    assert.ok(!isDiskFault(numbers));
    return numbers;
  }
}

test("a host who fills segments quickly does not wait for the name of each: those ahead are made with it", () => {
  const rig = new Rig();
  rig.spares(20);
  for (let number = 21; number < 39; number++) assert.equal(rig.make(number).rewritten, true);
  assert.equal(rig.nameSyncs, 2);
  assert.equal(rig.store.spareCount, 2);
  // Two are left, which the last look made a name for each; then new files are made one at a time again.
  rig.make(39);
  rig.make(40);
  assert.equal(rig.make(41).rewritten, false);
  assert.deepEqual(
    rig.list(),
    Array.from({ length: 21 }, (_, at) => at + 21),
  );
});

test("a host who takes his time gets one segment at a time", () => {
  const rig = new Rig();
  rig.spares(4);
  rig.world.run(1000);
  rig.make(5);
  assert.deepEqual(rig.list(), [5]);
  assert.equal(rig.store.spareCount, 3);
});

test("segments made ahead are spares: they count as such, and are given back with them, the last one first", () => {
  const rig = new Rig();
  rig.spares(6);
  rig.make(7);
  assert.deepEqual(rig.list(), [7, 8, 9, 10, 11, 12]);
  assert.equal(rig.store.spareCount, 5);
  assert.equal(rig.finish(rig.store.dropSpares(2)), true);
  assert.deepEqual(rig.list(), [7, 8, 9]);
  assert.equal(rig.store.spareCount, 2);
  assert.equal(rig.make(8).rewritten, true);
  assert.equal(rig.finish(rig.store.dropSpares()), true);
  assert.deepEqual(rig.list(), [7, 8]);
  assert.equal(rig.make(9).rewritten, false);
});

test("spares beyond the few that stay are given back at rest, and where others need the room", () => {
  const rig = new Rig();
  rig.spares(30);
  assert.equal(rig.finish(rig.store.trimSpares(false)), true);
  assert.equal(rig.store.spareCount, 30);
  rig.limit.onAsked();
  rig.limit.tell(64 * SEGMENT_BYTES, 16 * 8 * SEGMENT_BYTES);
  assert.equal(rig.finish(rig.store.trimSpares(false)), true);
  assert.equal(rig.store.spareCount, 16);
  rig.limit.onAsked();
  rig.limit.tell(64 * SEGMENT_BYTES, 0);
  assert.equal(rig.finish(rig.store.trimSpares(false)), false);
  assert.equal(rig.store.spareCount, 8);
});

test("spares of a store that has made no segment itself are given back at rest, too", () => {
  const rig = new Rig();
  for (let number = 1; number <= 12; number++) rig.make(number);
  const again = new DirectoryStore(rig.env, "/set");
  for (let number = 1; number <= 12; number++)
    assert.equal(rig.finish(again.retire(number, undefined, SEGMENT_BYTES)), undefined);
  assert.equal(again.spareCount, 12);
  assert.equal(rig.finish(again.trimSpares(true)), false);
  assert.equal(again.spareCount, 8);
});

test("a segment that cannot be opened can be made again, and is nobody else's", () => {
  const rig = new Rig();
  rig.spares(6);
  for (const number of [7, 8]) {
    rig.starved = true;
    assert.equal(rig.finish(rig.store.create(number)), "too-many-files");
    rig.starved = false;
    rig.make(number);
  }
});

test("names made ahead fence another writer, too", () => {
  const rig = new Rig();
  rig.spares(6);
  rig.make(7);
  const other = new DirectoryStore(rig.env, "/set");
  assert.equal(rig.finish(other.create(8)), "exists");
  assert.equal(rig.make(8).rewritten, true);
});
