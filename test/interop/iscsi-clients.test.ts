/** The iSCSI target in the daemon, with QEMU and libiscsi's tools, beside NBD on the same volume, through restarts. */
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { Capture } from "#test/support/capture";
import { RawInitiator, read10, TUR, write10 } from "#test/support/iscsi-client";
import { run, runAny, until } from "#test/support/program";
import { Chance } from "#test/support/random";
import { Server } from "#test/support/server";
import { freePort, tempFolder } from "#test/support/temp";

const QEMU = "iqn.2008-11.org.linux-kvm";
const ONE = "iqn.2024-01.test:one";
const TWO = "iqn.2024-01.test:two";
const CONFLICT = 0x18;
const KEY = [0, 0, 0, 0, 0, 0, 0xab, 0xcd];
const NONE = [0, 0, 0, 0, 0, 0, 0, 0];

const prOut = (action: number, type: number): number[] => [0x5f, action, type, 0, 0, 0, 0, 0, 24, 0];
const prList = (key: number[], newKey: number[], flags = 0): Buffer =>
  Buffer.from([...key, ...newKey, 0, 0, 0, 0, flags, 0, 0, 0]);
const prIn = (action: number): number[] => [0x5e, action, 0, 0, 0, 0, 0, 1, 0, 0];

describe("iSCSI clients", () => {
  let server: Server;
  let iqn = "";
  let port = 0;
  let folder = "";
  let capture: Capture;
  const cleaning: (() => void | Promise<void>)[] = [];
  const scope = { after: (clean: () => void | Promise<void>) => void cleaning.push(clean) };
  const url = (lun: number): string => `iscsi://127.0.0.1:${port}/${iqn}/${lun}`;

  before(async () => {
    folder = tempFolder(scope);
    port = await freePort();
    server = await Server.start(scope, { args: ["--iscsi", `127.0.0.1:${port}`] });
    capture = await Capture.start(scope, [port]);
    await server.ashlar("volume", "create", "db", "--size", "64M", "--block-size", "512");
    await server.ashlar("volume", "create", "shared", "--size", "16M", "--block-size", "512");
    await server.ashlar("host", "add", "qemu", "--iqn", QEMU);
    await server.ashlar("host", "add", "one", "--iqn", ONE);
    await server.ashlar("host", "add", "two", "--iqn", TWO);
    await server.ashlar("grant", "db", "qemu", "--unit", "0");
    for (const host of ["one", "two"]) await server.ashlar("grant", "shared", host, "--unit", "3");
    iqn = (await server.json("target", "show")).iqn;
  });
  after(async () => {
    for (const clean of cleaning.reverse()) await clean();
  });

  const LUN = 3;
  const open = async (initiator: string, isid = 1): Promise<RawInitiator> => {
    const one = await RawInitiator.connect(port);
    assert.equal(await one.login({ initiator, target: iqn, isid }), 0);
    one.lun = LUN;
    await one.settle();
    return one;
  };

  it("is found by discovery, and says who it is", async () => {
    const found = await run("iscsi-ls", ["-i", QEMU, "-s", `iscsi://127.0.0.1:${port}/`]);
    assert.match(found, new RegExp(`Target:${iqn} Portal:127.0.0.1:${port},1`));
    assert.match(found, /Lun:0\s+Type:DIRECT_ACCESS/);
    const identity = await run("iscsi-inq", ["-i", QEMU, "-e", "1", "-c", "128", url(0)]);
    const volumes = await server.json("volume", "ls");
    const { uuid } = volumes.find(({ name }: { name: string }) => name === "db");
    assert.ok(identity.includes(uuid.replaceAll("-", "")), identity);
  });

  it("takes an image by qemu-img, gives it back, and NBD reads the same", async () => {
    const image = join(folder, "image.raw");
    writeFileSync(image, Buffer.concat([randomBytes(3_000_320), Buffer.alloc(61 * 1024 * 1024)]));
    await run("truncate", ["-s", "64M", image]);
    await run("qemu-img", ["convert", "-n", "-f", "raw", "-O", "raw", image, url(0)]);
    await run("qemu-img", ["compare", "-f", "raw", "-F", "raw", image, url(0)]);
    await run("qemu-img", ["compare", "-f", "raw", "-F", "raw", image, server.uri("db")]);
  });

  it("agrees with a file over a thousand random operations (blkverify)", { timeout: 120_000 }, async () => {
    const reference = join(folder, "reference.raw");
    await run("qemu-img", ["convert", "-f", "raw", "-O", "raw", url(0), reference]);
    const chance = new Chance(20_241_121);
    const commands: string[] = [];
    for (let step = 0; step < 1000; step++) {
      const length = 512 * (1 + chance.below(chance.below(4) === 0 ? 600 : 16));
      const offset = 512 * chance.below((64 * 1024 * 1024 - length) / 512);
      const kind = chance.below(10);
      if (kind < 5) commands.push(`write -P ${chance.below(256)} ${offset} ${length}`);
      else if (kind < 8) commands.push(`read ${offset} ${length}`);
      else if (kind < 9) commands.push(`write -P 0 ${offset} ${length}`);
      else commands.push("flush");
    }
    const input = `${commands.join("\n")}\nquit\n`;
    const output = await run("qemu-io", ["-f", "raw", `blkverify:${reference}:${url(0)}`], { input, limitMs: 110_000 });
    assert.doesNotMatch(output, /mismatch|failed|error/i);
    await run("qemu-img", ["compare", "-f", "raw", "-F", "raw", reference, server.uri("db")]);
  });

  it("a reservation stands before NBD too, survives kill -9, and is cleared by one command", {
    timeout: 60_000,
  }, async () => {
    const EXCLUSIVE = 3;
    const APTPL = 1;
    let one = await open(ONE);
    assert.equal((await one.run(prOut(0, 0), { write: prList(NONE, KEY, APTPL) })).status, 0);
    assert.equal((await one.run(prOut(1, EXCLUSIVE), { write: prList(KEY, NONE) })).status, 0);
    const two = await open(TWO);
    assert.equal((await two.run(write10(0, 1), { write: Buffer.alloc(512, 1) })).status, CONFLICT);
    assert.equal((await two.run(read10(0, 1), { read: 512 })).status, CONFLICT);
    two.close();
    const viaNbd = (): Promise<{ stdout: string; stderr: string }> =>
      runAny("qemu-io", ["-f", "raw", server.uri("shared"), "-c", "write -P 9 0 4k"]);
    const refused = await viaNbd();
    assert.match(refused.stdout + refused.stderr, /not permitted|failed/);

    one.close();
    await server.kill();
    await server.restart();
    const listed = await server.json("reservations");
    assert.equal(listed[0].volume, "shared");
    assert.equal(listed[0].type, "exclusive access");
    assert.deepEqual(listed[0].registrants[0].host, "one");
    one = await open(ONE);
    assert.equal((await one.run(write10(0, 1), { write: Buffer.alloc(512, 2) })).status, 0);
    const again = await viaNbd();
    assert.match(again.stdout + again.stderr, /not permitted|failed/);
    assert.match(await server.ashlar("explain", "two"), /reserved by iqn.2024-01.test:one/);

    assert.match(await server.ashlar("reservations", "clear", "shared"), /iqn\.2024-01\.test:one/);
    const told = await one.run(TUR);
    assert.equal(told.sense.readUInt16BE(12), 0x2a03);
    assert.equal((await one.run(prIn(0), { read: 256 })).data.readUInt32BE(4), 0);
    const free = await viaNbd();
    assert.match(free.stdout, /wrote 4096/);
    assert.deepEqual(await server.json("reservations"), []);
    one.close();
  });

  it("is measured per volume, as NBD is", async () => {
    const one = await open(ONE, 4);
    const two = await open(TWO, 4);
    const RESERVE_6 = [0x16, 0, 0, 0, 0, 0];
    const SYNCHRONIZE = [0x35, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    assert.equal((await one.run(write10(0, 1), { write: Buffer.alloc(512, 3) })).status, 0);
    assert.equal((await one.run(read10(0, 1), { read: 512 })).status, 0);
    assert.equal((await one.run(SYNCHRONIZE)).status, 0);
    assert.equal((await one.run(RESERVE_6)).status, 0);
    assert.equal((await two.run(read10(0, 1), { read: 512 })).status, CONFLICT);
    const metrics = await server.ashlar("metrics");
    const of = 'volume="shared",front="iscsi"';
    for (const op of ["read", "write", "flush"])
      assert.match(metrics, new RegExp(`ashlar_operation_duration_seconds_count\\{${of},op="${op}"\\} [1-9]`));
    assert.match(metrics, new RegExp(`ashlar_operation_bytes_total\\{${of},op="read"\\} [1-9]`));
    assert.match(metrics, new RegExp(`ashlar_operation_errors_total\\{${of},status="conflict"\\} [1-9]`));
    assert.match(metrics, new RegExp(`ashlar_connections\\{${of}\\} [2-9]`));
    one.close();
    two.close();
  });

  it("portals are told as the operator says, and a host is sent elsewhere at its login", async () => {
    const discover = async (): Promise<string> => {
      const some = await RawInitiator.connect(port);
      assert.equal(await some.login({ initiator: ONE }), 0);
      const told = await some.sendTargets("All");
      some.close();
      return told;
    };
    const here = `127.0.0.1:${port}`;
    assert.match(await discover(), new RegExp(`TargetAddress=${here},1`));
    await server.ashlar("target", "portal", "set", here, "--group", "7", "--advertise", "san.example:3261");
    assert.match(await discover(), /TargetAddress=san\.example:3261,7/);
    await server.ashlar("target", "portal", "set", here, "--network", "10.0.0.0/8");
    assert.match(await discover(), new RegExp(`TargetAddress=${here},7`));
    const { portals } = await server.json("target", "show");
    assert.deepEqual(portals, [
      { address: here, groupTag: 7, networks: ["10.0.0.0/8"], advertise: "san.example:3261" },
    ]);
    await server.ashlar("target", "portal", "reset", here);

    await server.ashlar("target", "redirect", "set", "two", "[fd00::9]");
    let some = await RawInitiator.connect(port);
    const MOVED_TEMPORARILY = 0x0101;
    const MOVED_PERMANENTLY = 0x0102;
    assert.equal(await some.login({ initiator: TWO, target: iqn }), MOVED_TEMPORARILY);
    assert.equal(some.answers.get("TargetAddress"), "[fd00::9]:3260");
    await server.ashlar("target", "redirect", "set", "two", "other.example:3300", "--permanent");
    assert.match(await server.ashlar("target", "redirect"), /two: sent to other\.example:3300 for ever/);
    assert.match(await server.ashlar("explain", "two"), /sent to other\.example:3300/);
    some = await RawInitiator.connect(port);
    assert.equal(await some.login({ initiator: TWO, target: iqn }), MOVED_PERMANENTLY);
    await server.ashlar("target", "redirect", "rm", "two");
    (await open(TWO, 5)).close();
  });

  it("growth, new units and lost rights are seen without a new login", async () => {
    const one = await open(ONE, 7);
    const capacity = async (): Promise<number> =>
      (await one.run([0x25, 0, 0, 0, 0, 0, 0, 0, 0, 0], { read: 8 })).data.readUInt32BE(0) + 1;
    assert.equal(await capacity(), (16 * 1024 * 1024) / 512);
    await server.ashlar("volume", "resize", "shared", "--size", "24M");
    assert.equal((await one.run(TUR)).sense.readUInt16BE(12), 0x2a09);
    assert.equal(await capacity(), (24 * 1024 * 1024) / 512);
    await server.ashlar("volume", "create", "more", "--size", "1M");
    await server.ashlar("grant", "more", "one", "--unit", "300");
    assert.equal((await one.run(TUR)).sense.readUInt16BE(12), 0x3f0e);
    const luns = (await one.run([0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0], { read: 256 })).data;
    assert.equal(luns.readUInt32BE(0), 16);
    assert.equal(luns.readUInt16BE(16), 0x4000 | 300);
    await server.ashlar("grant", "shared", "one", "--unit", "3", "--read-only").catch(() => undefined);
    await server.ashlar("revoke", "more", "one");
    await server.ashlar("revoke", "shared", "one");
    const gone = await one.run(TUR);
    assert.equal(gone.sense.readUInt16BE(12), 0x2500);
    one.close();
  });

  it("hosts are told once when space gets short, before writers meet the end of it", { timeout: 60_000 }, async () => {
    const at = await freePort();
    const args = ["--iscsi", `127.0.0.1:${at}`, "--capacity", "512M", "--soft-percent", "10"];
    const small = await Server.start(scope, { args });
    await small.ashlar("volume", "create", "thin", "--size", "4G");
    await small.ashlar("host", "add", "one", "--iqn", ONE);
    await small.ashlar("grant", "thin", "one", "--unit", "0");
    const one = await RawInitiator.connect(at);
    assert.equal(await one.login({ initiator: ONE, target: (await small.json("target", "show")).iqn }), 0);
    await one.settle();
    // Nine tenths of 512 MiB available, in sets of 2048 blocks, which are MiB: mode page 1Ch, subpage 02h.
    const page = (await one.run([0x5a, 8, 0x1c, 2, 0, 0, 0, 0, 64, 0], { read: 64 })).data;
    assert.equal(page.readUInt32BE(28), Math.floor(0.9 * 512));
    const piece = randomBytes(256 * 1024);
    /** What any command may be told instead of being done. */
    const told: number[] = [];
    const run = async (...command: Parameters<typeof one.run>): Promise<void> => {
      for (let answer = await one.run(...command); answer.status !== 0; answer = await one.run(...command))
        told.push(answer.sense.readUInt16BE(12));
    };
    for (let written = 0; written < 56; written += 0.25) await run(write10(written * 2048, 512), { write: piece });
    await until("the threshold is told", async () => {
      await run(TUR);
      return told.length > 0;
    });
    assert.deepEqual(told, [0x3807]);
    const used = (await one.run([0x4d, 0, 0x4c, 0, 0, 0, 0, 0, 64, 0], { read: 64 })).data;
    assert.ok(used.readUInt32BE(4 + 12 + 4) >= 50, "LOG SENSE counts what is used");
    one.close();
  });

  it("sessions are listed, and ended by the operator", async () => {
    const two = await open(TWO, 9);
    const sessions = await server.json("sessions");
    const mine = sessions.find(
      ({ initiator, isid }: { initiator: string; isid: string }) => initiator === TWO && isid.endsWith("90000"),
    );
    assert.ok(mine === undefined || mine.host === "two");
    const any = sessions.find(({ host }: { host: string }) => host === "two");
    assert.deepEqual(any.units, [LUN]);
    await server.ashlar("sessions", "end", String(any.session));
    await two.closed();
  });

  it("tshark finds nothing malformed in all of it", { timeout: 300_000 }, async () => {
    await capture.check({ messages: 500 });
  });
});
