/** QEMU's qemu-img: volumes as source and target of raw and qcow2 images, compared and mapped. */
import assert from "node:assert/strict";
import { randomFillSync } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import test, { before } from "node:test";
import { run, runAny } from "../support/program.ts";
import { Server } from "../support/server.ts";
import { fileScope, MIB, tempFolder } from "../support/temp.ts";

const scope = fileScope();
let server: Server;
let folder: string;
let raw: string;

before(async () => {
  server = await Server.start(scope);
  folder = tempFolder(scope);
  raw = join(folder, "source.raw");
  const bytes = Buffer.alloc(64 * MIB);
  for (let at = 0; at < 64 * MIB; at += 5 * MIB) randomFillSync(bytes, at, MIB);
  writeFileSync(raw, bytes);
});

const compare = (a: string, aFormat: string, b: string, bFormat: string) =>
  runAny("qemu-img", ["compare", "-f", aFormat, "-F", bFormat, a, b]);

for (const format of ["raw", "qcow2"] as const) {
  test(`a ${format} image converts into a volume and back`, async () => {
    const name = `from-${format}`;
    const source = format === "raw" ? raw : join(folder, "source.qcow2");
    if (format === "qcow2") await run("qemu-img", ["convert", "-f", "raw", "-O", "qcow2", raw, source]);
    await server.ashlar("volume", "create", name, "--size", "64M");
    // -n: the volume is there already. -W with several coroutines: requests out of order.
    await run("qemu-img", ["convert", "-n", "-W", "-m", "8", "-f", format, "-O", "raw", source, server.uri(name)]);
    assert.equal((await compare(raw, "raw", server.uri(name), "raw")).status, 0);

    const back = join(folder, `back.${format}`);
    await run("qemu-img", ["convert", "-f", "raw", "-O", format, server.uri(name), back]);
    assert.equal((await compare(raw, "raw", back, format)).status, 0);
  });
}

test("a qcow2 image lives on a volume, grows in it, and is whole after kill -9", async () => {
  await server.ashlar("volume", "create", "inner", "--size", "128M");
  await run("qemu-img", ["create", "-q", "-f", "qcow2", server.uri("inner"), "64M"]);
  await run("qemu-img", ["convert", "-n", "-f", "raw", "-O", "qcow2", raw, server.uri("inner")]);
  await run("qemu-io", ["-f", "qcow2", "-c", "write -P 0x77 1M 3M", "-c", "flush", server.uri("inner")]);
  await server.kill();
  await server.restart();
  await run("qemu-img", ["check", "-f", "qcow2", server.uri("inner")]);
  await run("qemu-io", ["-f", "qcow2", "-c", "read -P 0x77 1M 3M", server.uri("inner")]);
});

test("a difference of one byte is found, and where it is", async () => {
  await server.ashlar("volume", "create", "other", "--size", "64M");
  await run("qemu-img", ["convert", "-n", "-f", "raw", "-O", "raw", raw, server.uri("other")]);
  await run("qemu-io", ["-f", "raw", "-c", `write -P 0xff ${20 * MIB + 4096} 512`, server.uri("other")]);
  const { status, stdout } = await compare(raw, "raw", server.uri("other"), "raw");
  assert.equal(status, 1);
  assert.match(stdout, new RegExp(`mismatch at offset ${20 * MIB + 4096}`));
});

test("the map shows data where the image has data", async () => {
  await server.ashlar("volume", "create", "mapped", "--size", "64M");
  await run("qemu-img", ["convert", "-n", "-f", "raw", "-O", "raw", raw, server.uri("mapped")]);
  const map = JSON.parse(await run("qemu-img", ["map", "-f", "raw", "--output=json", server.uri("mapped")]));
  const data = map.filter((each: { data: boolean }) => each.data);
  assert.deepEqual(
    data.map(({ start, length }: { start: number; length: number }) => [start / MIB, length / MIB]),
    Array.from({ length: 13 }, (_, index) => [index * 5, 1]),
  );
});

test("a snapshot stays as it was while its volume changes", async () => {
  await server.ashlar("volume", "create", "live", "--size", "64M");
  await run("qemu-img", ["convert", "-n", "-f", "raw", "-O", "raw", raw, server.uri("live")]);
  await server.ashlar("snapshot", "create", "live@before");
  await run("qemu-io", ["-f", "raw", "-c", "write -P 1 0 32M", "-c", "discard 40M 8M", server.uri("live")]);
  assert.equal((await compare(raw, "raw", server.uri("live@before"), "raw")).status, 0);
  await server.ashlar("clone", "live@before", "twin");
  assert.equal((await compare(raw, "raw", server.uri("twin"), "raw")).status, 0);
  await server.ashlar("rollback", "live@before");
  assert.equal((await compare(raw, "raw", server.uri("live"), "raw")).status, 0);
});

test("a guest's snapshot format on top: a backing file over NBD", async () => {
  await server.ashlar("volume", "create", "base", "--size", "64M");
  await run("qemu-img", ["convert", "-n", "-f", "raw", "-O", "raw", raw, server.uri("base")]);
  const overlay = join(folder, "overlay.qcow2");
  await run("qemu-img", ["create", "-q", "-f", "qcow2", "-F", "raw", "-b", server.uri("base"), overlay]);
  await run("qemu-io", ["-f", "qcow2", "-c", "write -P 9 2M 64k", "-c", "read -P 9 2M 64k", overlay]);
  await run("qemu-img", ["commit", "-q", "-f", "qcow2", overlay]);
  await run("qemu-io", ["-f", "raw", "-c", "read -P 9 2M 64k", server.uri("base")]);
});
