import assert from "node:assert/strict";
import { test } from "node:test";
import { Lookout } from "./lookout.ts";

/** The share of waits in which it looks, once it has learnt, when waits take so long either way. */
function share(slept: number, looked: number, completions = 2, preemptionsPerMs = 0): number {
  let now = 0;
  const lookout = new Lookout(() => now * preemptionsPerMs);
  let looks = 0;
  for (let n = 0; n < 20_480; n++) {
    const look = lookout.choose(now);
    now += look ? looked : slept;
    if (look && n >= 10_240) looks++;
    lookout.noteWait(look ? looked : slept);
    lookout.noteCompletions(completions);
  }
  return looks / 10_240;
}

test("it looks where looking shortens the wait, and sleeps where it does not", () => {
  assert.ok(share(0.07, 0.035) > 0.9);
  assert.ok(share(0.03, 0.09) < 0.1);
  assert.ok(share(0.03, 0.029) < 0.1, "a little is not worth the processor");
});

test("it sleeps when requests are far apart, and when they come in crowds", () => {
  assert.ok(share(5, 5) < 0.1);
  assert.equal(share(0.07, 0.035, 8), 0);
});

test("it leaves the processor to others who want it", () => {
  assert.equal(share(0.07, 0.035, 2, 0.5), 0);
  assert.ok(share(0.07, 0.035, 2, 0.01) > 0.9, "a preemption now and then is nothing");
});

test("it learns again when the machine changes", () => {
  const lookout = new Lookout(() => 0);
  const run = (slept: number, looked: number): number => {
    let looks = 0;
    for (let n = 0; n < 8192; n++) {
      const look = lookout.choose(n);
      if (look) looks++;
      lookout.noteWait(look ? looked : slept);
      lookout.noteCompletions(2);
    }
    return looks / 8192;
  };
  assert.ok(run(0.07, 0.035) > 0.5);
  run(0.03, 0.1);
  assert.ok(run(0.03, 0.1) < 0.1);
  run(0.07, 0.035);
  assert.ok(run(0.07, 0.035) > 0.9);
});
