/** The oracle sees: each way in which content can be wrong is told apart. */
import assert from "node:assert/strict";
import test from "node:test";
import { BLOCK_BYTES, Oracle } from "./oracle.ts";

const block = (data: Uint8Array, index: number) => data.subarray(index * BLOCK_BYTES, (index + 1) * BLOCK_BYTES);

test("what was acknowledged must be there, and what was in flight may be", () => {
  const oracle = new Oracle(7, 16);
  const first = oracle.beginWrite(2, 2);
  oracle.acknowledge(2, 2);
  assert.equal(oracle.check(2, first), undefined);
  const second = oracle.beginWrite(2, 2);
  assert.equal(oracle.check(2, block(second, 0)), undefined);
  assert.equal(oracle.check(3, block(first, 1)), undefined);
  assert.match(oracle.check(3, block(second, 1))!, /block 3 has generation 2; expected 1/, "settled by the first look");
  assert.match(oracle.check(2, new Uint8Array(BLOCK_BYTES))!, /generation 0; expected 2/);
});

test("an acknowledged write that is not there is seen", () => {
  const oracle = new Oracle(7, 16);
  const old = oracle.beginWrite(0, 1);
  oracle.acknowledge(0, 1);
  oracle.beginWrite(0, 1);
  oracle.acknowledge(0, 1);
  assert.match(oracle.check(0, old)!, /generation 1; expected 2/);
});

test("a torn block, a block of another place and a block of another volume are seen", () => {
  const oracle = new Oracle(7, 16);
  const data = oracle.beginWrite(0, 2);
  oracle.acknowledge(0, 2);
  const torn = block(data, 0).slice();
  torn.fill(0, 512);
  assert.match(oracle.check(0, torn)!, /generation 1 up to byte 512/);
  const tornFront = block(data, 0).slice();
  tornFront.fill(0, 0, 512);
  assert.match(oracle.check(0, tornFront)!, /begins with zeroes, and has data at byte 512/);
  assert.match(oracle.check(0, block(data, 1).slice())!, /stamp of volume 7, block 1/);
  const other = new Oracle(8, 16).beginWrite(0, 1);
  assert.match(oracle.check(0, other)!, /stamp of volume 8, block 0/);
});

test("a refused write must not be there", () => {
  const oracle = new Oracle(7, 16);
  const data = oracle.beginWrite(0, 1);
  oracle.refuse(0, 1);
  assert.match(oracle.check(0, data)!, /generation 1; expected 0/);
});
