import assert from "node:assert/strict";
import { test } from "node:test";
import { Memory } from "#base/memory";
import { BLOCK_BYTES, KIB, MIB } from "#base/units";
import { BlockCache } from "./block-cache.ts";
import { Segment } from "./segment.ts";

/** A cache of three sets of eight blocks, and a buffer. */
class Rig {
  readonly memory = new Memory(2 * MIB, 128 * KIB);
  readonly cache = new BlockCache(this.memory);
  readonly at = this.memory.allocate(8 * BLOCK_BYTES);

  /** Offers blocks that hold nothing but `value`. */
  offer(segment: Segment, block: number, value: number, count = 1): void {
    this.memory.bytes.fill(value, this.at, this.at + count * BLOCK_BYTES);
    this.cache.offer(segment, block, count, this.at);
  }
  /** What each byte of a block is; undefined when it is not here. */
  look(segment: Segment, block: number): number | undefined {
    this.memory.bytes.fill(0, this.at, this.at + BLOCK_BYTES);
    if (this.cache.read(segment, block, 1, this.at) === 0) return undefined;
    const bytes = this.memory.slice(this.at, BLOCK_BYTES);
    assert.ok(bytes.every((byte) => byte === bytes[0]));
    return bytes[0];
  }
}

test("what was offered is there, by segment and place", () => {
  const rig = new Rig();
  const [a, b] = [new Segment(1, 1), new Segment(2, 2)];
  assert.equal(rig.look(a, 5), undefined);
  rig.offer(a, 5, 11);
  rig.offer(b, 5, 22);
  assert.equal(rig.look(a, 5), 11);
  assert.equal(rig.look(b, 5), 22);
  assert.equal(rig.look(a, 6), undefined);
  assert.deepEqual(rig.cache.facts, { size: 24 * BLOCK_BYTES, used: 2 * BLOCK_BYTES, hits: 2, misses: 2 });
});

test("a segment that has the slot of one that is gone has none of its blocks", () => {
  const rig = new Rig();
  rig.offer(new Segment(1, 1), 5, 11);
  const next = new Segment(2, 1);
  assert.equal(rig.look(next, 5), undefined);
  rig.offer(next, 6, 66);
  assert.equal(rig.look(next, 5), undefined);
  assert.equal(rig.look(next, 6), 66);
});

test("a run is read up to the first block that is not here", () => {
  const rig = new Rig();
  const segment = new Segment(1, 1);
  rig.offer(segment, 10, 7, 3);
  rig.offer(segment, 14, 7);
  rig.memory.bytes.fill(0, rig.at, rig.at + 8 * BLOCK_BYTES);
  assert.equal(rig.cache.read(segment, 10, 5, rig.at), 3);
  assert.equal(rig.memory.bytes[rig.at + 3 * BLOCK_BYTES - 1], 7);
  assert.equal(rig.memory.bytes[rig.at + 3 * BLOCK_BYTES], 0, "nothing beyond it is touched");
});

test("it never has what it was not given, whatever comes and goes", () => {
  const rig = new Rig();
  let state = 1;
  const below = (limit: number) => {
    state = (Math.imul(state, 1103515245) + 12345) >>> 0;
    return (state >>> 8) % limit;
  };
  const segments = Array.from({ length: 4 }, (_, index) => new Segment(index + 1, index + 1));
  const content = new Map<Segment, Map<number, number>>(segments.map((segment) => [segment, new Map()]));
  let hits = 0;
  for (let step = 0; step < 20_000; step++) {
    const index = below(segments.length);
    // Its slot is another one's now.
    if (below(200) === 0) {
      segments[index] = new Segment(step + 10, index + 1);
      content.set(segments[index], new Map());
    }
    const segment = segments[index]!;
    const block = 1 + below(12);
    const known = content.get(segment)!;
    const found = rig.look(segment, block);
    if (found !== undefined) {
      hits++;
      assert.equal(found, known.get(block));
    } else {
      if (!known.has(block)) known.set(block, 1 + below(255));
      rig.offer(segment, block, known.get(block)!);
    }
  }
  assert.ok(hits > 5000, `${hits} hits`);
  assert.equal(rig.cache.facts.used, 24 * BLOCK_BYTES);
});

test("who reads everything once drives out nothing, and who comes again does", () => {
  const rig = new Rig();
  const [kept, once, again] = [new Segment(1, 1), new Segment(2, 2), new Segment(3, 3)];
  for (let block = 1; block <= 24; block++) rig.offer(kept, block, 1);
  for (let block = 1; block <= 1000; block++) rig.offer(once, block, 2);
  for (let block = 1; block <= 24; block++) assert.equal(rig.look(kept, block), 1);
  for (let times = 0; times < 2; times++) for (let block = 1; block <= 9; block++) rig.offer(again, block, 3);
  for (let block = 1; block <= 9; block++) assert.equal(rig.look(again, block), 3);
});

test("of those in a full set, one that was not used lately goes first", () => {
  const rig = new Rig();
  const segment = new Segment(1, 1);
  // One set: every third block.
  const blocks = Array.from({ length: 8 }, (_, index) => 3 + 3 * index);
  for (const block of blocks) rig.offer(segment, block, block);
  for (const block of blocks) if (block !== 12) assert.equal(rig.look(segment, block), block);
  for (let times = 0; times < 2; times++) rig.offer(segment, 300, 44);
  assert.equal(rig.look(segment, 300), 44);
  assert.equal(rig.look(segment, 12), undefined);
});

test("what is written anew is carried along, and only if it was here", () => {
  const rig = new Rig();
  const [old, next] = [new Segment(1, 1), new Segment(2, 2)];
  rig.offer(old, 5, 11);
  rig.offer(old, 7, 11);
  rig.memory.bytes.fill(22, rig.at, rig.at + 3 * BLOCK_BYTES);
  rig.cache.carry(old, 5, next, 40, 3, rig.at);
  assert.deepEqual(
    [5, 6, 7].map((block) => rig.look(old, block)),
    [undefined, undefined, undefined],
  );
  assert.deepEqual(
    [40, 41, 42].map((block) => rig.look(next, block)),
    [22, undefined, 22],
  );
});

test("what is forgotten makes room", () => {
  const rig = new Rig();
  const [old, next] = [new Segment(1, 1), new Segment(2, 2)];
  for (let block = 1; block <= 24; block++) rig.offer(old, block, 1);
  rig.cache.forget(old, 1, 24);
  for (let block = 1; block <= 24; block++) rig.offer(next, block, 2);
  for (let block = 1; block <= 24; block++) assert.equal(rig.look(next, block), 2, "without being refused first");
});

test("when the numbers of segments are used up, it forgets everything and goes on", () => {
  const rig = new Rig();
  const first = new Segment(1, 1);
  rig.offer(first, 5, 11);
  let last = first;
  // As many as a key can tell apart: the last one has the first one's keys.
  for (let each = 0; each < 2 ** 19; each++) {
    last = new Segment(each + 2, 2);
    rig.cache.offer(last, 6, 1, rig.at);
  }
  assert.equal(rig.look(last, 5), undefined);
  assert.equal(rig.look(first, 5), undefined);
  rig.offer(first, 5, 11);
  rig.offer(last, 5, 22);
  assert.deepEqual([rig.look(first, 5), rig.look(last, 5)], [11, 22]);
});

test("without memory there is no cache, and nothing is asked of it", () => {
  const memory = new Memory(2 * MIB);
  const cache = new BlockCache(memory);
  const segment = new Segment(1, 1);
  cache.offer(segment, 1, 1, memory.allocate(BLOCK_BYTES));
  assert.equal(cache.read(segment, 1, 1, 0), 0);
  assert.deepEqual(cache.facts, { size: 0, used: 0, hits: 0, misses: 1 });
});
