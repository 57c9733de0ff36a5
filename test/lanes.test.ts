/** Volumes on several lanes, and connections that cannot be given away: under TLS, a lane reaches what another one has. */
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { call } from "./support/admin.ts";
import { run, runAny, until } from "./support/program.ts";
import { Server } from "./support/server.ts";
import { tempFolder } from "./support/temp.ts";

const isNode = process.env["ASHLAR_ENV"] === "node";

test("volumes of every lane are reached by plain connections and under TLS", async (t) => {
  const folder = tempFolder(t);
  const keys = join(folder, "keys.psk");
  const image = join(folder, "image");
  writeFileSync(keys, `web:${randomBytes(32).toString("hex")}\n`, { mode: 0o600 });
  writeFileSync(image, randomBytes(3 * 1024 * 1024));
  const server = await Server.start(t, { tcp: true, args: ["--tls-psk", keys, "--lanes", isNode ? "1" : "2"] });
  const lanes = new Set<number>();
  for (const name of ["a", "b", "c"]) {
    lanes.add((await server.json("volume", "create", name, "--size", "8M")).lane);
    const secure = `nbds://web@127.0.0.1:${server.nbd}/${name}?tls-psk-file=${keys}`;
    await run("nbdcopy", ["--flush", image, secure]);
    await run("sh", ["-c", `nbdcopy '${secure}' - | cmp -n 3145728 - ${image}`]);
    await run("sh", ["-c", `nbdcopy 'nbd://127.0.0.1:${server.nbd}/${name}' - | cmp -n 3145728 - ${image}`]);
    const listed = await run("nbdinfo", [
      "--list",
      "--json",
      `nbds://web@127.0.0.1:${server.nbd}/?tls-psk-file=${keys}`,
    ]);
    assert.ok(JSON.parse(listed).exports.some((one: { "export-name": string }) => one["export-name"] === name));
    await server.ashlar("volume", "resize", name, "--size", "16M");
    assert.equal((await run("nbdinfo", ["--size", secure])).trim(), String(16 << 20));
    assert.equal((await run("nbdinfo", ["--size", `nbd://127.0.0.1:${server.nbd}/${name}`])).trim(), String(16 << 20));
  }
  assert.equal(lanes.size, isNode ? 1 : 2);
  await server.ashlar("volume", "rm", "b", "--force");
  const gone = await runAny("nbdinfo", ["--size", `nbd://127.0.0.1:${server.nbd}/b`]);
  assert.notEqual(gone.status, 0);
  const wrong = join(folder, "wrong.psk");
  writeFileSync(wrong, `web:${randomBytes(32).toString("hex")}\n`, { mode: 0o600 });
  const refused = await runAny("nbdinfo", [`nbds://web@127.0.0.1:${server.nbd}/a?tls-psk-file=${wrong}`]);
  assert.notEqual(refused.status, 0);
});

test("lanes that begin after the server is ready serve what is asked of them meanwhile", async (t) => {
  const server = await Server.start(t, { args: ["--lanes", "3"] });
  const again = async () => {
    await server.kill();
    await server.restart();
  };
  const onLane = async (name: string) => {
    const { lane } = await call<{ lane: number }>(server.data, "GET", `/v1/volumes/${name}`);
    assert.equal((await run("nbdinfo", ["--size", server.uri(name)])).trim(), String(8 << 20));
    return lane;
  };
  await again();
  const lanes = new Set<number>();
  for (const name of ["a", "b", "c"]) {
    await call(server.data, "POST", "/v1/volumes", { name, size: 8 << 20 });
    lanes.add(await onLane(name));
  }
  assert.deepEqual([...lanes].sort(), [0, 1, 2]);
  // As many lanes as there are volumes are there at once, the third one later.
  await call(server.data, "DELETE", "/v1/volumes/c");
  await again();
  const { lanes: now } = await call<{ lanes: { state: string; sets: number }[] }>(server.data, "GET", "/v1/status");
  assert.deepEqual(
    now.map(({ state, sets }) => [state, sets]),
    [
      ["running", 1],
      ["running", 1],
      ["running", 0],
    ],
  );
  await call(server.data, "POST", "/v1/volumes", { name: "c", size: 8 << 20 });
  assert.equal(await onLane("c"), 2);
});

test("a lane that died too often gets no new volumes", async (t) => {
  const server = await Server.start(t, { args: ["--lanes", "2"] });
  const kill = async (): Promise<boolean> => {
    await call(server.data, "POST", "/v1/lanes/1/restart", { force: true });
    return server.log.includes("too often to be replaced");
  };
  await until("lane 1 stays down", kill, 60_000);
  for (const name of ["a", "b"]) {
    const { lane } = await call<{ lane: number }>(server.data, "POST", "/v1/volumes", { name, size: 8 << 20 });
    assert.equal(lane, 0);
  }
});

test("the control plane answers while the lanes are busy", async (t) => {
  const server = await Server.start(t);
  for (const name of ["a", "b"]) await server.ashlar("volume", "create", name, "--size", "64M");
  const busy = ["a", "b"].map((name) =>
    runAny("fio", [
      "--name=load",
      "--ioengine=nbd",
      `--uri=${server.uri(name)}`,
      "--rw=randrw",
      "--bs=4k",
      "--iodepth=32",
      "--size=64M",
      "--time_based",
      "--runtime=3",
    ]),
  );
  await server.ashlar("snapshot", "create", "a@under-load");
  await server.ashlar("clone", "a@under-load", "c");
  await server.ashlar("volume", "ls");
  for (const { status, stderr } of await Promise.all(busy)) assert.equal(status, 0, stderr);
  const { volumes } = await server.json("top", "--count", "1", "--interval", "0.2");
  assert.ok(volumes.some(({ volume }: { volume: string }) => volume === "a"));
  assert.match(
    await server.ashlar("metrics"),
    /ashlar_operation_duration_seconds_count\{volume="b",front="nbd",op="read"\} [1-9]/,
  );
});
