/** Contract of `Env.disk`. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { Pieces } from "#base/memory";
import { perform, type Task } from "#base/task";
import { MIB } from "#base/units";
import { DiskOp, type Env, type File, isDiskFault } from "#env/env";
import { type Abilities, disk, type Ground, good } from "./env-ground.ts";

export function diskContract(name: string, abilities: Abilities, make: () => Ground | Promise<Ground>): void {
  const claim = (title: string, body: (env: Env, folder: string) => Task<void>): void => {
    test(title, async () => {
      const ground = await make();
      await ground.run(body(ground.env, ground.folder));
      assert.equal(ground.env.memory.used, 0, "memory was not given back");
      await ground.close();
    });
  };

  function* create(env: Env, path: string): Task<File> {
    return good(yield* perform(env.disk.open(path, "create")));
  }

  /** Fills `length` bytes at `at` with what can be told apart by position. */
  const fill = (env: Env, at: number, length: number, seed: number): void => {
    const { bytes } = env.memory;
    for (let i = 0; i < length; i++) bytes[at + i] = (i * 7 + (i >>> 8) + seed) & 0xff;
  };
  const same = (env: Env, one: number, other: number, length: number): boolean =>
    Buffer.compare(env.memory.slice(one, length), env.memory.slice(other, length)) === 0;

  describe(`${name}: disk`, () => {
    claim("what was written is read, at any position and length", function* (env, folder) {
      const file = yield* create(env, `${folder}/a`);
      const out = env.memory.allocate(3 * MIB);
      const back = env.memory.allocate(3 * MIB);
      fill(env, out, 3 * MIB, 1);
      for (const [position, length] of [
        [0, 1],
        [1, 511],
        [4096, 4096],
        [10_000, 65_537],
        [5 * MIB, 3 * MIB],
      ] as const) {
        const wrote = yield* perform(disk(env, { kind: "write", file, position, at: out, length }));
        assert.equal(wrote.fault, undefined);
        env.memory.bytes.fill(0, back, back + length);
        const read = yield* perform(disk(env, { kind: "read", file, position, at: back, length }));
        assert.deepEqual([read.fault, read.count], [undefined, length]);
        assert.ok(same(env, out, back, length), `${length} bytes at ${position}`);
      }
      const facts = good(yield* perform(env.disk.facts(`${folder}/a`)));
      assert.deepEqual([facts.kind, facts.size], ["file", 8 * MIB]);
      env.memory.free(out);
      env.memory.free(back);
      assert.equal(yield* perform(env.disk.close(file)), undefined);
    });

    claim("a read at the end of the file is short, and beyond it empty", function* (env, folder) {
      const file = yield* create(env, `${folder}/a`);
      const at = env.memory.allocate(8192);
      fill(env, at, 8192, 1);
      yield* perform(disk(env, { kind: "write", file, position: 0, at, length: 5000 }));
      env.memory.bytes.fill(0xee, at, at + 8192);
      const short = yield* perform(disk(env, { kind: "read", file, position: 4096, at, length: 4096 }));
      assert.deepEqual([short.fault, short.count], [undefined, 904]);
      assert.equal(env.memory.bytes[at + 904], 0xee);
      const none = yield* perform(disk(env, { kind: "read", file, position: 5000, at, length: 4096 }));
      assert.deepEqual([none.fault, none.count], [undefined, 0]);
      env.memory.free(at);
      yield* perform(env.disk.close(file));
    });

    claim("gathered writes and scattered reads take the pieces in order", function* (env, folder) {
      const file = yield* create(env, `${folder}/a`);
      const out = env.memory.allocate(MIB);
      const back = env.memory.allocate(MIB);
      fill(env, out, MIB, 3);
      const pieces = new Pieces();
      // Every second kilobyte, so that no piece joins the one before.
      for (let i = 0; i < 500; i++) assert.ok(pieces.add(out + i * 2048, 1024));
      const wrote = yield* perform(disk(env, { kind: "write", file, position: 512, pieces }));
      assert.equal(wrote.fault, undefined);
      const read = yield* perform(disk(env, { kind: "read", file, position: 512, at: back, length: 500 * 1024 }));
      assert.equal(read.count, 500 * 1024);
      for (let i = 0; i < 500; i++) assert.ok(same(env, out + i * 2048, back + i * 1024, 1024), `piece ${i}`);
      pieces.clear();
      for (let i = 0; i < 3; i++) pieces.add(back + 600_000 - i * 10_000, 4096);
      const scattered = yield* perform(disk(env, { kind: "read", file, position: 512, pieces }));
      assert.deepEqual([scattered.fault, scattered.count], [undefined, 3 * 4096]);
      for (let i = 0; i < 3; i++) assert.ok(same(env, back + 600_000 - i * 10_000, back + i * 4096, 4096));
      // At the end of the file, too, a scattered read is short.
      pieces.clear();
      pieces.add(back, 4096);
      pieces.add(back + 8192, 4096);
      const short = yield* perform(disk(env, { kind: "read", file, position: 500 * 1024, pieces }));
      assert.deepEqual([short.fault, short.count], [undefined, 512]);
      env.memory.free(out);
      env.memory.free(back);
      yield* perform(env.disk.close(file));
    });

    claim("a thousand operations in flight on several files all end, with their own data", function* (env, folder) {
      const files = [yield* create(env, `${folder}/a`), yield* create(env, `${folder}/b`)];
      const at = env.memory.allocate(4 * MIB);
      fill(env, at, 4 * MIB, 9);
      const all = (kind: "write" | "read", base: number) =>
        perform((resume: (faults: number) => void) => {
          let left = 1000;
          let faults = 0;
          for (let i = 0; i < 1000; i++) {
            const op = new DiskOp((done) => {
              if (done.fault || (kind === "read" && done.count !== 4096)) faults++;
              if (--left === 0) resume(faults);
            });
            Object.assign(op, { kind, file: files[i % 2], position: i * 4096, at: base + i * 4096, length: 4096 });
            env.disk.submit(op);
          }
        });
      assert.equal(yield* all("write", at), 0);
      const back = env.memory.allocate(4 * MIB);
      env.memory.bytes.fill(0, back, back + 4 * MIB);
      assert.equal(yield* all("read", back), 0);
      assert.ok(same(env, at, back, 1000 * 4096));
      for (const file of files) {
        const synced = yield* perform(disk(env, { kind: "sync", file }));
        assert.equal(synced.fault, undefined);
        yield* perform(env.disk.close(file));
      }
      env.memory.free(at);
      env.memory.free(back);
    });

    claim("files are created once, opened if there, and not written when open for reading", function* (env, folder) {
      const path = `${folder}/a`;
      assert.equal(yield* perform(env.disk.open(path, "read")), "missing");
      assert.equal(yield* perform(env.disk.open(path, "write")), "missing");
      yield* perform(env.disk.close(yield* create(env, path)));
      assert.equal(yield* perform(env.disk.open(path, "create")), "exists");
      assert.equal(yield* perform(env.disk.open(`${path}/b`, "read")), "missing");
      const file = good(yield* perform(env.disk.open(path, "read")));
      assert.equal(file.path, path);
      const at = env.memory.allocate(512);
      const op = yield* perform(disk(env, { kind: "write", file, position: 0, at, length: 512 }));
      assert.ok(op.fault !== undefined);
      env.memory.free(at);
      yield* perform(env.disk.close(file));
    });

    claim("truncate cuts and extends, and what it adds reads as zeroes", function* (env, folder) {
      const file = yield* create(env, `${folder}/a`);
      const at = env.memory.allocate(4096);
      env.memory.bytes.fill(0xaa, at, at + 4096);
      yield* perform(disk(env, { kind: "write", file, position: 0, at, length: 4096 }));
      assert.equal(yield* perform(env.disk.truncate(file, 100)), undefined);
      assert.equal(yield* perform(env.disk.truncate(file, 8192)), undefined);
      const read = yield* perform(disk(env, { kind: "read", file, position: 0, at, length: 4096 }));
      assert.equal(read.count, 4096);
      const data = env.memory.slice(at, 4096);
      assert.ok(data.subarray(0, 100).every((byte) => byte === 0xaa));
      assert.ok(data.subarray(100).every((byte) => byte === 0));
      env.memory.free(at);
      yield* perform(env.disk.close(file));
    });

    claim("names: link, rename, unlink, list, directories", function* (env, folder) {
      const { disk: names } = env;
      assert.equal(yield* perform(names.makeDirectory(`${folder}/d`)), undefined);
      assert.equal(yield* perform(names.makeDirectory(`${folder}/d`)), "exists");
      assert.equal(yield* perform(names.makeDirectory(`${folder}/none/d`)), "missing");
      yield* perform(names.close(yield* create(env, `${folder}/d/a`)));
      assert.equal(yield* perform(names.link(`${folder}/d/a`, `${folder}/d/b`)), undefined);
      assert.equal(yield* perform(names.link(`${folder}/d/a`, `${folder}/d/b`)), "exists");
      assert.equal(yield* perform(names.link(`${folder}/d/none`, `${folder}/d/c`)), "missing");
      assert.deepEqual(good(yield* perform(names.list(`${folder}/d`))).sort(), ["a", "b"]);
      assert.equal(yield* perform(names.rename(`${folder}/d/b`, `${folder}/d/c`)), undefined);
      yield* perform(names.close(yield* create(env, `${folder}/d/e`)));
      assert.equal(yield* perform(names.rename(`${folder}/d/c`, `${folder}/d/e`)), undefined);
      assert.equal(yield* perform(names.rename(`${folder}/d/c`, `${folder}/d/x`)), "missing");
      assert.equal(yield* perform(names.syncDirectory(`${folder}/d`)), undefined);
      assert.deepEqual(good(yield* perform(names.list(`${folder}/d`))).sort(), ["a", "e"]);
      assert.equal(yield* perform(names.removeDirectory(`${folder}/d`)), "exists");
      assert.equal(yield* perform(names.unlink(`${folder}/d/a`)), undefined);
      assert.equal(yield* perform(names.unlink(`${folder}/d/a`)), "missing");
      assert.equal(yield* perform(names.unlink(`${folder}/d/e`)), undefined);
      assert.equal(yield* perform(names.removeDirectory(`${folder}/d`)), undefined);
      assert.equal(yield* perform(names.list(`${folder}/d`)), "missing");
      assert.equal(yield* perform(names.facts(`${folder}/d`)), "missing");
      assert.equal(yield* perform(names.syncDirectory(`${folder}/d`)), "missing");
      assert.equal(good(yield* perform(names.facts(folder))).kind, "directory");
    });

    claim("an open file outlives its name", function* (env, folder) {
      const file = yield* create(env, `${folder}/a`);
      const at = env.memory.allocate(512);
      env.memory.bytes.fill(0x55, at, at + 512);
      yield* perform(env.disk.unlink(`${folder}/a`));
      yield* perform(disk(env, { kind: "write", file, position: 0, at, length: 512 }));
      env.memory.bytes.fill(0, at, at + 512);
      const read = yield* perform(disk(env, { kind: "read", file, position: 0, at, length: 512 }));
      assert.equal(read.count, 512);
      assert.equal(env.memory.bytes[at + 511], 0x55);
      env.memory.free(at);
      yield* perform(env.disk.close(file));
    });

    claim("space is known, and the available part is not more than the total", function* (env, folder) {
      const space = good(yield* perform(env.disk.space(folder)));
      assert.ok(space.total > 0 && space.available <= space.total);
      assert.equal(yield* perform(env.disk.space(`${folder}/none`)), "missing");
    });

    if (abilities.allocate)
      claim("allocate reserves and lengthens, punch gives back and reads as zeroes", function* (env, folder) {
        const file = yield* create(env, `${folder}/a`);
        const allocated = yield* perform(env.disk.allocate(file, 0, MIB));
        const punched = yield* perform(env.disk.punch(file, 65536, 65536));
        // File systems may refuse; then in words, and without having changed anything.
        if (!isDiskFault(allocated)) {
          const facts = good(yield* perform(env.disk.facts(`${folder}/a`)));
          assert.equal(facts.size, MIB);
          assert.ok(facts.allocated > 0);
        } else assert.equal(allocated, "unsupported");
        const at = env.memory.allocate(4096);
        env.memory.bytes.fill(0xcc, at, at + 4096);
        yield* perform(disk(env, { kind: "write", file, position: 65536, at, length: 4096 }));
        const again = yield* perform(env.disk.punch(file, 65536, 4096));
        assert.equal(again, punched);
        const read = yield* perform(disk(env, { kind: "read", file, position: 65536, at, length: 4096 }));
        assert.equal(read.count, 4096);
        assert.equal(env.memory.bytes[at], punched === undefined ? 0 : 0xcc);
        env.memory.free(at);
        yield* perform(env.disk.close(file));
      });
  });
}
