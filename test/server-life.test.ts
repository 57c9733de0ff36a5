/** Good days and bad days of a server process: start, second start, kill -9, drain, a lane that dies, a bad directory. */
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { chmodSync, existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from "node:fs";
import { connect, createServer } from "node:net";
import { join } from "node:path";
import { suite, test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { NbdError, TestClient } from "./support/nbd.ts";
import { Program, run, runAny, until } from "./support/program.ts";
import { chance } from "./support/random.ts";
import { ASHLAR, Server } from "./support/server.ts";
import { cleanUp, MIB, smallFileSystem, tempFolder } from "./support/temp.ts";

const serve = (data: string, ...args: string[]) =>
  runAny(process.execPath, [ASHLAR, "serve", "--data", data, "--nbd", "off", ...args], { limitMs: 60_000 });

/** Locks a file, ends its first thread, and lives on in another one for so many milliseconds. */
const DYING = `
  const [file, ms] = process.argv.slice(1);
  const { openSync, writeSync } = require("node:fs");
  const libc = require("koffi").load("libc.so.6");
  const lock = openSync(file, "r+");
  if (libc.func("int flock(int, int)")(lock, 2 | 4) !== 0) throw new Error("it is locked");
  writeSync(lock, process.pid + "\\n", 0);
  new (require("node:worker_threads").Worker)(\`
    const exit = require("koffi").load("libc.so.6").func("void _exit(int)");
    require("node:worker_threads").parentPort.postMessage("ready");
    Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0, \${ms});
    exit(0);
  \`, { eval: true }).once("message", () => {
    const SYS_exit = process.arch === "arm64" ? 93 : 60;
    libc.func("long syscall(long, long)")(SYS_exit, 0);
  });
`;

suite("a data directory", () => {
  test("is made whole, and for its owner only", async (t) => {
    const server = await Server.start(t);
    assert.equal(statSync(server.data).mode & 0o777, 0o700);
    for (const name of ["ashlar.sock", "nbd.sock"])
      assert.equal(statSync(join(server.data, name)).mode & 0o077, 0, `${name} is for its owner`);
    const { format, product } = JSON.parse(readFileSync(join(server.data, "ashlar.json"), "utf8"));
    assert.deepEqual([format, product], [1, "ashlar"]);
  });

  test("is held by one server: a second one is refused with the pid of the first", async (t) => {
    const server = await Server.start(t);
    const { status, stderr } = await serve(server.data);
    assert.equal(status, 10, stderr);
    assert.match(stderr, new RegExp(`pid ${server.pid}\\b`));
    assert.equal((await server.json("status")).state, "ready");
  });

  test("is free again after kill -9, with everything that was answered", async (t) => {
    const server = await Server.start(t);
    await server.ashlar("volume", "create", "db", "--size", "64M");
    await server.ashlar("snapshot", "create", "db@a");
    await server.kill();
    assert.ok(existsSync(join(server.data, "ashlar.sock")), "the socket of the dead server is still there");
    await server.restart();
    assert.deepEqual(
      (await server.json("volume", "ls")).map(({ name }: { name: string }) => name),
      ["db"],
    );
    assert.equal((await server.json("snapshot", "ls")).length, 1);
  });

  test("is waited for while a killed server that has it is not yet gone", async (t) => {
    const server = await Server.start(t);
    await server.stop();
    const lock = join(server.data, "lock");
    // Its first thread is over, and another one not yet: what a slow sync does to a process that was killed.
    const dying = new Program(process.execPath, ["-e", DYING, lock, "1500"]);
    cleanUp(t, async () => void (await dying.stop("SIGKILL")));
    await until("the dying process has the lock", () =>
      /State:\tZ/.test(readFileSync(`/proc/${dying.pid}/status`, "utf8")),
    );
    await server.restart();
    assert.match(server.log, /Waiting for the server that was killed/);
    assert.match(server.log, new RegExp(`\\b${dying.pid}\\b`));
  });

  test("whose lock names a process of somebody else is free", async (t) => {
    const server = await Server.start(t);
    await server.stop();
    writeFileSync(join(server.data, "lock"), `${process.pid}\n`);
    await server.restart();
    await server.stop();
  });

  test("of a newer format is left alone", async (t) => {
    const data = tempFolder(t);
    const marker = JSON.stringify({ product: "ashlar", format: 99, uuid: "0".repeat(32), created: "" });
    writeFileSync(join(data, "ashlar.json"), marker);
    const { status, stderr } = await serve(data);
    assert.equal(status, 9, stderr);
    assert.match(stderr, /format 99/);
    assert.equal(readFileSync(join(data, "ashlar.json"), "utf8"), marker);
  });

  test("that is somebody else's, damaged, a file, or without permission is refused in words", async (t) => {
    const folder = tempFolder(t);
    const make = (name: string, fill: (path: string) => void): string => {
      const path = join(folder, name);
      mkdirSync(path);
      fill(path);
      return path;
    };
    const foreign = make("foreign", (path) => writeFileSync(join(path, "thesis.tex"), "mine"));
    const damaged = make("damaged", (path) => writeFileSync(join(path, "ashlar.json"), "{"));
    const other = make("other", (path) => writeFileSync(join(path, "ashlar.json"), '{"name":"x"}'));
    writeFileSync(join(folder, "file"), "");
    const cases: [string, number, RegExp][] = [
      [foreign, 6, /not a data directory of Ashlar.*thesis\.tex/],
      [damaged, 8, /is damaged/],
      [other, 6, /not of Ashlar/],
      [join(folder, "file"), 2, /is not a directory/],
      ["/proc/nothing/here", 3, /cannot be made/],
    ];
    for (const [path, exit, words] of cases) {
      const { status, stderr } = await serve(path);
      assert.match(stderr, words);
      assert.equal(status, exit, stderr);
    }
    assert.equal(readFileSync(join(foreign, "thesis.tex"), "utf8"), "mine");
    assert.deepEqual((await run("ls", ["-A", foreign])).trim(), "thesis.tex");
  });

  test("on a read-only file system is refused in words", async (t) => {
    const mount = await smallFileSystem(t, 32 * 1024 * 1024);
    const data = join(mount, "data");
    mkdirSync(data);
    await run("mount", ["-o", "remount,ro", mount]);
    const { status, stderr } = await serve(data);
    assert.match(stderr, /read-only file system/);
    assert.equal(status, 12, stderr);
  });

  test("with a long path works as any other", async (t) => {
    const data = join(tempFolder(t), "d".repeat(60), "e".repeat(60));
    mkdirSync(data, { recursive: true });
    const server = await Server.start(t, { data });
    await server.ashlar("volume", "create", "db", "--size", "16M");
    const image = join(tempFolder(t), "image");
    writeFileSync(image, randomBytes(4096));
    await server.ashlar("volume", "import", "img", image);
  });

  test("with a damaged set serves the others, and says which one is out of order", async (t) => {
    const server = await Server.start(t);
    await server.ashlar("volume", "create", "good", "--size", "16M");
    const { set } = await server.json("volume", "create", "bad", "--size", "16M");
    await server.stop();
    const path = join(server.data, "sets", set);
    for (const name of (await run("ls", [path])).split("\n").filter((one) => one.startsWith("checkpoint")))
      writeFileSync(join(path, name), "nonsense");
    await server.restart();
    const { problems, state } = await server.json("status");
    assert.equal(state, "ready");
    assert.equal(problems.length, 1);
    assert.match(problems[0].message, new RegExp(set));
    assert.equal((await server.json("volume", "show", "good")).state, "online");
    assert.equal((await server.ashlarAny(["doctor"])).status, 1);
  });
});

suite("a server process", () => {
  test("drains on SIGTERM: what a client has sent is answered, and nothing is replayed at the next start", async (t) => {
    const server = await Server.start(t);
    await server.ashlar("volume", "create", "db", "--size", "256M");
    const image = join(tempFolder(t), "image");
    writeFileSync(image, randomBytes(8 * 1024 * 1024));
    await run("nbdcopy", [image, server.uri("db")]);
    await server.stop();
    assert.match(server.log, /Draining/);
    assert.equal(readFileSync(join(server.data, "lock"), "utf8"), "");
    await server.restart();
    await run("sh", ["-c", `nbdcopy '${server.uri("db")}' - | cmp -n 8388608 - ${image}`]);
  });

  test("ends at once on a second signal", async (t) => {
    const server = await Server.start(t, { tcp: true });
    await server.ashlar("volume", "create", "db", "--size", "16M");
    // A client that has opened a connection and says nothing keeps a drain waiting at most until its limit.
    const idle = connect({ host: "127.0.0.1", port: server.nbd as number });
    idle.on("error", () => {});
    t.after(() => void idle.destroy());
    process.kill(server.pid, "SIGTERM");
    await sleep(700);
    if (server.isRunning) process.kill(server.pid, "SIGTERM");
    for (let i = 0; i < 200 && server.isRunning; i++) await sleep(20);
    assert.ok(!server.isRunning);
  });

  test("replaces a lane that dies: its volumes come back, and its hosts connect again", async (t) => {
    const server = await Server.start(t, { args: ["--lanes", process.env["ASHLAR_ENV"] === "node" ? "1" : "2"] });
    const image = join(tempFolder(t), "image");
    writeFileSync(image, randomBytes(4 * 1024 * 1024));
    for (const name of ["a", "b"]) await server.ashlar("volume", "import", name, image);
    const { lanes } = await server.json("status");
    for (const { index } of lanes) {
      await server.ashlar("lane", "restart", String(index));
      for (let i = 0; ; i++) {
        const status = await server.json("status");
        const back = status.lanes[index].restarts === 1 && status.problems.length === 0;
        if (back && status.lanes[index].state === "running") break;
        assert.ok(i < 100, JSON.stringify(status.problems));
        await sleep(50);
      }
    }
    assert.match(server.log, /A lane died/);
    for (const name of ["a", "b"]) {
      assert.equal((await server.json("volume", "show", name)).state, "online");
      await run("sh", ["-c", `nbdcopy '${server.uri(name)}' - | cmp - ${image}`]);
    }
    assert.equal((await server.ashlarAny(["lane", "restart", "99"])).status, 3);
  });

  test("refuses addresses beyond this machine without proof of who a host is", async (t) => {
    const data = join(tempFolder(t), "data");
    const at = (address: string, ...more: string[]) =>
      runAny(process.execPath, [ASHLAR, "serve", "--data", data, "--nbd", address, ...more]);
    const { status, stderr } = await at("0.0.0.0:0");
    assert.equal(status, 6, stderr);
    assert.match(stderr, /anyone who can reach it/);
    assert.match(stderr, /--trust-the-network/);
    assert.equal((await at("127.0.0.1:port")).status, 2);
    assert.equal((await at("127.0.0.1:99999")).status, 2);
    assert.equal((await at("off", "--http", "0.0.0.0:0")).status, 6);
    assert.equal((await at("127.0.0.1:0", "--tls-require")).status, 2);
    assert.ok(!existsSync(data), "nothing was made");
    const open = new Program(process.execPath, [
      ASHLAR,
      "serve",
      "--data",
      data,
      "--nbd",
      "0.0.0.0:0",
      "--trust-the-network",
    ]);
    cleanUp(t, async () => void (await open.stop("SIGKILL")));
    await open.until("ready", () => open.output.includes("Ready"));
  });

  test("says which address is taken", async (t) => {
    const holder = createServer();
    await new Promise<void>((resolve) => holder.listen(0, "127.0.0.1", resolve));
    cleanUp(t, () => void holder.close());
    const { port } = holder.address() as { port: number };
    const { status, stderr } = await runAny(process.execPath, [
      ASHLAR,
      "serve",
      "--data",
      join(tempFolder(t), "data"),
      "--nbd",
      `127.0.0.1:${port}`,
    ]);
    assert.equal(status, 5, stderr);
    assert.match(stderr, new RegExp(`127\\.0\\.0\\.1:${port}`));
  });

  test("reads ashlar.toml strictly, and flags go before it", async (t) => {
    const folder = tempFolder(t);
    const file = join(folder, "ashlar.toml");
    writeFileSync(file, `nbd = "unix:${join(folder, "file.sock")}"\nmemory = "64M"\nsoft-percent = 70\n`);
    const server = await Server.start(t, { args: ["--config", file, "--memory", "48M"] });
    const settings = await server.json("settings");
    assert.equal(settings.memory, 48 * 1024 * 1024);
    assert.equal(settings.softPercent, 70);
    writeFileSync(file, 'memory = "64M"\nmemroy = "1G"\n');
    const { status, stderr } = await serve(join(folder, "none"), "--config", file);
    assert.equal(status, 2);
    assert.match(stderr, /memroy/);
  });

  test("keeps blocks that were read in as much memory as --cache says", async (t) => {
    const folder = tempFolder(t);
    const file = join(folder, "ashlar.toml");
    writeFileSync(file, 'cache = "64M"\nlanes = 1\n');
    const cacheOf = async (server: Server) => (await server.json("status")).lanes[0].cache;
    const server = await Server.start(t, { args: ["--config", file] });
    await server.ashlar("volume", "create", "db", "--size", "8M");
    const io = (...commands: string[]) =>
      run("qemu-io", ["-f", "raw", ...commands.flatMap((one) => ["-c", one]), server.uri("db")]);
    await io("write -P 7 0 64k", "flush");
    // Not from the second time on for sure: memory is provided in the background.
    await until("a block is read from memory", async () => {
      await io("read -P 7 4k 4k");
      return (await cacheOf(server)).hits > 0;
    });
    const { size, used, misses } = await cacheOf(server);
    assert.ok(size > 60 * 1024 * 1024 && size <= 64 * 1024 * 1024, String(size));
    assert.ok(misses > 0 && used > 0 && used <= size);
    await io("write -P 8 4k 4k");
    await io("read -P 8 4k 4k");

    const none = await Server.start(t, { args: ["--config", file, "--cache", "0"] });
    assert.equal((await cacheOf(none)).size, 0);
    const { status, stderr } = await serve(join(folder, "none"), "--lanes", "1", "--cache", "100G");
    assert.equal(status, 2, stderr);
    assert.match(stderr, /give --cache \d+M or less/);
  });

  test("keeps secrets that others can read out", async (t) => {
    const folder = tempFolder(t);
    const psk = join(folder, "keys");
    writeFileSync(psk, `host:${"ab".repeat(16)}\n`);
    chmodSync(psk, 0o644);
    const { status, stderr } = await serve(join(folder, "data"), "--tls-psk", psk);
    assert.equal(status, 6, stderr);
    assert.match(stderr, /chmod 600/);
  });

  test("stops writes when its capacity is used up, says so beforehand, and goes on when there is room", async (t) => {
    const CAPACITY = 320 * MIB;
    const server = await Server.start(t, { args: ["--capacity", String(CAPACITY), "--soft-percent", "50"] });
    await server.ashlar("volume", "create", "db", "--size", "1G");
    const client = await TestClient.open(server.nbd, "db");
    const status = () => server.json("status");
    const write = (at: number) => client.write(at, randomBytes(MIB));
    const told = () =>
      status().then(({ space, problems }) => {
        return space.level !== "ok" && problems.some(({ code }: { code: string }) => code === "space");
      });
    let written = 0;
    for (; written < CAPACITY / 2; written += MIB) await write(written);
    await until("a warning, while writes are still taken", told);
    await write(written);
    assert.match(await server.ashlar("metrics"), /^ashlar_space_level [12]$/m);
    // As fast as it goes, up to the end.
    await assert.rejects(async () => {
      for (; written < 2 * CAPACITY; written += MIB) await write(written);
    }, NbdError);
    const taken = Number((await run("du", ["-sB1", server.data])).split("\t")[0]);
    assert.ok(taken <= CAPACITY, `${taken - CAPACITY} bytes more than its capacity were taken`);
    await until("told of it", async () => (await status()).space.level === "hard");
    const refused = await server.ashlarAny(["volume", "create", "more", "--size", "1G"]);
    assert.equal(refused.status, 7, refused.stderr);
    // What is in the way of new data goes: trims are taken, and then writes are.
    for (let at = 0; at < written; at += 16 * MIB) await client.trim(at, 16 * MIB);
    await until("room", async () => (await status()).space.level !== "hard");
    await until("a write", () =>
      write(0).then(
        () => true,
        () => false,
      ),
    );
    await client.close();
  });

  test("keeps a volume that fits into its capacity going, however often it is overwritten", async (t) => {
    const server = await Server.start(t, { args: ["--capacity", "384M"] });
    await server.ashlar("volume", "create", "db", "--size", "128M");
    const client = await TestClient.open(server.nbd, "db");
    const random = chance((line) => t.diagnostic(line));
    const piece = Buffer.alloc(64 * 1024, 7);
    const write = async () => {
      // Four times over, at random: no write may be refused, for what is dead can be had back.
      for (let count = 0; count < (4 * 128 * 16) / 8; count++)
        await client.write(random.below(128 * 16) * piece.length, piece);
    };
    await Promise.all(Array.from({ length: 8 }, write));
    assert.ok(Number((await run("du", ["-sB1", server.data])).split("\t")[0]) <= 384 * MIB, "no more was taken");
    await client.close();
  });
});
