/** SCP hosts that lie, stall, cut and replay: every check of the protocol page's tables, from a peer written by hand. */
import assert from "node:assert/strict";
import { createHmac } from "node:crypto";
import net from "node:net";
import { after, before, describe, it } from "node:test";
import { KIB, MIB } from "#base/units";
import type { MemoryDevice } from "#device/memory-device";
import {
  grantOf,
  hostRecord,
  RawPeer,
  rawConfigure,
  rawData,
  ScpWorld,
  SECRET,
  until,
  word,
  ZN,
  znreq,
} from "../support/scp.ts";

const READ = 2;
const WRITE = 3;
const REFUSED = 0xffff_ffff;

describe("the configuration socket", () => {
  const world = new ScpWorld();
  before(async () => {
    world.addMemory("db");
    world.rights(
      [hostRecord("web", { addresses: ["127.0.0.1", "127.0.0.5"] }), hostRecord("lab", { addresses: ["127.0.0.3"] })],
      [grantOf("web", "db", 0)],
    );
    await world.serve();
  });
  after(() => world.close());

  it("is closed at once for an address that no host has", async () => {
    const peer = await world.dial(world.port, "127.0.0.9");
    assert.equal((await peer.read(512)).length, 0);
  });

  it("greets with op 0x1005, the versions, and another number each time", async () => {
    const [a, b] = [await world.dial(), await world.dial()];
    const [one, two] = [await a.read(512), await b.read(512)];
    assert.deepEqual([word(one, ZN.type), word(one, ZN.op), word(one, ZN.version)], [1, 0x1005, 1]);
    assert.notEqual(word(one, ZN.size), word(two, ZN.size));
    a.socket.destroy();
    b.socket.destroy();
  });

  for (const [what, answer] of [
    ["the number itself instead of its complement", (r: number) => znreq({ [ZN.op]: 0x1005, [ZN.size]: r })],
    ["a number that has nothing to do with it", () => znreq({ [ZN.op]: 0x1005, [ZN.size]: 7 })],
    ["a version that was not offered", (r: number) => znreq({ [ZN.op]: 0x1005, [ZN.size]: ~r, [ZN.version]: 4 })],
    ["two versions at once", (r: number) => znreq({ [ZN.op]: 0x1005, [ZN.size]: ~r, [ZN.version]: 3 })],
    ["no version", (r: number) => znreq({ [ZN.op]: 0x1005, [ZN.size]: ~r, [ZN.version]: 0 })],
  ] as const)
    it(`answers ${what} with -1 and closes`, async () => {
      const peer = await world.dial();
      const random = word(await peer.read(512), ZN.size);
      peer.send(answer(random));
      assert.equal(word(await peer.read(512), ZN.status), REFUSED);
      await peer.closed();
    });

  it("tells a host without units that it has none", async () => {
    const lab = await rawConfigure(world, "127.0.0.3");
    assert.deepEqual(lab.sizes, []);
    lab.config.socket.destroy();
  });

  it("has the same cookie until the host's units change, and closes only that host's socket when they do", async () => {
    const cookie = async (host: { config: RawPeer }) => {
      host.config.send(znreq({ [ZN.op]: 0x1006 }));
      return word(await host.config.read(512), ZN.size);
    };
    const web = await rawConfigure(world);
    const lab = await rawConfigure(world, "127.0.0.3");
    const before = await cookie(web);
    assert.equal(await cookie(web), before);
    const data = await rawData(world, web);
    world.addMemory("more", MIB);
    world.rights([...world.state.hosts], [...world.state.grants, grantOf("web", "more", 1)]);
    await web.config.closed();
    await data.closed();
    assert.equal(lab.config.ended, false);
    const again = await rawConfigure(world);
    assert.deepEqual(again.sizes, [64 * MIB, MIB]);
    assert.notEqual(await cookie(again), before);
    again.config.socket.destroy();
    lab.config.socket.destroy();
  });

  it("answers an operation that it does not know with -1, and stays in step", async () => {
    const web = await rawConfigure(world);
    web.config.send(znreq({ [ZN.op]: 0x7777 }));
    assert.equal(word(await web.config.read(512), ZN.status), REFUSED);
    web.config.send(znreq({ [ZN.op]: 0x1006 }));
    assert.equal(word(await web.config.read(512), ZN.status), 0);
    web.config.socket.destroy();
  });

  it("takes the data sockets with it when it closes", async () => {
    const web = await rawConfigure(world);
    const data = await rawData(world, web);
    web.config.socket.destroy();
    await data.closed();
    await assert.rejects(world.dial(web.port), /ECONNREFUSED/);
  });

  it("survives a cut after every byte of the greeting's answer", async () => {
    for (let cut = 0; cut < 512; cut += cut < 64 ? 1 : 37) {
      const peer = await world.dial();
      const random = word(await peer.read(512), ZN.size);
      peer.send(znreq({ [ZN.op]: 0x1005, [ZN.size]: ~random }).subarray(0, cut));
      peer.socket.end();
      await peer.closed();
    }
    const web = await rawConfigure(world);
    web.config.socket.destroy();
    await until(() => world.front.connections().length === 0, "the end of all sessions");
  });
});

describe("source ports and silence", () => {
  it("closes on a source port of 1024 or above unless it is told otherwise", async () => {
    const world = new ScpWorld();
    world.rights([hostRecord("web", { addresses: ["127.0.0.1"] })], []);
    await world.serve({ anySourcePort: false });
    const peer = await world.dial();
    assert.equal((await peer.read(512)).length, 0);
    const socket = net.connect({
      host: "127.0.0.1",
      port: world.port,
      localPort: 600 + Math.floor(Math.random() * 400),
    });
    const privileged = await RawPeer.open(socket);
    assert.equal((await privileged.read(512)).length, 512);
    socket.destroy();
    await world.close();
  });

  it("closes when nothing is answered for five seconds, and not before", { timeout: 20_000 }, async () => {
    const world = new ScpWorld();
    world.rights([hostRecord("web", { addresses: ["127.0.0.1"] })], []);
    await world.serve();
    const peer = await world.dial();
    await peer.read(512);
    const began = Date.now();
    peer.send(Buffer.alloc(511));
    await peer.closed(10_000);
    assert(Date.now() - began >= 4_900);
    await world.close();
  });
});

describe("data sockets of version 1", () => {
  const world = new ScpWorld();
  let db: MemoryDevice;
  before(async () => {
    db = world.addMemory("db", MIB);
    world.addMemory("ro", MIB);
    world.rights(
      [
        hostRecord("web", { addresses: ["127.0.0.1"], dataSocketsMax: 3 }),
        hostRecord("lab", { addresses: ["127.0.0.3"] }),
      ],
      [grantOf("web", "db", 0), grantOf("web", "ro", 1, { access: "read-only" }), grantOf("lab", "db", 0)],
    );
    await world.serve({ stallMs: 200 });
  });
  after(() => world.close());

  const ask = (op: number, more: Record<number, number>): Buffer => znreq({ [ZN.op]: op, [ZN.size]: 512, ...more });

  it("refuses a wrong nonce, one of an older session, and says so with -1", async () => {
    const old = await rawConfigure(world);
    const older = old.random;
    old.config.socket.destroy();
    await old.config.closed();
    const web = await rawConfigure(world);
    for (const nonce of [older, ~web.random, 0]) {
      const data = await world.dial(web.port);
      data.send(znreq({ [ZN.size]: nonce }));
      assert.equal(word(await data.read(512), ZN.status), REFUSED);
      await data.closed();
    }
    web.config.socket.destroy();
  });

  it("closes a data socket from another host, also with the right nonce", async () => {
    const web = await rawConfigure(world);
    const lab = await rawConfigure(world, "127.0.0.3");
    const data = await world.dial(web.port, "127.0.0.3");
    data.send(znreq({ [ZN.size]: web.random }));
    assert.equal((await data.read(512)).length, 0);
    web.config.socket.destroy();
    lab.config.socket.destroy();
  });

  it("refuses the connection when there are as many as allowed, and takes one again when one has gone", async () => {
    const web = await rawConfigure(world);
    assert.equal(web.max, 3);
    const sockets = [await rawData(world, web), await rawData(world, web), await rawData(world, web)];
    await assert.rejects(world.dial(web.port), /ECONNREFUSED/);
    sockets[1]!.socket.destroy();
    let again: RawPeer | undefined;
    await until(() => {
      if (again === undefined)
        rawData(world, web).then(
          (peer) => (again = peer),
          () => {},
        );
      return again !== undefined;
    }, "room for another socket");
    web.config.socket.destroy();
  });

  it("answers what is wrong with a request, and stays in step", async () => {
    const web = await rawConfigure(world);
    const data = await rawData(world, web);
    const wrong: [string, Record<number, number>, number][] = [
      ["type", { [ZN.type]: 2 }, READ],
      ["version", { [ZN.version]: 2 }, READ],
      ["no length", { [ZN.size]: 0 }, READ],
      ["an odd length", { [ZN.size]: 511 }, READ],
      ["more than 128 KiB", { [ZN.size]: 128 * KIB + 512 }, READ],
      ["beyond the end", { [ZN.lba]: MIB / 512 }, READ],
      ["across the end", { [ZN.lba]: MIB / 512 - 1, [ZN.size]: 1024 }, READ],
      ["an address that wraps", { [ZN.lba]: 0xffff_ffff, [ZN.lbaHi]: 0xffff_ffff }, READ],
      ["a unit that is not there", { [ZN.zlun]: 9 }, READ],
      ["an unknown operation", {}, 0x55],
      ["a write to a unit that may only be read", { [ZN.zlun]: 1 }, WRITE],
      ["a write beyond the end", { [ZN.lba]: MIB / 512 }, WRITE],
      ["a write of another version", { [ZN.version]: 9 }, WRITE],
    ];
    const before = db.submitted;
    for (const [what, words, op] of wrong) {
      data.send(ask(op, words));
      if (op === WRITE) data.send(Buffer.alloc(512, 0xee));
      const answer = await data.read(512);
      assert.equal(word(answer, ZN.status), REFUSED, what);
      assert.notEqual(word(answer, ZN.flags), 0, `${what}: the reason`);
      assert.equal(word(answer, ZN.op), op, what);
    }
    assert.equal(db.submitted, before, "nothing of it reached the device but what its guard refused");
    data.send(ask(READ, {}));
    assert.equal(word(await data.read(512), ZN.status), 0);
    assert.equal((await data.read(512)).length, 512);
    web.config.socket.destroy();
  });

  it("answers a write whose length nobody can know, and closes", async () => {
    const web = await rawConfigure(world);
    const data = await rawData(world, web);
    data.send(ask(WRITE, { [ZN.size]: 129 * KIB }));
    assert.equal(word(await data.read(512), ZN.status), REFUSED);
    await data.closed();
    web.config.socket.destroy();
  });

  it("answers a failed read without data", async () => {
    const web = await rawConfigure(world);
    const data = await rawData(world, web);
    db.fault = (op) => (op.kind === "read" ? "medium" : undefined);
    data.send(ask(READ, { [ZN.size]: 4096 }));
    const answer = await data.read(512);
    assert.deepEqual([word(answer, ZN.status), word(answer, ZN.flags), word(answer, ZN.size)], [REFUSED, 1, 0]);
    db.fault = undefined;
    data.send(ask(READ, {}));
    assert.equal(word(await data.read(512), ZN.status), 0);
    web.config.socket.destroy();
  });

  it("writes nothing of a write that was cut, wherever it was cut", async () => {
    const web = await rawConfigure(world);
    const message = Buffer.concat([ask(WRITE, { [ZN.lba]: 16 }), Buffer.alloc(512, 0xdd)]);
    for (let cut = 0; cut < message.length; cut += cut < 64 || cut > 1000 ? 1 : 41) {
      const data = await rawData(world, web).catch(() => undefined);
      if (data === undefined) {
        // The last one's place is not free yet.
        await new Promise((resolve) => setTimeout(resolve, 5));
        cut--;
        continue;
      }
      data.send(message.subarray(0, cut));
      data.socket.end();
      await data.closed();
    }
    const read = await world.run(db, "read", 16 * 512, 512);
    assert(read.bytes.every((byte) => byte === 0));
    web.config.socket.destroy();
  });

  it("closes who stalls in the hello, in a header, in data, and who does not take an answer", async () => {
    const web = await rawConfigure(world);
    const silent = await world.dial(web.port);
    silent.send(Buffer.alloc(100));
    await silent.closed();
    const header = await rawData(world, web);
    header.send(ask(READ, {}).subarray(0, 99));
    await header.closed();
    const body = await rawData(world, web);
    body.send(ask(WRITE, { [ZN.size]: 4096 }));
    body.send(Buffer.alloc(4095));
    await body.closed();
    const idle = await rawData(world, web);
    await new Promise((resolve) => setTimeout(resolve, 500));
    assert.equal(idle.ended, false, "a socket that owes nothing may be silent for ever");
    web.config.socket.destroy();
    await until(() => world.front.connections().length === 0, "the end");
    await new Promise((resolve) => setTimeout(resolve, 20));
    assert.equal(world.env.memory.used, 0);
  });

  it("does not let a new session begin before the old one's commands have ended", async () => {
    const web = await rawConfigure(world);
    const data = await rawData(world, web);
    db.auto = false;
    data.send(ask(WRITE, { [ZN.lba]: 3 }));
    data.send(Buffer.alloc(512, 1));
    await until(
      () => world.front.connections().some(({ kind, requests }) => kind === "data" && requests === 1),
      "the write",
    );
    web.config.socket.destroy();
    const config = await world.dial();
    const random = word(await config.read(512), ZN.size);
    config.send(znreq({ [ZN.op]: 0x1005, [ZN.size]: ~random }));
    await new Promise((resolve) => setTimeout(resolve, 50));
    await assert.rejects(config.read(512, 50), /did not come/);
    db.auto = true;
    db.release();
    assert.equal(word(await config.read(512), ZN.status), 0);
    config.socket.destroy();
  });
});

describe("version 2", () => {
  const world = new ScpWorld();
  before(async () => {
    world.addMemory("db", MIB);
    world.rights(
      [
        hostRecord("web", { addresses: ["127.0.0.1"], secret: SECRET }),
        hostRecord("strict", { addresses: ["127.0.0.3"], secret: SECRET, requireSecret: true }),
      ],
      [grantOf("web", "db", 0), grantOf("strict", "db", 0)],
    );
    await world.serve();
  });
  after(() => world.close());

  it("refuses a wrong secret, and does not tell an unknown host from it", async () => {
    for (const more of [{ secret: new Uint8Array(32).fill(9) }, { hostName: "nobody" }]) {
      const host = world.host("web", { ...more, requireSecret: true });
      await until(() => host.facts().lastDown.startsWith("refused"), "the refusal");
      assert.equal(host.up, false);
      host.stop();
    }
  });

  it("does not offer version 1 to a host that must prove itself", async () => {
    const peer = await world.dial(world.port, "127.0.0.3");
    const greeting = await peer.read(512);
    assert.equal(word(greeting, ZN.version), 2);
    peer.send(znreq({ [ZN.op]: 0x1005, [ZN.size]: ~word(greeting, ZN.size), [ZN.version]: 1 }));
    assert.equal(word(await peer.read(512), ZN.status), REFUSED);
    await peer.closed();
  });

  it("is not taken off the offer by somebody in between: the host that demands it does not go on", async () => {
    const between = net.createServer((victim) => {
      const server = net.connect({ host: "127.0.0.1", port: world.port });
      let first = true;
      server.on("data", (data) => {
        if (first) data.writeUInt32BE(1, 4);
        first = false;
        victim.write(data);
      });
      victim.on("data", (data) => server.write(data));
      for (const socket of [victim, server]) socket.on("error", () => {});
      victim.on("close", () => server.destroy());
      server.on("close", () => victim.destroy());
    });
    await new Promise<void>((resolve) => between.listen(0, "127.0.0.1", resolve));
    const { port } = between.address() as net.AddressInfo;
    const host = world.host("web", { addresses: [{ host: "127.0.0.1", port }], requireSecret: true });
    await until(() => host.facts().lastDown.startsWith("downgraded"), "the end");
    assert.equal(host.up, false);
    host.stop();
    between.close();
  });

  it("is not changed by somebody in between: a bit of the offer, and the server refuses the proof", async () => {
    const between = net.createServer((victim) => {
      const server = net.connect({ host: "127.0.0.1", port: world.port });
      let first = true;
      server.on("data", (data) => {
        // The capabilities: without checksums it would be easier to change data.
        if (first) data.writeUInt32BE(data.readUInt32BE(64) & ~1, 64);
        first = false;
        victim.write(data);
      });
      victim.on("data", (data) => server.write(data));
      for (const socket of [victim, server]) socket.on("error", () => {});
    });
    await new Promise<void>((resolve) => between.listen(0, "127.0.0.1", resolve));
    const { port } = between.address() as net.AddressInfo;
    const host = world.host("web", { addresses: [{ host: "127.0.0.1", port }], requireSecret: true });
    await until(() => host.facts().lastDown.startsWith("refused"), "the end");
    host.stop();
    between.close();
  });

  it("refuses a hello that was recorded and is played again", async () => {
    const hellos: Buffer[] = [];
    let dataPort = 0;
    const host = world.host("web");
    await world.unit(host, 0);
    dataPort = host.configured!.ports[0]!.port;
    const { random, session, key } = host.configured!;
    const hello = znreq({ [ZN.op]: 0x1009, [ZN.version]: 2, [ZN.size]: random });
    hello.writeUInt32BE(session, 64);
    hello.writeUInt32BE(4711, 68);
    const said = Buffer.alloc(12);
    said.writeUInt32BE(session, 0);
    said.writeUInt32BE(4711, 4);
    said.writeUInt32BE(random, 8);
    createHmac("sha256", key!).update("scp2 hello").update(said).digest().copy(hello, 72);
    hellos.push(hello);
    const first = await world.dial(dataPort);
    first.send(hello);
    assert.equal(word(await first.read(512), ZN.status), 0);
    const second = await world.dial(dataPort);
    second.send(hello);
    assert.equal(word(await second.read(512), ZN.status), REFUSED);
    await second.closed();
    const forged = Buffer.from(hello);
    forged.writeUInt32BE(4712, 68);
    const third = await world.dial(dataPort);
    third.send(forged);
    assert.equal(word(await third.read(512), ZN.status), REFUSED);
    host.stop();
  });

  it("closes a socket whose frames are damaged, and only that", async () => {
    const host = world.host("web");
    const unit = await world.unit(host, 0);
    const { random, session, key, ports } = host.configured!;
    const hello = znreq({ [ZN.version]: 2, [ZN.size]: random });
    hello.writeUInt32BE(session, 64);
    hello.writeUInt32BE(99, 68);
    const said = Buffer.alloc(12);
    [session, 99, random].forEach((value, i) => {
      said.writeUInt32BE(value, 4 * i);
    });
    createHmac("sha256", key!).update("scp2 hello").update(said).digest().copy(hello, 72);
    const data = await world.dial(ports[0]!.port);
    data.send(hello);
    await data.read(512);
    data.send(Buffer.alloc(64, 0x41));
    await data.closed();
    assert.equal((await world.run(unit, "read", 0, 4096)).status, "ok");
    host.stop();
  });
});
