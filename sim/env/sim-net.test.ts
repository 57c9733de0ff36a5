import assert from "node:assert/strict";
import test from "node:test";
import { Pieces } from "#base/memory";
import { perform, type Task } from "#base/task";
import { isNetError, type Line, type Listener } from "#env/env";
import { POWER_CUTS } from "./power-cuts.ts";
import type { SimProcess } from "./sim-process.ts";
import { Resources, World } from "./world.ts";

const resources = new Resources(4 * 1024 * 1024);

/** Keeps everything a line tells. */
class Recorder {
  readonly bytes: number[] = [];
  readonly said: string[] = [];
  readonly #at: number;
  readonly #line: Line;
  readonly #env: SimProcess;
  constructor(env: SimProcess, line: Line) {
    this.#env = env;
    this.#line = line;
    this.#at = env.memory.allocate(4096);
    line.ear = {
      onReceived: (count) => {
        for (let i = 0; i < count; i++) this.bytes.push(env.memory.bytes[this.#at + i]!);
        if (count === 0) this.said.push("ended");
        else line.receive(this.#at, 4096);
      },
      onSent: () => this.said.push("sent"),
      onClosed: (end) => this.said.push(`closed ${end}`),
    };
    line.receive(this.#at, 4096);
  }
  send(length: number, value: number): void {
    const at = this.#env.memory.allocate(length);
    this.#env.memory.bytes.fill(value, at, at + length);
    const pieces = new Pieces();
    pieces.add(at, length);
    this.#line.send(pieces);
  }
}

function* dialled(client: SimProcess, server: SimProcess): Task<{ near: Line; far: Line; listener: Listener }> {
  let far: Line | undefined;
  const listener = yield* perform(
    server.net.listen({ host: "0.0.0.0", port: 10809 }, (line) => {
      far = line;
      line.ear = { onReceived: () => {}, onSent: () => {}, onClosed: () => {} };
    }),
  );
  if (isNetError(listener)) throw new Error(listener.fault);
  const near = yield* perform(client.net.dial({ host: "server", port: 10809 }));
  if (isNetError(near)) throw new Error(near.fault);
  assert.ok(far);
  return { near, far, listener };
}

function pair(seed: number, faults: object = {}) {
  const world = new World(seed, resources);
  const server = world.node("server").start();
  const client = world.node("client").start();
  const { near, far, listener } = world.finish(dialled(client, server));
  Object.assign(world.network.faults, faults);
  return {
    world,
    server,
    client,
    near: new Recorder(client, near),
    far: new Recorder(server, far),
    nearLine: near,
    farLine: far,
    listener,
  };
}

test("bytes arrive in order, cut anywhere, and no faster than they are received", () => {
  for (let seed = 1; seed < 20; seed++) {
    const { world, near, far, nearLine } = pair(seed, { chunkMax: 7, bufferBytes: 100 });
    near.send(3000, 1);
    world.run(1000);
    near.send(10, 2);
    world.run(1000);
    nearLine.close();
    world.run(1000);
    assert.deepEqual(far.bytes, [...Array<number>(3000).fill(1), ...Array<number>(10).fill(2)]);
    assert.deepEqual(near.said, ["sent", "sent", "closed stopped"]);
    assert.deepEqual(far.said, ["ended"]);
    world.end();
  }
});

test("a killed process ends its lines, and a machine without power does not", () => {
  const killed = pair(3);
  killed.server.crash();
  killed.world.run(1000);
  assert.match(killed.near.said.join(), /^(ended|closed reset)$/);
  killed.world.end();

  const dark = pair(3);
  dark.server.node.losePower(POWER_CUTS.allLost);
  dark.world.run(1000);
  assert.deepEqual(dark.near.said, []);
  dark.near.send(10, 1);
  dark.world.run(100_000);
  assert.deepEqual(dark.near.said, ["sent", "closed broken"]);
  dark.world.end();

  const back = pair(3);
  back.server.node.losePower(POWER_CUTS.allLost);
  back.server.node.start();
  back.near.send(10, 1);
  back.world.run(1000);
  assert.deepEqual(back.near.said, ["sent", "closed reset"]);
  back.world.end();
});

test("a silent line that is kept alive ends when the other side is gone, and only then", () => {
  const alive = pair(3);
  alive.nearLine.keepAlive(10_000);
  alive.world.network.cut(alive.world.node("client"), alive.world.node("server"), true);
  alive.world.run(12_000);
  alive.world.network.healAll();
  alive.world.run(100_000);
  assert.deepEqual(alive.near.said, []);
  alive.world.end();

  const dark = pair(3);
  dark.nearLine.keepAlive(10_000);
  dark.server.node.losePower(POWER_CUTS.allLost);
  dark.world.run(25_000);
  assert.deepEqual(dark.near.said, ["closed broken"]);
  dark.world.end();

  const back = pair(3);
  back.nearLine.keepAlive(10_000);
  back.server.node.losePower(POWER_CUTS.allLost);
  back.server.node.start();
  back.world.run(15_000);
  assert.deepEqual(back.near.said, ["closed reset"]);
  back.world.end();
});

test("what a partition holds up arrives when it heals, and a long one ends the line", () => {
  for (const span of [1000, 100_000]) {
    const { world, near, far } = pair(4);
    world.network.cut(world.node("client"), world.node("server"), false);
    near.send(10, 1);
    world.run(span);
    assert.equal(far.bytes.length, 0);
    far.send(5, 2);
    world.run(1000);
    assert.equal(near.bytes.length, span === 1000 ? 5 : 0);
    world.network.healAll();
    world.run(1000);
    assert.equal(far.bytes.length, span === 1000 ? 10 : 0);
    assert.equal(near.said.includes("closed broken"), span !== 1000);
    world.end();
  }
});

test("a dial fails as it should: nobody there, no way, no such name", () => {
  const world = new World(5, resources);
  const client = world.node("client").start();
  world.node("server").start();
  const dial = (host: string) =>
    world.finish(
      (function* () {
        const line = yield* perform(client.net.dial({ host, port: 1 }, { timeoutMs: 5000 }));
        return isNetError(line) ? line.fault : "connected";
      })(),
    );
  assert.equal(dial("server"), "refused");
  assert.equal(dial("nowhere"), "bad-address");
  world.network.cut(world.node("server"), world.node("client"), false);
  assert.match(dial("server"), /^(timeout|unreachable)$/);
  world.end();
});

test("TLS needs both sides and the same key, and tells the name", () => {
  for (const key of [1, 2]) {
    const world = new World(6, resources);
    const server = world.node("server").start();
    const client = world.node("client").start();
    const { near, far } = world.finish(dialled(client, server));
    const names: string[] = [];
    server.net.secure(far, { role: "server", psk: new Map([["alice", Uint8Array.of(1)]]) })((line) =>
      names.push(isNetError(line) ? line.fault : line.peer.tlsName),
    );
    client.net.secure(near, { role: "client", psk: new Map([["alice", Uint8Array.of(key)]]) })((line) =>
      names.push(isNetError(line) ? line.fault : `client:${line.peer.tlsName}`),
    );
    world.run(60_000);
    assert.deepEqual(names.sort(), key === 1 ? ["alice", "client:"] : ["tls-failed", "tls-failed"]);
    world.end();
  }
});
