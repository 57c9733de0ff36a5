/**
 * Bad days of two attached units: a file system on a volume, and fio with verification on a partition of a block device,
 * while networks are cut, taken away and given back, and the server is killed, all at random. No error, no other data,
 * and no pause that does not end. Half a minute; `ASHLAR_SOAK_MINUTES=10` makes it ten, `ASHLAR_SEED` repeats one.
 */
import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";
import { existsSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { Program, run, runAny, sleep, until } from "../support/program.ts";
import { ASHLAR } from "../support/server.ts";
import { cleanUp, KIB, tempFolder } from "../support/temp.ts";
import { TwoNetworks } from "../support/two-networks.ts";

const MINUTES = Number(process.env["ASHLAR_SOAK_MINUTES"] ?? 0.5);
const SEED = Number(process.env["ASHLAR_SEED"] ?? (Date.now() % 2 ** 31) + 1);
/** A write and its fsync, over whatever happens to be gone meanwhile. */
const PAUSE_MS_MAX = 60_000;
const FILES = 200;

/** Numbers from 0 up to 1, from the seed (xorshift32). */
let state = SEED;
const chance = (): number => {
  state ^= state << 13;
  state ^= state >>> 17;
  state ^= state << 5;
  return (state >>> 0) / 2 ** 32;
};
const below = (limit: number): number => Math.floor(chance() * limit);

test("a file system and fio on attached units live through bad days", {
  timeout: (MINUTES + 5) * 60_000,
}, async (t) => {
  t.diagnostic(`ASHLAR_SEED=${SEED}`);
  const folder = tempFolder(t);
  const networks = new TwoNetworks({ after: (clean) => cleanUp(t, clean) });
  const data = join(folder, "data");
  const env = { ASHLAR_RUN: join(folder, "run") };
  const ashlar = (...args: string[]) => run(process.execPath, [ASHLAR, "--data", data, ...args], { env });
  const addresses = [1, 2].map((network) => networks.serverAddress(network));
  const serve = (): Program => {
    const scp = addresses.map((address) => `${address}:10001`).join(",");
    const command = [process.execPath, ASHLAR, "serve", "--data", data, "--nbd", "off", "--scp", scp];
    const [program, ...args] = networks.inside(networks.server, ...command);
    return new Program(program, args, { env });
  };
  let server = serve();
  cleanUp(t, async () => void (await server.stop("SIGKILL")));
  await ashlar("status", "--wait", "30");

  // A volume, and a partition of a drive that is a block device.
  const image = join(folder, "drive");
  await run("truncate", ["-s", "96M", image]);
  const drive = (await run("losetup", ["--find", "--show", image])).trim();
  cleanUp(t, async () => void (await runAny("losetup", ["-d", drive])));
  await ashlar("drive", "add", "disk0", drive);
  await ashlar("partition", "create", "logs", "--size", "64M", "--drive", "disk0", "--zero");
  await ashlar("volume", "create", "db", "--size", "128M");
  await ashlar("host", "add", "web");
  const secret = join(folder, "secret");
  writeFileSync(secret, await ashlar("host", "secret", "web"));
  await ashlar("grant", "db", "web", "--unit", "0");
  await ashlar("grant", "logs", "web", "--unit", "1");
  const attach = async (...more: string[]): Promise<{ id: string; device?: string }> => {
    const command = [process.execPath, ASHLAR, "attach", addresses.join(","), "--host", "web", "--secret-file", secret];
    const [program, ...args] = networks.inside(networks.host, ...command, ...more, "--give-up", "0", "--json");
    return JSON.parse(await run(program, args, { env }));
  };
  const socket = join(folder, "logs.sock");
  const loop = await attach("--unit", "0", "--loop");
  cleanUp(t, async () => void (await ashlar("detach", "--all").catch(() => {})));
  await attach("--unit", "1", "--socket", socket);

  const mount = tempFolder(t);
  await run("mkfs.ext4", ["-q", "-F", loop.device!]);
  await run("mount", [loop.device!, mount]);
  cleanUp(t, async () => void (await runAny("umount", ["-l", mount])));

  const end = Date.now() + MINUTES * 60_000;
  const sums = new Map<string, string>();
  let longestMs = 0;
  const files = (async () => {
    for (let i = 0; Date.now() < end; i++) {
      const path = join(mount, String(i % FILES));
      const content = randomBytes(4 * KIB + below(200 * KIB));
      const began = performance.now();
      await run("dd", ["status=none", `of=${path}`, "conv=fsync"], {
        input: content,
        limitMs: PAUSE_MS_MAX,
      });
      longestMs = Math.max(longestMs, performance.now() - began);
      sums.set(path, createHash("sha256").update(content).digest("hex"));
    }
  })();
  const fio = run(
    "fio",
    [
      ...["--name=logs", "--ioengine=nbd", `--uri=nbd+unix:///?socket=${socket}`, "--rw=randwrite", "--bs=4k"],
      ...["--iodepth=16", "--size=60m", "--rate_iops=1500", "--time_based", `--runtime=${Math.ceil(MINUTES * 60)}`],
      ...["--verify=crc32c", "--verify_backlog=512", "--verify_fatal=1", "--verify_state_save=0", "--randrepeat=0"],
    ],
    { limitMs: (MINUTES + 3) * 60_000, cwd: folder },
  );

  const happened: Record<string, number> = {};
  const attachments = [loop.id];
  while (Date.now() < end) {
    const network = 1 + below(2);
    const [name, act] = (
      [
        [
          "cut",
          async () => {
            networks.cut(network);
            await sleep(200 + below(1500));
            networks.heal(network);
          },
        ],
        [
          "down",
          async () => {
            networks.down(network);
            await sleep(200 + below(1500));
            networks.up(network);
          },
        ],
        [
          "both cut",
          async () => {
            networks.cut(1);
            networks.cut(2);
            await sleep(below(800));
            networks.heal(1);
            networks.heal(2);
          },
        ],
        [
          "killed",
          async () => {
            await server.stop("SIGKILL");
            await sleep(below(800));
            server = serve();
            await ashlar("status", "--wait", "30");
          },
        ],
        [
          "network removed",
          async () => {
            const address = networks.serverAddress(network);
            await ashlar("network", "rm", address, attachments[0]!);
            await sleep(below(500));
            await ashlar("network", "add", address, attachments[0]!);
          },
        ],
      ] as const
    )[below(5)]!;
    happened[name] = (happened[name] ?? 0) + 1;
    await act();
    await sleep(below(1000));
  }
  await files;
  assert.match(await fio, /err= 0/);

  await run("umount", [mount]);
  await run("e2fsck", ["-f", "-n", loop.device!]);
  await run("mount", [loop.device!, mount]);
  for (const [path, sum] of sums)
    assert.equal(createHash("sha256").update(readFileSync(path)).digest("hex"), sum, path);
  await run("umount", [mount]);
  t.diagnostic(`${sums.size} files, longest write and fsync ${longestMs.toFixed(0)} ms; ${JSON.stringify(happened)}`);
  assert.ok(sums.size > 0 && Object.keys(happened).length > 1);
  await ashlar("detach", "--all");
  await until("the socket gone", () => !existsSync(socket));
});
