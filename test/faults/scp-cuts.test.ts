/** Connections that break at every byte of every message, both ways: the server forgets what was cut, the host goes on. */
import assert from "node:assert/strict";
import { createHmac } from "node:crypto";
import { after, before, describe, it } from "node:test";
import { KIB, MIB } from "#base/units";
import type { ScpHost } from "#initiator/scp-host";
import { ByteBox } from "#wire/scp/byte-box";
import { Op } from "#wire/scp/codes";
import { encodeFrame, Frame } from "#wire/scp/frame";
import { MeddlingNet, withNet } from "../support/meddle.ts";
import { grantOf, hostRecord, ScpWorld, SECRET, until, word, ZN, znreq } from "../support/scp.ts";

/** Every byte of what is short, and around the ends of what is long. */
function* places(...messages: readonly number[]): Generator<number> {
  let from = 0;
  for (const length of messages) {
    for (let at = 0; at < length; at++)
      if (length <= 64 || at < 2 || at >= length - 2 || at % 23 === 0) yield from + at;
    from += length;
  }
}

for (const version of [1, 2])
  describe(`what the server of version ${version} says, cut at every byte`, () => {
    const world = new ScpWorld();
    const net = new MeddlingNet(world.env);
    const settings = { retryMsMin: 1, retryMsMax: 4 };
    before(async () => {
      world.addMemory("db", MIB);
      world.rights([hostRecord("web", { addresses: ["127.0.0.1"], secret: SECRET })], [grantOf("web", "db", 0)]);
      await world.serve();
    });
    after(() => world.close());
    const makeHost = (): ScpHost => {
      const { env } = world;
      Object.assign(world, { env: withNet(env, net) });
      const made = world.host("web", { versions: version }, settings);
      Object.assign(world, { env });
      return made;
    };

    it("on the configuration socket: the host begins again, and has its unit", async () => {
      const one = [512, 512, 512, 512, 8, 512, 28];
      const two = [512, 512, 64, 64, 256, 64, 28];
      for (const place of places(...(version === 1 ? one : two))) {
        let cuts = 0;
        net.onLine = (line) => {
          if ("port" in line.to && line.to.port === world.port && cuts++ === 0) line.cutAfter = place;
        };
        const host = makeHost();
        const unit = await world.unit(host, 0);
        assert.equal((await world.run(unit, "read", 0, 512)).status, "ok", `byte ${place}`);
        host.stop();
      }
      net.onLine = undefined;
    });

    it("on a data socket: what was under way is done on another one, once", async () => {
      const header = version === 1 ? 512 : 64;
      let place = 0;
      let cuts = 0;
      // The welcome, the answer to a write, and the answer to a read with its data.
      net.onLine = (line) => {
        if ("port" in line.to && line.to.port !== world.port && cuts++ === 0) line.cutAfter = place;
      };
      for (place of places(512, header, header, 4 * KIB)) {
        cuts = 0;
        const host = makeHost();
        const unit = await world.unit(host, 0);
        const data = Buffer.alloc(4 * KIB, place & 0xff);
        assert.equal((await world.run(unit, "write", 0, data.length, data)).status, "ok");
        const read = await world.run(unit, "read", 0, data.length);
        assert.equal(read.status, "ok");
        assert(Buffer.from(read.bytes).equals(data), `byte ${place}`);
        host.stop();
      }
      net.onLine = undefined;
      await until(() => world.front.connections().length === 0, "the end of the sessions");
      await until(() => world.env.memory.used === 0, "no memory in use");
    });
  });

describe("what a host of version 2 says, cut at every byte", () => {
  const world = new ScpWorld();
  before(async () => {
    world.addMemory("db", MIB);
    world.rights([hostRecord("web", { secret: SECRET })], [grantOf("web", "db", 0)]);
    await world.serve({ stallMs: 300 });
  });
  after(() => world.close());

  it("leaves nothing on the device, nothing in memory, and the other sockets alone", async () => {
    const host = world.host("web");
    const unit = await world.unit(host, 0);
    const { random, session, key, ports } = host.configured!;
    const hello = (serial: number): Buffer => {
      const bytes = znreq({ [ZN.version]: 2, [ZN.size]: random });
      bytes.writeUInt32BE(session, 64);
      bytes.writeUInt32BE(serial, 68);
      const said = Buffer.alloc(12);
      [session, serial, random].forEach((value, i) => {
        said.writeUInt32BE(value, 4 * i);
      });
      createHmac("sha256", key!).update("scp2 hello").update(said).digest().copy(bytes, 72);
      return bytes;
    };
    const write = new ByteBox(64 + 512);
    const frame = new Frame();
    frame.session = session;
    frame.op = Op.WRITE;
    frame.length = frame.bodyLength = 512;
    frame.lba = 16;
    write.bytes.fill(0xdd, 64);
    frame.bodyCrc = write.crc32c(64, 512);
    encodeFrame(frame, write, 0);
    let serial = 1000;
    const dial = async () => {
      for (;;)
        try {
          return await world.dial(ports[0]!.port);
        } catch {
          // The last one's place is not free yet.
          await new Promise((resolve) => setTimeout(resolve, 5));
        }
    };
    for (const place of places(512, 64, 512)) {
      const peer = await dial();
      peer.send(Buffer.concat([hello(serial++), write.bytes]).subarray(0, place));
      peer.socket.end();
      await peer.closed();
    }
    // And not closed, but silent: in a hello, in a header, in data.
    for (const place of [100, 512 + 10, 512 + 64 + 100]) {
      const peer = await dial();
      peer.send(Buffer.concat([hello(serial++), write.bytes]).subarray(0, place));
      await peer.closed();
    }
    const read = await world.run(unit, "read", 16 * 512, 512);
    assert.equal(read.status, "ok");
    assert(read.bytes.every((byte) => byte === 0));
    // Uncut, it is written.
    const peer = await dial();
    peer.send(Buffer.concat([hello(serial++), write.bytes]));
    assert.equal(word(await peer.read(512), ZN.status), 0);
    assert.equal((await peer.read(64)).readUInt32BE(40), 0);
    const now = await world.run(unit, "read", 16 * 512, 512);
    assert(now.bytes.every((byte) => byte === 0xdd));
    host.stop();
    await until(() => world.front.connections().length === 0, "the end of the sessions");
    await until(() => world.env.memory.used === 0, "no memory in use");
  });

  it("a host that does not take its answers holds up one socket of its own, and nobody else", async () => {
    const [hostage, other] = [world.host("web"), world.host("web")];
    const unit = await world.unit(other, 0);
    await world.unit(hostage, 0);
    // Another session's socket: it asks for more than any buffer holds, and takes nothing.
    const { random, session, key, ports } = hostage.configured!;
    const bytes = znreq({ [ZN.version]: 2, [ZN.size]: random });
    bytes.writeUInt32BE(session, 64);
    bytes.writeUInt32BE(4711, 68);
    const said = Buffer.alloc(12);
    [session, 4711, random].forEach((value, i) => {
      said.writeUInt32BE(value, 4 * i);
    });
    createHmac("sha256", key!).update("scp2 hello").update(said).digest().copy(bytes, 72);
    const peer = await world.dial(ports[0]!.port);
    peer.send(bytes);
    await peer.read(512);
    peer.socket.pause();
    const box = new ByteBox(64);
    const frame = new Frame();
    frame.session = session;
    frame.op = Op.READ;
    frame.length = MIB;
    encodeFrame(frame, box, 0);
    for (let i = 0; i < 64; i++) peer.send(box.bytes);
    for (let i = 0; i < 50; i++) assert.equal((await world.run(unit, "read", 0, 64 * KIB)).status, "ok");
    await until(
      () => !world.front.connections().some(({ requests }) => requests >= 60),
      "the end of the hostage's socket",
    );
    assert.equal((await world.run(unit, "read", 0, 4096)).status, "ok");
    for (const host of [hostage, other]) host.stop();
  });
});
