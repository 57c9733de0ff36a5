import assert from "node:assert/strict";
import { test } from "node:test";
import { KIB, MIB } from "#base/units";
import { StillEnv } from "#test/support/still-env";
import { FairMemory } from "./fair-memory.ts";
import type { MemoryUser } from "./nbd-home.ts";

/** Somebody with requests of given sizes, who takes what it can get in their order. */
class User implements MemoryUser {
  held = 0;
  waiting = false;
  overShare = false;
  refused = 0;
  readonly buffers: [at: number, bytes: number][] = [];
  readonly wants: number[];
  readonly #memory: FairMemory;
  readonly #log: string[];
  readonly #name: string;

  constructor(name: string, memory: FairMemory, log: string[], wants: number[]) {
    this.#name = name;
    this.#memory = memory;
    this.#log = log;
    this.wants = wants;
  }
  retry(): void {
    this.waiting = false;
    while (this.wants.length > 0) {
      const at = this.#memory.admit(this, this.wants[0]!, false);
      if (at === 0) return;
      this.held += this.wants[0]!;
      this.buffers.push([at, this.wants.shift()!]);
      this.#log.push(this.#name);
    }
  }
  refuseForMemory(): void {
    this.refused++;
    this.wants.shift();
  }
  done(): void {
    const [at, bytes] = this.buffers.shift()!;
    this.held -= bytes;
    this.#memory.discharge(this, at);
  }
}

function world(share: number) {
  const env = new StillEnv(6 * MIB);
  const memory = new FairMemory(env, share);
  const log: string[] = [];
  return { env, memory, log, user: (name: string, ...wants: number[]) => new User(name, memory, log, wants) };
}

test("nobody overtakes one who waits, so that a large request gets its room", () => {
  const { env, memory, log, user } = world(100 * MIB);
  const crowd = user("small", ...Array.from({ length: 5 }, () => MIB));
  crowd.retry();
  const large = user("large", 4 * MIB);
  large.retry();
  const late = user("late", 4 * KIB);
  late.retry();
  assert.deepEqual([memory.waiting, large.waiting, late.waiting], [2, true, true]);
  for (let count = 0; count < 5; count++) {
    crowd.wants.push(MIB);
    crowd.done();
    env.settle();
    crowd.retry();
  }
  assert.deepEqual(log.slice(5, 6), ["large"]);
  large.done();
  env.settle();
  assert.deepEqual(log.slice(5, 7).sort(), ["large", "late"]);
});

test("those who wait take turns of a MiB", () => {
  const { env, log, user } = world(100 * MIB);
  const first = user("first", 5 * MIB);
  first.retry();
  const many = (name: string) => user(name, ...Array.from({ length: 30 }, () => 128 * KIB));
  const users = [many("a"), many("b"), many("c")];
  for (const each of users) each.retry();
  first.done();
  env.settle();
  const counts = ["a", "b", "c"].map((name) => log.filter((each) => each === name).length);
  assert.ok(Math.max(...counts) - Math.min(...counts) <= 8, counts.join());
});

test("one connection holds its share at most, and goes on when it holds less", () => {
  const { env, user } = world(MIB);
  const greedy = user("greedy", ...Array.from({ length: 20 }, () => 128 * KIB));
  greedy.retry();
  assert.equal(greedy.held, MIB);
  assert.deepEqual([greedy.overShare, greedy.waiting], [true, false]);
  const other = user("other", 128 * KIB);
  other.retry();
  assert.equal(other.held, 128 * KIB);
  while (greedy.buffers.length > 4) greedy.done();
  env.settle();
  assert.equal(greedy.held, MIB);
});

test("one request may be larger than the share, but only alone", () => {
  const { user } = world(MIB);
  const whole = user("whole", 3 * MIB);
  whole.retry();
  assert.equal(whole.held, 3 * MIB);
  const second = user("second", KIB, 2 * MIB);
  second.retry();
  assert.equal(second.held, KIB);
  assert.equal(second.overShare, true);
});

test("whoever waits first and gets nothing for ten seconds is told", () => {
  const { env, memory, user } = world(100 * MIB);
  const taken = env.memory.allocate(5 * MIB);
  const waiter = user("waiter", MIB);
  waiter.retry();
  memory.checkTime(env.clock.now() + 9_000);
  assert.equal(waiter.refused, 0);
  memory.checkTime(env.clock.now() + 11_000);
  assert.equal(waiter.refused, 1);
  env.memory.free(taken);
  env.settle();
  assert.equal(memory.waiting, 0);
});

test("one that has left the queue is not served", () => {
  const { env, memory, user } = world(100 * MIB);
  const taken = env.memory.allocate(5 * MIB);
  const gone = user("gone", MIB);
  const next = user("next", MIB);
  gone.retry();
  next.retry();
  memory.leave(gone);
  env.memory.free(taken);
  env.settle();
  assert.deepEqual([gone.held, next.held], [0, MIB]);
});
