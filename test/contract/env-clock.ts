/** Contract of `Env.clock`, `Env.turn` and `Env.random`. */
import assert from "node:assert/strict";
import { describe, test } from "node:test";
import { perform, type Task } from "#base/task";
import { type Env, Soon } from "#env/env";
import { type Ground, pause } from "./env-ground.ts";

export function clockContract(name: string, make: () => Ground | Promise<Ground>): void {
  const claim = (title: string, body: (env: Env) => Task<void>): void => {
    test(title, async () => {
      const ground = await make();
      await ground.run(body(ground.env));
      await ground.close();
    });
  };

  describe(`${name}: clock`, () => {
    claim("an alarm rings once, not before its time, and is then silent", function* (env) {
      const begin = env.clock.now();
      let rings = 0;
      const alarm = env.clock.alarm(() => rings++);
      assert.equal(alarm.at, Infinity);
      alarm.at = begin + 20;
      assert.equal(alarm.at, begin + 20);
      yield* perform(pause(env, 10));
      assert.equal(rings, 0);
      yield* perform(pause(env, 40));
      assert.equal(rings, 1);
      assert.equal(alarm.at, Infinity);
      assert.ok(env.clock.now() - begin >= 50);
    });

    claim("an alarm that is moved rings at its last time only, and a silenced one not at all", function* (env) {
      const now = env.clock.now();
      const rung: number[] = [];
      const moved = env.clock.alarm(() => rung.push(env.clock.now() - now));
      const silenced = env.clock.alarm(() => assert.fail("it was silenced"));
      moved.at = now + 5;
      silenced.at = now + 5;
      moved.at = now + 30;
      silenced.at = Infinity;
      yield* perform(pause(env, 60));
      assert.equal(rung.length, 1);
      assert.ok(rung[0]! >= 30, `rang after ${rung[0]} ms`);
      moved.at = env.clock.now() + 1000;
      moved.at = env.clock.now() + 1;
      yield* perform(pause(env, 20));
      assert.equal(rung.length, 2);
      silenced.at = Infinity;
    });

    claim("a past time rings soon, but not from within the assignment", function* (env) {
      yield* perform<void>((resume) => {
        let setting = true;
        const alarm = env.clock.alarm(() => {
          assert.ok(!setting);
          resume();
        });
        alarm.at = env.clock.now() - 5;
        setting = false;
      });
    });

    claim("an alarm may be set again from its own ring", function* (env) {
      yield* perform<void>((resume) => {
        let rings = 0;
        const alarm = env.clock.alarm(() => {
          if (++rings === 3) resume();
          else alarm.at = env.clock.now() + 1;
        });
        alarm.at = env.clock.now() + 1;
      });
    });

    claim("now never goes back", function* (env) {
      let last = env.clock.now();
      for (let i = 0; i < 1000; i++) {
        const now = env.clock.now();
        assert.ok(now >= last);
        last = now;
      }
      assert.ok(Number.isFinite(env.clock.date()));
      yield* perform(pause(env, 1));
      assert.ok(env.clock.now() > last);
    });
  });

  describe(`${name}: turn`, () => {
    claim("what is asked for twice runs once, after the call, in the order of asking", function* (env) {
      const ran: string[] = [];
      const first = new Soon(() => ran.push("first"));
      const second = new Soon(() => ran.push("second"));
      yield* perform<void>((resume) => {
        env.turn.soon(first);
        env.turn.soon(second);
        env.turn.soon(first);
        assert.deepEqual(ran, []);
        env.turn.soon(new Soon(() => resume()));
      });
      assert.deepEqual(ran, ["first", "second"]);
    });

    claim("a soon may ask for others, and for itself, for ever, and time still goes by", function* (env) {
      let runs = 0;
      let stop = false;
      const again: Soon = new Soon(() => {
        runs++;
        if (!stop) env.turn.soon(again);
      });
      env.turn.soon(again);
      // However late a busy machine lets it begin: it goes on, and pauses end.
      do yield* perform(pause(env, 5));
      while (runs < 3);
      stop = true;
      // What is asked for after it runs after it.
      yield* perform<void>((resume) => env.turn.soon(new Soon(() => resume())));
      assert.equal(again.queued, false);
      const before = runs;
      env.turn.soon(again);
      yield* perform<void>((resume) => env.turn.soon(new Soon(() => resume())));
      assert.equal(runs, before + 1);
    });
  });

  describe(`${name}: random`, () => {
    claim("below stays below, reaches everything, and fill fills", function* (env) {
      const seen = new Set<number>();
      for (let i = 0; i < 1000; i++) seen.add(env.random.below(7));
      assert.deepEqual([...seen].sort(), [0, 1, 2, 3, 4, 5, 6]);
      assert.equal(env.random.below(1), 0);
      for (let i = 0; i < 100; i++) assert.ok(env.random.below(2 ** 32) < 2 ** 32);
      const bytes = new Uint8Array(64);
      env.random.fill(bytes);
      assert.ok(new Set(bytes).size > 16);
      yield* perform(pause(env, 0));
    });
  });
}
