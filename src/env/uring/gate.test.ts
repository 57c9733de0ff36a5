import assert from "node:assert/strict";
import { test } from "node:test";
import { Gate } from "./gate.ts";
import { MICROS_FIRST } from "./gathering.ts";
import type { Request, Ring } from "./ring.ts";

/** A gate on a ring that only notes how long it was asked to wait, and receivers that note when they go on. */
function made() {
  const waits: number[] = [];
  let timer: Request | undefined;
  const ring = {
    register() {},
    prepareTimeout(request: Request, micros: number) {
      timer = request;
      waits.push(micros);
    },
  };
  const gate = new Gate(ring as unknown as Ring);
  const gone: string[] = [];
  const receiver = (name: string) => ({ goOn: () => void gone.push(name) });
  return { gate, gone, receiver, waits, timeUp: () => timer!.complete(-62) };
}

test("a receive begins with the end of the round, in the order in which it was asked for, and once", () => {
  const { gate, gone, receiver, waits } = made();
  gate.next(receiver("one"));
  gate.next(receiver("two"));
  assert.deepEqual(gone, []);
  gate.goOn();
  gate.goOn();
  assert.deepEqual(gone, ["one", "two"]);
  assert.deepEqual(waits, []);
});

test("receives that are held back wait for one time, others do not, and all go on together", () => {
  const { gate, gone, receiver, waits, timeUp } = made();
  gate.hold(receiver("held"));
  gate.next(receiver("next"));
  gate.hold(receiver("held, too"));
  assert.ok(gate.isShut);
  assert.deepEqual(waits, [MICROS_FIRST]);
  gate.goOn();
  assert.deepEqual(gone, ["next"]);
  timeUp();
  assert.ok(!gate.isShut);
  // The round that the timer's end belongs to has yet to prepare what it sends.
  assert.deepEqual(gone, ["next"]);
  gate.goOn();
  assert.deepEqual(gone, ["next", "held", "held, too"]);
  gate.hold(receiver("again"));
  assert.equal(waits.length, 2);
});
