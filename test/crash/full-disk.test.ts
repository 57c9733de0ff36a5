/** A disk that fills up: writers are told "no space", nothing that was acknowledged is harmed, deleting makes room again. */
import assert from "node:assert/strict";
import { existsSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { BLOCK_BYTES, Oracle } from "../support/oracle.ts";
import { run } from "../support/program.ts";
import { chance } from "../support/random.ts";
import { Server } from "../support/server.ts";
import { MIB, smallFileSystem } from "../support/temp.ts";
import { checkAll, load } from "./load.ts";

const DISK = 256 * MIB;
/** Twice what the disk can hold. */
const BLOCKS = (2 * DISK) / BLOCK_BYTES;

test("a disk that fills up in the middle of writes refuses them, and loses nothing", async (t) => {
  const random = chance((line) => t.diagnostic(line));
  const mount = await smallFileSystem(t, DISK);
  const server = await Server.start(t, { data: join(mount, "data") });
  await server.ashlar("volume", "create", "db", "--size", String(BLOCKS * BLOCK_BYTES));
  const db = new Oracle(3, BLOCKS);

  let full = 0;
  for (let round = 0; full === 0 && round < 40; round++)
    full = (await load(server.nbd, "db", db, random, { operations: 2000 })).full;
  assert.ok(full > 0, "the disk is full at some time");
  await load(server.nbd, "db", db, random, { operations: 500 });
  await checkAll(server.nbd, "db", db);

  const refused = await server.ashlarAny(["snapshot", "create", "db@full"]);
  assert.ok(
    refused.status === 0 || refused.status === 7,
    `a snapshot on a full disk: ${refused.status} ${refused.stderr}`,
  );
  if (refused.status === 0) await checkAll(server.nbd, "db@full", db.copy());
  const { space, problems } = await server.json("status");
  assert.notEqual(space.level, "ok");
  assert.ok(problems.length > 0, "the operator is told");

  await server.kill();
  await server.restart();
  await checkAll(server.nbd, "db", db);
  if (refused.status === 0) await server.ashlar("snapshot", "rm", "db@full");
});

test("a full disk takes writes again after a volume was deleted", async (t) => {
  const random = chance((line) => t.diagnostic(line));
  const mount = await smallFileSystem(t, DISK);
  const server = await Server.start(t, { data: join(mount, "data") });
  await server.ashlar("volume", "create", "keep", "--size", "32M");
  await server.ashlar("volume", "create", "big", "--size", String(BLOCKS * BLOCK_BYTES));
  const [keep, big] = [new Oracle(4, (32 * MIB) / BLOCK_BYTES), new Oracle(5, BLOCKS)];
  await load(server.nbd, "keep", keep, random, { operations: 500 });
  let full = 0;
  for (let round = 0; full === 0 && round < 40; round++)
    full = (await load(server.nbd, "big", big, random, { operations: 2000 })).full;
  assert.ok(full > 0);

  await server.ashlar("volume", "rm", "big", "--force");
  const after = await load(server.nbd, "keep", keep, random, { operations: 1000 });
  assert.equal(after.full, 0, "there is room again");
  await checkAll(server.nbd, "keep", keep);
});

test("overwriting a volume that fits goes on for ever on a small disk: the cleaner keeps up", async (t) => {
  const random = chance((line) => t.diagnostic(line));
  const mount = await smallFileSystem(t, DISK);
  const server = await Server.start(t, { data: join(mount, "data") });
  const blocks = (64 * MIB) / BLOCK_BYTES;
  await server.ashlar("volume", "create", "db", "--size", "64M");
  const db = new Oracle(6, blocks);
  for (let round = 0; round < 8; round++) {
    const { full } = await load(server.nbd, "db", db, random, { operations: 2500 });
    assert.equal(full, 0, `round ${round}: ${await run("df", ["-h", mount])}`);
  }
  await checkAll(server.nbd, "db", db);
});

test("space that somebody else takes is noticed, and writes go on when it is given back", async (t) => {
  const random = chance((line) => t.diagnostic(line));
  const mount = await smallFileSystem(t, DISK);
  const server = await Server.start(t, { data: join(mount, "data") });
  await server.ashlar("volume", "create", "db", "--size", "128M");
  const db = new Oracle(7, (128 * MIB) / BLOCK_BYTES);
  await load(server.nbd, "db", db, random, { operations: 500 });
  const thief = join(mount, "thief");
  for (let size = 128; size >= 1 && (await run("df", ["--output=avail", "-k", mount])); size = Math.floor(size / 2))
    try {
      writeFileSync(thief, Buffer.alloc(size * MIB, 1), { flag: "a" });
    } catch {
      // As much of it as there was room for.
    }
  assert.ok(existsSync(thief));
  let full = 0;
  for (let round = 0; full === 0 && round < 20; round++)
    full = (await load(server.nbd, "db", db, random, { operations: 1000 })).full;
  assert.ok(full > 0);
  await checkAll(server.nbd, "db", db);
  rmSync(thief);
  // What was refused once is not refused for ever: within a moment the same server takes writes again.
  let after = await load(server.nbd, "db", db, random, { operations: 300 });
  for (let attempt = 0; after.full > 0 && attempt < 20; attempt++)
    after = await load(server.nbd, "db", db, random, { operations: 300 });
  assert.equal(after.full, 0);
  await checkAll(server.nbd, "db", db);
});

test("a disk that fills up in the middle of snapshots and cleaning loses neither, and takes writes again without them", async (t) => {
  const random = chance((line) => t.diagnostic(line));
  const mount = await smallFileSystem(t, DISK);
  const server = await Server.start(t, { data: join(mount, "data") });
  await server.ashlar("volume", "create", "db", "--size", "64M");
  const db = new Oracle(8, (64 * MIB) / BLOCK_BYTES);
  /** What each snapshot must hold. Each keeps what was overwritten since, and so there is ever less for the cleaner. */
  const snapshots = new Map<string, Oracle>();
  let full = 0;
  for (let round = 0; full === 0 && round < 40; round++) {
    full = (await load(server.nbd, "db", db, random, { operations: 800 })).full;
    const name = `db@s${round}`;
    const { status, stderr } = await server.ashlarAny(["snapshot", "create", name]);
    assert.ok(status === 0 || status === 7, stderr);
    if (status === 0) snapshots.set(name, db.copy());
  }
  assert.ok(full > 0, "the disk is full at some time");
  assert.ok(snapshots.size > 0);
  const check = async () => {
    await checkAll(server.nbd, "db", db);
    for (const [name, oracle] of snapshots) await checkAll(server.nbd, name, oracle);
  };
  await check();
  await server.kill();
  await server.restart();
  await check();
  for (const name of [...snapshots.keys()]) {
    await server.ashlar("snapshot", "rm", name);
    snapshots.delete(name);
  }
  // What they kept is given back in the background.
  let after = await load(server.nbd, "db", db, random, { operations: 500 });
  for (let attempt = 0; after.full > 0 && attempt < 20; attempt++)
    after = await load(server.nbd, "db", db, random, { operations: 500 });
  assert.equal(after.full, 0, "there is room again");
  await check();
});
