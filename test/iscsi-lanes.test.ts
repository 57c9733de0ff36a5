/** iSCSI on a server with two lanes: units of both in one session, one state of reservations, and lanes that die. */
import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { RawInitiator, read10, TUR, write10 } from "./support/iscsi-client.ts";
import { countCu, namesOf, runCuSuite } from "./support/iscsi-cu.ts";
import { runAny, until } from "./support/program.ts";
import { Server } from "./support/server.ts";
import { freePort } from "./support/temp.ts";

const isNode = process.env["ASHLAR_ENV"] === "node";
const ONE = "iqn.2024-01.test:one";
const TWO = "iqn.2024-01.test:two";
/** Of the conformance test: what reaches the device in other ways than by READ and WRITE, and reservations. */
const SUITES = [
  ...["CompareAndWrite", "GetLBAStatus", "OrWrite", "PrinReadKeys", "ProutPreempt", "ProutReserve", "Unmap"],
  ...["Verify10", "WriteAtomic16", "WriteSame10", "WriteVerify10"],
];
const TESTER = "iqn.2007-10.com.github:sahlberg:libiscsi:iscsi-test";
const BLOCK = 4096;
const MISCOMPARE = 0x1d00;
const CONFLICT = 0x18;
const KEY = [0, 0, 0, 0, 0, 0, 0xab, 0xcd];
const NONE = [0, 0, 0, 0, 0, 0, 0, 0];
const EXCLUSIVE = 3;
const RESERVE_6 = [0x16, 0, 0, 0, 0, 0];

const prOut = (action: number, type: number): number[] => [0x5f, action, type, 0, 0, 0, 0, 0, 24, 0];
const prList = (key: number[], newKey: number[]): Buffer => Buffer.from([...key, ...newKey, 0, 0, 0, 0, 0, 0, 0, 0]);
const compareAndWrite = (lba: number): number[] => [0x89, 0, 0, 0, 0, 0, 0, 0, 0, lba, 0, 0, 0, 1, 0, 0];
const UNMAP = [0x42, 0, 0, 0, 0, 0, 0, 0, 24, 0];
const unmapList = (lba: number, blocks: number): Buffer => {
  const list = Buffer.alloc(24);
  list.writeUInt16BE(22, 0);
  list.writeUInt16BE(16, 2);
  list.writeUInt32BE(lba, 12);
  list.writeUInt32BE(blocks, 16);
  return list;
};
const LIMITS = [0x12, 1, 0xb0, 0, 64, 0];

describe("iSCSI over two lanes", { timeout: 300_000 }, () => {
  let server: Server;
  let iqn = "";
  let port = 0;
  const lanes: number[] = [];
  const cleaning: (() => void | Promise<void>)[] = [];
  const scope = { after: (clean: () => void | Promise<void>) => void cleaning.push(clean) };
  const NAMES = ["a", "b"];

  before(async () => {
    port = await freePort();
    server = await Server.start(scope, {
      args: ["--iscsi", `127.0.0.1:${port}`, "--lanes", isNode ? "1" : "2"],
    });
    await server.ashlar("host", "add", "one", "--iqn", ONE);
    await server.ashlar("host", "add", "two", "--iqn", TWO);
    await server.ashlar("host", "add", "tester", "--iqn", TESTER, "--iqn", `${TESTER}-2`);
    for (const [unit, name] of NAMES.entries()) {
      lanes.push((await server.json("volume", "create", name, "--size", "16M", "--block-size", "4096")).lane);
      for (const host of ["one", "two"]) await server.ashlar("grant", name, host, "--unit", String(unit));
    }
    iqn = (await server.json("target", "show")).iqn;
  });
  after(async () => {
    for (const clean of cleaning.reverse()) await clean();
  });

  const open = async (initiator: string): Promise<RawInitiator> => {
    const one = await RawInitiator.connect(port);
    assert.equal(await one.login({ initiator, target: iqn }), 0);
    for (const lun of NAMES.keys()) {
      one.lun = lun;
      await one.settle();
    }
    return one;
  };
  const viaNbd = async (name: string): Promise<string> => {
    const { stdout, stderr } = await runAny("qemu-io", [...["-f", "raw", server.uri(name), "-c", "write -P 9 64k 4k"]]);
    return stdout + stderr;
  };
  const restartLane = async (index: number): Promise<void> => {
    const restarts = async (): Promise<number> => (await server.json("status")).lanes[index].restarts;
    const before = await restarts();
    await server.ashlar("lane", "restart", String(index));
    await until("the lane is back", async () => {
      const { lanes: now, problems } = await server.json("status");
      return now[index].state === "running" && now[index].restarts > before && problems.length === 0;
    });
  };

  it("passes libiscsi's tests on a unit of each lane", async (t) => {
    for (const [lun, name] of NAMES.entries()) {
      await server.ashlar("grant", name, "tester", "--unit", String(lun));
      const url = `iscsi://127.0.0.1:${port}/${iqn}/${lun}`;
      const tests = [];
      for (const suite of SUITES) tests.push(...(await runCuSuite(suite, url, 2)));
      const { passed, skipped } = countCu(tests);
      t.diagnostic(`lane ${lanes[lun]}: ${passed} passed, ${skipped} skipped`);
      assert.deepEqual(namesOf(tests, "failed"), []);
      assert.ok(passed > 30, `${passed} passed`);
      await server.ashlar("revoke", name, "tester");
    }
  });

  it("reads, writes, compares, unmaps and grows units of both lanes in one session", async () => {
    assert.equal(new Set(lanes).size, isNode ? 1 : 2);
    const one = await open(ONE);
    const limits: string[] = [];
    for (const [lun, name] of NAMES.entries()) {
      one.lun = lun;
      const data = Buffer.alloc(BLOCK, lun + 1);
      const other = Buffer.alloc(BLOCK, 0x77);
      assert.equal((await one.run(write10(1, 1), { write: data })).status, 0);
      assert.ok((await one.run(read10(1, 1), { read: BLOCK })).data.equals(data));
      const both = Buffer.concat([data, other]);
      assert.equal((await one.run(compareAndWrite(1), { write: both })).status, 0);
      assert.ok((await one.run(read10(1, 1), { read: BLOCK })).data.equals(other));
      const differs = await one.run(compareAndWrite(1), { write: both });
      assert.equal(differs.sense.readUInt16BE(12), MISCOMPARE);
      assert.equal(differs.sense.readUInt32BE(3), 0);
      assert.equal((await one.run(UNMAP, { write: unmapList(1, 1) })).status, 0);
      assert.ok((await one.run(read10(1, 1), { read: BLOCK })).data.equals(Buffer.alloc(BLOCK)));
      limits.push((await one.run(LIMITS, { read: 64 })).data.toString("hex"));
      await server.ashlar("volume", "resize", name, "--size", "32M");
      assert.equal((await one.run(TUR)).sense.readUInt16BE(12), 0x2a09);
      assert.equal((await one.run(write10(5000, 1), { write: data })).status, 0);
    }
    assert.equal(limits[0], limits[1], "whatever lane a unit is of, it promises the same");
    one.close();
  });

  it("keeps one state of reservations, whichever lane a volume is of and whichever front asks", async () => {
    const one = await open(ONE);
    const two = await open(TWO);
    for (const [lun, name] of NAMES.entries()) {
      one.lun = two.lun = lun;
      assert.match(await viaNbd(name), /wrote 4096/);
      assert.equal((await one.run(prOut(0, 0), { write: prList(NONE, KEY) })).status, 0);
      assert.equal((await one.run(prOut(1, EXCLUSIVE), { write: prList(KEY, NONE) })).status, 0);
      assert.match(await viaNbd(name), /not permitted|failed/);
      assert.equal((await two.run(write10(0, 1), { write: Buffer.alloc(BLOCK) })).status, CONFLICT);
      assert.match(await server.ashlar("reservations", "clear", name), /iqn\.2024-01\.test:one/);
      assert.equal((await one.run(TUR)).sense.readUInt16BE(12), 0x2a03);
      assert.match(await viaNbd(name), /wrote 4096/);
      assert.equal((await one.run(RESERVE_6)).status, 0);
      assert.match(await viaNbd(name), /not permitted|failed/);
    }
    // What the old kind of RESERVE holds is free when its session ends.
    one.close();
    for (const name of NAMES) await until("free again", async () => /wrote 4096/.test(await viaNbd(name)));
    assert.deepEqual(await server.json("reservations"), []);
    two.close();
  });

  it("reservations and data outlive the death of each lane; sessions come back", async () => {
    let one = await open(ONE);
    const data = Buffer.alloc(BLOCK, 0xd1);
    for (const lun of NAMES.keys()) {
      one.lun = lun;
      assert.equal((await one.run(write10(9, 1), { write: data })).status, 0);
      assert.equal((await one.run(prOut(0, 0), { write: prList(NONE, KEY) })).status, 0);
      assert.equal((await one.run(prOut(1, EXCLUSIVE), { write: prList(KEY, NONE) })).status, 0);
    }
    for (let lane = isNode ? 0 : 1; lane >= 0; lane--) {
      await restartLane(lane);
      for (const [lun, name] of NAMES.entries()) {
        if (one.isClosed || lane === 0) one = await open(ONE);
        one.lun = lun;
        assert.ok((await one.run(read10(9, 1), { read: BLOCK })).data.equals(data));
        assert.equal((await one.run(write10(9, 1), { write: data })).status, 0);
        assert.match(await viaNbd(name), /not permitted|failed/);
      }
    }
    assert.equal((await server.json("reservations")).length, NAMES.length);
    for (const name of NAMES) await server.ashlar("reservations", "clear", name);
    one.close();
  });
});
