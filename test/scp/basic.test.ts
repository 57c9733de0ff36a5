/** SCP from end to end: our server, our host, and a version 1 host written by hand from the text. */
import assert from "node:assert/strict";
import { createSocket } from "node:dgram";
import { after, describe, it } from "node:test";
import { KIB, MIB } from "#base/units";
import type { BlockOp } from "#device/device";
import { discover } from "../../src/library/discover-scp.ts";
import {
  grantOf,
  hostRecord,
  rawConfigure,
  rawData,
  ScpWorld,
  SECRET,
  until,
  word,
  ZN,
  znreq,
} from "../support/scp.ts";

const pattern = (length: number, seed: number): Uint8Array =>
  Uint8Array.from({ length }, (_, i) => (i * 31 + (i >> 9) * 7 + seed) & 255);

describe("version 1, by hand", () => {
  const world = new ScpWorld();
  after(() => world.close());

  it("configures, writes and reads as the text says", async () => {
    world.addMemory("db");
    world.rights([hostRecord("web", { addresses: ["127.0.0.1"] })], [grantOf("web", "db", 2)]);
    await world.serve();
    const host = await rawConfigure(world);
    assert.deepEqual(host.sizes, [0, 0, 64 * MIB]);
    const data = await rawData(world, host);
    const bytes = pattern(128 * KIB, 3);
    data.send(znreq({ [ZN.zlun]: 2, [ZN.op]: 3, [ZN.size]: bytes.length, [ZN.lba]: 8 }));
    data.send(bytes);
    const written = await data.read(512);
    assert.deepEqual([word(written, ZN.status), word(written, ZN.op), word(written, ZN.size)], [0, 3, bytes.length]);
    data.send(znreq({ [ZN.zlun]: 2, [ZN.op]: 2, [ZN.size]: bytes.length, [ZN.lba]: 8 }));
    const answer = await data.read(512);
    assert.deepEqual([word(answer, ZN.status), word(answer, ZN.op), word(answer, ZN.lba)], [0, 2, 8]);
    assert.deepEqual(await data.read(bytes.length), Buffer.from(bytes));
  });
});

describe("discovery", () => {
  it("is answered without a session, with the port and the id, and not by garbage", async () => {
    const world = new ScpWorld();
    await world.serve();
    const found = await discover({ to: [`127.0.0.1:${world.port}`], waitMs: 150 });
    assert.deepEqual(found, [{ id: "07".repeat(16), host: "127.0.0.1", port: world.port, versions: 3 }]);
    const socket = createSocket("udp4");
    let heard = 0;
    socket.on("message", () => heard++);
    for (const bytes of [Buffer.alloc(512, 0xff), Buffer.alloc(511), znreq({ [ZN.op]: 0x1005 }), Buffer.alloc(0)])
      socket.send(bytes, world.port, "127.0.0.1");
    await discover({ to: [`127.0.0.1:${world.port}`], waitMs: 100 });
    assert.equal(heard, 0);
    socket.close();
    await world.close();
  });
});

describe("a host whose process died", () => {
  const world = new ScpWorld();
  after(() => world.close());

  it("is welcomed, as another instance, when nothing of its ended session is at the devices any more", async () => {
    const device = world.addMemory("db");
    const submit = device.submit.bind(device);
    const held: BlockOp[] = [];
    device.submit = (op) => void (op.kind === "write" ? held.push(op) : submit(op));
    world.rights([hostRecord("web", { secret: SECRET })], [grantOf("web", "db", 0)]);
    await world.serve();
    const dying = world.host("web");
    const unit = await world.unit(dying, 0);
    const write = world.run(unit, "write", 0, 4096, pattern(4096, 1));
    await until(() => held.length === 1, "the write's arrival at the device");
    dying.stop();
    await until(() => world.front.connections().length === 0, "the end of the session");

    const again = world.host("web");
    const isAdmitted = (): boolean => world.front.connections().some(({ host }) => host === "web");
    await until(isAdmitted, "the arrival of the next session");
    await new Promise((resolve) => setTimeout(resolve, 200));
    assert.equal(again.configured, undefined);
    for (const op of held) submit(op);
    await world.unit(again, 0);
    await write;
  });
});

describe("a unit without a device", () => {
  const world = new ScpWorld();
  after(() => world.close());

  it("ends the sessions that were told of it when it gets one: what they ask may be meant for another", async () => {
    world.rights([hostRecord("web", { secret: SECRET })], [grantOf("web", "db", 0)]);
    await world.serve();
    const host = world.host("web");
    await world.unit(host, 0);
    assert.equal(host.facts().reconfigurations, 1);
    world.addMemory("db", MIB);
    await until(() => host.unit(0)?.size === MIB, "the device's arrival at the host");
    assert.equal(host.facts().reconfigurations, 2);
  });
});

for (const version of [1, 2])
  describe(`our host over version ${version}`, () => {
    const world = new ScpWorld();
    after(() => world.close());

    it("reads what it wrote, in pieces and in one", async () => {
      world.addMemory("db");
      world.rights([hostRecord("web", { addresses: ["127.0.0.1"], secret: SECRET })], [grantOf("web", "db", 0)]);
      await world.serve();
      const host = world.host("web", { versions: version });
      const unit = await world.unit(host, 0);
      assert.equal(host.configured?.version, version);
      for (const [offset, length] of [
        [0, 512],
        [4096, 4096],
        [1 * MIB, 1 * MIB + 512],
        [0, 3 * MIB],
      ] as const) {
        const bytes = pattern(length, length & 255);
        assert.equal((await world.run(unit, "write", offset, length, bytes)).status, "ok");
        const read = await world.run(unit, "read", offset, length);
        assert.equal(read.status, "ok");
        assert.deepEqual(Buffer.from(read.bytes), Buffer.from(bytes));
      }
      assert.equal((await world.run(unit, "flush", 0, 0)).status, "ok");
      assert.equal((await world.run(unit, "zero", 4096, 256 * KIB)).status, "ok");
      const zeroes = await world.run(unit, "read", 0, 512 * KIB);
      assert(zeroes.bytes.subarray(4096, 4096 + 256 * KIB).every((byte) => byte === 0));
      assert.equal((await world.run(unit, "trim", 0, MIB)).status, "ok");
      assert.equal((await world.run(unit, "read", unit.size, 512)).status, "range");
      assert.equal(world.env.memory.used > 0, true);
    });

    it("carries on over a server that crashed and came back", async () => {
      const host = world.hosts[0]!;
      const unit = host.unit(0)!;
      const bytes = pattern(MIB, 9);
      assert.equal((await world.run(unit, "write", 0, MIB, bytes)).status, "ok");
      const reads: Promise<unknown>[] = [];
      for (let i = 0; i < 16; i++) reads.push(world.run(unit, i % 2 ? "read" : "write", 0, MIB, bytes));
      await world.crash();
      for (let i = 0; i < 16; i++) reads.push(world.run(unit, "read", 0, MIB, bytes));
      await world.serve();
      for (const ran of await Promise.all(reads)) assert.equal((ran as { status: string }).status, "ok");
      const read = await world.run(unit, "read", 0, MIB);
      assert.deepEqual(Buffer.from(read.bytes), Buffer.from(bytes));
    });

    it("waits for a server that goes down in order, and tells why it has no session", async () => {
      const host = world.hosts[0]!;
      const unit = host.unit(0)!;
      await new Promise<void>((resolve) => world.front.drain()(resolve));
      await until(() => !host.up, "the end of the session");
      const write = world.run(unit, "write", 0, 4096, pattern(4096, 5));
      const why = version === 2 ? /^draining/ : /^(closed|lost)/;
      assert.match(host.facts().lastDown, why);
      await until(() => /, then unreachable/.test(host.facts().lastDown), "an attempt to come back");
      await world.serve();
      assert.equal((await write).status, "ok");
      assert.match(host.facts().lastDown, why);
      assert.doesNotMatch(host.facts().lastDown, /then/);
    });

    it("gives back all memory", async () => {
      world.hosts[0]!.stop();
      await until(() => world.front.connections().length === 0, "the end of the session");
      await new Promise((resolve) => setTimeout(resolve, 20));
      assert.equal(world.env.memory.used, 0);
    });
  });
