import assert from "node:assert/strict";
import test from "node:test";
import { perform, type Task } from "#base/task";
import { type DiskFault, DiskOp, type File, isDiskFault } from "#env/env";
import { POWER_CUTS } from "./power-cuts.ts";
import type { SimProcess } from "./sim-process.ts";
import { Resources, World } from "./world.ts";

const resources = new Resources(4 * 1024 * 1024);

function done(
  op: { kind: DiskOp["kind"]; file: File; position?: number; at?: number; length?: number },
  env: SimProcess,
) {
  return perform<DiskOp>((resume) => {
    const made = Object.assign(new DiskOp(resume), op);
    env.disk.submit(made);
  });
}
function* create(env: SimProcess, path: string): Task<File> {
  const file = yield* perform(env.disk.open(path, "create"));
  if (isDiskFault(file)) throw new Error(file);
  return file;
}
function* write(
  env: SimProcess,
  file: File,
  position: number,
  length: number,
  value: number,
): Task<DiskFault | undefined> {
  const at = env.memory.allocate(length);
  env.memory.bytes.fill(value, at, at + length);
  const op = yield* done({ kind: "write", file, position, at, length }, env);
  env.memory.free(at);
  return op.fault;
}
function* read(env: SimProcess, path: string, position: number, length: number): Task<Uint8Array | DiskFault> {
  const file = yield* perform(env.disk.open(path, "read"));
  if (isDiskFault(file)) return file;
  const at = env.memory.allocate(length);
  const op = yield* done({ kind: "read", file, position, at, length }, env);
  const bytes = env.memory.bytes.slice(at, at + op.count);
  env.memory.free(at);
  yield* perform(env.disk.close(file));
  return op.fault ?? bytes;
}

test("what was synced survives a power cut, and what was not does not", () => {
  const world = new World(1, resources);
  const node = world.node("a");
  const env = node.start();
  world.finish(
    (function* () {
      const file = yield* create(env, "/log");
      yield* write(env, file, 0, 8192, 1);
      yield* done({ kind: "sync", file }, env);
      yield* perform(env.disk.syncDirectory("/"));
      yield* write(env, file, 4096, 8192, 2);
      const seen = yield* read(env, "/log", 0, 20_000);
      assert.equal(seen.length, 12_288);
    })(),
  );
  node.losePower(POWER_CUTS.allLost);
  const seen = world.finish(read(node.start(), "/log", 0, 20_000));
  assert.deepEqual(seen, new Uint8Array(8192).fill(1));
  world.end();
});

test("a torn write leaves each sector old or new, and several outcomes are seen", () => {
  const outcomes = new Set<string>();
  for (let seed = 1; seed < 40; seed++) {
    const world = new World(seed, resources);
    const node = world.node("a");
    const env = node.start();
    world.finish(
      (function* () {
        const file = yield* create(env, "/log");
        yield* write(env, file, 0, 4096, 1);
        yield* done({ kind: "sync", file }, env);
        yield* perform(env.disk.syncDirectory("/"));
        yield* write(env, file, 512, 2048, 2);
      })(),
    );
    node.losePower(POWER_CUTS.random);
    const seen = world.finish(read(node.start(), "/log", 0, 4096)) as Uint8Array;
    let outcome = "";
    for (let sector = 0; sector < 8; sector++) {
      assert.ok(seen.subarray(sector * 512, sector * 512 + 512).every((byte) => byte === seen[sector * 512]));
      outcome += seen[sector * 512];
    }
    assert.match(outcome, /^1[12]{4}111$/);
    outcomes.add(outcome);
    world.end();
  }
  assert.ok(outcomes.size > 8, `${outcomes.size} outcomes`);
});

test("a sync makes nothing durable that was written after it was asked for", () => {
  const world = new World(3, resources);
  const node = world.node("a");
  const env = node.start();
  node.diskFaults.syncMs = 50;
  world.finish(
    (function* () {
      const file = yield* create(env, "/log");
      yield* perform(env.disk.syncDirectory("/"));
      yield* write(env, file, 0, 4096, 1);
      let synced = 0;
      const ops = [0, 1].map(() => Object.assign(new DiskOp(() => synced++), { kind: "sync", file }));
      for (const op of ops) env.disk.submit(op);
      yield* write(env, file, 4096, 4096, 2);
      while (synced < 2) yield* perform<void>((resume) => world.plan(1, resume, env));
    })(),
  );
  node.losePower(POWER_CUTS.allLost);
  assert.deepEqual(world.finish(read(node.start(), "/log", 0, 9000)), new Uint8Array(4096).fill(1));
  world.end();
});

test("a name is durable only when its directory was synced, if names are loose", () => {
  for (const names of ["loose", "journal"] as const) {
    const world = new World(2, resources);
    const node = world.node("a");
    node.files.names = names;
    const env = node.start();
    world.finish(
      (function* () {
        yield* perform(env.disk.makeDirectory("/d"));
        yield* perform(env.disk.syncDirectory("/"));
        const file = yield* create(env, "/d/log");
        yield* write(env, file, 0, 4096, 1);
        yield* done({ kind: "sync", file }, env);
        yield* perform(env.disk.rename("/d/log", "/d/other"));
      })(),
    );
    node.losePower(POWER_CUTS.allLost);
    const listed = world.finish(
      (function* () {
        return yield* perform(node.start().disk.list("/d"));
      })(),
    );
    assert.deepEqual(listed, names === "loose" ? [] : ["log"]);
    world.end();
  }
});

test("after a failed sync the data looks written, and is lost with the power", () => {
  let lost = 0;
  for (let seed = 1; seed < 10; seed++) {
    const world = new World(seed, resources);
    const node = world.node("a");
    const env = node.start();
    world.finish(
      (function* () {
        const file = yield* create(env, "/log");
        yield* perform(env.disk.syncDirectory("/"));
        yield* write(env, file, 0, 4096, 1);
        node.diskFaults.syncError = 1;
        assert.equal((yield* done({ kind: "sync", file }, env)).fault, "io");
        node.diskFaults.stop();
        assert.equal((yield* done({ kind: "sync", file }, env)).fault, undefined);
        assert.equal((yield* read(env, "/log", 0, 4096)).length, 4096);
      })(),
    );
    node.losePower(POWER_CUTS.allLost);
    if (world.finish(read(node.start(), "/log", 0, 4096)).length === 0) lost++;
    world.end();
  }
  assert.ok(lost > 0 && lost < 9, `${lost} of 9 lost`);
});

test("a full disk says so, and space comes back with the last name and handle", () => {
  const world = new World(5, resources);
  const node = world.node("a");
  node.files.capacity = 64 * 1024;
  const env = node.start();
  world.finish(
    (function* () {
      const file = yield* create(env, "/one");
      assert.equal(yield* write(env, file, 0, 48 * 1024, 1), undefined);
      assert.equal(yield* write(env, file, 48 * 1024, 20 * 1024, 1), "full");
      assert.equal(yield* perform(env.disk.allocate(file, 0, 65 * 1024)), "full");
      assert.equal(yield* perform(env.disk.punch(file, 0, 16 * 1024)), undefined);
      assert.equal(yield* write(env, file, 48 * 1024, 20 * 1024, 1), undefined);
      yield* perform(env.disk.unlink("/one"));
      assert.equal(node.files.used, 52 * 1024);
      yield* perform(env.disk.close(file));
      assert.equal(node.files.used, 0);
    })(),
  );
  world.end();
});

test("the same seed gives the same world", () => {
  const traces = [1, 2].map(() => {
    const world = new World(77, resources);
    const env = world.node("a").start();
    world.finish(
      (function* () {
        const file = yield* create(env, "/log");
        for (let i = 0; i < 20; i++) yield* write(env, file, i * 4096, 4096, i);
        yield* perform(env.disk.list("/"));
      })(),
    );
    world.end();
    return `${world.trace} ${world.now} ${world.steps}`;
  });
  assert.equal(traces[0], traces[1]);
});

test("an alarm rings once, in local time, and not when it was silenced", () => {
  const world = new World(6, resources);
  const node = world.node("a");
  node.clockRate = 1.5;
  const env = node.start();
  const rung: number[] = [];
  const started = env.clock.now();
  const alarm = env.clock.alarm(() => rung.push(env.clock.now() - started));
  alarm.at = started + 5;
  alarm.at = started + 30;
  const silent = env.clock.alarm(() => rung.push(-1));
  silent.at = started + 10;
  silent.at = Number.POSITIVE_INFINITY;
  world.run();
  assert.equal(rung.length, 1);
  assert.ok(rung[0]! >= 30 && rung[0]! < 30.001);
  assert.equal(alarm.at, Number.POSITIVE_INFINITY);
  world.end();
});
