/** Contract of `Env.net`. */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { describe, test } from "node:test";
import { perform, type Task } from "#base/task";
import { MIB } from "#base/units";
import { isNetError, type Peer } from "#env/env";
import { type Abilities, connected, type Ground, good, Porter, pause, Talk } from "./env-ground.ts";

/** A state of /proc/net/tcp. */
const ESTABLISHED = "01";

export function netContract(name: string, abilities: Abilities, make: () => Ground | Promise<Ground>): void {
  const claim = (title: string, body: (ground: Ground) => Task<void>): void => {
    test(title, async () => {
      const ground = await make();
      await ground.run(body(ground));
      assert.equal(ground.env.memory.used, 0, "memory was not given back");
      await ground.close();
    });
  };

  describe(`${name}: net`, () => {
    claim("what is said arrives whole and in order, in both directions", function* (ground) {
      const { listener, near, far } = yield* connected(ground);
      yield* near.say("hello");
      assert.equal(yield* far.hearAll(5), "hello");
      yield* far.say("well met");
      assert.equal(yield* near.hearAll(8), "well met");
      yield* near.close();
      yield* far.close();
      listener.close();
    });

    claim("both ends know each other's address", function* (ground) {
      const { listener, near, far } = yield* connected(ground);
      assert.ok("port" in listener.address && listener.address.port > 0);
      assert.equal(near.line.peer.port, listener.address.port);
      assert.equal(far.line.peer.port, near.line.peer.localPort);
      assert.equal(far.line.peer.host, near.line.peer.localHost);
      assert.equal(far.line.peer.localPort, listener.address.port);
      assert.equal(near.line.peer.tlsName, "");
      yield* near.close();
      yield* far.close();
      listener.close();
    });

    claim("a silent connection that is to be kept alive stays, and its probes are armed", function* (ground) {
      const { listener, near, far } = yield* connected(ground);
      near.line.keepAlive(7_000);
      yield* near.say("hello");
      assert.equal(yield* far.hearAll(5), "hello");
      yield* perform(pause(ground.env, 10));
      // The kernel tells which timer of a connection runs (2: keep-alive), and when it ends (hundredths of a second).
      const timer = name === "sim" ? undefined : tcpTimer(near.line.peer);
      if (timer !== undefined)
        assert.ok(timer.kind === 2 && timer.ms > 1_000 && timer.ms <= 7_100, JSON.stringify(timer));
      yield* near.close();
      near.line.keepAlive(7_000);
      yield* far.close();
      listener.close();
    });

    claim("receive takes no more than asked for, and the rest waits", function* (ground) {
      const { listener, near, far } = yield* connected(ground);
      yield* near.say("0123456789");
      yield* perform(pause(ground.env, 5));
      ground.env.memory.bytes.fill(0x2e, far.buffer, far.buffer + 16);
      const count = yield* perform(far.receive(4));
      assert.equal(count, 4);
      assert.equal(Buffer.from(ground.env.memory.slice(far.buffer, 6)).toString(), "0123..");
      assert.equal(yield* far.hearAll(6), "456789");
      yield* near.close();
      yield* far.close();
      listener.close();
    });

    claim("what comes beyond a receive's length goes where its rest belongs", function* (ground) {
      const { listener, near, far } = yield* connected(ground);
      yield* near.say("0123456789");
      yield* perform(pause(ground.env, 5));
      ground.env.memory.bytes.fill(0x2e, far.buffer, far.buffer + 64);
      let count = 0;
      // A network may give less than there is.
      while (count < 4) count += yield* perform(far.receive(4 - count, far.buffer + count, far.buffer + 32, 3));
      while (count < 7) count += yield* perform(far.receive(7 - count, far.buffer + 32 + count - 4));
      assert.equal(Buffer.from(ground.env.memory.slice(far.buffer, 6)).toString(), "0123..");
      assert.equal(Buffer.from(ground.env.memory.slice(far.buffer + 32, 5)).toString(), "456..");
      assert.equal(yield* far.hearAll(3), "789");
      yield* near.close();
      yield* far.close();
      listener.close();
    });

    claim("a thousand pieces leave as one", function* (ground) {
      const { env } = ground;
      const { listener, near, far } = yield* connected(ground);
      const at = env.memory.allocate(4096);
      for (let i = 0; i < 4096; i++) env.memory.bytes[at + i] = 97 + (i % 26);
      let expected = "";
      near.pieces.clear();
      for (let i = 0; i < 1000; i++) {
        const from = at + ((i * 37) % 4000);
        assert.ok(near.pieces.add(from, 1 + (i % 60)));
        expected += Buffer.from(env.memory.slice(from, 1 + (i % 60))).toString();
      }
      assert.ok(yield* perform(near.sendPieces()));
      assert.equal(yield* far.hearAll(expected.length), expected);
      env.memory.free(at);
      yield* near.close();
      yield* far.close();
      listener.close();
    });

    claim("who does not receive stops the sender, and then nothing is lost", function* (ground) {
      const { env } = ground;
      const { listener, near, far } = yield* connected(ground);
      const at = env.memory.allocate(4 * MIB);
      for (let i = 0; i < 4 * MIB; i += 4) env.memory.view.setUint32(at + i, i);
      near.pieces.clear();
      // More than the buffers of any kernel hold: the same 4 MiB sixteen times over, backwards so that none is joined.
      for (let i = 0; i < 16; i++) {
        near.pieces.add(at + 2 * MIB, 2 * MIB);
        near.pieces.add(at, 2 * MIB);
      }
      let sent: boolean | undefined;
      near.sendPieces()((done) => {
        sent = done;
      });
      yield* perform(pause(env, 30));
      assert.equal(sent, undefined);
      let total = 0;
      let wrong = 0;
      while (total < 64 * MIB) {
        const count = yield* perform(far.receive());
        assert.ok(count > 0);
        for (let i = (4 - (total % 4)) % 4; i + 4 <= count; i += 4096) {
          const place = (total + i + 2 * MIB) % (4 * MIB);
          if ((place & 3) === 0 && env.memory.view.getUint32(far.buffer + i) !== place) wrong++;
        }
        total += count;
      }
      assert.equal(total, 64 * MIB);
      assert.equal(wrong, 0);
      yield* perform(pause(env, 5));
      assert.equal(sent, true);
      env.memory.free(at);
      yield* near.close();
      yield* far.close();
      listener.close();
    });

    claim("who closes is told once, and the other side hears the end", function* (ground) {
      const { listener, near, far } = yield* connected(ground);
      yield* near.say("bye");
      assert.equal(yield* near.close(), "stopped");
      near.line.close();
      assert.equal(yield* far.hearAll(3), "bye");
      assert.equal(yield* perform(far.receive()), 0);
      // The end stays the end.
      assert.equal(yield* perform(far.receive()), 0);
      assert.equal(yield* far.close(), "stopped");
      far.line.close();
      yield* perform(pause(ground.env, 5));
      assert.deepEqual(near.heard, ["sent", "closed stopped"]);
      listener.close();
    });

    claim("closing with a receive in flight tells the end and nothing else", function* (ground) {
      const { listener, near, far } = yield* connected(ground);
      let told: number | undefined;
      far.receive()((count) => {
        told = count;
      });
      yield* perform(pause(ground.env, 2));
      assert.equal(yield* far.close(), "stopped");
      assert.equal(told, -1);
      assert.deepEqual(far.heard, ["closed stopped"]);
      yield* near.close();
      listener.close();
    });

    claim("closing in the turn of the receive and of the send is safe too", function* (ground) {
      const { listener, near, far } = yield* connected(ground);
      far.receive()(() => {});
      far.pieces.clear();
      far.pieces.add(far.buffer, 1000);
      far.sendPieces()(() => {});
      assert.equal(yield* far.close(), "stopped");
      yield* near.close();
      listener.close();
    });

    claim("closing with a send in flight lets go of the memory before the last word", function* (ground) {
      const { env } = ground;
      const { listener, near, far } = yield* connected(ground);
      const at = env.memory.allocate(8 * MIB);
      near.pieces.clear();
      for (let i = 0; i < 16; i++) near.pieces.add(at + ((i * 5) % 8) * MIB, MIB);
      let sent: boolean | undefined;
      near.sendPieces()((done) => {
        sent = done;
      });
      yield* perform(pause(env, 5));
      assert.equal(sent, undefined);
      assert.equal(yield* near.close(), "stopped");
      assert.equal(sent, false);
      env.memory.free(at);
      yield* far.close();
      listener.close();
    });

    claim("a hundred lines at once each have their own conversation", function* (ground) {
      const { env } = ground;
      const porter = new Porter(env);
      const listener = good(yield* perform(env.net.listen(ground.address, porter.accept)));
      const talks: [near: Talk, far: Talk][] = [];
      for (let i = 0; i < 100; i++) {
        const near = new Talk(env, good(yield* perform(env.net.dial(listener.address))), 512);
        talks.push([near, yield* perform(porter.next())]);
      }
      for (const [i, [near]] of talks.entries()) yield* near.say(`this is ${i}`);
      for (const [i, [, far]] of talks.entries())
        assert.equal(yield* far.hearAll(`this is ${i}`.length), `this is ${i}`);
      for (const [near, far] of talks) {
        yield* near.close();
        assert.equal(yield* perform(far.receive()), 0);
        yield* far.close();
      }
      listener.close();
    });

    claim("a listener that is closed refuses, and its lines go on", function* (ground) {
      const { listener, near, far } = yield* connected(ground);
      const address = listener.address;
      listener.close();
      listener.close();
      yield* perform(pause(ground.env, 20));
      const refused = yield* perform(ground.env.net.dial(address));
      assert.ok(isNetError(refused) && refused.fault === "refused", JSON.stringify(refused));
      assert.ok(refused.detail.length > 0);
      yield* near.say("still here");
      assert.equal(yield* far.hearAll(10), "still here");
      yield* near.close();
      yield* far.close();
    });

    claim("an address in use is said to be in use", function* (ground) {
      const { env } = ground;
      const listener = good(yield* perform(env.net.listen(ground.address, () => {})));
      const second = yield* perform(env.net.listen(listener.address, () => {}));
      assert.ok(isNetError(second) && second.fault === "in-use", JSON.stringify(second));
      listener.close();
    });

    claim("a dial to where nobody is ends with a fault within its time", function* (ground) {
      const nobody = { host: "192.0.2.1", port: 9 };
      const result = yield* perform(ground.env.net.dial(nobody, { timeoutMs: 40 }));
      assert.ok(isNetError(result), "TEST-NET-1 is nobody's");
      assert.ok(["timeout", "unreachable", "denied", "refused"].includes(result.fault), JSON.stringify(result));
    });

    if (abilities.unix) {
      claim("Unix sockets do the same, and one that was left behind is replaced", function* (ground) {
        const { env } = ground;
        const path = `${ground.folder}/s`;
        const first = new Porter(env);
        const listener = good(yield* perform(env.net.listen({ path }, first.accept)));
        assert.deepEqual(listener.address, { path });
        const near = new Talk(env, good(yield* perform(env.net.dial({ path }))));
        const far = yield* perform(first.next());
        yield* near.say("hello");
        assert.equal(yield* far.hearAll(5), "hello");
        assert.deepEqual([far.line.peer.host, far.line.peer.port], ["", 0]);
        const second = yield* perform(env.net.listen({ path }, () => {}));
        assert.ok(isNetError(second) && second.fault === "in-use", JSON.stringify(second));
        // Whether somebody still listens can only be found out by knocking.
        const knock = yield* perform(first.next());
        assert.equal(yield* perform(knock.receive()), 0);
        yield* knock.close();
        yield* near.close();
        yield* far.close();
        // A second name keeps the socket on the disk when the listener takes the first one away.
        yield* perform(env.disk.link(path, `${path}.left`));
        listener.close();
        yield* perform(pause(env, 20));
        assert.equal(yield* perform(env.disk.facts(path)), "missing");
        yield* perform(env.disk.rename(`${path}.left`, path));
        const dead = yield* perform(env.net.dial({ path }));
        assert.ok(isNetError(dead) && dead.fault === "refused", JSON.stringify(dead));
        const again = good(yield* perform(env.net.listen({ path }, () => {})));
        again.close();
        yield* perform(pause(env, 20));
      });
    }
  });
}

/** The timer that runs for this machine's connection with `peer`: of IPv4 or IPv6. Others had its port before, and linger. */
function tcpTimer(peer: Peer): { kind: number; ms: number } {
  const ending = (port: number): string => `:${port.toString(16).toUpperCase().padStart(4, "0")}`;
  for (const file of ["/proc/net/tcp", "/proc/net/tcp6"])
    for (const line of readFileSync(file, "utf8").split("\n")) {
      const [, local, remote, state, , timer] = line.trim().split(/\s+/);
      if (state !== ESTABLISHED || timer === undefined) continue;
      if (!local!.endsWith(ending(peer.localPort)) || !remote!.endsWith(ending(peer.port))) continue;
      const [kind, ticks] = timer.split(":");
      return { kind: Number(kind), ms: Number.parseInt(ticks!, 16) * 10 };
    }
  throw new Error(`no connection has port ${peer.localPort}`);
}
