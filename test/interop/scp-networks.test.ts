/** The whole product over two real networks: attach, fio with verification, networks cut one at a time and both. */
import assert from "node:assert/strict";
import { spawn } from "node:child_process";
import { closeSync, existsSync, openSync, readFileSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { describe, it } from "node:test";
import { connect } from "../../src/index.ts";
import { run } from "../support/program.ts";
import { cleanUp, tempFolder } from "../support/temp.ts";
import { TwoNetworks } from "../support/two-networks.ts";

const ASHLAR = resolve("bin/ashlar");
const pause = (ms: number): Promise<void> => new Promise((done) => setTimeout(done, ms));

describe("a host on two networks", () => {
  it("goes on while one is cut, waits while both are, and fio finds every block as it was written", {
    timeout: 150_000,
  }, async (t) => {
    const networks = new TwoNetworks(t);
    const folder = tempFolder(t);
    const data = join(folder, "data");
    const environment = { ...process.env, ASHLAR_RUN: join(folder, "run") };
    const children: ReturnType<typeof spawn>[] = [];
    // What the programs beside the test say: shown when the test does not come to its end, with how far it came.
    const log = join(folder, "log");
    const logged = openSync(log, "a");
    let stage = "the server starts";
    cleanUp(t, () => {
      for (const child of children) child.kill("SIGKILL");
      closeSync(logged);
      if (stage !== "done") console.error(`ended while ${stage}\n${readFileSync(log, "utf8").slice(-8000)}`);
    });
    const start = (command: readonly string[]): ReturnType<typeof spawn> => {
      const child = spawn(command[0]!, command.slice(1), { env: environment, stdio: ["ignore", logged, logged] });
      children.push(child);
      return child;
    };
    const serve = () => {
      const where = `${networks.serverAddress(1)}:10001,${networks.serverAddress(2)}:10001`;
      return start(
        networks.inside(
          networks.server,
          process.execPath,
          ASHLAR,
          "serve",
          "--data",
          data,
          "--nbd",
          "off",
          "--scp",
          where,
        ),
      );
    };
    const ashlar = (...args: string[]): Promise<string> =>
      run(process.execPath, [ASHLAR, "--data", data, ...args], { env: environment });
    let server = serve();
    await ashlar("status", "--wait", "20");
    await ashlar("volume", "create", "db", "--size", "64M");
    await ashlar("host", "add", "web");
    const secret = join(folder, "secret");
    writeFileSync(secret, await ashlar("host", "secret", "web"));
    await ashlar("grant", "db", "web");
    stage = "servers are looked for by broadcast";
    // By broadcast, from the host's namespace: the server answers from both networks.
    const [program, ...args] = networks.inside(
      networks.host,
      process.execPath,
      ASHLAR,
      "discover",
      "--json",
      "--seconds",
      "4",
    );
    const found = JSON.parse(await run(program, args)) as { host: string; id: string }[];
    assert.deepEqual(
      found.map(({ host }) => host),
      [networks.serverAddress(1), networks.serverAddress(2)],
    );
    assert.equal(new Set(found.map(({ id }) => id)).size, 1);
    stage = "the unit is attached";
    const socket = join(folder, "unit.sock");
    const servers = `${networks.serverAddress(1)},${networks.serverAddress(2)}`;
    start(
      networks.inside(
        networks.host,
        process.execPath,
        ASHLAR,
        "attach",
        servers,
        "--host",
        "web",
        "--secret-file",
        secret,
        "--socket",
        socket,
        "--foreground",
      ),
    );
    for (let waited = 0; !existsSync(socket); waited += 20) {
      assert(waited < 20_000, "the socket does not appear");
      await pause(20);
    }
    const uri = `nbd+unix:///?socket=${socket}`;

    stage = "writes go on while one network is cut";
    // Every write is timed while one network goes and comes back.
    const device = await connect(uri);
    const took: number[] = [];
    let stop = false;
    const load = (async () => {
      for (let i = 0; !stop; i++) {
        const began = performance.now();
        await device.write((i % 1024) * 4096, new Uint8Array(4096).fill(i));
        took.push(performance.now() - began);
      }
    })();
    for (const network of [1, 2, 1, 2]) {
      await pause(700);
      stage = `writes go on (${took.length} did) while network ${network} is cut`;
      networks.cut(network);
      await pause(1200);
      networks.heal(network);
    }
    await pause(500);
    stop = true;
    await load;
    took.sort((a, b) => a - b);
    const worst = took.at(-1)!;
    t.diagnostic(
      `${took.length} writes, median ${took[took.length >> 1]!.toFixed(2)} ms, longest ${worst.toFixed(0)} ms`,
    );
    // How short a stall is, is measured in bench/scp; here it only must not be one that a person notices as a hang.
    assert(worst < 2_500, `a stall of ${worst} ms while one network was there`);

    stage = "fio writes";
    // Both at once, and the server killed: a pause, and no error.
    const fio = run(
      "fio",
      [
        "--name=x",
        // In this process, so that nothing is left of it when its time is over.
        "--thread",
        "--ioengine=nbd",
        `--uri=${uri}`,
        "--rw=randwrite",
        "--bs=4k",
        "--iodepth=16",
        "--size=48m",
        "--rate_iops=1500",
        "--verify=crc32c",
        "--verify_state_save=0",
        "--do_verify=1",
      ],
      { limitMs: 100_000, cwd: folder },
    );
    await pause(1500);
    networks.down(1);
    await pause(800);
    networks.cut(2);
    await pause(800);
    networks.up(1);
    await pause(800);
    networks.heal(2);
    server.kill("SIGKILL");
    await pause(300);
    server = serve();
    await pause(1500);
    server.kill("SIGKILL");
    server = serve();
    stage = "fio comes to its end on a server that was killed twice";
    const ended = await fio;
    assert.match(ended, /err= 0/);
    stage = "the device is closed";
    await device.close();
    stage = "the unit is detached";
    const paths = JSON.parse(await ashlar("paths", "--json")) as {
      paths: { state: string; networks: { network: string }[] };
    }[];
    assert.equal(paths[0]!.paths.state, "up");
    assert.deepEqual(new Set(paths[0]!.paths.networks.map(({ network }) => network)).size, 2);
    await ashlar("detach");
    assert(!existsSync(socket));
    stage = "done";
  });
});
