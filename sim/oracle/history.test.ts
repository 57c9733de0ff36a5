import assert from "node:assert/strict";
import test from "node:test";
import { History, Ticks } from "./history.ts";

function made() {
  const history = new History(new Ticks());
  const write = (stamp: number, durable = false) => history.written(0, history.write(0, 1, stamp), durable);
  const read = (stamp: number) => {
    const asked = history.ask();
    const may = history.read(0, stamp, asked);
    history.answer(asked);
    return may;
  };
  const flush = () => history.flushed(history.ask());
  return { history, write, read, flush };
}

test("a read returns the last answered write, and nothing else", () => {
  const { write, read } = made();
  assert.ok(read(0));
  write(1);
  write(2);
  assert.ok(!read(1));
  assert.ok(!read(0));
  assert.ok(read(2));
});

test("a write in flight may be seen or not, but not unseen again", () => {
  const { history, write, read } = made();
  write(1);
  const marks = history.write(0, 1, 2);
  assert.ok(read(1));
  assert.ok(read(2));
  assert.ok(!read(1));
  history.written(0, marks, false);
  assert.ok(read(2));
});

test("a write in flight that was seen may be gone with the power, until the host repeats it", () => {
  const { history, write, read } = made();
  write(1);
  const marks = history.write(0, 1, 2);
  assert.ok(read(2));
  history.unansweredLost();
  assert.ok(read(1));
  assert.ok(!read(0));
  history.written(0, marks, false);
  history.unansweredLost();
  assert.ok(!read(1));
  assert.ok(read(2));
});

test("of two writes at once either may win; the first read decides, once both are answered", () => {
  const { history, read } = made();
  const one = history.write(0, 1, 1);
  const two = history.write(0, 1, 2);
  history.written(0, one, false);
  history.written(0, two, false);
  assert.ok(read(1));
  assert.ok(!read(2));
  assert.ok(!read(0));
});

test("a read that was asked before a write was answered may miss it", () => {
  const { history } = made();
  const marks = history.write(0, 1, 1);
  const asked = history.ask();
  history.written(0, marks, false);
  assert.ok(history.read(0, 0, asked));
});

test("a power cut may take what was not flushed, and not what was", () => {
  for (const survivor of [1, 2, 3]) {
    const { history, write, read, flush } = made();
    write(1);
    flush();
    write(2);
    write(3);
    history.powerCut();
    assert.ok(!history.allows(0, 0, history.ask()));
    assert.ok(read(survivor));
    for (const other of [1, 2, 3]) assert.equal(read(other), other === survivor);
    history.powerCut();
    for (const other of [1, 2, 3]) assert.equal(read(other), other === survivor);
  }
});

test("a flush covers only what was answered before it was asked", () => {
  const { history, write, read } = made();
  write(1);
  const asked = history.ask();
  write(2);
  history.flushed(asked);
  history.powerCut();
  assert.ok(history.allows(0, 1, history.ask()));
  assert.ok(read(2));
});

test("a killed process loses nothing that was answered, and what was not may have happened", () => {
  const { history, write, read } = made();
  write(1);
  history.write(0, 1, 2);
  history.killed();
  assert.ok(!history.allows(0, 0, history.ask()));
  assert.ok(read(1));
  assert.ok(!read(2));
});

test("a refused write is never seen, an unknown one may be", () => {
  const { history, write, read } = made();
  write(1);
  history.refused(0, history.write(0, 1, 2));
  assert.ok(!read(2));
  history.unknown(history.write(0, 1, 3));
  assert.ok(read(1) && !read(3));
});

test("a snapshot has one value for ever, the same in its clone, and is of one moment", () => {
  const { history, write } = made();
  write(1);
  const asked = history.ask();
  history.written(0, history.write(0, 1, 2), false);
  history.written(1, history.write(1, 1, 3), false);
  const frozen = history.freeze(asked);
  history.answer(asked);
  assert.ok(frozen.block(0).allows(1) && frozen.block(0).allows(2) && !frozen.block(0).allows(0));
  const clone = new History(new Ticks(), frozen);
  assert.ok(clone.read(0, 1, clone.ask()));
  assert.ok(!frozen.block(0).allows(2));
  // Block 1 was written after block 0: a snapshot without the first has not the second.
  assert.ok(!frozen.block(1).settle(3));
});
