/** The command line, as operators and other people's scripts use it, against a real server. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { randomBytes } from "node:crypto";
import { once } from "node:events";
import { readFileSync, statSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { suite, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { call } from "./support/admin.ts";
import { TestClient } from "./support/nbd.ts";
import { run, runAny, until } from "./support/program.ts";
import { ASHLAR, Server } from "./support/server.ts";
import { MIB, tempFolder } from "./support/temp.ts";

suite("the command line", async () => {
  test("volumes are made, listed, shown, grown, renamed and deleted", async (t) => {
    const server = await Server.start(t);
    const made = await server.json("volume", "create", "db", "--size", "10G");
    assert.equal(made.size, 10 * 1024 ** 3);
    assert.equal(made.blockSize, 512);
    assert.match(made.uuid, /^[0-9a-f]{32}$/);
    await server.ashlar("volume", "create", "boot", "--size", "64MiB", "--block-size", "4096");
    const listed = await server.json("volume", "ls");
    assert.deepEqual(
      listed.map(({ name, size, blockSize }: Record<string, unknown>) => ({ name, size, blockSize })),
      [
        { name: "boot", size: 64 * 1024 ** 2, blockSize: 4096 },
        { name: "db", size: 10 * 1024 ** 3, blockSize: 512 },
      ],
    );
    assert.match(await server.ashlar("volume", "ls"), /^NAME +SIZE .*\nboot +64 MiB .* online\ndb +10 GiB .* online/);
    assert.equal((await server.json("volume", "resize", "db", "--size", "+1G")).size, 11 * 1024 ** 3);
    assert.equal((await server.json("volume", "resize", "db", "--size", "12G")).size, 12 * 1024 ** 3);
    await server.ashlar("volume", "rename", "db", "data");
    assert.equal((await server.json("volume", "show", "data")).uuid, made.uuid);
    assert.match(await server.ashlar("volume", "show", "data"), /uri +nbd\+unix:/);
    await server.ashlar("volume", "rm", "data");
    assert.equal((await server.ashlarAny(["volume", "show", "data"])).status, 3);
    assert.equal((await server.json("volume", "ls")).length, 1);
  });

  test("snapshots, clones and rollbacks keep what they promise", async (t) => {
    const server = await Server.start(t);
    const folder = tempFolder(t);
    const images = ["one", "two"].map((name) => {
      const path = join(folder, name);
      writeFileSync(path, randomBytes(256 * 1024));
      return path;
    });
    const content = async (name: string) => {
      const path = join(folder, `out-${name.replace("@", "-")}`);
      await server.ashlar("volume", "export", name, path, "--overwrite");
      return readFileSync(path);
    };
    const [one, two] = images.map((path) => readFileSync(path));
    await server.ashlar("volume", "import", "db", images[0]!);
    assert.equal((await server.json("snapshot", "create", "db@monday")).volume, "db");
    await server.ashlar("volume", "import", "db", images[1]!, "--overwrite");
    await server.ashlar("clone", "db@monday", "copy");
    assert.deepEqual(await content("db"), two);
    assert.deepEqual(await content("db@monday"), one);
    assert.deepEqual(await content("copy"), one);
    const [snapshot] = await server.json("snapshot", "ls", "db");
    assert.deepEqual(snapshot.clones, ["copy"]);
    assert.match(await server.ashlar("snapshot", "ls"), /db@monday/);
    const refused = await server.ashlarAny(["volume", "rm", "db"]);
    assert.equal(refused.status, 5, refused.stderr);
    assert.match(refused.stderr, /db@monday/);
    await server.ashlar("rollback", "db@monday");
    assert.deepEqual(await content("db"), one);
    await server.ashlar("snapshot", "rm", "db@monday");
    assert.deepEqual(await content("copy"), one);
    await server.ashlar("volume", "rm", "db");
    assert.deepEqual(await content("copy"), one);
  });

  test("what a host uses keeps its name, its content and itself; a host that is leaving holds nothing up", async (t) => {
    const server = await Server.start(t);
    await server.ashlar("volume", "create", "db", "--size", "64M");
    await server.ashlar("snapshot", "create", "db@a");
    const staying = await TestClient.open(server.nbd, "db");
    for (const [what, ...args] of [
      ["rename", "volume", "rename", "db", "other"],
      ["roll back", "rollback", "db@a"],
    ]) {
      const { status, stderr } = await server.ashlarAny(args);
      assert.equal(status, 5, stderr);
      assert.match(stderr, new RegExp(`Cannot ${what} "db": a host is using it`));
    }
    // By the API: when the host leaves, the server has been asked.
    const renamed = call(server.data, "PATCH", "/v1/volumes/db", { name: "other" });
    await sleep(300);
    staying.close();
    await renamed;
    await server.ashlar("rollback", "other@a");
  });

  test("space is told per volume and snapshot", async (t) => {
    const server = await Server.start(t);
    const path = join(tempFolder(t), "image");
    writeFileSync(path, randomBytes(1024 * 1024));
    await server.ashlar("volume", "import", "db", path);
    await server.ashlar("snapshot", "create", "db@a");
    await server.ashlar("clone", "db@a", "copy");
    const space = async (name: string) => (await server.json("volume", "show", name)).space;
    const before = await space("copy");
    assert.equal(before.provisioned, 1024 * 1024);
    assert.equal(before.mapped, 1024 * 1024);
    assert.equal(before.exclusive, 0);
    assert.equal(before.shared, 1024 * 1024);
  });

  test("the accounts of space agree with each other, and with du", async (t) => {
    const server = await Server.start(t);
    await server.ashlar("volume", "create", "db", "--size", "512M");
    const client = await TestClient.open(server.nbd, "db");
    const fill = async (from: number, to: number) => {
      for (let at = from; at < to; at += 4) await client.write(at * MIB, randomBytes(4 * MIB));
    };
    // Maps are counted again when that takes little of the lane's time: a figure may be some moments old.
    const counts = (name: string, mapped: number, exclusive: number) =>
      until(`${name} counted: ${mapped} MiB, ${exclusive} of them exclusive`, async () => {
        const volumes = await server.json(...(name.includes("@") ? ["snapshot", "ls"] : ["volume", "ls"]));
        const { space } = volumes.find((each: { name: string }) => each.name === name);
        const isSum = space.exclusive + space.shared === space.mapped;
        return isSum && space.mapped === mapped * MIB && space.exclusive === exclusive * MIB;
      });
    const set = async () => {
      const families = (await server.json("metrics")) as { name: string; samples: { value: number }[] }[];
      const of = (part: string) => families.find(({ name }) => name === `ashlar_set_${part}_bytes`)!.samples[0]!.value;
      const du = Number((await run("du", ["-sB1", join(server.data, "sets")])).split("\t")[0]);
      return { disk: of("disk"), live: of("live"), spare: of("spare"), du };
    };
    await fill(0, 96);
    await server.ashlar("snapshot", "create", "db@a");
    await fill(0, 32);
    await counts("db", 96, 32);
    await counts("db@a", 96, 32);
    assert.equal((await set()).live, 128 * MIB, "what is shared counts once");
    await server.ashlar("snapshot", "rm", "db@a");
    await client.trim(64 * MIB, 32 * MIB);
    await client.flush();
    await counts("db", 64, 64);
    // At rest, dead data is at most a fifth of the live one or three segments, beside one that is being written; and
    // the files of the set are what is counted, but for the directories themselves.
    const bound = 64 * MIB + (3 + 1) * 32 * MIB + MIB;
    await until(
      "clean, and counted as du does",
      async () => {
        const { disk, live, spare, du } = await set();
        return live === 64 * MIB && disk - spare <= bound && Math.abs(du - disk) <= 64 * 1024;
      },
      60_000,
    );
    await client.close();
  });

  test("an import makes the volume, is sparse, and does not overwrite unasked", async (t) => {
    const server = await Server.start(t);
    const folder = tempFolder(t);
    const image = join(folder, "image");
    const data = randomBytes(64 * 1024);
    await run("truncate", ["-s", "100M", image]);
    const holed = readFileSync(image);
    data.copy(holed, 50 * 1024 * 1024);
    writeFileSync(image, holed);
    await run("fallocate", ["--dig-holes", image]);
    await server.ashlar("volume", "import", "img", image);
    const { size, space } = await server.json("volume", "show", "img");
    assert.equal(size, 100 * 1024 * 1024);
    assert.equal(space.mapped, 64 * 1024);
    const again = await server.ashlarAny(["volume", "import", "img", image]);
    assert.equal(again.status, 4);
    assert.match(again.stderr, /--overwrite/);
    const out = join(folder, "out");
    await server.ashlar("volume", "export", "img", out, "--verify");
    await run("cmp", [image, out]);
    assert.ok(statSync(out).blocks * 512 < 1024 * 1024, "the export is sparse");
    assert.equal((await server.ashlarAny(["volume", "export", "img", out])).status, 4);
    const piped = await runAny("sh", ["-c", `${ASHLAR} --data ${server.data} volume export img - | cmp - ${image}`]);
    assert.equal(piped.status, 0, piped.stderr);
  });

  test("an import that is killed leaves no half of a volume, and --resume goes on with it", async (t) => {
    const server = await Server.start(t);
    const image = join(tempFolder(t), "image");
    const bytes = randomBytes(8 * 1024 * 1024);
    writeFileSync(image, bytes);
    const args = [ASHLAR, "--data", server.data, "volume", "import", "img", "-", "--size", "8M"];
    const importing = spawn(process.execPath, args, { stdio: ["pipe", "ignore", "ignore"] });
    t.after(() => importing.kill("SIGKILL"));
    // It is given half of the image, and then no more.
    importing.stdin.write(bytes.subarray(0, bytes.length / 2));
    const mapped = async () =>
      JSON.parse((await server.ashlarAny(["volume", "show", "img.importing", "--json"])).stdout || "{}").space
        ?.mapped ?? 0;
    await until("a part of it", async () => (await mapped()) >= 1024 * 1024);
    assert.equal((await server.ashlarAny(["volume", "show", "img"])).status, 3, "it has its name at the end");
    importing.kill("SIGKILL");
    await once(importing, "exit");
    const again = await server.ashlarAny(["volume", "import", "img", image]);
    assert.equal(again.status, 4);
    assert.match(again.stderr, /--resume/);
    await server.ashlar("volume", "import", "img", image, "--resume", "--verify");
    const names = (await server.json("volume", "ls")).map((each: { name: string }) => each.name);
    assert.deepEqual(names, ["img"]);
  });

  test("what is wrong is refused with a word, a sentence, a hint and an exit status", async (t) => {
    const server = await Server.start(t);
    await server.ashlar("volume", "create", "db", "--size", "1G");
    const refusals: [status: number, code: string, args: string[]][] = [
      [3, "not-found", ["volume", "show", "nothing"]],
      [3, "not-found", ["snapshot", "create", "nothing@a"]],
      [3, "not-found", ["snapshot", "ls", "nothing"]],
      [3, "not-found", ["clone", "db@nothing", "x"]],
      [3, "not-found", ["rollback", "db@nothing"]],
      [4, "exists", ["volume", "create", "db", "--size", "1G"]],
      [2, "bad-request", ["volume", "create", "a/b", "--size", "1G"]],
      [2, "bad-request", ["volume", "create", "x", "--size", "tiny"]],
      [2, "bad-request", ["volume", "create", "x", "--size", "1000"]],
      [2, "bad-request", ["volume", "create", "x", "--size", "1G", "--block-size", "1024"]],
      [2, "bad-request", ["volume", "resize", "db", "--size", "1M"]],
      [2, "bad-request", ["snapshot", "create", "db"]],
      [2, "bad-request", ["snapshot", "create", "db@a@b"]],
    ];
    for (const [status, code, args] of refusals) {
      const plain = await server.ashlarAny(args);
      assert.equal(plain.status, status, `${args.join(" ")}: ${plain.stderr}`);
      assert.match(plain.stderr, new RegExp(`^ashlar: .*\\(${code}\\)`), args.join(" "));
      const { error } = JSON.parse((await server.ashlarAny([...args, "--json"])).stdout);
      assert.equal(error.code, code);
    }
    assert.equal((await server.json("volume", "ls")).length, 1);
  });

  test("status, doctor, top, scrub, metrics, settings and connections answer", async (t) => {
    const server = await Server.start(t);
    await server.ashlar("volume", "create", "db", "--size", "64M");
    const status = await server.json("status");
    assert.equal(status.state, "ready");
    assert.equal(status.pid, server.pid);
    assert.equal(status.data, server.data);
    assert.equal(status.volumes, 1);
    assert.match(await server.ashlar("status"), /ready since/);
    const { checks } = await server.json("doctor");
    assert.ok(checks.some(({ name }: { name: string }) => name === "env"));
    assert.match(await server.ashlar("doctor"), /ok +data/);
    assert.deepEqual((await server.json("top", "--interval", "0.1", "--count", "1")).volumes, []);
    const job = await server.json("scrub", "db");
    assert.deepEqual([job.state, job.damage], ["done", []]);
    assert.match(await server.ashlar("scrub"), /no damage found/);
    assert.equal((await server.ashlarAny(["scrub", "nothing"])).status, 3);
    assert.match(await server.ashlar("metrics"), /^ashlar_up 1$/m);
    const families = (await server.json("metrics")) as { name: string; type: string; samples: object[] }[];
    const provisioned = families.find(({ name }) => name === "ashlar_volume_provisioned_bytes");
    assert.equal(provisioned?.type, "gauge");
    const sample = { name: "ashlar_volume_provisioned_bytes", labels: { volume: "db" }, value: 64 * 1024 * 1024 };
    assert.deepEqual(provisioned.samples, [sample]);
    assert.equal((await server.json("settings")).drainSeconds, 30);
    assert.deepEqual(await server.json("connections"), []);
  });

  test("without a server every command says how to start one, and doctor looks at the machine", async (t) => {
    const data = join(tempFolder(t), "none");
    for (const args of [["status"], ["volume", "ls"], ["status", "--wait", "0.1"]]) {
      const { status, stderr } = await runAny(process.execPath, [ASHLAR, "--data", data, ...args]);
      assert.equal(status, 11, stderr);
      assert.match(stderr, /ashlar serve --data/);
    }
    const { stdout } = await runAny(process.execPath, [ASHLAR, "--data", data, "doctor", "--json"]);
    assert.ok(JSON.parse(stdout).checks.some(({ name }: { name: string }) => name === "node"));
  });

  test("a command that is not there is refused with what there is", async () => {
    const { status, stderr } = await runAny(process.execPath, [ASHLAR, "volum", "ls"]);
    assert.equal(status, 2);
    assert.match(stderr, /Did you mean volume/);
    for (const args of [["volum", "ls"], ["volume"], ["volume", "create", "x"], ["status", "--nonsense"]]) {
      const refused = await runAny(process.execPath, [ASHLAR, ...args, "--json"]);
      assert.equal(refused.status, 2);
      assert.equal(JSON.parse(refused.stdout).error.code, "bad-request", args.join(" "));
    }
    assert.equal((await runAny(process.execPath, [ASHLAR, "--help"])).status, 0);
    assert.match((await runAny(process.execPath, [ASHLAR, "--version"])).stdout, /^\d+\.\d+\.\d+/);
  });
});
