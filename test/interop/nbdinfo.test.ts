/** libnbd's nbdinfo: what a volume and a snapshot say of themselves, and where they have data. */
import assert from "node:assert/strict";
import test, { before } from "node:test";
import { TestClient } from "../support/nbd.ts";
import { run, runAny } from "../support/program.ts";
import { Server } from "../support/server.ts";
import { fileScope, MIB } from "../support/temp.ts";

const scope = fileScope();
let server: Server;

before(async () => {
  server = await Server.start(scope);
  await server.ashlar("volume", "create", "db", "--size", "64M");
  await server.ashlar("volume", "create", "old", "--size", "1G", "--block-size", "512");
  const client = await TestClient.open(server.nbd, "db");
  await client.write(MIB, Buffer.alloc(MIB, 0x5a));
  await client.write(8 * MIB, Buffer.alloc(MIB, 0x5b));
  await client.zero(8 * MIB, MIB / 2);
  await client.close();
  await server.ashlar("snapshot", "create", "db@monday");
});

/** nbdinfo's answers to --can and --is: status 0 is yes, 2 is no. */
async function asks(name: string, option: "--can" | "--is", what: string): Promise<boolean> {
  const { status, stderr } = await runAny("nbdinfo", [option, ...what.split(" "), server.uri(name)]);
  assert.ok(status === 0 || status === 2, `nbdinfo ${option} ${what}: ${status} ${stderr}`);
  return status === 0;
}

test("a volume can all that nbdinfo knows to ask for", async () => {
  const abilities = "connect read write flush fua trim zero fast-zero cache df multi-conn structured-reply".split(" ");
  for (const ability of abilities) assert.equal(await asks("db", "--can", ability), true, ability);
  assert.equal(await asks("db", "--is", "read-only"), false);
  assert.equal(await asks("db", "--is", "rotational"), false);
  assert.equal(await asks("db", "--is", "tls"), false);
});

test("a snapshot can be read by many, and not written", async () => {
  for (const ability of ["read", "df", "cache", "multi-conn", "structured-reply"])
    assert.equal(await asks("db@monday", "--can", ability), true, ability);
  for (const ability of ["write", "trim", "zero", "fast-zero"])
    assert.equal(await asks("db@monday", "--can", ability), false, ability);
  assert.equal(await asks("db@monday", "--is", "read-only"), true);
});

test("size, block sizes and contexts are told", async () => {
  assert.equal((await run("nbdinfo", ["--size", server.uri("old")])).trim(), String(1024 * MIB));
  const { exports, structured } = JSON.parse(await run("nbdinfo", ["--json", server.uri("db")]));
  assert.equal(structured, true);
  assert.equal(exports.length, 1);
  const told = exports[0];
  assert.equal(told["export-name"], "db");
  assert.equal(told["export-size"], 64 * MIB);
  assert.deepEqual(told.contexts.sort(), ["base:allocation", "qemu:allocation-depth"]);
  assert.ok(told.block_size_minimum <= 4096 && told.block_size_minimum >= 1, `minimum ${told.block_size_minimum}`);
  assert.equal(told.block_size_preferred % 4096, 0);
  assert.equal(told.block_size_maximum, 32 * MIB);
  const old = JSON.parse(await run("nbdinfo", ["--json", server.uri("old")])).exports[0];
  assert.ok(old.block_size_minimum <= 512, `minimum ${old.block_size_minimum}`);
});

test("the list names every volume and snapshot, each with its facts", async () => {
  const { exports } = JSON.parse(await run("nbdinfo", ["--list", "--json", server.uri("")]));
  const found = new Map<string, { "export-size": number; is_read_only: boolean }>();
  for (const each of exports) found.set(each["export-name"], each);
  assert.deepEqual([...found.keys()].sort(), ["db", "db@monday", "old"]);
  assert.equal(found.get("db@monday")!.is_read_only, true);
  assert.equal(found.get("old")!["export-size"], 1024 * MIB);
});

test("the map shows data, zeroes and holes where they are", async () => {
  const runs = JSON.parse(await run("nbdinfo", ["--map", "--json", server.uri("db")]));
  const data = runs.filter((each: { type: number }) => (each.type & 2) === 0);
  assert.deepEqual(
    data.map(({ offset, length }: { offset: number; length: number }) => [offset, length]),
    [
      [MIB, MIB],
      [8.5 * MIB, MIB / 2],
    ],
  );
  let end = 0;
  for (const each of runs) {
    assert.equal(each.offset, end, "runs follow each other without gaps");
    end += each.length;
  }
  assert.equal(end, 64 * MIB);
});

test("the allocation depth says which version holds a block", async () => {
  const client = await TestClient.open(server.nbd, "db");
  await client.write(2 * MIB, Buffer.alloc(MIB, 0x5c));
  await client.close();
  const runs = JSON.parse(await run("nbdinfo", ["--map=qemu:allocation-depth", "--json", server.uri("db")]));
  const depthAt = (offset: number) =>
    runs.find((each: { offset: number; length: number }) => each.offset <= offset && offset < each.offset + each.length)
      .type;
  assert.equal(depthAt(2 * MIB), 1, "written since the snapshot");
  assert.equal(depthAt(MIB), 2, "inherited from the snapshot");
  assert.equal(depthAt(32 * MIB), 0, "never written");
  const totals = await run("nbdinfo", ["--map", "--totals", server.uri("db")]);
  assert.match(totals, /^\s*2621440\s+3\.9%\s+0 data$/m);
});

test("an export that does not exist is refused by name", async () => {
  const { status, stderr } = await runAny("nbdinfo", [server.uri("nobody")]);
  assert.equal(status, 1);
  assert.match(stderr, /nobody|No such|export/i);
});
