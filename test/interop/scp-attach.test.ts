/** `ashlar attach` as its users have it: the disk in each of its forms, and that nothing is left of it, however it ends. */
import assert from "node:assert/strict";
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { join, relative } from "node:path";
import { describe, it } from "node:test";
import { AttachStage } from "../support/attached.ts";
import { makeCertificates } from "../support/certificates.ts";
import { Program, run, runAny, until } from "../support/program.ts";
import { ASHLAR } from "../support/server.ts";
import { cleanUp, fileScope, MIB, tempFolder } from "../support/temp.ts";

const scope = fileScope();

describe("ashlar attach", () => {
  let made: Promise<AttachStage> | undefined;
  const stage = (): Promise<AttachStage> => (made ??= AttachStage.make(scope, "64M"));

  it("--fuse is a file whose content is the unit, gone when it is detached", async () => {
    const s = await stage();
    const file = join(s.folder, "disk");
    const attached = await s.attach("--fuse", file);
    assert.equal(attached.fuse, file);
    assert.equal((await run("stat", ["-c", "%s", file])).trim(), String(64 * MIB));
    const sample = join(s.folder, "sample");
    await run("dd", ["if=/dev/urandom", `of=${sample}`, "bs=1M", "count=4", "status=none"]);
    await run("dd", [`if=${sample}`, `of=${file}`, "bs=64k", "seek=16", "conv=notrunc,fsync", "status=none"]);
    await run("cmp", ["-n", String(4 * MIB), "-i", `0:${MIB}`, sample, file]);
    const [path] = await s.paths();
    assert.equal(path.fuse, file);
    assert.equal(path.paths.state, "up");
    await s.ashlar("detach", file);
    await s.gone(attached);
    // It is on the server.
    const back = join(s.folder, "back");
    await run("nbdcopy", [s.server.uri("db"), back]);
    await run("cmp", ["-n", String(4 * MIB), "-i", `0:${MIB}`, sample, back]);
  });

  it("--loop is a block device that holds a file system, over a server that is killed", async () => {
    const s = await stage();
    const attached = await s.attach("--loop");
    const mount = tempFolder(scope);
    assert.match(attached.device!, /^\/dev\/loop\d+$/);
    await run("mkfs.ext4", ["-q", "-F", attached.device!]);
    await run("mount", [attached.device!, mount]);
    cleanUp(scope, async () => void (await runAny("umount", ["-l", mount])));
    for (let i = 0; i < 8; i++) {
      writeFileSync(join(mount, `${i}`), Buffer.alloc(MIB, i));
      if (i !== 3) continue;
      await s.server.kill();
      const synced = run("sync", ["-f", mount]);
      await s.server.restart();
      await synced;
    }
    await run("sync", ["-f", mount]);
    await run("umount", [mount]);
    await run("e2fsck", ["-f", "-n", attached.device!]);
    await run("mount", [attached.device!, mount]);
    for (let i = 0; i < 8; i++) assert(readFileSync(join(mount, `${i}`)).equals(Buffer.alloc(MIB, i)));
    await run("umount", [mount]);
    await s.ashlar("detach", attached.device!);
    await s.gone(attached);
  });

  for (const form of ["socket", "fuse", "loop"] as const)
    it(`leaves nothing behind when it is killed with -9: --${form}`, async () => {
      const s = await stage();
      const path = join(s.folder, `killed-${form}`);
      const attached = await s.attach(`--${form}`, ...(form === "loop" ? [] : [path]));
      process.kill(attached.pid, "SIGKILL");
      await s.gone(attached);
      assert.deepEqual(await s.paths(), []);
      // And it can be had again at once.
      const again = await s.attach(`--${form}`, ...(form === "loop" ? [] : [path]));
      await s.ashlar("detach");
      await s.gone(again);
    });

  it("ends I/O to a partition that is deleted under it, before its space is another's", async () => {
    const s = await stage();
    const { server } = s;
    const [drive, image, back] = ["drive", "image", "back"].map((name) => join(s.folder, name)) as [
      string,
      string,
      string,
    ];
    await run("truncate", ["-s", "32M", drive]);
    await run("dd", ["if=/dev/urandom", `of=${image}`, "bs=1M", "count=16", "status=none"]);
    await server.ashlar("drive", "add", "disk0", drive);
    await server.ashlar("partition", "create", "old", "--size", "16M");
    await server.ashlar("grant", "old", "web", "--unit", "1");
    const attached = await s.attach("--unit", "1", "--socket", join(s.folder, "old.sock"));
    const uri = `nbd+unix:///old?socket=${attached.socket}`;
    const load = new Program("sh", ["-c", `while nbdcopy --flush '${image}' '${uri}' && echo once; do :; done`]);
    await load.until("under way", () => load.output.includes("once"));
    await server.ashlar("partition", "rm", "old");
    // The same place, and zeroes: what the deleted one was still being sent must not be there.
    await server.ashlar("partition", "create", "new", "--size", "16M", "--zero");
    await load.ended;
    await server.ashlar("grant", "new", "web", "--unit", "2");
    const again = await s.attach("--unit", "2", "--socket", join(s.folder, "new.sock"));
    await run("nbdcopy", [`nbd+unix:///new?socket=${again.socket}`, back]);
    await run("cmp", ["-n", String(16 * MIB), back, "/dev/zero"]);
    for (const one of [attached, again]) {
      await s.ashlar("detach", one.socket);
      await s.gone(one);
    }
    await server.ashlar("partition", "rm", "new");
  });

  it("is detached by the path that it was given, also a relative one", async () => {
    const s = await stage();
    const attached = await s.attach("--socket", join(s.folder, "here.sock"));
    const away = await runAny(process.execPath, [ASHLAR, "detach", "nowhere.sock"], {
      env: { ASHLAR_RUN: s.runFolder },
    });
    assert.match(away.stderr, /There is no attachment "nowhere.sock"[\s\S]*here\.sock\)/);
    await s.ashlar("detach", relative(process.cwd(), join(s.folder, "here.sock")));
    await s.gone(attached);
  });

  it("ends in order on SIGTERM, also in the foreground", async () => {
    const s = await stage();
    const socket = join(s.folder, "foreground.sock");
    const program = s.attachBeside("--socket", socket);
    await program.until("attached", () => program.output.includes(socket));
    await run("nbdinfo", [`nbd+unix:///?socket=${socket}`]);
    assert.equal(await program.stop("SIGTERM"), "exit status 0");
    await s.gone({ id: String(program.pid), pid: program.pid, socket });
  });

  it("says what is wrong: no way, two ways, no such device, no such unit, no such server", async () => {
    const s = await stage();
    for (const [args, said] of [
      [[], /not clear where the disk should appear/],
      [["--loop", "--fuse", "/tmp/x"], /not clear where the disk should appear/],
      [["--device", "/dev/nbd77"], /There is no \/dev\/nbd77/],
      [["--unit", "9", "--loop"], /no unit 9/],
      [["--tls", "--allow-version-1", "--loop"], /TLS belongs to SCP version 2/],
    ] as const) {
      const { status, stderr } = await s.attachAny(...args);
      assert.notEqual(status, 0);
      assert.match(stderr, said);
    }
    assert.deepEqual(await s.paths(), []);
  });

  it("speaks TLS when it is told to, and is refused without where its record demands it", async () => {
    const s = await stage();
    const socket = join(s.folder, "tls.sock");
    await s.server.ashlar("host", "set", "web", "--require-tls");
    const refused = await s.attachAny("--socket", socket);
    assert.notEqual(refused.status, 0);
    assert.match(refused.stderr, /refused this host/);
    const attached = await s.attach("--socket", socket, "--tls");
    const [path] = await s.paths();
    assert.equal(path.paths.tls, true);
    await run("qemu-io", [
      "-f",
      "raw",
      "-c",
      "write -P 7 0 1M",
      "-c",
      "read -P 7 0 1M",
      `nbd+unix:///?socket=${socket}`,
    ]);
    await s.ashlar("detach");
    await s.gone(attached);
    await s.server.ashlar("host", "set", "web", "--no-require-tls");
  });
});

describe("ashlar attach with certificates", () => {
  it("trusts the server's authority, and no other", async () => {
    const folder = tempFolder(scope);
    mkdirSync(join(folder, "other"));
    await makeCertificates(folder, "web");
    await makeCertificates(join(folder, "other"), "web");
    const at = (name: string) => join(folder, name);
    const s = await AttachStage.make(scope, "16M", [
      ...["--tls-cert", at("server-cert.pem"), "--tls-key", at("server-key.pem"), "--tls-ca", at("ca-cert.pem")],
      "--tls-require",
    ]);
    const mine = ["--tls-cert", at("client-cert.pem"), "--tls-key", at("client-key.pem")];
    const socket = join(s.folder, "cert.sock");
    const attached = await s.attach("--socket", socket, "--tls-ca", at("ca-cert.pem"), ...mine);
    await until("under TLS", async () => (await s.paths())[0].paths.tls === true);
    await run("nbdinfo", [`nbd+unix:///?socket=${socket}`]);
    await s.ashlar("detach");
    await s.gone(attached);
    const wrong = await s.attachAny("--socket", socket, "--tls-ca", at("other/ca-cert.pem"), ...mine);
    assert.notEqual(wrong.status, 0);
    assert.match(wrong.stderr, /do not come together under TLS/);
  });
});
