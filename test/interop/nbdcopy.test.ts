/** libnbd's nbdcopy: images go in and come out unchanged over four connections, and holes stay holes. */
import assert from "node:assert/strict";
import { randomFillSync } from "node:crypto";
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { run } from "../support/program.ts";
import { Server } from "../support/server.ts";
import { MIB, tempFolder } from "../support/temp.ts";

/** 64 MiB with data, zeroes and a ragged pattern of both. */
function image(): Buffer {
  const bytes = Buffer.alloc(64 * MIB);
  randomFillSync(bytes, 3 * MIB, 20 * MIB);
  for (let at = 30 * MIB; at < 40 * MIB; at += 12288) randomFillSync(bytes, at, 4096);
  return bytes;
}

test("an image copied in over four connections is the same when it is copied out", async (t) => {
  const folder = tempFolder(t);
  const server = await Server.start(t, { tcp: true });
  await server.ashlar("volume", "create", "db", "--size", "64M");
  const [source, target] = [join(folder, "source"), join(folder, "target")];
  const bytes = image();
  writeFileSync(source, bytes);
  await run("nbdcopy", ["--connections=4", "--flush", source, server.uri("db")]);
  await server.kill();
  await server.restart();
  await run("nbdcopy", ["--connections=4", server.uri("db"), target]);
  assert.ok(readFileSync(target).equals(bytes));
});

test("requests of any size and number give the same image", async (t) => {
  const folder = tempFolder(t);
  const server = await Server.start(t);
  const source = join(folder, "source");
  const bytes = image();
  writeFileSync(source, bytes);
  for (const [index, options] of [
    ["--synchronous"],
    ["--requests=128", "--request-size=4096", "--connections=2"],
    ["--requests=4", "--request-size=33554432"],
    ["--no-extents", "--sparse=0", "--connections=4"],
  ].entries()) {
    const name = `db${index}`;
    await server.ashlar("volume", "create", name, "--size", "64M");
    await run("nbdcopy", [...options, source, server.uri(name)]);
    const target = join(folder, name);
    await run("nbdcopy", [...options, server.uri(name), target]);
    assert.ok(readFileSync(target).equals(bytes), options.join(" "));
  }
});

test("what was zero in the source takes no space in the volume", async (t) => {
  const folder = tempFolder(t);
  const server = await Server.start(t);
  await server.ashlar("volume", "create", "db", "--size", "64M");
  const source = join(folder, "source");
  writeFileSync(source, image());
  await run("nbdcopy", ["--connections=4", source, server.uri("db")]);
  const runs = JSON.parse(await run("nbdinfo", ["--map", "--json", server.uri("db")])) as {
    type: number;
    length: number;
  }[];
  const data = runs.filter(({ type }) => type === 0).reduce((sum, { length }) => sum + length, 0);
  assert.ok(data >= 20 * MIB + 3.3 * MIB && data <= 31 * MIB, `${data} bytes of data`);
});

test("a volume is copied to another one, from server to server", async (t) => {
  const folder = tempFolder(t);
  const [from, to] = [await Server.start(t), await Server.start(t, { tcp: true })];
  const bytes = image();
  const [source, target] = [join(folder, "source"), join(folder, "target")];
  writeFileSync(source, bytes);
  await from.ashlar("volume", "create", "db", "--size", "64M");
  await to.ashlar("volume", "create", "copy", "--size", "64M");
  await run("nbdcopy", [source, from.uri("db")]);
  await run("nbdcopy", ["--connections=4", "--flush", from.uri("db"), to.uri("copy")]);
  await run("nbdcopy", [to.uri("copy"), target]);
  assert.ok(readFileSync(target).equals(bytes));
});
