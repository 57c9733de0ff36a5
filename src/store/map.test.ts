import assert from "node:assert/strict";
import { test } from "node:test";
import { LEAF_BLOCKS, LeafArena, VersionMap } from "./map.ts";

/** The dumb twin: a location per block. */
class Twin {
  readonly at: Uint32Array;
  constructor(blocks: number) {
    this.at = new Uint32Array(blocks);
  }
  set(block: number, length: number, location: number): void {
    for (let i = 0; i < length; i++) this.at[block + i] = location === 0 ? 0 : location + i;
  }
}

function random(seed: number): (limit: number) => number {
  let state = seed;
  return (limit) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0;
    return Math.floor((state / 0x1_0000_0000) * limit);
  };
}

function assertSame(map: VersionMap, twin: Twin): void {
  let mapped = 0;
  for (let block = 0; block < twin.at.length; ) {
    map.find(block, twin.at.length - block);
    const { location, length } = map;
    assert.ok(length > 0);
    for (let i = 0; i < length; i++) assert.equal(location === 0 ? 0 : location + i, twin.at[block + i]);
    if (location !== 0) mapped += length;
    block += length;
  }
  assert.equal(map.mapped, mapped);
}

for (const [name, lengthMax, blocks, changes] of [
  ["scattered single blocks", 1, 3 * LEAF_BLOCKS, 20000],
  ["short runs", 70, 3 * LEAF_BLOCKS, 6000],
  ["long runs", 9000, 5 * LEAF_BLOCKS, 3000],
] as const)
  test(`a map of ${name} equals a plain table, and tells exactly what it dropped`, () => {
    const below = random(blocks + lengthMax);
    const map = new VersionMap(new LeafArena(), blocks);
    const twin = new Twin(blocks);
    let next = 8192;
    for (let change = 0; change < changes; change++) {
      const block = below(blocks);
      const length = Math.min(1 + below(lengthMax), blocks - block);
      const location = below(10) === 0 ? 0 : next;
      if (location !== 0) next += length + below(2);
      const old = twin.at.slice(block, block + length);
      map.replace(block, length, location, (from, count, at) => {
        for (let i = 0; i < count; i++) {
          assert.equal(old[from - block + i], at + i);
          old[from - block + i] = 0;
        }
      });
      assert.ok(old.every((at) => at === 0));
      twin.set(block, length, location);
      if (change % 500 === 0) assertSame(map, twin);
    }
    assertSame(map, twin);
  });

test("a shared map stays as it was, and nothing is left when all are gone", () => {
  const below = random(7);
  const arena = new LeafArena();
  const blocks = 4 * LEAF_BLOCKS;
  const head = new VersionMap(arena, blocks);
  const twin = new Twin(blocks);
  const frozen: { map: VersionMap; at: Uint32Array }[] = [];
  let next = 8192;
  for (let change = 0; change < 5000; change++) {
    const block = below(blocks);
    const length = Math.min(1 + below(40), blocks - block);
    head.replace(block, length, next, () => {});
    twin.set(block, length, next);
    next += length;
    if (change % 700 === 0) frozen.push({ map: head.share(), at: twin.at.slice() });
  }
  for (const { map, at } of frozen) {
    const copy = new Twin(0);
    (copy as { at: Uint32Array }).at = at;
    assertSame(map, copy);
  }
  for (const { map } of frozen) map.release();
  head.release();
  assert.equal(arena.leafCount, 0);
});

test("what is written in order takes next to nothing, and scattered blocks at most eight bytes each", () => {
  const sequential = new VersionMap(new LeafArena(), 64 * LEAF_BLOCKS);
  for (let block = 0; block < 64 * LEAF_BLOCKS; block++) sequential.replace(block, 1, 8192 + block, () => {});
  assert.ok(sequential.arena.bytes < 64 * 100, `${sequential.arena.bytes} bytes for 1 GiB in order`);

  const below = random(3);
  const blocks = 1024 * LEAF_BLOCKS;
  const scattered = new VersionMap(new LeafArena(), blocks);
  for (let i = 0; i < 300_000; i++) scattered.replace(below(blocks), 1, 8192 + i * 2, () => {});
  const each = (scattered.arena.bytes + scattered.directory.leaves.byteLength) / scattered.mapped;
  assert.ok(each <= 8, `${each} bytes per block`);
});
