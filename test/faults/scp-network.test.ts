/** What the network and the server can do to an SCP host: the application sees a pause, never an error or other data. */
import assert from "node:assert/strict";
import { after, describe, it } from "node:test";
import { KIB, MIB } from "#base/units";
import type { BlockDevice } from "#device/device";
import type { ScpHost } from "#initiator/scp-host";
import { MeddlingNet, withNet } from "../support/meddle.ts";
import { grantOf, hostRecord, ScpWorld, SECRET, until } from "../support/scp.ts";

const REGION = 64 * KIB;

/** Writes regions over and over, one operation per region at a time, and compares every read with what it must be. */
class Load {
  readonly #world: ScpWorld;
  readonly #unit: BlockDevice;
  readonly #regions: number;
  done = 0;
  stopped = false;
  slowestMs = 0;
  readonly #running: Promise<void>[];

  constructor(world: ScpWorld, unit: BlockDevice, regions: number) {
    this.#world = world;
    this.#unit = unit;
    this.#regions = regions;
    this.#running = Array.from({ length: regions }, (_, region) => this.#run(region));
  }

  async #run(region: number): Promise<void> {
    const length = [512, 4096, REGION][region % 3]!;
    for (let round = 1; !this.stopped; round++) {
      const data = Buffer.alloc(length);
      for (let at = 0; at < length; at += 8) {
        data.writeUInt32LE(round, at);
        data.writeUInt32LE(region * 1000 + at, at + 4);
      }
      const began = performance.now();
      const write = await this.#world.run(this.#unit, "write", region * REGION, length, data);
      assert.equal(write.status, "ok");
      const read = await this.#world.run(this.#unit, "read", region * REGION, length);
      assert.equal(read.status, "ok");
      assert(Buffer.from(read.bytes).equals(data), `region ${region}, round ${round}: other data was read`);
      this.slowestMs = Math.max(this.slowestMs, (performance.now() - began) / 2);
      this.done += 2;
    }
  }

  async stop(): Promise<void> {
    this.stopped = true;
    await Promise.all(this.#running);
  }
  get regions(): number {
    return this.#regions;
  }
}

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

for (const version of [1, 2])
  describe(`a host of version ${version}`, () => {
    const world = new ScpWorld();
    const net = new MeddlingNet(world.env);
    let host: ScpHost;
    after(() => world.close());

    /** Hosts that go through the meddling net. */
    const makeHost = (settings = {}): ScpHost => {
      const { env } = world;
      Object.assign(world, { env: withNet(env, net) });
      const made = world.host("web", { versions: version }, settings);
      Object.assign(world, { env });
      return made;
    };
    const dataLines = () => net.open((port) => port !== world.port);

    it("loses sockets at random, and no data", async () => {
      world.addMemory("db", 8 * MIB);
      world.rights([hostRecord("web", { addresses: ["127.0.0.1"], secret: SECRET })], [grantOf("web", "db", 0)]);
      await world.serve();
      host = makeHost({ socketsMin: 4 });
      const unit = await world.unit(host, 0);
      const load = new Load(world, unit, 24);
      for (let cut = 0; cut < 40; cut++) {
        await pause(10);
        const lines = cut % 8 === 7 ? net.open() : dataLines();
        lines[cut % Math.max(1, lines.length)]?.cut();
      }
      const before = load.done;
      await until(() => load.done > before + 48, "the load to go on");
      await load.stop();
      const facts = host.facts();
      assert(facts.fences > 0 || facts.reconfigurations > 1, "writes with an unknown fate were fenced");
      // An agent is the same from one socket to the next, and from one session to the next.
      assert(facts.agents.length <= host.settings.socketsMax, `${facts.agents.length} agents`);
      assert(facts.agents.some(({ retries, lastEnd, done }) => retries > 0 && lastEnd !== "" && done > 0));
    });

    it("is not stopped by one socket that stalls", async () => {
      const unit = host.unit(0)!;
      await until(() => dataLines().length >= 4, "four sockets");
      const load = new Load(world, unit, 12);
      await pause(50);
      const stalled = dataLines()[0]!;
      stalled.stall();
      const before = load.done;
      await until(() => load.done > before + 100, "the others to go on");
      await until(() => stalled.closed, "the end of the stalled socket");
      await until(() => host.facts().agents.some(({ lastEnd }) => lastEnd === "silent"), "why it was closed");
      await load.stop();
    });

    it("believes no answer that does not fit, and gets the right one from another socket", async () => {
      const unit = host.unit(0)!;
      const data = Buffer.alloc(REGION, 0x77);
      assert.equal((await world.run(unit, "write", 4 * MIB, REGION, data)).status, "ok");
      // Type, version or session, unit, op, status or its sign, length; a byte of each.
      for (const offset of version === 1 ? [3, 7, 15, 31, 50] : [3, 7, 11, 15, 21, 31, 39, 50]) {
        await until(() => dataLines().length >= 2, "sockets");
        let corrupted = 0;
        for (const line of dataLines().slice(0, 1))
          line.corrupt = (bytes) => {
            if (corrupted++ === 0 && bytes.length > offset) bytes[offset]! ^= 0x10;
          };
        for (let i = 0; i < 8; i++) {
          const read = await world.run(unit, "read", 4 * MIB, 4096);
          assert.equal(read.status, "ok", `byte ${offset}`);
          assert(
            read.bytes.every((byte) => byte === 0x77),
            `byte ${offset}`,
          );
        }
        for (const line of dataLines()) line.corrupt = undefined;
      }
    });

    if (version === 2)
      it("finds data that was changed on the way, both ways", async () => {
        const unit = host.unit(0)!;
        for (let i = 0; i < 4; i++) {
          for (const line of dataLines())
            line.corrupt = (bytes) => {
              if (bytes.length >= 1000) bytes[999]! ^= 1;
            };
          const reading = world.run(unit, "read", 4 * MIB, 4096);
          await pause(20);
          for (const line of dataLines()) line.corrupt = undefined;
          const read = await reading;
          assert.equal(read.status, "ok");
          assert(read.bytes.every((byte) => byte === 0x77));
        }
      });

    it("does not repeat a write while the first one may still happen", async () => {
      const unit = host.unit(0)!;
      const device = world.addMemory("slow", MIB);
      world.rights([...world.state.hosts], [grantOf("web", "db", 0), grantOf("web", "slow", 1)]);
      await until(() => host.unit(1) !== undefined, "the second unit");
      const slow = host.unit(1)!;
      assert.equal((await world.run(slow, "write", 0, 4096, Buffer.alloc(4096, 1))).status, "ok");
      const before = device.submitted;
      device.auto = false;
      const writing = world.run(slow, "write", 0, 4096, Buffer.alloc(4096, 2));
      await until(() => device.submitted === before + 1, "the first attempt");
      for (const line of dataLines()) line.cut();
      await pause(150);
      assert.equal(device.submitted, before + 1, "nothing is repeated while the first attempt is at the device");
      device.auto = true;
      device.release();
      assert.equal((await writing).status, "ok");
      assert.equal(device.submitted, before + 2);
      assert.equal((await world.run(unit, "read", 0, 512)).status, "ok");
    });

    it("carries on over a server that is killed and restarted again and again", async () => {
      const unit = host.unit(0)!;
      const load = new Load(world, unit, 16);
      for (let round = 0; round < 5; round++) {
        await pause(40);
        await world.crash();
        await pause(20);
        await world.serve();
        const before = load.done;
        await until(() => load.done > before + 32, "the load to go on");
      }
      await load.stop();
    });

    it("answers gone when its unit is deleted under it, and the other unit goes on", async () => {
      const unit = host.unit(0)!;
      const slow = host.unit(1)!;
      const load = new Load(world, unit, 8);
      let status = "ok";
      const reading = (async () => {
        while (status === "ok") status = (await world.run(slow, "read", 0, 4096)).status;
      })();
      await pause(30);
      world.rights([...world.state.hosts], [grantOf("web", "db", 0)]);
      await reading;
      assert(status === "gone" || status === "denied", status);
      const before = load.done;
      await until(() => load.done > before + 16, "the load to go on");
      await load.stop();
    });

    it("gives up when told to, and not before", async () => {
      const impatient = makeHost({ giveUpMs: 300 });
      await until(() => impatient.unit(0) !== undefined, "the unit");
      const unit = impatient.unit(0)!;
      await world.crash();
      const began = performance.now();
      assert.equal((await world.run(unit, "write", 0, 4096, Buffer.alloc(4096))).status, "away");
      assert(performance.now() - began >= 250);
      await world.serve();
      await until(() => impatient.up, "the session");
      assert.equal((await world.run(unit, "write", 0, 4096, Buffer.alloc(4096))).status, "ok");
      impatient.stop();
    });

    it("gives back all memory", async () => {
      for (const one of world.hosts) one.stop();
      await until(() => world.front.connections().length === 0, "the end of the sessions");
      await until(() => world.env.memory.used === 0, "no memory in use", 2_000);
    });
  });

describe("two hosts of one unit", () => {
  it("see each other's writes, and one of them may only read", async () => {
    const world = new ScpWorld();
    world.addMemory("shared", MIB);
    world.rights(
      [hostRecord("a", { secret: SECRET }), hostRecord("b", { secret: SECRET })],
      [grantOf("a", "shared", 0), grantOf("b", "shared", 5, { access: "read-only" })],
    );
    await world.serve();
    const [a, b] = [world.host("a"), world.host("b")];
    const [writer, reader] = [await world.unit(a, 0), await world.unit(b, 5)];
    assert.deepEqual([writer.readOnly, reader.readOnly], [false, true]);
    assert.equal(writer.uuid, reader.uuid);
    assert.equal((await world.run(writer, "write", 0, 4096, Buffer.alloc(4096, 8))).status, "ok");
    assert.equal((await world.run(reader, "read", 0, 4096)).bytes[77], 8);
    assert.equal((await world.run(reader, "write", 0, 512, Buffer.alloc(512))).status, "denied");
    const both = Buffer.concat([Buffer.alloc(512, 8), Buffer.alloc(512, 9)]);
    assert.equal((await world.run(writer, "compare-write", 0, 512, both)).status, "ok");
    const miss = await world.run(writer, "compare-write", 0, 512, both);
    assert.deepEqual([miss.status, miss.result], ["miscompare", 0]);
    await world.close();
  });
});

describe("interoperation", () => {
  it("goes down to version 1 where the other side has nothing else, if it may", async () => {
    for (const [server, host] of [
      [1, 3],
      [3, 1],
    ] as const) {
      const world = new ScpWorld();
      world.addMemory("db", MIB);
      world.rights([hostRecord("web", { addresses: ["127.0.0.1"], secret: SECRET })], [grantOf("web", "db", 0)]);
      await world.serve({ versions: server });
      const one = world.host("web", { versions: host });
      const unit = await world.unit(one, 0);
      assert.equal(one.configured?.version, 1);
      assert.equal((await world.run(unit, "write", 512, 130 * KIB, Buffer.alloc(130 * KIB, 5))).status, "ok");
      const read = await world.run(unit, "read", 512, 130 * KIB);
      assert(read.bytes.every((byte) => byte === 5));
      await world.close();
    }
  });
});
