/** SCP under TLS: with the host's secret as its key and with certificates; and what must not come in, or go on. */
import assert from "node:assert/strict";
import { createHmac } from "node:crypto";
import net from "node:net";
import { after, before, describe, it } from "node:test";
import { MIB } from "#base/units";
import type { Tls } from "#env/env";
import type { ScpHost } from "#initiator/scp-host";
import { type Certificates, makeCertificates } from "../support/certificates.ts";
import { grantOf, hostRecord, ScpWorld, SECRET, SECRET_BYTES, until, word, ZN, znreq } from "../support/scp.ts";
import { fileScope, tempFolder } from "../support/temp.ts";

const START_TLS = 0x100a;
const REFUSED = 0xffff_ffff;
const PSK = { psk: new Map([["web", SECRET_BYTES]]) };
const scope = fileScope();

/** How a host's attempts end, each time. */
const ends = async (host: ScpHost, why: string): Promise<void> => {
  await until(() => host.facts().lastDown.startsWith(why), `the end "${why}"; it was "${host.facts().lastDown}"`);
  assert.equal(host.up, false);
  host.stop();
};

const roundTrip = async (world: ScpWorld, host: ScpHost): Promise<void> => {
  const unit = await world.unit(host, 0);
  const data = Buffer.alloc(300 * 1024, 0x5a);
  assert.equal((await world.run(unit, "write", 4096, data.length, data)).status, "ok");
  const read = await world.run(unit, "read", 4096, data.length);
  assert(Buffer.from(read.bytes).equals(data));
};

/** Somebody in between, who sees and may change what the server says first. Returns the port to come to. */
const between = async (to: number, change: (data: Buffer) => void, seen: Buffer[]): Promise<number> => {
  const server = net.createServer((victim) => {
    const upstream = net.connect({ host: "127.0.0.1", port: to });
    let first = true;
    upstream.on("data", (data) => {
      if (first) change(data);
      first = false;
      seen.push(data);
      victim.write(data);
    });
    victim.on("data", (data) => {
      seen.push(data);
      upstream.write(data);
    });
    for (const socket of [victim, upstream]) socket.on("error", () => {});
    victim.on("close", () => upstream.destroy());
    upstream.on("close", () => victim.destroy());
  });
  scope.after(() => void server.close());
  await new Promise<void>((resolve) => server.listen(0, "127.0.0.1", resolve));
  return (server.address() as net.AddressInfo).port;
};

describe("TLS with the host's secret as its key", () => {
  const world = new ScpWorld();
  before(async () => {
    world.addMemory("secret-ledger", MIB);
    world.rights(
      [
        hostRecord("web", { addresses: ["127.0.0.1"], secret: SECRET }),
        hostRecord("strict", { addresses: ["127.0.0.3"], secret: SECRET, requireTls: true }),
      ],
      [grantOf("web", "secret-ledger", 0), grantOf("strict", "secret-ledger", 0)],
    );
    await world.serve();
  });
  after(() => world.close());

  it("covers the configuration socket and every data socket", async () => {
    const seen: Buffer[] = [];
    const port = await between(world.port, () => {}, seen);
    const host = world.host("web", { addresses: [{ host: "127.0.0.1", port }], tls: PSK }, { socketsMin: 3 });
    await roundTrip(world, host);
    assert.equal(host.facts().tls, true);
    await until(() => host.facts().agents.filter(({ state }) => state === "ready").length === 3, "three sockets");
    assert(world.front.connections().every(({ tls }) => tls));
    const clear = Buffer.concat(seen).toString("latin1");
    assert(!clear.includes("ledger"), "the names of units are not seen");
    host.stop();
  });

  it("leaves a host that does not ask for it without", async () => {
    const host = world.host("web");
    await roundTrip(world, host);
    assert.equal(host.facts().tls, false);
    host.stop();
  });

  it("is refused with a wrong key, an unknown name, and the key of one host for the proof of another", async () => {
    const wrong = new Uint8Array(32).fill(1);
    await ends(world.host("web", { tls: { psk: new Map([["web", wrong]]) } }), "tls-failed");
    await ends(world.host("web", { tls: { psk: new Map([["nobody", SECRET_BYTES]]) } }), "tls-failed");
    await ends(world.host("web", { tls: { psk: new Map([["strict", SECRET_BYTES]]) } }), "refused");
  });

  it("is demanded of a host by its record: neither version goes on without", async () => {
    const host = world.host("strict", { tls: { psk: new Map([["strict", SECRET_BYTES]]) } });
    await roundTrip(world, host);
    host.stop();
    await ends(world.host("strict"), "refused");
    const peer = await world.dial(world.port, "127.0.0.3");
    const greeting = await peer.read(512);
    assert.equal(word(greeting, ZN.version), 2, "version 1 is not even offered");
    peer.send(znreq({ [ZN.op]: 0x1005, [ZN.size]: ~word(greeting, ZN.size), [ZN.version]: 1 }));
    assert.equal(word(await peer.read(512), ZN.status), REFUSED);
    await peer.closed();
  });

  it("cannot be taken off the offer by somebody in between: the host does not go on", async () => {
    // Without the bit; and without the whole of version 2.
    for (const change of [
      (data: Buffer) => void data.writeUInt32BE(data.readUInt32BE(64) & ~8, 64),
      (data: Buffer) => void data.writeUInt32BE(1, 4),
    ]) {
      const seen: Buffer[] = [];
      const port = await between(world.port, change, seen);
      const host = world.host("web", { addresses: [{ host: "127.0.0.1", port }], tls: PSK, requireSecret: true });
      await ends(host, "downgraded");
      assert(seen.every((data) => data.length <= 512));
    }
    // The host does not care, the server finds the bit missing in the proof.
    const port = await between(world.port, (data) => void data.writeUInt32BE(data.readUInt32BE(64) & ~8, 64), []);
    await ends(world.host("web", { addresses: [{ host: "127.0.0.1", port }], requireSecret: true }), "refused");
  });

  it("holds for data sockets: a right hello in the clear is refused, and a silent one closed", async () => {
    const host = world.host("web", { tls: PSK });
    const unit = await world.unit(host, 0);
    const { random, session, key, ports } = host.configured!;
    const hello = znreq({ [ZN.version]: 2, [ZN.size]: random });
    hello.writeUInt32BE(session, 64);
    hello.writeUInt32BE(4711, 68);
    const said = Buffer.alloc(12);
    [session, 4711, random].forEach((value, i) => {
      said.writeUInt32BE(value, 4 * i);
    });
    createHmac("sha256", key!).update("scp2 hello").update(said).digest().copy(hello, 72);
    const clear = await world.dial(ports[0]!.port);
    clear.send(hello);
    assert.equal(word(await clear.read(512), ZN.status), REFUSED);
    await clear.closed();
    const garbage = await world.dial(ports[0]!.port);
    garbage.send(znreq({ [ZN.op]: START_TLS }));
    assert.equal(word(await garbage.read(512), ZN.status), 0);
    garbage.send(Buffer.alloc(600, 0x41));
    await garbage.closed();
    const silent = await world.dial(ports[0]!.port);
    await silent.closed(15_000);
    assert.equal((await world.run(unit, "read", 0, 4096)).status, "ok");
    host.stop();
  });

  it("starts at every byte, or not at all: cut off anywhere, nothing is left behind", async () => {
    await until(() => world.front.connections().length === 0, "the end of the sessions");
    for (const length of [0, 1, 511, 512]) {
      const peer = await world.dial();
      await peer.read(512);
      peer.send(znreq({ [ZN.op]: START_TLS }).subarray(0, length));
      if (length === 512) assert.equal(word(await peer.read(512), ZN.status), 0);
      peer.socket.destroy();
    }
    await until(() => world.front.connections().length === 0, "the end");
    await until(() => world.env.memory.used === 0, "no memory in use");
  });

  it("is demanded of everybody by the server's setting", async () => {
    world.front.abort();
    await new Promise<void>((resolve) => world.front.drain()(resolve));
    await world.serve({ tlsRequired: true });
    await ends(world.host("web", { versions: 1 }), "version-mismatch");
    await ends(world.host("web"), "refused");
    const host = world.host("web", { tls: PSK });
    await roundTrip(world, host);
    host.stop();
  });
});

describe("TLS with certificates", () => {
  const world = new ScpWorld();
  let good: Certificates;
  let other: Certificates;
  let client: Omit<Tls, "role">;
  before(async () => {
    good = await makeCertificates(tempFolder(scope), "web.example");
    other = await makeCertificates(tempFolder(scope), "web.example");
    client = { ca: good.ca };
    world.addMemory("secret-ledger", MIB);
    world.rights(
      [
        hostRecord("web", { secret: SECRET, tlsNames: ["web.example"] }),
        hostRecord("mail", { secret: SECRET, tlsNames: ["mail.example"] }),
      ],
      [grantOf("web", "secret-ledger", 0), grantOf("mail", "secret-ledger", 0)],
    );
    await world.serve({ certificate: { cert: good.cert, key: good.key } });
  });
  after(() => world.close());

  it("goes on where the authority vouches for the server's address", async () => {
    const host = world.host("web", { tls: client });
    await roundTrip(world, host);
    host.stop();
  });

  it("takes the secret as key as well: certificates and keys are both on offer", async () => {
    const host = world.host("web", { tls: PSK });
    await roundTrip(world, host);
    host.stop();
  });

  it("does not go on with a certificate of another authority, for another name, or one that has expired", async () => {
    await ends(world.host("web", { tls: { ca: other.ca } }), "tls-failed");
    await ends(world.host("web", { tls: {} }), "tls-failed");
    await ends(world.host("web", { tls: { ca: good.ca, serverName: "elsewhere.example" } }), "tls-failed");
    const old = await good.expired();
    const late = new ScpWorld();
    late.addMemory("secret-ledger", MIB);
    late.rights([hostRecord("web", { secret: SECRET })], [grantOf("web", "secret-ledger", 0)]);
    await late.serve({ certificate: old });
    const host = late.host("web", { tls: client });
    await ends(host, "tls-failed");
    assert.match(host.facts().lastDown, /expired/);
    await late.close();
  });

  it("asks hosts for theirs where the server has an authority for them, and believes its name", async () => {
    const strict = new ScpWorld();
    strict.addMemory("secret-ledger", MIB);
    strict.rights(world.state.hosts.slice(), world.state.grants.slice());
    await strict.serve({ certificate: { cert: good.cert, key: good.key, ca: good.ca } });
    const host = strict.host("web", { tls: { ...client, ...good.client } });
    await roundTrip(strict, host);
    host.stop();
    // None, one of another authority, and a good one for the proof of another host.
    for (const [name, mine] of [
      ["web", {}],
      ["web", other.client],
      ["mail", good.client],
    ] as const) {
      const refused = strict.host(name, { tls: { ...client, ...mine } });
      await until(() => refused.facts().lastDown !== "", "the refusal");
      await new Promise((resolve) => setTimeout(resolve, 100));
      assert.equal(refused.up, false, JSON.stringify([name, Object.keys(mine)]));
      refused.stop();
    }
    await strict.close();
  });
});
