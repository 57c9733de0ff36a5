/** What lanes need of the Env: connections that change hands, sleep that everything can end, and threads. */
import assert from "node:assert/strict";
import { once } from "node:events";
import { readdirSync } from "node:fs";
import { describe, test } from "node:test";
import { Worker } from "node:worker_threads";
import { perform, promiseOf, type Task } from "#base/task";
import { connected, good, pause, Talk } from "#test/contract/env-ground";
import { realGround, SILENT } from "#test/contract/env-real";
import { type Disk, DiskOp, type File } from "../env.ts";
import { TRIAL_FIRST } from "./gathering.ts";
import { Remains } from "./remains.ts";
import { UringEnv } from "./uring-env.ts";

const make = () => realGround((options) => new UringEnv(options));

function* sync(disk: Disk, file: File): Task<DiskOp> {
  return yield* perform<DiskOp>((resume) => {
    const op = new DiskOp(resume);
    op.kind = "sync";
    op.file = file;
    disk.submit(op);
  });
}

test("who flushes alone has his syncs made by the lane, without the ring; several at once are the ring's", async () => {
  const ground = make();
  const { env, folder, run } = ground;
  const entersOf = function* (work: () => Task<void>): Task<number> {
    const before = (env as UringEnv).enters;
    yield* work();
    return (env as UringEnv).enters - before;
  };
  await run(
    (function* () {
      const files = [
        yield* perform(env.disk.open(`${folder}/a`, "create")),
        yield* perform(env.disk.open(`${folder}/b`, "create")),
      ];
      const [one, two] = files.map(good);
      const syncs = (count: number) =>
        function* (): Task<void> {
          for (let n = 0; n < count; n++) assert.equal((yield* sync(env.disk, one!)).fault, undefined);
        };
      assert.ok((yield* entersOf(syncs(16))) >= 16, "at first the ring is asked for each");
      // A sync that took long on a busy machine begins the count anew.
      for (let tries = 0; (yield* entersOf(syncs(20))) > 2; tries++) assert.ok(tries < 500, "and then for none");
      const ended: string[] = [];
      yield* perform<void>((resume) => {
        const note = (op: DiskOp) => {
          assert.equal(op.fault, undefined);
          ended.push(op.file.path);
          if (ended.length === 2) resume();
        };
        for (const file of [one!, two!]) {
          const op = new DiskOp(note);
          op.kind = "sync";
          op.file = file;
          env.disk.submit(op);
          assert.deepEqual(ended, [], "nothing is told before the call has returned");
        }
      });
      for (const file of [one!, two!]) yield* perform(env.disk.close(file));
      const op = yield* sync(env.disk, one!);
      assert.equal(op.fault, "io", "a sync that fails says so");
    })(),
  );
  await ground.close();
});

test("memory for a cache is provided when it is asked for, a huge page at a time, and to its end", async () => {
  const env = new UringEnv({ memoryBytes: 4 << 20, cacheBytes: 5 << 20, log: SILENT });
  const { memory } = env;
  assert.equal(memory.cacheReady, 0, "nothing is touched before");
  const seen: number[] = [];
  while (memory.cacheReady < memory.cacheBytes) {
    const before = memory.cacheReady;
    memory.provideCache!();
    await promiseOf(perform(pause(env, 2)));
    if (memory.cacheReady > before) seen.push(memory.cacheReady - before);
  }
  assert.equal(memory.cacheReady, 5 << 20);
  assert.ok(seen.length >= 3 && seen.every((bytes) => bytes <= 2 << 20), seen.join());
  memory.bytes.fill(7, memory.cacheAt, memory.cacheAt + memory.cacheBytes);
  memory.provideCache!();
  env.close();
});

test("a connection goes from one lane to another in the middle of a conversation, and nothing is lost", async () => {
  const ground = make();
  const other = make();
  const talk = function* (): Task<void> {
    const { near, far, listener } = yield* connected(ground);
    yield* near.say("for the first lane, for the second");
    assert.equal(yield* far.hearAll(18), "for the first lane");
    const handed = ground.env.net.handover!.detach(far.line);
    assert.ok(handed);
    assert.deepEqual(handed.peer, far.line.peer);
    const there = new Talk(other.env, other.env.net.handover!.adopt(handed.fd, handed.peer));
    assert.deepEqual(there.line.peer, far.line.peer);
    assert.equal(yield* there.hearAll(16), ", for the second");
    yield* there.say("understood");
    assert.equal(yield* near.hearAll(10), "understood");
    yield* near.close();
    assert.equal(yield* perform(there.receive()), 0);
    yield* there.close();
    // The first owner hears no more of it.
    assert.deepEqual(far.heard, ["received 18"]);
    ground.env.memory.free(far.buffer);
    listener.close();
    yield* perform(pause(ground.env, 2));
  };
  await promiseOf(talk());
  assert.equal(ground.env.memory.used + other.env.memory.used, 0);
  await ground.close();
  await other.close();
});

test("a line with something in flight is not handed over", async () => {
  const ground = make();
  const talk = function* (): Task<void> {
    const { near, far, listener } = yield* connected(ground);
    far.receive()(() => {});
    assert.throws(() => ground.env.net.handover!.detach(far.line), /in use/);
    yield* near.close();
    yield* far.close();
    listener.close();
  };
  await promiseOf(talk());
  await ground.close();
});

test("a receive that is held back comes a little later, belongs to the line meanwhile, and ends with it", async () => {
  const ground = make();
  const talk = function* (): Task<void> {
    const { near, far, listener } = yield* connected(ground);
    const hold = (): void => {
      for (let n = 0; n < TRIAL_FIRST; n++) far.line.gather?.(1);
    };
    /** Calls until what is there already has been received. */
    const calls = function* (): Task<number> {
      yield* near.say("here");
      yield* perform(pause(ground.env, 5));
      const before = (ground.env as UringEnv).enters;
      far.line.gather?.(1);
      const count = yield* perform(far.receive());
      assert.equal(count, 4);
      return (ground.env as UringEnv).enters - before;
    };
    assert.ok((yield* calls()) < 3);
    for (let n = 0; n < TRIAL_FIRST - 2; n++) far.line.gather?.(1);
    // One begins the time, one waits for its end, one receives.
    assert.ok((yield* calls()) >= 3);
    assert.ok((yield* calls()) < 3);
    hold();
    far.receive()(() => {});
    assert.throws(() => ground.env.net.handover!.detach(far.line), /in use/);
    yield* far.close();
    yield* near.close();
    listener.close();
    // The time of the hold passes after its line is gone.
    yield* perform(pause(ground.env, 2));
  };
  await promiseOf(talk());
  assert.equal(ground.env.memory.used, 0);
  await ground.close();
});

test("a lane that sleeps makes no system calls, and whatever comes wakes it", async () => {
  const ground = make();
  const env = ground.env as UringEnv;
  const talk = function* (): Task<void> {
    const { near, far, listener } = yield* connected(ground);
    far.receive()(() => {});
    for (let round = 0; round < 3; round++) {
      // Long enough to fall asleep; then it must stay so.
      yield* perform(pause(env, 30));
      const before = env.enters;
      yield* perform(pause(env, 50));
      // The alarm itself ends the sleep once.
      assert.ok(env.enters - before <= 8, `${env.enters - before} calls while asleep`);
    }
    yield* near.say("wake up");
    yield* perform(pause(env, 20));
    assert.ok(far.heard.includes("received 7"), far.heard.join());
    yield* near.close();
    yield* far.close();
    listener.close();
  };
  await promiseOf(talk());
  await ground.close();
});

describe("in a worker thread", () => {
  const code = (body: string): string => `
    const { parentPort, workerData } = require("node:worker_threads");
    (async () => {
      const { UringEnv } = await import(${JSON.stringify(new URL("./uring-env.js", import.meta.url).href)});
      const { Remains } = await import(${JSON.stringify(new URL("./remains.js", import.meta.url).href)});
      const remains = workerData instanceof SharedArrayBuffer ? new Remains(workerData) : undefined;
      const log = { debug() {}, info() {}, warn() {}, error() {} };
      const env = new UringEnv({ memoryBytes: 4 << 20, log, remains });
      const effect = (run) => new Promise((resolve) => run(resolve));
      ${body}
    })();
  `;

  test("messages, timers and connections reach a lane that sleeps", async () => {
    const worker = new Worker(
      code(`
        const listener = await effect(env.net.listen({ host: "127.0.0.1", port: 0 }, (line) => {
          line.ear = { onReceived(count) { line.close(); }, onSent() {}, onClosed() { parentPort.postMessage("closed"); } };
          line.receive(env.memory.allocate(512), 512);
        }));
        parentPort.on("message", (message) => {
          if (message === "end") { listener.close(); setTimeout(() => { env.close(); parentPort.close(); }, 5); }
          else parentPort.postMessage(message);
        });
        setTimeout(() => parentPort.postMessage("timer"), 40);
        parentPort.postMessage(listener.address);
      `),
      { eval: true },
    );
    const next = async () => (await once(worker, "message"))[0];
    const address = await next();
    assert.equal(await next(), "timer");
    for (let n = 0; n < 3; n++) {
      await new Promise((resolve) => setTimeout(resolve, 15));
      worker.postMessage(n);
      assert.equal(await next(), n);
    }
    const ground = make();
    const dial = function* (): Task<void> {
      const near = new Talk(ground.env, good(yield* perform(ground.env.net.dial(address))));
      yield* near.say("hello");
      assert.equal(yield* perform(near.receive()), 0);
      yield* near.close();
    };
    await Promise.all([next().then((message) => assert.equal(message, "closed")), promiseOf(dial())]);
    await ground.close();
    worker.postMessage("end");
    assert.deepEqual(await once(worker, "exit"), [0]);
  });

  test("an Env with nothing open does not keep its thread alive", async () => {
    const worker = new Worker(code(`parentPort.unref(); await effect(env.disk.facts("/"));`), { eval: true });
    assert.deepEqual(await once(worker, "exit"), [0]);
  });

  test("what a thread leaves behind when it is ended from outside is cleared away by whoever survives it", async () => {
    const open = (): number => readdirSync("/proc/self/fd").length;
    const remains = new Remains();
    // libuv keeps one descriptor in reserve, which it opens with a thread's first stream.
    await make().close();
    const before = open();
    const worker = new Worker(
      code(`
        const accept = (line) => {
          line.ear = { onReceived() {}, onSent() {}, onClosed() {} };
          line.receive(env.memory.allocate(512), 512);
          parentPort.postMessage("accepted");
        };
        parentPort.postMessage((await effect(env.net.listen({ host: "127.0.0.1", port: 0 }, accept))).address);
      `),
      { eval: true, workerData: remains.shared },
    );
    const [address] = await once(worker, "message");
    const accepted = once(worker, "message");
    const ground = make();
    const talk = function* (): Task<void> {
      const near = new Talk(ground.env, good(yield* perform(ground.env.net.dial(address))));
      yield* perform<void>((resume) => void accepted.then(() => resume()));
      yield* perform<void>((resume) => void worker.terminate().then(() => resume()));
      remains.clear();
      // The host sees the end at once, and the port is free.
      assert.ok((yield* perform(near.receive())) <= 0);
      yield* near.close();
      const again = good(yield* perform(ground.env.net.listen(address, () => {})));
      again.close();
      yield* perform(pause(ground.env, 2));
    };
    await promiseOf(talk());
    await ground.close();
    assert.ok(open() <= before, `${open()} descriptors are open, and ${before} were`);
  });
});
