import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Pace } from "./scp-pace.ts";

const WAIT_MS = 35;
const LONGEST_MS = 3_000;

describe("Pace", () => {
  it("leaves a wait alone on a network whose round trips take no time, however often it is cut", () => {
    const pace = new Pace();
    pace.opened(0, 0);
    for (let now = 1_000; now < 20_000; now += 2_000) {
      pace.givenUp(now);
      // The first packet was lost: the second one left a second later, when the network was there again.
      pace.opened(now + 1_001, 1_001);
      pace.answered(0);
      assert.equal(pace.stretch(WAIT_MS, LONGEST_MS, now + 1_001), WAIT_MS);
    }
  });

  it("waits longer where round trips take longer, and never longer than the longest", () => {
    const pace = new Pace();
    pace.opened(0, 600);
    assert.equal(pace.stretch(WAIT_MS, LONGEST_MS, 0), WAIT_MS + 1200);
    for (let i = 0; i < 100; i++) pace.answered(1);
    assert.ok(pace.stretch(WAIT_MS, LONGEST_MS, 0) < WAIT_MS + 3);
    for (let i = 0; i < 100; i++) pace.answered(10_000);
    assert.equal(pace.stretch(WAIT_MS, LONGEST_MS, 0), LONGEST_MS);
  });

  it("doubles the wait when a network takes a socket right after one was given up, and halves it in calm times", () => {
    const pace = new Pace();
    let now = 0;
    for (const factor of [2, 4, 8]) {
      now += 1_000;
      pace.givenUp(now);
      pace.opened(now + 120, 0);
      assert.equal(pace.stretch(WAIT_MS, LONGEST_MS, now + 120), WAIT_MS * factor);
    }
    assert.equal(pace.stretch(WAIT_MS, LONGEST_MS, now + 11_000), WAIT_MS * 4);
    assert.equal(pace.stretch(WAIT_MS, LONGEST_MS, now + 60_000), WAIT_MS);
  });

  it("learns of a network that becomes slower than a lost first packet", () => {
    const pace = new Pace();
    pace.opened(0, 1);
    let now = 0;
    for (const took of [1_200, 1_500]) {
      const end = now + 30_000;
      while (pace.stretch(WAIT_MS, LONGEST_MS, now) < took && now < end) {
        pace.givenUp(now + 100);
        now += 2_000;
        pace.opened(now, took);
      }
      assert.ok(now < end, `${took} ms: still given up`);
    }
  });
});
