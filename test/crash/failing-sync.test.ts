/**
 * fdatasync that fails: the volume stops accepting writes and says so, and never pretends. The failing disk is real for
 * the server: an ext4 on a loop device on nbdfuse on nbdkit, whose error filter refuses writes while a file exists.
 */
import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "node:test";
import { NbdError, TestClient } from "../support/nbd.ts";
import { Program, run, runAny } from "../support/program.ts";
import { Server } from "../support/server.ts";
import { cleanUp, MIB, type Scope } from "../support/temp.ts";

/** A mounted ext4 whose disk fails all writes while `trigger` exists. */
async function failingFileSystem(scope: Scope): Promise<{ mount: string; trigger: string }> {
  const folder = mkdtempSync(join(tmpdir(), "ashlar-failing-"));
  const [fuse, mount, trigger, socket] = ["fuse", "mount", "trigger", "disk.sock"].map((name) =>
    join(folder, name),
  ) as [string, string, string, string];
  for (const each of [fuse, mount]) mkdirSync(each);
  const nbdkit = new Program("nbdkit", [
    ...["-f", "-U", socket, "--filter=error", "memory", "512M"],
    ...["error=EIO", "error-pwrite-rate=100%", `error-file=${trigger}`],
  ]);
  const isThere = (flag: string, path: string) => async () => (await runAny("test", [flag, path])).status === 0;
  await nbdkit.until("listening", isThere("-S", socket));
  const disk = join(fuse, "nbd");
  const nbdfuse = new Program("nbdfuse", [disk, `nbd+unix:///?socket=${socket}`]);
  await nbdfuse.until("a file", isThere("-f", disk));
  await run("mkfs.ext4", ["-q", "-F", "-O", "^has_journal", "-E", "lazy_itable_init=0", disk]);
  const loop = (await run("losetup", ["--find", "--show", disk])).trim();
  await run("mount", ["-o", "errors=continue", loop, mount]);
  cleanUp(scope, async () => {
    rmSync(trigger, { force: true });
    await runAny("umount", ["-l", mount]);
    await runAny("losetup", ["-d", loop]);
    await runAny("fusermount3", ["-u", "-z", fuse]);
    await nbdfuse.stop("SIGKILL");
    await nbdkit.stop("SIGKILL");
    rmSync(folder, { recursive: true, force: true });
  });
  return { mount, trigger };
}

test("after an fdatasync that failed no write is accepted and no flush succeeds, until the set is opened again", async (t) => {
  const { mount, trigger } = await failingFileSystem(t);
  const server = await Server.start(t, { data: join(mount, "data") });
  await server.ashlar("volume", "create", "db", "--size", "64M");
  const client = await TestClient.open(server.nbd, "db");
  await client.write(0, Buffer.alloc(MIB, 1));
  await client.flush();

  writeFileSync(trigger, "");
  await client.write(MIB, Buffer.alloc(MIB, 2));
  await assert.rejects(client.flush(), NbdError, "the flush tells of the failure");
  rmSync(trigger);
  // The disk is well again; what it lost in between is still lost, so a second flush must not say otherwise.
  await assert.rejects(client.flush(), NbdError, "a failed flush is never repeated");
  await assert.rejects(client.write(2 * MIB, Buffer.alloc(MIB, 3)), NbdError, "no write is accepted");
  assert.ok(
    (await client.read(0, MIB)).every((byte) => byte === 1),
    "what was flushed can be read",
  );
  await client.close();

  const { problems } = await server.json("status");
  assert.ok(problems.length > 0, "status says so");
  assert.match(server.log, /fdatasync|sync/i, "the log says so");

  await server.kill();
  await server.restart();
  const again = await TestClient.open(server.nbd, "db");
  assert.ok(
    (await again.read(0, MIB)).every((byte) => byte === 1),
    "what was flushed is there",
  );
  await again.write(2 * MIB, Buffer.alloc(MIB, 4));
  await again.flush();
  await again.close();
});
