import assert from "node:assert/strict";
import { test } from "node:test";
import { SoleSync } from "./sole-sync.ts";

function after(...syncs: readonly (readonly [took: number, come: boolean])[]): boolean {
  const sole = new SoleSync();
  for (const [took, come] of syncs) sole.note(took, come);
  return sole.mayBlock;
}
const quiet = (count: number) => Array.from({ length: count }, () => [0.3, false] as const);

test("the lane waits for a sync itself once some in a row were quick, and nothing else came meanwhile", () => {
  assert.equal(after(), false);
  assert.equal(after(...quiet(15)), false);
  assert.equal(after(...quiet(16)), true);
});

test("one that was slow, or during which something came, begins the count anew", () => {
  assert.equal(after(...quiet(100), [20, false]), false, "a disk that takes its time must not hold up the lane");
  assert.equal(after(...quiet(100), [0.3, true]), false, "others want the lane");
  assert.equal(after(...quiet(100), [0.3, true], ...quiet(15)), false);
  assert.equal(after(...quiet(100), [0.3, true], ...quiet(16)), true);
});
