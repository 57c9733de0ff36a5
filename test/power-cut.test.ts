/**
 * The engine on a real ext4, on a disk that remembers the order of what reached it. Then the power is cut again and again:
 * at every flush that reached it, and at every one with some part of what was written since. Each time the file system is
 * mounted and the set is opened, and what was flushed must be there, a snapshot must be what it was, and everything else
 * old or new, block by block.
 *
 * POWER_CUT_ROUNDS=500, POWER_CUT_SUBSETS=5 and POWER_CUT_SEED=7 make it longer, or another one.
 */
import assert from "node:assert/strict";
import test from "node:test";
import type { Status } from "#base/status";
import { promiseOf } from "#base/task";
import { MIB } from "#base/units";
import { type BlockDevice, BlockOp, type OpKind } from "#device/device";
import type { Env, Log } from "#env/env";
import { NodeEnv } from "#env/node/node-env";
import { Chance } from "#sim/env/chance";
import { fillPattern, GARBLED, stampOf } from "#sim/oracle/pattern";
import { DirectoryStore } from "#store/segment-store";
import { VersionSet } from "#store/version-set";
import { tempFolder } from "./support/temp.ts";
import { LoggedDisk } from "./support/write-log.ts";

/** Of writes that are on their way together; each some ten blocks. */
const ROUNDS = Number(process.env["POWER_CUT_ROUNDS"] ?? 45);
/** Of the writes after each flush, besides none of them. */
const SUBSETS = Number(process.env["POWER_CUT_SUBSETS"] ?? 1);
const SEED = Number(process.env["POWER_CUT_SEED"] ?? 1);
const DISK_BYTES = 64 * MIB;
const VOLUME_BLOCKS = 512;
const BLOCK_BYTES = 4096;
/** What one round and all its cuts may take on a machine that is slow and busy: against hanging. */
const ROUND_MS_MAX = 10_000;

const quiet: Log = { debug() {}, info() {}, warn() {}, error() {} };

interface Written {
  readonly stamp: number;
  /** How much of the disk's log there was when the write was asked for: it cannot be in less of it. */
  readonly from: number;
}

/** What every block of a volume has been, in order, and what each flush made sure of. */
class Ledger {
  readonly blocks: Written[][] = Array.from({ length: VOLUME_BLOCKS }, () => [{ stamp: 0, from: 0 }]);
  /** Once the disk's log has `from` entries, each block has at least its `at`th value. */
  readonly flushes: { readonly from: number; readonly at: Uint32Array }[] = [];

  state(): Uint32Array {
    return Uint32Array.from(this.blocks, (values) => values.length - 1);
  }

  /** The stamps that a block may have, when the first `whole` entries are on the disk and some of those up to `most`. */
  allowed(block: number, whole: number, most: number): Set<number> {
    let least = 0;
    for (const flush of this.flushes) if (flush.from <= whole) least = flush.at[block]!;
    const values = this.blocks[block]!;
    return new Set(
      values
        .filter((value, index) => index === least || (index > least && value.from <= most))
        .map(({ stamp }) => stamp),
    );
  }
}

class Host {
  readonly env: Env;
  readonly #words: Int32Array;
  constructor(env: Env) {
    this.env = env;
    this.#words = new Int32Array(env.memory.bytes.buffer);
  }

  async io(device: BlockDevice, kind: OpKind, block: number, count: number, stamp = 0, fua = false): Promise<Status> {
    const { memory } = this.env;
    const length = count * BLOCK_BYTES;
    const at = kind === "write" ? memory.allocate(length) : 0;
    if (kind === "write") fillPattern(this.#words, at, length, BLOCK_BYTES, block, stamp);
    const status = await new Promise<Status>((resolve) => {
      const op = new BlockOp(() => resolve(op.status));
      Object.assign(op, { kind, offset: block * BLOCK_BYTES, length: kind === "flush" ? 0 : length, at, fua });
      device.submit(op);
    });
    if (at !== 0) memory.free(at);
    return status;
  }

  /** The stamps of all blocks of a volume. */
  async stamps(device: BlockDevice): Promise<number[]> {
    const { memory } = this.env;
    const at = memory.allocate(VOLUME_BLOCKS * BLOCK_BYTES);
    const status = await new Promise<Status>((resolve) => {
      const op = new BlockOp(() => resolve(op.status));
      Object.assign(op, { kind: "read", offset: 0, length: VOLUME_BLOCKS * BLOCK_BYTES, at });
      device.submit(op);
    });
    assert.equal(status, "ok", "a read after the power cut");
    const stamps = Array.from({ length: VOLUME_BLOCKS }, (_, block) =>
      stampOf(this.#words, at + block * BLOCK_BYTES, BLOCK_BYTES, block),
    );
    memory.free(at);
    return stamps;
  }
}

const options = { segmentBlocks: 256, checkpointBytes: MIB };

test("what was flushed survives a power cut at any moment", {
  timeout: ROUNDS * (1 + SUBSETS) * ROUND_MS_MAX,
}, async (scope) => {
  const disk = await LoggedDisk.make(tempFolder(scope), DISK_BYTES);
  const chance = new Chance(SEED);
  const env = new NodeEnv({ memoryBytes: 32 * MIB, log: quiet });
  const host = new Host(env);
  const ledger = new Ledger();
  const snapshots: { readonly name: string; readonly from: number; readonly stamps: readonly number[] }[] = [];
  const directory = `${disk.mount}/set`;
  const store = new DirectoryStore(env, directory);
  await promiseOf(store.make());
  const set = await promiseOf(VersionSet.create(env, store, options));
  const volume = await promiseOf(set.createVolume({ name: "v", size: VOLUME_BLOCKS * BLOCK_BYTES }));
  const made = disk.log.read();

  let stamp = 1;
  const current = (): number[] => ledger.blocks.map((values) => values[values.length - 1]!.stamp);
  for (let round = 0; round < ROUNDS; round++) {
    // Writes of one round are on their way together, and do not overlap.
    const from = disk.log.read();
    const used = new Set<number>();
    const writes: Promise<Status>[] = [];
    for (let i = chance.between(1, 8); i > 0; i--) {
      const count = chance.pick([1, 1, 2, 8, 32]);
      const block = chance.below(VOLUME_BLOCKS - count + 1);
      const range = Array.from({ length: count }, (_, each) => block + each);
      if (range.some((each) => used.has(each))) continue;
      const kind = chance.pick(["write", "write", "write", "write", "trim", "zero"] as const);
      const value = kind === "write" ? stamp++ : 0;
      for (const each of range) {
        used.add(each);
        ledger.blocks[each]!.push({ stamp: value, from });
      }
      writes.push(host.io(volume, kind, block, count, value));
    }
    for (const status of await Promise.all(writes)) assert.equal(status, "ok");
    if (chance.often(0.4)) {
      const at = ledger.state();
      assert.equal(await host.io(volume, "flush", 0, 0), "ok");
      ledger.flushes.push({ from: disk.log.read(), at });
    }
    if (chance.often(0.05)) {
      const name = `v@s${round}`;
      const stamps = current();
      await promiseOf(set.snapshot(name));
      snapshots.push({ name, from: disk.log.read(), stamps });
    }
  }
  await promiseOf(set.close());
  await disk.stop();

  const { entries } = disk.log;
  const flushed = entries.flatMap((entry, index) => (entry.isFlush && index >= made ? [index + 1] : []));
  assert.ok(flushed.length > 20, `${flushed.length} flushes reached the disk`);
  const image = Buffer.alloc(DISK_BYTES);
  let applied = 0;
  let cuts = 0;
  let lost = 0;
  for (const [index, whole] of flushed.entries()) {
    const most = flushed[index + 1] ?? entries.length;
    for (; applied < whole; applied++) disk.log.apply(entries[applied]!, image);
    for (let subset = 0; subset <= SUBSETS; subset++) {
      const cut = Buffer.from(image);
      const keep = subset === 0 ? 0 : chance.pick([0.1, 0.5, 0.9, 1]);
      for (const entry of entries.slice(whole, most)) if (entry.isFua || chance.often(keep)) disk.log.apply(entry, cut);
      await disk.withImage(cut, async (mount) => {
        lost += await look(mount, whole, most);
      });
      cuts++;
    }
  }
  disk.log.close();
  console.log(
    `${cuts} power cuts at ${flushed.length} flushes of ${entries.length} writes; ${lost} unflushed blocks were gone`,
  );
  /** Opens what the cut has left, checks all of it, and tells how many blocks are not what they were last. */
  async function look(mount: string, whole: number, most: number): Promise<number> {
    const after = new NodeEnv({ memoryBytes: 32 * MIB, log: quiet });
    const reader = new Host(after);
    const opened = await promiseOf(
      VersionSet.open(after, new DirectoryStore(after, `${mount}/set`), { background: false }),
    );
    const where = `after ${whole} of ${entries.length} writes (seed ${SEED})`;
    assert.deepEqual(opened.damage, [], `damage is found ${where}`);
    const found = await reader.stamps(opened.versions.get("v")!);
    let older = 0;
    for (let block = 0; block < VOLUME_BLOCKS; block++) {
      const value = found[block]!;
      const may = ledger.allowed(block, whole, most);
      assert.ok(
        value !== GARBLED && may.has(value),
        `block ${block} is ${value}, and may be ${[...may].join(" or ")}, ${where}`,
      );
      if (value !== [...may].pop()) older++;
    }
    for (const snapshot of snapshots) {
      const version = opened.versions.get(snapshot.name);
      if (snapshot.from <= whole) assert.ok(version !== undefined, `${snapshot.name} is gone ${where}`);
      if (version !== undefined)
        assert.deepEqual(await reader.stamps(version), snapshot.stamps, `${snapshot.name} ${where}`);
    }
    await promiseOf(opened.close());
    after.close();
    return older;
  }
});
