/** Bytes that change or go missing under a stopped server: found, named, bounded to what they hit; the rest is readable. */
import assert from "node:assert/strict";
import {
  closeSync,
  copyFileSync,
  fstatSync,
  mkdirSync,
  openSync,
  readdirSync,
  readSync,
  statSync,
  truncateSync,
  writeSync,
} from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { NbdError, TestClient } from "../support/nbd.ts";
import { BLOCK_BYTES, Oracle } from "../support/oracle.ts";
import { type Chance, chance } from "../support/random.ts";
import { Server } from "../support/server.ts";
import { MIB, type Scope, tempFolder } from "../support/temp.ts";
import { checkAll, load } from "./load.ts";

const SIZE = 96 * MIB;
const SEGMENT_BYTES = 32 * MIB;
const BLOCKS = SIZE / BLOCK_BYTES;
const EIO = 5;

/** A stopped server with a volume whose content is known; `files` are those of its version set. */
async function stopped(scope: Scope, random: Chance, overwrites = 1000) {
  const server = await Server.start(scope);
  await server.ashlar("volume", "create", "db", "--size", String(SIZE));
  const db = new Oracle(8, BLOCKS);
  const client = await TestClient.open(server.nbd, "db");
  for (let first = 0; first < BLOCKS; first += 64) {
    await client.write(first * BLOCK_BYTES, db.beginWrite(first, 64));
    db.acknowledge(first, 64);
  }
  await client.close();
  await load(server.nbd, "db", db, random, { operations: overwrites });
  await server.stop();
  const sets = join(server.data, "sets");
  const folder = join(sets, readdirSync(sets).filter((name) => /^[0-9a-f]{32}$/.test(name))[0]!);
  const files = (kind: string) =>
    readdirSync(folder)
      .filter((name) => name.startsWith(kind))
      .sort()
      .map((name) => join(folder, name));
  return { server, db, folder, files };
}

/** Inverts the bits of `count` bytes. */
function flip(path: string, at: number, count = 1): void {
  const file = openSync(path, "r+");
  const bytes = Buffer.alloc(count);
  readSync(file, bytes, 0, count, at);
  for (let index = 0; index < count; index++) bytes[index]! ^= 0xff;
  writeSync(file, bytes, 0, count, at);
  closeSync(file);
}

/** Reads block by block: how many answer with a medium error. Every other one must be right. */
async function countDamaged(server: Server, db: Oracle): Promise<number[]> {
  const client = await TestClient.open(server.nbd, "db");
  const damaged: number[] = [];
  const next = { block: 0 };
  const check = async () => {
    for (let block = next.block++; block < BLOCKS; block = next.block++) {
      try {
        const wrong = db.check(block, await client.read(block * BLOCK_BYTES, BLOCK_BYTES));
        assert.equal(wrong, undefined);
      } catch (error) {
        if (!(error instanceof NbdError)) throw error;
        assert.equal(error.code, EIO);
        damaged.push(block);
      }
    }
  };
  await Promise.all(Array.from({ length: 32 }, check));
  await client.close();
  return damaged;
}

test("a flipped byte in a data block costs that block, is named by scrub, and is healed by writing", async (t) => {
  const random = chance((line) => t.diagnostic(line));
  const { server, db, files } = await stopped(t, random);
  const segment = files("segment-")[0]!;
  // Somewhere in the middle of the first segment: it is full of data of the first, sequential writes.
  const at = 16 * MIB + random.below(MIB);
  flip(segment, at);
  await server.restart();

  const damaged = await countDamaged(server, db);
  assert.ok(damaged.length <= 1, `blocks ${damaged.join(", ")} are unreadable`);
  if (damaged.length === 1) {
    const scrubbed = await server.ashlarAny(["scrub", "--json"]);
    const { damage } = JSON.parse(scrubbed.stdout);
    assert.equal(scrubbed.status, 8, "scrub's exit status says that there is damage");
    assert.equal(damage.length, 1);
    assert.equal(damage[0].version, "db");
    assert.equal(damage[0].offset, damaged[0]! * BLOCK_BYTES);
    assert.equal(damage[0].length, BLOCK_BYTES);
    assert.match(server.log, /checksum/i);

    const client = await TestClient.open(server.nbd, "db");
    await client.write(damaged[0]! * BLOCK_BYTES, db.beginWrite(damaged[0]!, 1));
    db.acknowledge(damaged[0]!, 1);
    await client.close();
    await checkAll(server.nbd, "db", db);
    assert.deepEqual((await server.json("scrub")).damage, []);
  }
});

test("a long read over a damaged block fails, and the blocks around it are still to be had", async (t) => {
  const random = chance((line) => t.diagnostic(line));
  // Nothing is overwritten, so whatever lies there is part of the volume.
  const { server, db, files } = await stopped(t, random, 0);
  flip(files("segment-")[0]!, 8 * MIB, 3 * BLOCK_BYTES);
  await server.restart();
  const damaged = await countDamaged(server, db);
  assert.ok(damaged.length >= 1 && damaged.length <= 5, `blocks ${damaged.join(", ")}`);
  const client = await TestClient.open(server.nbd, "db");
  const first = Math.max(0, damaged[0]! - 8);
  await assert.rejects(client.read(first * BLOCK_BYTES, 16 * BLOCK_BYTES), (error) => (error as NbdError).code === EIO);
  await client.close();
});

test("damage anywhere in segments never gives wrong data, and never keeps the server down", async (t) => {
  const random = chance((line) => t.diagnostic(line));
  const { server, db, files } = await stopped(t, random);
  const segments = files("segment-");
  const flips = 12;
  for (let count = 0; count < flips; count++) {
    const path = random.pick(segments);
    flip(path, random.below(statSync(path).size));
  }
  await server.restart();
  const damaged = await countDamaged(server, db);
  assert.ok(damaged.length <= flips * 32, `${damaged.length} blocks are unreadable`);
});

test("a segment's header and summary are not needed to read what a checkpoint knows", async (t) => {
  const random = chance((line) => t.diagnostic(line));
  const { server, db, files } = await stopped(t, random);
  for (const path of files("segment-")) {
    flip(path, 8, 64);
    // Only a full segment has a summary; another one's file ends with its last group.
    if (statSync(path).size === SEGMENT_BYTES) flip(path, SEGMENT_BYTES - 4096, 4096);
  }
  await server.restart();
  await checkAll(server.nbd, "db", db);
});

test("a damaged checkpoint costs time and nothing else", async (t) => {
  const random = chance((line) => t.diagnostic(line));
  const { server, db, files } = await stopped(t, random);
  const newest = files("checkpoint-").at(-1)!;
  flip(newest, random.below(statSync(newest).size));
  await server.restart();
  await checkAll(server.nbd, "db", db);
  assert.match(server.log, /checkpoint/i, "and the log says so");
});

test("a checkpoint that was cut short costs time and nothing else", async (t) => {
  const random = chance((line) => t.diagnostic(line));
  const { server, db, files } = await stopped(t, random);
  const newest = files("checkpoint-").at(-1)!;
  truncateSync(newest, random.below(statSync(newest).size));
  await server.restart();
  await checkAll(server.nbd, "db", db);
});

test("without any readable checkpoint the set is refused in words, other volumes are served, and nothing is overwritten", async (t) => {
  const random = chance((line) => t.diagnostic(line));
  const { server, db, folder, files } = await stopped(t, random);
  await server.restart();
  await server.ashlar("volume", "create", "other", "--size", "8M");
  await server.stop();
  const copy = tempFolder(t);
  mkdirSync(join(copy, "set"));
  for (const name of readdirSync(folder)) copyFileSync(join(folder, name), join(copy, "set", name));
  for (const path of files("checkpoint-")) flip(path, 0, Math.min(statSync(path).size, 64));

  await server.restart();
  const client = await TestClient.open(server.nbd, "other");
  await client.write(0, Buffer.alloc(BLOCK_BYTES, 1));
  await client.close();
  const shown = (await server.json("volume", "ls")).find((each: { name: string }) => each.name === "db");
  if (shown === undefined || shown.state === "failed") {
    const { problems } = await server.json("status");
    assert.ok(problems.length > 0, "the operator is told");
  } else await checkAll(server.nbd, "db", db);
  await server.stop();

  for (const name of readdirSync(join(copy, "set"))) copyFileSync(join(copy, "set", name), join(folder, name));
  await server.restart();
  await checkAll(server.nbd, "db", db);
});

test("a segment that is missing costs what it held, and is named", async (t) => {
  const random = chance((line) => t.diagnostic(line));
  const { server, db, files } = await stopped(t, random);
  const segment = files("segment-")[0]!;
  truncateSync(segment, 0);
  await server.restart();
  const damaged = await countDamaged(server, db);
  assert.ok(
    damaged.length > 0 && damaged.length <= (32 * MIB) / BLOCK_BYTES,
    `${damaged.length} blocks are unreadable`,
  );
  assert.match(server.log, /segment-[0-9a-f]{12}/);
});

test("the end of the log torn after a kill: what was acknowledged before it is there", async (t) => {
  const random = chance((line) => t.diagnostic(line));
  const { server, db, files } = await stopped(t, random);
  await server.restart();
  const client = await TestClient.open(server.nbd, "db");
  await client.write(0, db.beginWrite(0, 4));
  db.acknowledge(0, 4);
  await client.flush();
  // In flight as far as the oracle knows: it may be torn, it may be whole.
  await client.write(64 * BLOCK_BYTES, db.beginWrite(64, 8));
  await server.kill();
  const last = files("segment-").at(-1)!;
  tearLastData(last);
  await server.restart();
  await checkAll(server.nbd, "db", db);
});

/** Zeroes the last 4 KiB of a file that are not zero, as a power cut leaves a block that never came to the disk. */
function tearLastData(path: string): void {
  const file = openSync(path, "r+");
  const block = Buffer.alloc(BLOCK_BYTES);
  for (let at = Math.floor(fstatSync(file).size / BLOCK_BYTES - 1) * BLOCK_BYTES; at >= 0; at -= BLOCK_BYTES) {
    readSync(file, block, 0, BLOCK_BYTES, at);
    if (block.some((byte) => byte !== 0)) {
      writeSync(file, Buffer.alloc(BLOCK_BYTES), 0, BLOCK_BYTES, at);
      break;
    }
  }
  closeSync(file);
}
