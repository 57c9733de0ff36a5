/** A server that falls silent: in the handshake, in the middle of a reply, or with requests owed. */
import assert from "node:assert/strict";
import { join } from "node:path";
import { test } from "node:test";
import { Refusal } from "#base/refusal";
import { connect } from "#library/connect";
import { together } from "#test/support/client";
import { NbdPeer, u16, u32, u64 } from "#test/support/nbd-peer";
import { tempFolder } from "#test/support/temp";

const refusal = (code: string, words: RegExp) => (error: unknown) =>
  error instanceof Refusal && error.code === code && words.test(error.message);

test("silence with requests owed: the connection is dropped, and they are done on a new one", async (context) => {
  const { peer, client, ends } = await together(context, {}, { silenceMs: 60 });
  peer.data.fill(4);
  let quiet = 3;
  peer.intercept = () => quiet-- > 0;
  const reads = await Promise.all([client.read(0, 512), client.read(512, 512), client.read(1024, 512)]);
  assert.ok(reads.every((bytes) => bytes.every((byte) => byte === 4)));
  assert.deepEqual(ends(), ["silent"]);
});

test("silence with nothing owed is no reason to drop anything", async (context) => {
  const { client, peer } = await together(context, {}, { silenceMs: 20 });
  await client.read(0, 512);
  await new Promise((resolve) => setTimeout(resolve, 80));
  await client.read(0, 512);
  assert.equal(peer.accepted, 1);
});

test("half a header, half a chunk, half a payload, and then silence", async (context) => {
  const { peer, client, ends } = await together(context, {}, { silenceMs: 60 });
  peer.data.fill(6);
  const halves = [
    (cookie: Buffer) => Buffer.concat([u32(0x668e33ef), u16(1)]).subarray(0, cookie.length - 3),
    (cookie: Buffer) => Buffer.concat([u32(0x668e33ef), u16(1), u16(1), cookie, u32(4104), Buffer.alloc(5)]),
    (cookie: Buffer) => Buffer.concat([u32(0x668e33ef), u16(1), u16(1), cookie, u32(4104), u64(0), Buffer.alloc(99)]),
    (cookie: Buffer) =>
      Buffer.concat([u32(0x668e33ef), u16(1), u16(1), cookie, u32(65544), u64(0), Buffer.alloc(60_000)]),
  ];
  for (const half of halves) {
    peer.intercept = (request) => {
      peer.intercept = undefined;
      request.connection.send(half(request.cookie));
      return true;
    };
    const length = half === halves[3] ? 65536 : 4096;
    assert.ok((await client.read(0, length)).every((byte) => byte === 6));
  }
  assert.deepEqual(ends(), ["silent", "silent", "silent", "silent"]);
});

test("a reply that comes byte by byte is whole in the end", async (context) => {
  const { peer, client, ends } = await together(context, {}, { silenceMs: 1_000 });
  peer.data.fill(8);
  peer.intercept = (request) => {
    const { connection, cookie, offset, length } = request;
    const header = Buffer.concat([u32(0x668e33ef), u16(1), u16(1), cookie, u32(length + 8), u64(offset)]);
    const bytes = Buffer.concat([header, peer.data.subarray(offset, offset + length)]);
    let at = 0;
    const next = (): void => {
      connection.send(bytes.subarray(at, at + 1));
      if (++at < bytes.length) setImmediate(next);
    };
    next();
    return true;
  };
  assert.ok((await client.read(512, 512)).every((byte) => byte === 8));
  assert.deepEqual(ends(), []);
});

test("a server that takes nothing of a write is silent as well", async (context) => {
  const { peer, client } = await together(context, { size: 64 << 20 }, { silenceMs: 150, memoryBytes: 128 << 20 });
  const [connection] = peer.connections;
  connection!.socket.pause();
  await client.write(0, new Uint8Array(3 << 20).fill(1));
  assert.ok(peer.data.subarray(0, 3 << 20).every((byte) => byte === 1));
});

test("handshakes that never end are given up, and say where it stopped", async (context) => {
  const peer = await new NbdPeer(join(tempFolder(context), "nbd")).start();
  context.after(() => peer.stop());
  const said: [string, (write: (bytes: Buffer) => void) => void][] = [
    ["nothing at all", () => {}],
    ["half a greeting", (write) => write(Buffer.from("NBDMAGICIH"))],
    ["a greeting", (write) => write(Buffer.concat([Buffer.from("NBDMAGICIHAVEOPT"), u16(3)]))],
  ];
  for (const [, say] of said) {
    peer.greet = (socket) => say((bytes) => socket.write(bytes));
    const started = performance.now();
    await assert.rejects(connect(peer.uri, { dialMs: 60 }), refusal("timeout", /in time \(silent\)/));
    assert.ok(performance.now() - started < 5_000);
  }
});

test("handshakes that break the protocol are refused by a word", async (context) => {
  const peer = await new NbdPeer(join(tempFolder(context), "nbd")).start();
  context.after(() => peer.stop());
  const greeting = Buffer.concat([Buffer.from("NBDMAGICIHAVEOPT"), u16(3)]);
  const answer = (option: number, type: number, data: Buffer = Buffer.alloc(0), length = data.length): Buffer =>
    Buffer.concat([u64(0x3e889045565a9), u32(option), u32(type), u32(length), data]);
  const simple = Buffer.concat([greeting, answer(11, 0x80000001), answer(8, 0x80000001)]);
  const info = (size: number, flags = 1): Buffer => Buffer.concat([u16(0), u64(size), u16(flags)]);
  const sizes = (minimum: number, preferred: number, most: number): Buffer =>
    Buffer.concat([u16(3), u32(minimum), u32(preferred), u32(most)]);
  const cases: [Buffer, string, RegExp][] = [
    [Buffer.from("SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n"), "unsupported", /not speak NBD \(not-nbd\)/],
    [
      Buffer.concat([Buffer.from("NBDMAGIC"), Buffer.from("0000420281861253", "hex"), u64(9), u32(0)]),
      "unsupported",
      /old-style/,
    ],
    [Buffer.from("NBDMAGICWHATEVER\0\x03"), "unsupported", /greeting makes no sense/],
    [Buffer.concat([greeting, answer(8, 1)]), "unsupported", /answers what was not asked/],
    [Buffer.concat([greeting, Buffer.alloc(20)]), "unsupported", /wrong magic/],
    [Buffer.concat([greeting, answer(11, 1, Buffer.alloc(0), 0x7fffffff)]), "unsupported", /2147483647 bytes long/],
    [Buffer.concat([simple, answer(7, 1)]), "unsupported", /without telling the size/],
    [Buffer.concat([simple, answer(7, 3, u16(0)), answer(7, 1)]), "unsupported", /GO makes no sense/],
    [
      Buffer.concat([simple, answer(7, 3, Buffer.concat([u16(0), Buffer.alloc(8, 0xff), u16(1)])), answer(7, 1)]),
      "unsupported",
      /is said to have/,
    ],
    [Buffer.concat([simple, answer(7, 3, info(512, 0)), answer(7, 1)]), "unsupported", /flags are not valid/],
    [
      Buffer.concat([simple, answer(7, 3, info(512)), answer(7, 3, sizes(3, 4, 512)), answer(7, 1)]),
      "unsupported",
      /minimum block size is 3/,
    ],
    [
      Buffer.concat([simple, answer(7, 3, info(512)), answer(7, 3, sizes(131072, 131072, 131072)), answer(7, 1)]),
      "unsupported",
      /minimum block size is 131072/,
    ],
    [
      Buffer.concat([simple, answer(7, 3, info(512)), answer(7, 3, sizes(512, 4096, 0)), answer(7, 1)]),
      "unsupported",
      /largest request is 0/,
    ],
    [
      Buffer.concat([simple, answer(7, 3, info(512)), answer(7, 1), Buffer.alloc(9)]),
      "unsupported",
      /more than the handshake has/,
    ],
    [
      Buffer.concat([simple, answer(7, 0x80000006, Buffer.from("\u001b[31mno such thing\n"))]),
      "not-found",
      /no such export \(\[31mno such thing\)/,
    ],
    [Buffer.concat([greeting, answer(11, 0x80000005)]), "not-allowed", /insists on TLS \(ERR_TLS_REQD\)/],
    [Buffer.concat([simple, answer(7, 0x80000007)]), "unreachable", /shutting down/],
    [Buffer.concat([simple, answer(7, 0x80000002)]), "not-allowed", /does not allow/],
    [
      Buffer.concat([
        greeting,
        answer(11, 1),
        answer(10, 4, Buffer.concat([u32(1), Buffer.from("x:y")])),
        answer(10, 1),
      ]),
      "unsupported",
      /not asked for/,
    ],
  ];
  for (const [bytes, code, words] of cases) {
    peer.greet = (socket) => socket.write(bytes);
    await assert.rejects(connect(peer.uri, { dialMs: 2_000 }), refusal(code, words), String(words));
  }
  peer.greet = (socket) => socket.destroy();
  await assert.rejects(connect(peer.uri), refusal("unreachable", /closed/));
  // Answers without end: the limit is on their number.
  peer.greet = (socket) => {
    socket.write(Buffer.concat([greeting, ...Array.from({ length: 10_001 }, () => answer(11, 4))]));
  };
  await assert.rejects(connect(peer.uri), refusal("unsupported", /more than 10000 answers/));
});

test("data behind the answer to STARTTLS is never taken for something said under TLS", async (context) => {
  const peer = await new NbdPeer(join(tempFolder(context), "nbd")).start();
  context.after(() => peer.stop());
  peer.greet = (socket) =>
    socket.write(
      Buffer.concat([
        Buffer.from("NBDMAGICIHAVEOPT"),
        u16(3),
        u64(0x3e889045565a9),
        u32(5),
        u32(1),
        u32(0),
        Buffer.from("injected"),
      ]),
    );
  const psk = new Map([["a", new Uint8Array(16)]]);
  const uri = peer.uri.replace("nbd+unix", "nbds+unix");
  await assert.rejects(connect(uri, { tls: { psk }, dialMs: 2_000 }), refusal("unsupported", /ahead of TLS/));
});

test("servers of all ages are understood: no GO, no options at all", async (context) => {
  const { peer, client } = await together(context, { old: true, exportName: "x", flags: 1 | 4 });
  assert.equal(client.size, peer.options.size);
  await client.write(100, new Uint8Array(1000).fill(1));
  assert.ok((await client.read(100, 1000)).every((byte) => byte === 1));
  assert.deepEqual(client.features.replies, "simple");
  await assert.rejects(connect(peer.uri.replace("/x?", "/y?"), { dialMs: 2_000 }), refusal("unreachable", /closed/));
  const { client: extended } = await together(context, { style: "extended" });
  assert.equal(extended.features.replies, "extended");
  await extended.write(0, new Uint8Array(300_000).fill(2));
  assert.ok((await extended.read(0, 300_000)).every((byte) => byte === 2));
  assert.deepEqual(await extended.status(0, 1 << 20), [
    { offset: 0, length: 1 << 20, hole: false, zero: false, depth: 1 },
  ]);
});

test("what the server takes at most, and at least, is kept to", async (context) => {
  const { peer, client } = await together(context, { blockSizes: [4096, 8192, 65536] });
  const data = Uint8Array.from({ length: 300_001 }, (_, index) => index % 251);
  await client.write(777, data);
  assert.deepEqual(await client.read(777, data.length), data);
  await client.zero(5000, 100_000);
  await Promise.all([client.write(100, data.subarray(0, 50)), client.write(200, data.subarray(0, 50))]);
  assert.deepEqual(await client.read(200, 50), data.subarray(0, 50));
  for (const { kind, offset, length } of peer.seen) {
    assert.ok(offset % 4096 === 0 && length % 4096 === 0, `${kind} ${offset} ${length}`);
    if (kind === "read" || kind === "write") assert.ok(length <= 65536);
  }
  assert.equal(client.device.blockSize, 4096);
  assert.equal(client.preferredBlockSize, 8192);
});
