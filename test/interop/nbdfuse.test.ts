/** A volume as a file (nbdfuse), as a loop device, under ext4: what was synced is there after kill -9, and fsck agrees. */
import assert from "node:assert/strict";
import { closeSync, fdatasyncSync, mkdirSync, openSync, readFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import test from "node:test";
import { Program, run, runAny, sleep } from "../support/program.ts";
import { Server } from "../support/server.ts";
import { cleanUp, KIB, type Scope, tempFolder } from "../support/temp.ts";

const KILLS = 3;

/** A mounted volume; `detach` takes it down whatever state it is in. */
async function attach(scope: Scope, server: Server, format: boolean) {
  const folder = tempFolder(scope);
  const [fuse, mount] = [join(folder, "fuse"), join(folder, "mount")];
  for (const each of [fuse, mount]) mkdirSync(each);
  const disk = join(fuse, "nbd");
  const nbdfuse = new Program("nbdfuse", [disk, server.uri("db")]);
  await nbdfuse.until("a file", async () => (await runAny("test", ["-f", disk])).status === 0);
  // Through the loop device: fsck writes single bytes to a file, which is none of an NBD client's business.
  const loop = (await run("losetup", ["--find", "--show", disk])).trim();
  if (format) await run("mkfs.ext4", ["-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", loop]);
  const checked = await runAny("e2fsck", ["-f", "-p", loop]);
  assert.ok(
    checked.status === 0 || checked.status === 1,
    `e2fsck: ${checked.status}\n${checked.stdout}${checked.stderr}`,
  );
  const again = await run("e2fsck", ["-f", "-n", loop]);
  assert.doesNotMatch(again, /WARNING|error/i);
  await run("mount", [loop, mount]);
  const detach = async () => {
    await runAny("umount", ["-l", mount]);
    await runAny("losetup", ["-d", loop]);
    await runAny("fusermount3", ["-u", "-z", fuse]);
    await nbdfuse.stop("SIGTERM").catch(() => {});
  };
  cleanUp(scope, detach);
  return { mount, detach };
}

const content = (round: number, index: number) =>
  Buffer.alloc(4 * KIB + ((index * 7919) % (60 * KIB)), `round ${round}, file ${index}. `);

test("files that were synced to an ext4 on a volume survive kill -9 of the server", async (t) => {
  const server = await Server.start(t);
  await server.ashlar("volume", "create", "db", "--size", "256M");
  const synced: { round: number; index: number }[] = [];

  for (let round = 0; round <= KILLS; round++) {
    const { mount, detach } = await attach(t, server, round === 0);
    for (const { round: when, index } of synced)
      assert.ok(readFileSync(join(mount, `${when}-${index}`)).equals(content(when, index)), `file ${when}-${index}`);
    if (round === KILLS) {
      await detach();
      break;
    }
    const killed = sleep(300 + 200 * round).then(() => server.kill());
    try {
      for (let index = 0; server.isRunning; index++) {
        const file = openSync(join(mount, `${round}-${index}`), "w");
        try {
          writeSync(file, content(round, index));
          fdatasyncSync(file);
          synced.push({ round, index });
        } finally {
          closeSync(file);
        }
        await new Promise(setImmediate);
      }
    } catch {
      // The server is gone, and so is the file system: what is not in `synced` may be there or not.
    }
    await killed;
    await detach();
    await server.restart();
  }
  assert.ok(synced.length >= KILLS, `${synced.length} files were synced`);
});
