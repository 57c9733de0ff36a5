/**
 * The NBD client and the NBD front in one simulated world, over a network that cuts, stalls and resets: what was
 * acknowledged is what is read, requests of all sizes get through, and nothing is left behind on either side.
 */
import assert from "node:assert/strict";
import test from "node:test";
import { KIB, MIB } from "#base/units";
import { BlockOp, type OpKind } from "#device/device";
import { MemoryDevice } from "#device/memory-device";
import { NbdClient } from "#initiator/nbd-client";
import { OpenExportTable } from "#target/exports";
import { NbdFront } from "#target/nbd-front";
import { Chance } from "./env/chance.ts";
import { Resources, World } from "./env/world.ts";

/** Sixty have been run; these meet every kind of trouble. */
const SEEDS = 10;
const WORKERS = 6;
const ROUNDS = 25;
/** Each worker has a region of its own, so that it knows what it must find there. */
const REGION_BYTES = 2 * MIB;
const resources = new Resources(24 * MIB);
const met = new Set<string>();

for (let seed = 1; seed <= SEEDS; seed++)
  test(`seed ${seed}: what was acknowledged over a bad network is what is read`, () => {
    const world = new World(seed, resources);
    try {
      runWorld(world, new Chance(seed * 7919));
    } finally {
      world.end();
    }
  });

test("the worlds have met what they are for", () => {
  for (const why of ["stopped", "lost", "silent"]) assert.ok(met.has(why), `no connection ended because ${why}`);
});

function runWorld(world: World, chance: Chance): void {
  const { faults } = world.network;
  const server = world.node("server").start();
  const host = world.node("host").start();
  const blockSize = chance.pick([512, 4096] as const);
  const device = new MemoryDevice(server.memory, WORKERS * REGION_BYTES, { blockSize });
  const front = new NbdFront(server, new OpenExportTable().add("db", device), { stallMs: 5000, idleMs: 20_000 });
  const address = { host: "server", port: 10809 };
  world.finish(front.listen(address));
  const target = { address, exportName: "db", tls: undefined };
  const options = { connections: 1 + chance.below(4), unflushed: "replay", giveUpMs: 3_600_000 } as const;
  const client = world.finish(NbdClient.open(host, target, options));

  // Each world has some kinds of trouble and not others: rare combinations happen as well.
  faults.reset = chance.often(0.5) ? 0.002 : 0;
  faults.vanish = chance.often(0.3) ? 0.001 : 0;
  faults.clog = chance.often(0.5) ? 0.02 : 0;
  faults.refuse = chance.often(0.3) ? 0.3 : 0;
  faults.chunkMax = chance.pick([3000, 20_000, 65_536]);

  let finished = 0;
  for (let index = 0; index < WORKERS; index++) {
    const worker = new Worker(
      client,
      host.memory,
      index * REGION_BYTES,
      blockSize,
      new Chance(world.seed * 31 + index),
    );
    worker.run(ROUNDS, () => finished++);
  }
  world.runUntil(() => finished === WORKERS || world.now > 600_000);
  faults.stop();
  assert.ok(world.runUntil(() => finished === WORKERS || world.now > 1_200_000));
  assert.equal(finished, WORKERS, "some operation is never answered");

  let closed = false;
  client.close()(() => {
    closed = true;
  });
  assert.ok(world.runUntil(() => closed));
  // Connections of which the server was never told that they are gone end by its limits.
  world.run(120_000);
  for (const [why, count] of Object.entries(front.figures.ends)) if (count > 0) met.add(why);
  assert.equal(front.connections.size, 0);
  assert.equal(front.figures.handshaking, 0);
  assert.equal(server.memory.used, 0, "memory of the server is held");
}

/** Does one operation after another in its region, and knows what must be read. */
class Worker {
  readonly #client: NbdClient;
  readonly #memory: { readonly bytes: Uint8Array; allocate(length: number): number };
  readonly #offset: number;
  readonly #blockSize: number;
  readonly #chance: Chance;
  readonly #expected = new Uint8Array(REGION_BYTES);
  readonly #at: number;
  readonly #op = new BlockOp(() => this.#done());
  #rounds = 0;
  #finished: () => void = () => {};

  constructor(
    client: NbdClient,
    memory: { readonly bytes: Uint8Array; allocate(length: number): number },
    offset: number,
    blockSize: number,
    chance: Chance,
  ) {
    this.#client = client;
    this.#memory = memory;
    this.#offset = offset;
    this.#blockSize = blockSize;
    this.#chance = chance;
    this.#at = memory.allocate(MIB);
  }

  run(rounds: number, finished: () => void): void {
    this.#rounds = rounds;
    this.#finished = finished;
    this.#next();
  }

  #next(): void {
    if (this.#rounds-- === 0) {
      this.#finished();
      return;
    }
    const chance = this.#chance;
    const op = this.#op;
    op.kind = chance.pick<OpKind>(["write", "write", "write", "read", "read", "read", "zero", "trim", "flush"]);
    const most = chance.pick([8 * KIB, 64 * KIB, MIB]) / this.#blockSize;
    op.length = this.#blockSize * (1 + chance.below(most));
    op.offset = this.#offset + this.#blockSize * chance.below((REGION_BYTES - op.length) / this.#blockSize);
    op.at = this.#at;
    op.fua = chance.often(0.1);
    if (op.kind === "flush") op.offset = op.length = 0;
    if (op.kind === "write")
      for (let index = 0; index < op.length; index += 512)
        this.#memory.bytes.fill(chance.below(256), op.at + index, op.at + index + 512);
    this.#client.submit(op);
  }

  #done(): void {
    const op = this.#op;
    assert.equal(op.status, "ok", `${op.kind} ${op.offset}+${op.length}`);
    const from = op.offset - this.#offset;
    const { bytes } = this.#memory;
    if (op.kind === "write") this.#expected.set(bytes.subarray(op.at, op.at + op.length), from);
    else if (op.kind === "zero" || op.kind === "trim") this.#expected.fill(0, from, from + op.length);
    else if (op.kind === "read") {
      const right = Buffer.compare(
        bytes.subarray(op.at, op.at + op.length),
        this.#expected.subarray(from, from + op.length),
      );
      assert.equal(right, 0, `a read of ${op.offset}+${op.length} returns something else than was written`);
    }
    this.#next();
  }
}
