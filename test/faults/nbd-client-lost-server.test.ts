/**
 * The server goes away, and comes back with or without what it had acknowledged. What the client owes: requests in
 * flight are answered, a flush never lies, order is kept, and nobody waits for ever.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { together } from "#test/support/client";
import { ALL_FLAGS, FLAGS } from "#test/support/nbd-peer";
import { until } from "#test/support/program";

const KIB = 1024;
const MIB = 1024 * KIB;
const block = (value: number, length = 4 * KIB): Uint8Array => new Uint8Array(length).fill(value);
const holds = (bytes: Uint8Array, value: number): boolean => bytes.every((byte) => byte === value);

test("requests in flight when the connection is cut are done again on a new one", async (context) => {
  const { peer, client, ends } = await together(context);
  let held = 0;
  peer.intercept = (request) => {
    if (++held === 6) {
      peer.intercept = undefined;
      peer.cut();
    }
    void request;
    return true;
  };
  await Promise.all([
    client.write(0, block(1)),
    client.write(8 * KIB, block(2)),
    client.read(64 * KIB, 4 * KIB),
    client.zero(128 * KIB, 8 * KIB),
    client.trim(256 * KIB, 8 * KIB),
    client.flush(),
  ]);
  assert.ok(holds(peer.data.subarray(0, 4 * KIB), 1) && holds(peer.data.subarray(8 * KIB, 12 * KIB), 2));
  assert.equal(client.figures.requestsRepeated, 6);
  assert.equal(ends().length, 1);
});

test("writes that were acknowledged and not flushed survive a crash of the server: they are written again first", async (context) => {
  const { peer, client } = await together(context);
  await client.write(0, block(1));
  await client.flush();
  await client.write(0, block(2));
  await client.write(2 * KIB, block(3));
  await client.zero(16 * KIB, 4 * KIB);
  peer.crash();
  assert.ok(holds(peer.data.subarray(0, 4 * KIB), 1));
  peer.seen.length = 0;
  await peer.start();
  // A read must not see what the crash has left.
  const bytes = await client.read(0, 8 * KIB);
  assert.ok(holds(bytes.subarray(0, 2 * KIB), 2) && holds(bytes.subarray(2 * KIB, 6 * KIB), 3));
  assert.deepEqual(peer.kinds(), ["write", "write", "zero", "read"]);
  await client.flush();
  assert.ok(holds(peer.stable.subarray(2 * KIB, 6 * KIB), 3), "the flush has lied");
  assert.equal(client.figures.writesReplayed, 3);
  assert.equal(client.figures.keptBytes, 0);
});

test("a network that never lasts for all of the repetition brings each connection further", async (context) => {
  const { peer, client } = await together(context, { size: 4 * MIB }, { memoryBytes: 32 * MIB });
  const COUNT = 16;
  for (let index = 0; index < COUNT; index++) await client.write(index * 64 * KIB, block(index + 1, 64 * KIB));
  peer.crash();
  let requests = 0;
  peer.intercept = () => {
    if (++requests % 8 !== 0) return false;
    peer.cut();
    return true;
  };
  await peer.start();
  await client.flush();
  peer.intercept = undefined;
  for (let index = 0; index < COUNT; index++)
    assert.ok(holds(peer.stable.subarray(index * 64 * KIB, (index + 1) * 64 * KIB), index + 1));
  assert.ok(requests > COUNT + 8, "no connection was cut");
});

test("a crash during the repetition, and another one, change nothing", async (context) => {
  const { peer, client } = await together(context);
  for (let index = 0; index < 20; index++) await client.write(index * 4 * KIB, block(index + 1));
  peer.crash();
  let crashes = 2;
  let writes = 0;
  peer.intercept = (request) => {
    if (request.kind === "write" && crashes > 0 && ++writes % 7 === 0) {
      crashes--;
      void peer.crashAndStart();
      return true;
    }
    return false;
  };
  await peer.start();
  await client.flush();
  for (let index = 0; index < 20; index++)
    assert.ok(holds(peer.stable.subarray(index * 4 * KIB, (index + 1) * 4 * KIB), index + 1), `block ${index}`);
});

test("a durable write is repeated too, or an older one would come back over it", async (context) => {
  const { peer, client } = await together(context);
  await client.write(0, block(1));
  await client.write(0, block(2), { fua: true });
  peer.crash();
  await peer.start();
  assert.ok(holds(await client.read(0, 4 * KIB), 2));
  await client.flush();
  assert.ok(holds(peer.stable.subarray(0, 4 * KIB), 2));
});

test('with unflushed: "fail", a crash after unflushed writes fails every flush and write, and reads go on', async (context) => {
  const { peer, client, told } = await together(context, {}, { unflushed: "fail" });
  await client.write(0, block(1));
  await client.flush();
  await client.write(4 * KIB, block(2));
  peer.crash();
  await peer.start();
  assert.ok(holds(await client.read(0, 4 * KIB), 1));
  await assert.rejects(client.flush(), { status: "failed" });
  await assert.rejects(client.flush(), { status: "failed" });
  await assert.rejects(client.write(0, block(3)), { status: "failed" });
  assert.ok(told.some(({ level, message }) => level === "error" && /may be lost/.test(message)));
  await assert.rejects(client.close(), { status: "failed" });
});

test('with unflushed: "fail" and everything flushed, a crash is no more than a pause', async (context) => {
  const { peer, client } = await together(context, {}, { unflushed: "fail" });
  await client.write(0, block(1));
  await client.write(4 * KIB, block(2), { fua: true });
  await client.flush();
  peer.crash();
  await peer.start();
  await client.write(8 * KIB, block(3));
  await client.flush();
  assert.ok(holds(peer.stable.subarray(8 * KIB, 12 * KIB), 3));
});

test("one of several connections is lost: the others answer a flush before a new one is used", async (context) => {
  const { peer, client } = await together(context, {}, { connections: 3 });
  await until("connected three times", () => client.figures.connections === 3);
  await client.write(0, block(1));
  peer.seen.length = 0;
  const flushes: (() => void)[] = [];
  peer.intercept = (request) => {
    if (request.kind === "flush") flushes.push(() => request.connection.serve(request));
    return request.kind === "flush";
  };
  const before = new Set(peer.connections);
  [...peer.connections][0]!.socket.destroy();
  await until("a flush asked for", () => flushes.length > 0);
  await until("connected again", () => peer.accepted === 4);
  // The survivors serve meanwhile; the new connection waits.
  await Promise.all(Array.from({ length: 20 }, (_, index) => client.read(index * 4 * KIB, 4 * KIB)));
  assert.ok(
    peer.seen.every(({ connection }) => before.has(connection)),
    "a connection was used before its time",
  );
  for (const answer of flushes) answer();
  peer.intercept = undefined;
  await until("used", async () => {
    await Promise.all(Array.from({ length: 20 }, (_, index) => client.read(index * 4 * KIB, 4 * KIB)));
    return peer.seen.some(({ connection }) => !before.has(connection));
  });
  assert.equal(client.figures.writesReplayed, 0);
});

test("the survivors die as well before they have answered: then the writes are repeated", async (context) => {
  const { peer, client } = await together(context, {}, { connections: 2 });
  await until("connected twice", () => client.figures.connections === 2);
  await client.write(0, block(1));
  peer.intercept = (request) => {
    if (request.kind !== "flush") return false;
    peer.intercept = undefined;
    void peer.crashAndStart();
    return true;
  };
  [...peer.connections][0]!.socket.destroy();
  await until("repeated", () => client.figures.writesReplayed === 1);
  assert.ok(holds(await client.read(0, 4 * KIB), 1));
});

test("a flush that the server fails is final", async (context) => {
  const { peer, client } = await together(context);
  await client.write(0, block(1));
  peer.intercept = (request) => {
    if (request.kind !== "flush") return false;
    request.connection.error(request, 5);
    return true;
  };
  await assert.rejects(client.flush(), { status: "failed" });
  peer.intercept = undefined;
  await assert.rejects(client.flush(), { status: "failed" });
  await assert.rejects(client.write(0, block(2)), { status: "failed" });
  assert.ok(holds(await client.read(0, 4 * KIB), 1));
});

test("a flush for which the server has no memory is not final", async (context) => {
  const { peer, client } = await together(context);
  await client.write(0, block(1));
  peer.intercept = (request) => {
    if (request.kind === "flush") request.connection.error(request, 12);
    return request.kind === "flush";
  };
  await assert.rejects(client.flush(), { status: "busy" });
  peer.intercept = undefined;
  await client.flush();
  assert.ok(holds(peer.stable.subarray(0, 4 * KIB), 1));
});

test("a write that cannot be repeated fails the next flush", async (context) => {
  const { peer, client } = await together(context);
  await client.write(0, block(1));
  peer.crash();
  peer.intercept = (request) => {
    if (request.kind === "write") request.connection.error(request, 28);
    return request.kind === "write";
  };
  await peer.start();
  await assert.rejects(client.flush(), { status: "failed" });
});

test("what is kept has a budget: the client flushes by itself, and writers wait rather than lose anything", async (context) => {
  const { peer, client } = await together(context, { size: 16 * MIB }, { replayBytes: MIB, memoryBytes: 32 * MIB });
  let most = 0;
  peer.intercept = () => {
    most = Math.max(most, client.figures.keptBytes);
    return false;
  };
  for (let round = 0; round < 4; round++)
    await Promise.all(
      Array.from({ length: 64 }, (_, index) => client.write(index * 64 * KIB, block(round + 1, 64 * KIB))),
    );
  assert.ok(most > 0 && most <= MIB, `${most} bytes were kept`);
  assert.ok(peer.count("flush") >= 4);
  await client.write(0, block(9, 8 * MIB));
  peer.crash();
  await peer.start();
  await client.flush();
  assert.ok(holds(peer.stable.subarray(0, 8 * MIB), 9));
});

test("writes to the same place are never in flight together", async (context) => {
  const { peer, client } = await together(context);
  const flying = new Set<number>();
  peer.intercept = (request) => {
    if (request.kind !== "write") return false;
    assert.ok(!flying.has(request.offset), "two at once");
    flying.add(request.offset);
    setTimeout(() => {
      flying.delete(request.offset);
      request.connection.serve(request);
    }, 2);
    return true;
  };
  await Promise.all(Array.from({ length: 10 }, (_, index) => client.write(0, block(index + 1))));
  assert.ok(holds(peer.data.subarray(0, 4 * KIB), 10), "not in the order in which they were asked for");
});

test("a server that stays away: after giveUpMs the answer is away, and when it is back all goes on", async (context) => {
  const { peer, client } = await together(context, {}, { giveUpMs: 60 });
  await client.write(0, block(1));
  peer.crash();
  await assert.rejects(client.read(0, 4 * KIB), { status: "away" });
  await assert.rejects(client.flush(), { status: "away" });
  await peer.start();
  await until("back", () =>
    client.read(0, 4 * KIB).then(
      () => true,
      () => false,
    ),
  );
  // What was acknowledged before is there again.
  await client.flush();
  assert.ok(holds(peer.stable.subarray(0, 4 * KIB), 1));
});

test("a server that comes back without the export: gone", async (context) => {
  const { peer, client } = await together(context, { exportName: "db" }, { giveUpMs: 100 });
  peer.stop();
  peer.options.exportName = "other";
  await peer.start();
  await assert.rejects(client.read(0, 4 * KIB), { status: "gone" });
});

test("a server that comes back with another size or read-only says so to those who watch", async (context) => {
  const { peer, client } = await together(context);
  const changes: string[] = [];
  client.watch((change) => changes.push(change));
  peer.stop();
  peer.data = Buffer.alloc(2 << 20, 5);
  peer.options.size = 2 << 20;
  await peer.start();
  assert.ok(holds(await client.read(0, 4 * KIB), 5));
  await until("larger", () => client.size === 2 << 20);
  assert.ok(holds(await client.read((2 << 20) - 4 * KIB, 4 * KIB), 5));
  peer.stop();
  peer.options.flags = ALL_FLAGS | FLAGS.READ_ONLY;
  await peer.start();
  await client.read(0, 4 * KIB);
  assert.deepEqual(changes, ["resized", "read-only"]);
  await assert.rejects(client.write(0, block(1)), { status: "denied" });
});

test("a server that says it is shutting down is left, and the request is done elsewhere", async (context) => {
  const { peer, client, ends } = await together(context);
  let first = true;
  peer.intercept = (request) => {
    if (!first) return false;
    first = false;
    request.connection.error(request, 108);
    return true;
  };
  await client.write(0, block(1));
  assert.ok(holds(peer.data.subarray(0, 4 * KIB), 1));
  assert.deepEqual(ends(), ["shutting-down"]);
});

test("a request that the server does not survive is not repeated for ever", async (context) => {
  const { peer, client } = await together(context, {}, { giveUpMs: 100 });
  peer.intercept = (request) => {
    if (request.kind !== "read" || request.offset !== 8 * KIB) return false;
    peer.cut();
    return true;
  };
  await assert.rejects(client.read(8 * KIB, 4 * KIB), { status: "away" });
  await until("back", () =>
    client.read(0, 4 * KIB).then(
      () => true,
      () => false,
    ),
  );
});

test("a server without FUA: a durable write is a write and a flush; without flush, it is what it is", async (context) => {
  const { peer, client } = await together(context, { flags: ALL_FLAGS & ~FLAGS.FUA });
  await client.write(0, block(1), { fua: true });
  assert.deepEqual(peer.kinds(), ["write", "flush"]);
  assert.ok(holds(peer.stable.subarray(0, 4 * KIB), 1));
  const bare = await together(context, { flags: 1 });
  await bare.client.write(0, block(1), { fua: true });
  await bare.client.flush();
  await bare.client.zero(0, 4 * KIB);
  assert.deepEqual(bare.peer.kinds(), ["write", "write"]);
  await assert.rejects(bare.client.trim(0, 4 * KIB), { status: "unsupported" });
  await assert.rejects(bare.client.zero(0, 4 * KIB, { fastOnly: true }), { status: "unsupported" });
  await assert.rejects(bare.client.cache(0, 4 * KIB), { status: "unsupported" });
  assert.equal(bare.client.figures.keptBytes, 0);
});

test("closing lets what was asked for end, flushes, and then says goodbye", async (context) => {
  const { peer, client } = await together(context);
  const write = client.write(0, block(1));
  const closed = client.close();
  await Promise.all([write, closed]);
  assert.deepEqual(peer.kinds(), ["write", "flush"]);
  assert.ok(holds(peer.stable.subarray(0, 4 * KIB), 1));
  await assert.rejects(client.read(0, 512), { status: "aborted" });
});
