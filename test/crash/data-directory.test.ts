/** A data directory that is not as it should be: refused in words, with an exit status, and left as it is. */
import assert from "node:assert/strict";
import { readdirSync, readFileSync, renameSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { TestClient } from "../support/nbd.ts";
import { type Ended, run, runAny } from "../support/program.ts";
import { ASHLAR, Server } from "../support/server.ts";
import { MIB, smallFileSystem, tempFolder } from "../support/temp.ts";

/** Exit statuses of `docs/cli.md`. */
const NOT_ALLOWED = 6;
const TOO_NEW = 9;
const LOCKED = 10;

const serve = (data: string): Promise<Ended> =>
  runAny(process.execPath, [ASHLAR, "serve", "--data", data, "--nbd", "off", "--http", "off"], { limitMs: 20_000 });

test("a second server on one directory is refused with the pid of the first", async (t) => {
  const server = await Server.start(t);
  const second = await serve(server.data);
  assert.equal(second.status, LOCKED, second.stderr);
  assert.match(second.stderr, new RegExp(`\\b${server.pid}\\b`));
  await server.ashlar("volume", "create", "db", "--size", "1M");
});

test("after kill -9 the directory is free again", async (t) => {
  const server = await Server.start(t);
  await server.kill();
  await server.restart();
  await server.ashlar("status");
});

test("a directory of somebody else is refused, and left as it is", async (t) => {
  const folder = tempFolder(t);
  writeFileSync(join(folder, "thesis.txt"), "years of work");
  const ended = await serve(folder);
  assert.equal(ended.status, NOT_ALLOWED, ended.stderr);
  assert.match(ended.stderr, /thesis\.txt/);
  assert.deepEqual(readdirSync(folder), ["thesis.txt"]);
});

test("a directory of a newer format is refused, and left as it is", async (t) => {
  const server = await Server.start(t);
  await server.stop();
  const marker = join(server.data, "ashlar.json");
  const written = JSON.parse(readFileSync(marker, "utf8"));
  writeFileSync(marker, JSON.stringify({ ...written, format: written.format + 1 }));
  const ended = await serve(server.data);
  assert.equal(ended.status, TOO_NEW, ended.stderr);
  assert.match(ended.stderr, new RegExp(`format ${written.format + 1}`));
});

test("a file where the directory should be is refused", async (t) => {
  const file = join(tempFolder(t), "data");
  writeFileSync(file, "");
  const ended = await serve(file);
  assert.notEqual(ended.status, 0);
  assert.match(ended.stderr, /not a directory/i);
  assert.doesNotMatch(ended.stderr, /^ +at /m, "no stack, but words");
});

test("a read-only file system is refused in words", async (t) => {
  const mount = await smallFileSystem(t, 64 * MIB);
  const data = join(mount, "data");
  const server = await Server.start(t, { data });
  await server.ashlar("volume", "create", "db", "--size", "1M");
  await server.stop();
  await run("mount", ["-o", "remount,ro", mount]);
  const ended = await serve(data);
  assert.notEqual(ended.status, 0);
  assert.match(ended.stderr, /read-only/i);
  await run("mount", ["-o", "remount,rw", mount]);
  await server.restart();
  assert.equal((await server.json("volume", "ls")).length, 1);
});

test("a directory that goes away under a running server: writes fail, the process answers, and the data is safe", async (t) => {
  const server = await Server.start(t);
  await server.ashlar("volume", "create", "db", "--size", "256M");
  const client = await TestClient.open(server.nbd, "db");
  await client.write(0, Buffer.alloc(MIB, 7));
  await client.flush();
  renameSync(server.data, `${server.data}.gone`);
  // Open segments go on; what needs a new file fails. Whatever happens, it is an answer and not a crash.
  for (let at = MIB; at < 128 * MIB; at += MIB) await client.write(at, Buffer.alloc(MIB, 8)).catch(() => {});
  assert.ok((await client.read(0, MIB)).every((byte) => byte === 7));
  assert.ok(server.isRunning, server.log);
  await client.close();
  await server.kill();
  renameSync(`${server.data}.gone`, server.data);
  await server.restart();
  const again = await TestClient.open(server.nbd, "db");
  assert.ok((await again.read(0, MIB)).every((byte) => byte === 7));
  await again.close();
});

test("a directory that cannot be made is refused in words", async (t) => {
  const file = join(tempFolder(t), "file");
  writeFileSync(file, "");
  const ended = await serve(join(file, "data"));
  assert.notEqual(ended.status, 0);
  assert.match(ended.stderr, /cannot be made/);
  assert.doesNotMatch(ended.stderr, /^ +at /m, "no stack, but words");
});
