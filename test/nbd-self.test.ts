/** Our NBD client against our NBD front, in one process: random operations against a copy, with and without trouble. */
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { createServer, connect as dial, type Socket } from "node:net";
import { join } from "node:path";
import { test } from "node:test";
import { Memory } from "#base/memory";
import { MIB } from "#base/units";
import { MemoryDevice } from "#device/memory-device";
import { NodeEnv } from "#env/node/node-env";
import { UringEnv } from "#env/uring/uring-env";
import { type ConnectOptions, connect, list } from "#library/connect";
import { serve } from "#library/serve";
import { clientTls, serverTls } from "#library/tls-files";
import type { UserDevice } from "#library/user-device";
import { logOf, type Told } from "#test/support/client";
import { differential } from "#test/support/differential";
import { until } from "#test/support/program";
import { chance } from "#test/support/random";
import { type Scope, tempFolder } from "#test/support/temp";

const told: Told[] = [];
const log = logOf(told);

/** A device in memory behind our front on a Unix socket. */
async function served(scope: Scope, size: number, blockSize: 512 | 4096 = 512) {
  const env = new NodeEnv({ memoryBytes: 64 * MIB, log });
  const device = new MemoryDevice(env.memory, size, { blockSize });
  const path = join(tempFolder(scope), "nbd");
  const server = await serve(device, { nbd: `unix:${path}`, name: "db", env, log });
  scope.after(() => server.close());
  return { env, device, path, server };
}

for (const blockSize of [512, 4096] as const)
  test(`blocks of ${blockSize}: everything at random, and what the client saw is what the device holds`, async (context) => {
    const { device, server, env } = await served(context, 4 * MIB, blockSize);
    const client = await connect(server.uri, { log });
    assert.equal(client.features.replies, "extended");
    assert.ok(client.features.multiConn && client.features.depth && client.features.fastZero);
    const copy = await differential(
      client,
      chance((line) => context.diagnostic(line)),
      {
        operations: 2_500,
        workers: 32,
        lengthMax: 300_000,
        trimReadsZero: true,
      },
    );
    assert.ok(copy.equals(device.peek(0, 4 * MIB)));
    await client.close();
    await until("no connection", () => server.connections === 0);
    assert.equal(env.memory.used, 0, "the front has kept memory");
  });

test("client and server over io_uring: everything at random, and all memory is given back", async (context) => {
  const env = new UringEnv({ memoryBytes: 96 * MIB, log });
  context.after(() => env.close());
  const device = new MemoryDevice(env.memory, 4 * MIB);
  const path = join(tempFolder(context), "nbd");
  const server = await serve(device, { nbd: `unix:${path}`, name: "db", env, log });
  const client = await connect(server.uri, { env, log });
  const copy = await differential(
    client,
    chance((line) => context.diagnostic(line)),
    {
      operations: 2_500,
      workers: 32,
      lengthMax: 300_000,
      trimReadsZero: true,
    },
  );
  assert.ok(copy.equals(device.peek(0, 4 * MIB)));
  await client.close();
  await server.close();
  assert.equal(env.memory.used, 0);
  assert.equal(env.lost, 0);
});

test("a network that cuts connections at any byte: nothing is lost, doubled or twisted", async (context) => {
  const { device, path } = await served(context, 2 * MIB);
  const random = chance((line) => context.diagnostic(line));
  const between = `${path}-between`;
  const live = new Set<Socket>();
  // It passes bytes on, and after so many of them it cuts: in a header, in data, or between two requests. A connection
  // lasts long enough for the longest request and for all writes that are kept.
  const proxy = createServer((near) => {
    const far = dial(path);
    let left = 2_500_000 + random.below(4_000_000);
    for (const [from, to] of [
      [near, far],
      [far, near],
    ] as const) {
      live.add(from);
      from.on("error", () => {});
      from.on("close", () => {
        live.delete(from);
        to.destroy();
      });
      from.on("data", (chunk: Buffer) => {
        left -= chunk.length;
        if (left > 0) to.write(chunk);
        else to.write(chunk.subarray(0, Math.max(0, chunk.length + left)), () => from.destroy());
      });
    }
  });
  await new Promise<void>((resolve) => proxy.listen(between, resolve));
  context.after(() => {
    proxy.close();
    for (const socket of live) socket.destroy();
  });
  const client = await connect(`nbd+unix:///db?socket=${between}`, {
    log,
    connections: 3,
    replayBytes: MIB,
  });
  const copy = await differential(client, random, {
    operations: 3_000,
    workers: 16,
    lengthMax: 40_000,
    trimReadsZero: true,
  });
  assert.ok(copy.equals(device.peek(0, 2 * MIB)));
  assert.ok(client.figures.connectionsLost > 3, "nothing was cut");
  await client.close();
});

test("a device of one's own, with promises and faults: each fault is one operation's", async (context) => {
  const data = new Uint8Array(MIB);
  let bad = "";
  const device: UserDevice = {
    size: MIB,
    async read(offset, length) {
      await new Promise((resolve) => setImmediate(resolve));
      if (bad === "short") return data.subarray(0, 1);
      if (bad === "throw") throw new Error("no such luck");
      return data.subarray(offset, offset + length);
    },
    write(offset, bytes) {
      if (bad === "throw") throw new Error("no such luck");
      data.set(bytes, offset);
    },
    status: (_offset, length) =>
      bad === "empty"
        ? []
        : [
            { length: Math.ceil(length / 2), hole: true, zero: false },
            { length, hole: false, zero: false },
          ],
  };
  const server = await serve(device, { nbd: "127.0.0.1:0", log });
  context.after(() => server.close());
  assert.match(server.uri, /^nbd:\/\/127\.0\.0\.1:\d+\/$/);
  const client = await connect(server.uri, { log });
  context.after(() => client.close().catch(() => {}));
  await differential(
    client,
    chance((line) => context.diagnostic(line)),
    {
      operations: 500,
      workers: 16,
      lengthMax: 50_000,
      trimReadsZero: false,
      canTrim: false,
    },
  );
  bad = "short";
  await assert.rejects(client.read(0, 512), { status: "medium" });
  bad = "throw";
  await assert.rejects(client.read(0, 512), { status: "medium" });
  await assert.rejects(client.write(0, new Uint8Array(512)), { status: "failed" });
  bad = "empty";
  await assert.rejects(client.status(0, 512), { status: "failed" });
  bad = "";
  await client.flush();
  assert.equal((await client.read(0, 512)).length, 512);
  assert.ok(told.some(({ message }) => /device failed an operation/.test(message)));
});

test("where one may listen, and what is refused in words", async (context) => {
  const device: UserDevice = { size: MIB, read: (_offset, length) => new Uint8Array(length) };
  const refused = (code: string) => ({ name: "Refusal", code });
  for (const nbd of ["", "here", "127.0.0.1", "127.0.0.1:99999", "unix:", ":10809", "::1:80"])
    await assert.rejects(serve(device, { nbd }), refused("bad-request"), nbd);
  await assert.rejects(serve(device, { nbd: "0.0.0.0:0" }), refused("not-allowed"));
  await assert.rejects(serve(device, { nbd: "127.0.0.1:0", name: "a\0b" }), refused("bad-request"));
  await assert.rejects(serve({ ...device, size: 1.5 }, { nbd: "127.0.0.1:0" }), RangeError);
  await assert.rejects(
    serve(new MemoryDevice(new Memory(2 * MIB), MIB), { nbd: "127.0.0.1:0" }),
    refused("bad-request"),
  );
  const server = await serve(device, { nbd: "[::1]:0", name: "a b", description: "zeroes, for ever" });
  context.after(() => server.close());
  assert.match(server.uri, /^nbd:\/\/\[::1\]:\d+\/a%20b$/);
  await assert.rejects(serve(device, { nbd: `[::1]:${(server.address as { port: number }).port}` }), refused("in-use"));
  assert.deepEqual(await list(server.uri), [{ name: "a b", description: "zeroes, for ever" }]);
  const client = await connect(server.uri);
  assert.ok(client.readOnly, "a device without write is read-only");
  assert.equal(client.description, "zeroes, for ever");
  await client.close();
});

test("TLS with a key: it is a must, and the right one", async (context) => {
  const folder = tempFolder(context);
  const keys = join(folder, "keys");
  writeFileSync(keys, `# two users\nalice:${"ab".repeat(32)}\nbob:${"cd".repeat(32)}\n`);
  const device: UserDevice = { size: MIB, read: (_offset, length) => new Uint8Array(length) };
  const server = await serve(device, { nbd: "127.0.0.1:0", tls: await serverTls({ pskFile: keys }) });
  context.after(() => server.close());
  const options: ConnectOptions = { dialMs: 5_000 };
  const uri = (user: string): string => `${server.uri.replace("//", `//${user}@`)}?tls-psk-file=${keys}`;
  for (const user of ["alice", "bob"]) {
    const client = await connect(uri(user), options);
    assert.ok(client.features.tls);
    await client.close();
  }
  await assert.rejects(connect(server.uri.replace("nbds", "nbd"), options), { code: "not-allowed" });
  await assert.rejects(connect(uri("carol"), options), { code: "bad-request" });
  const material = await clientTls({ type: "psk", user: "alice", pskFile: keys } as never);
  const client = await connect(server.uri, { ...options, tls: material });
  await client.close();
});
