/**
 * A server that breaks the protocol in a reply. Each time: the client says by a word what it was, drops the connection,
 * does the request again on a new one, and no memory but the request's own was touched.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { together } from "#test/support/client";
import type { PeerOptions, PeerRequest } from "#test/support/nbd-peer";
import { u16, u32, u64 } from "#test/support/nbd-peer";

const KIB = 1024;
type Lie = (request: PeerRequest) => void;

function lying(name: string, end: string, lie: Lie, options: PeerOptions = {}, on: PeerRequest["kind"] = "read"): void {
  test(`${name}: "${end}"`, async (context) => {
    const { peer, client, ends } = await together(context, options);
    peer.data.fill("abcdefgh");
    let lies = 1;
    peer.intercept = (request) => {
      if (request.kind !== on || lies === 0) return false;
      lies--;
      lie(request);
      return true;
    };
    const beside = client.memory.allocate(64 * KIB);
    client.memory.bytes.fill(0x5a, beside, beside + 64 * KIB);
    if (on === "read") {
      const bytes = await client.read(8 * KIB, 16 * KIB);
      assert.deepEqual(Buffer.from(bytes), peer.data.subarray(8 * KIB, 24 * KIB));
    } else if (on === "status") {
      assert.deepEqual(await client.status(0, 64 * KIB), [
        { offset: 0, length: 64 * KIB, hole: false, zero: false, depth: 1 },
      ]);
    } else await client.write(8 * KIB, new Uint8Array(16 * KIB).fill(1));
    assert.deepEqual(ends(), [end]);
    assert.ok(client.memory.bytes.subarray(beside, beside + 64 * KIB).every((byte) => byte === 0x5a));
    assert.equal(client.figures.connectionsLost, 1);
  });
}

const zeroes = (length: number): Buffer => Buffer.alloc(length, 0xff);
const wrongCookie = (cookie: Buffer): Buffer => Buffer.concat([cookie.subarray(0, 4), u32(cookie.readUInt32BE(4) + 1)]);
const oldTurn = (cookie: Buffer): Buffer => Buffer.concat([u32(cookie.readUInt32BE(0) - 1), cookie.subarray(4)]);

lying("a magic that is none", "bad-magic", (r) => r.connection.send(u32(0xdeadbeef)));
lying("a cookie that was never given", "unknown-cookie", ({ cookie, connection, offset }) =>
  connection.dataChunk({ cookie: wrongCookie(cookie), offset } as PeerRequest, 1, offset, zeroes(16 * KIB)),
);
lying("a cookie far outside", "unknown-cookie", ({ connection, offset }) =>
  connection.dataChunk({ cookie: Buffer.alloc(8, 0xff), offset } as PeerRequest, 1, offset, zeroes(16 * KIB)),
);
lying("the cookie of an earlier request", "unknown-cookie", ({ cookie, connection, offset }) =>
  connection.dataChunk({ cookie: oldTurn(cookie), offset } as PeerRequest, 1, offset, zeroes(16 * KIB)),
);
lying("a simple reply where a chunk must be", "wrong-style", (r) => r.connection.simple(r.cookie, 0, zeroes(16 * KIB)));
lying("a chunk where simple replies were agreed on", "wrong-style", (r) => r.connection.chunk(r, 1, 0, zeroes(0)), {
  style: "simple",
});
lying("data in front of the range", "outside", (r) => r.connection.dataChunk(r, 1, r.offset - 512, zeroes(16 * KIB)));
lying("data behind the range", "outside", (r) => r.connection.dataChunk(r, 1, r.offset + 512, zeroes(16 * KIB)));
lying("data at an offset beyond all numbers", "outside", (r) =>
  r.connection.chunk(r, 1, 1, Buffer.concat([Buffer.alloc(8, 0xff), zeroes(16 * KIB)])),
);
lying("more data than was asked for", "outside", (r) => r.connection.dataChunk(r, 1, r.offset, zeroes(17 * KIB)));
lying("a chunk that says it has 4 GiB", "outside", (r) => r.connection.chunk(r, 1, 1, u64(r.offset), 0xffff_fff0));
lying("a chunk of data without data", "bad-chunk", (r) => r.connection.dataChunk(r, 1, r.offset, zeroes(0)));
lying("a hole that goes beyond the range", "outside", (r) => r.connection.holeChunk(r, 1, r.offset, 17 * KIB));
lying("a hole of no length", "bad-chunk", (r) => r.connection.holeChunk(r, 1, r.offset, 0));
lying("a hole with a tail", "bad-chunk", (r) =>
  r.connection.chunk(r, 1, 2, Buffer.concat([u64(r.offset), u32(512), u32(0)])),
);
lying("the same data twice", "overlap", (r) => {
  r.connection.dataChunk(r, 0, r.offset, zeroes(8 * KIB));
  r.connection.dataChunk(r, 1, r.offset + 4 * KIB, zeroes(8 * KIB));
});
lying("a hole over data", "overlap", (r) => {
  r.connection.dataChunk(r, 0, r.offset + 8 * KIB, zeroes(8 * KIB));
  r.connection.holeChunk(r, 1, r.offset, 16 * KIB);
});
lying("an end before all has been said", "incomplete", (r) => r.connection.dataChunk(r, 1, r.offset, zeroes(8 * KIB)));
lying("success without any data", "incomplete", (r) => r.connection.chunk(r, 1, 0, zeroes(0)));
lying("an end that does not say that it is one", "bad-chunk", (r) => r.connection.chunk(r, 0, 0, zeroes(0)));
lying("an end with a payload", "bad-chunk", (r) => r.connection.chunk(r, 1, 0, zeroes(4)));
lying("a type that there is not", "bad-chunk", (r) => r.connection.chunk(r, 1, 77, zeroes(4)));
lying("block status in answer to a read", "bad-chunk", (r) => r.connection.replyStatus(r, [[512, 0]]));
lying("an error too short to be one", "bad-chunk", (r) => r.connection.chunk(r, 1, 0x8001, zeroes(5)));
lying("an error whose message is longer than itself", "bad-chunk", (r) =>
  r.connection.chunk(r, 1, 0x8001, Buffer.concat([u32(5), u16(100), zeroes(4)])),
);
lying("an error of a megabyte", "bad-chunk", (r) => r.connection.chunk(r, 1, 0x8001, zeroes(16), 1 << 20));
lying(
  "a compact chunk where extended ones were agreed on",
  "wrong-style",
  (r) => r.connection.send(Buffer.concat([u32(0x668e33ef), u16(1), u16(0), r.cookie, u32(0)])),
  { style: "extended" },
);
lying(
  "data in answer to a write",
  "bad-chunk",
  (r) => r.connection.dataChunk(r, 1, r.offset, zeroes(512)),
  {},
  "write",
);
lying(
  "status of a context that was not agreed on",
  "unknown-context",
  (r) => r.connection.chunk(r, 1, 5, Buffer.concat([u32(99), u32(64 * KIB), u32(0)])),
  {},
  "status",
);
lying(
  "one context twice",
  "unknown-context",
  (r) => {
    r.connection.replyStatus(r, [[4096, 0]], "base:allocation", 0);
    r.connection.replyStatus(r, [[4096, 0]]);
  },
  {},
  "status",
);
lying("a run of no length", "bad-chunk", (r) => r.connection.replyStatus(r, [[0, 0]]), {}, "status");
lying("status without a run", "bad-chunk", (r) => r.connection.replyStatus(r, []), {}, "status");
lying("half a run", "bad-chunk", (r) => r.connection.chunk(r, 1, 5, Buffer.concat([u32(1), zeroes(12)])), {}, "status");
lying("no status at all, and success", "incomplete", (r) => r.connection.chunk(r, 1, 0, zeroes(0)), {}, "status");
lying(
  "a count of runs that is not theirs",
  "bad-chunk",
  (r) => r.connection.chunk(r, 1, 6, Buffer.concat([u32(1), u32(2), u64(512), u64(0)])),
  { style: "extended" },
  "status",
);

test("the same answer twice ends the connection, and the second one finds nobody", async (context) => {
  const { peer, client, ends } = await together(context);
  peer.data.fill(7);
  let twice = true;
  peer.intercept = (request) => {
    request.connection.serve(request);
    if (twice) request.connection.replyData(request, Buffer.alloc(request.length, 9));
    twice = false;
    return true;
  };
  assert.ok((await client.read(0, 4096)).every((byte) => byte === 7));
  assert.ok((await client.read(4096, 4096)).every((byte) => byte === 7));
  assert.deepEqual(ends(), ["unknown-cookie"]);
});

test("an answer to a request that was not sent yet does not touch it", async (context) => {
  const { peer, client, ends } = await together(context, {}, { depth: 4 });
  peer.intercept = (request) => {
    peer.intercept = undefined;
    for (let index = 1; index < 4; index++)
      request.connection.simple(Buffer.concat([u32(request.cookie.readUInt32BE(0)), u32(index)]), 0);
    request.connection.serve(request);
    return true;
  };
  await client.write(0, new Uint8Array(4096).fill(3));
  assert.ok(peer.data.subarray(0, 4096).every((byte) => byte === 3));
  assert.equal(ends().length, 1);
});

test("with the flag DF, data in pieces is refused", async (context) => {
  const { peer, client, ends } = await together(context, {}, { unfragmented: true });
  peer.intercept = (request) => {
    assert.equal(request.flags & 4, 4);
    peer.intercept = undefined;
    request.connection.dataChunk(request, 0, request.offset, Buffer.alloc(512));
    request.connection.dataChunk(request, 1, request.offset + 512, Buffer.alloc(512));
    return true;
  };
  await client.read(0, 1024);
  assert.deepEqual(ends(), ["fragmented"]);
});

test("pieces in any order, of any size, are put together; holes among them are zeroes", async (context) => {
  const { peer, client, ends } = await together(context, { size: 4 << 20 });
  for (let at = 0; at < peer.data.length; at += 4) peer.data.writeUInt32BE(at, at);
  peer.intercept = (request) => {
    if (request.kind !== "read") return false;
    const { connection, offset, length } = request;
    const starts: number[] = [];
    for (let at = 0; at < length; at += 1000) starts.push(at);
    for (const at of starts.sort((a, b) => ((a * 7919) % 1013) - ((b * 7919) % 1013))) {
      const end = Math.min(at + 1000, length);
      if (at % 3000 === 0) connection.holeChunk(request, 0, offset + at, end - at);
      else connection.dataChunk(request, 0, offset + at, peer.data.subarray(offset + at, offset + end));
    }
    connection.chunk(request, 1, 0, Buffer.alloc(0));
    return true;
  };
  const bytes = await client.read(0, 3 << 20);
  for (const slice of [0, 1, 2])
    for (let at = 0; at < 1 << 20; at += 1000) {
      const from = (slice << 20) + at;
      const length = Math.min(1000, (1 << 20) - at);
      const expected = at % 3000 === 0 ? Buffer.alloc(length) : peer.data.subarray(from, from + length);
      assert.ok(expected.equals(bytes.subarray(from, from + length)), `at ${from}`);
    }
  assert.deepEqual(ends(), []);
});

test("errors are told as statuses, with where they are, and the connection goes on", async (context) => {
  const { peer, client, ends } = await together(context);
  const errors: Record<number, string> = {
    1: "denied",
    5: "medium",
    12: "busy",
    22: "invalid",
    28: "full",
    95: "unsupported",
    4242: "invalid",
  };
  for (const [error, status] of Object.entries(errors)) {
    peer.intercept = (request) => {
      request.connection.error(request, Number(error), request.offset + 512);
      return true;
    };
    await assert.rejects(client.read(4096, 4096), { name: "DeviceError", status, operation: "read", offset: 4096 });
  }
  // An error after data, of an unknown kind, and with a message.
  peer.intercept = (request) => {
    request.connection.dataChunk(request, 0, request.offset, Buffer.alloc(2048));
    request.connection.chunk(request, 1, 0x8077, Buffer.concat([u32(5), u16(4), Buffer.from("ouch"), Buffer.alloc(9)]));
    return true;
  };
  await assert.rejects(client.read(4096, 4096), { status: "medium" });
  assert.deepEqual(ends(), []);
});
