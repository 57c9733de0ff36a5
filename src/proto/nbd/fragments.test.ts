import assert from "node:assert/strict";
import { test } from "node:test";
import fc from "fast-check";
import { Fragments } from "./fragments.ts";

test("in any order, overlaps are found and bytes are counted, as a map of bytes would", () => {
  const piece = fc.tuple(fc.nat(60), fc.integer({ min: 1, max: 8 }));
  fc.assert(
    fc.property(fc.array(piece, { maxLength: 40 }), (pieces) => {
      const fragments = new Fragments();
      const map = new Set<number>();
      for (const [start, length] of pieces) {
        const bytes = Array.from({ length }, (_, index) => start + index);
        const overlaps = bytes.some((byte) => map.has(byte));
        assert.equal(fragments.add(start, start + length), overlaps ? "overlap" : "added");
        if (overlaps) continue;
        for (const byte of bytes) map.add(byte);
        assert.equal(fragments.bytes, map.size);
      }
    }),
  );
});

test("pieces without end are refused, pieces that join are not", () => {
  const apart = new Fragments();
  let answer = "";
  for (let index = 0; index < 10_000 && answer !== "too-many-pieces"; index++)
    answer = apart.add(index * 2, index * 2 + 1);
  assert.equal(answer, "too-many-pieces");
  const backwards = new Fragments();
  for (let index = 10_000; index > 0; index--) assert.equal(backwards.add(index, index + 1), "added");
  assert.equal(backwards.bytes, 10_000);
});

test("after clear, nothing has come", () => {
  const fragments = new Fragments();
  fragments.add(0, 10);
  fragments.add(20, 30);
  fragments.clear();
  assert.equal(fragments.add(5, 25), "added");
  assert.equal(fragments.bytes, 20);
});
