/** iSCSI on a server with two lanes: units of both in one session, one state of reservations, and lanes that die. */
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { after, before, describe, it } from "node:test";
import { Capture } from "./support/capture.ts";
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

/** EXTENDED COPY (LID1) from and to blocks of units that their NAA names name: SPC-4 §6.4. */
const EXTENDED_COPY = [0x83, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 108, 0, 0];
function copyList(from: string, to: string, sourceLba: number, destinationLba: number, blocks: number): Buffer {
  const list = Buffer.alloc(16 + 2 * 32 + 28);
  list[1] = 0x18;
  list.writeUInt16BE(64, 2);
  list.writeUInt32BE(28, 8);
  for (const [index, naa] of [from, to].entries()) {
    const at = 16 + 32 * index;
    list.set([0xe4, 0, 0, 0, 1, 3, 0, 16], at);
    list.write(naa, at + 8, "hex");
  }
  const segment = 16 + 64;
  list.set([0x02, 0, 0, 24], segment);
  list.writeUInt16BE(1, segment + 6);
  list.writeUInt16BE(blocks, segment + 10);
  list.writeUInt32BE(sourceLba, segment + 16);
  list.writeUInt32BE(destinationLba, segment + 24);
  return list;
}
/** The NAA name in VPD page 83h. */
async function naaOf(one: RawInitiator): Promise<string> {
  const page = (await one.run([0x12, 1, 0x83, 1, 0, 0], { read: 256 })).data;
  for (let at = 4; at < page.length; at += 4 + page[at + 3]!)
    if ((page[at + 1]! & 0x3f) === 3) return page.subarray(at + 4, at + 4 + page[at + 3]!).toString("hex");
  throw new Error("there is no NAA name");
}

describe("iSCSI over two lanes", { timeout: 300_000 }, () => {
  let server: Server;
  let iqn = "";
  let port = 0;
  let capture: Capture;
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
    // What was before was bulk data, for the greatest part.
    capture = await Capture.start(scope, [port]);
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

  it("EXTENDED COPY shares data within a version set, and moves it between sets and at the edges", async () => {
    for (const [index, name] of ["fine", "far"].entries()) {
      await server.ashlar("volume", "create", name, "--size", "64M", "--block-size", "512");
      await server.ashlar("grant", name, "one", "--unit", String(10 + index));
    }
    await server.ashlar("snapshot", "create", "fine@start");
    await server.ashlar("clone", "fine@start", "twin");
    await server.ashlar("grant", "twin", "one", "--unit", "12");
    const one = await open(ONE);
    const names: string[] = [];
    for (const lun of [10, 11, 12]) {
      one.lun = lun;
      await one.settle();
      names.push(await naaOf(one));
    }
    const [fine, far, twin] = names as [string, string, string];
    const data = randomBytes(4 << 20);
    const write = async (lba: number, bytes: Buffer): Promise<void> => {
      for (let done = 0; done < bytes.length; done += 65536) {
        const part = bytes.subarray(done, done + 65536);
        assert.equal((await one.run(write10(lba + done / 512, part.length / 512), { write: part })).status, 0);
      }
    };
    const read = async (lun: number, lba: number, length: number): Promise<Buffer> => {
      one.lun = lun;
      const parts: Buffer[] = [];
      for (let done = 0; done < length; done += 65536) {
        const part = Math.min(65536, length - done);
        parts.push((await one.run(read10(lba + done / 512, part / 512), { read: part })).data);
      }
      return Buffer.concat(parts);
    };
    const copy = async (to: string, sourceLba: number, lba: number, blocks: number): Promise<void> => {
      one.lun = 10;
      const list = copyList(fine, to, sourceLba, lba, blocks);
      assert.equal((await one.run(EXTENDED_COPY, { write: list })).status, 0);
    };
    one.lun = 10;
    await write(0, data);
    const live = async (): Promise<number> => {
      const metrics = await server.ashlar("metrics");
      const samples = [...metrics.matchAll(/^ashlar_set_live_bytes\{.*\} (\d+)$/gm)];
      assert.ok(samples.length > 0, metrics);
      return samples.reduce((sum, [, bytes]) => sum + Number(bytes), 0);
    };
    // The counts are those of some moment of the last second: they are to be had when they have stood still.
    const settled = async (): Promise<number> => {
      for (let last = -1, now = await live(); ; last = now, now = await live()) {
        if (now === last && now >= data.length) return now;
        await new Promise((resolve) => setTimeout(resolve, 1500));
      }
    };
    const before = await settled();
    const BLOCKS = data.length / 512;
    await copy(fine, 0, 2 * BLOCKS, BLOCKS);
    await copy(twin, 0, 3 * BLOCKS, BLOCKS);
    // Not at the edges of the engine's blocks, but as far from them on both sides.
    await copy(twin, 3, 5 * BLOCKS + 3, BLOCKS - 6);
    assert.ok((await read(10, 2 * BLOCKS, data.length)).equals(data));
    assert.ok((await read(12, 3 * BLOCKS, data.length)).equals(data));
    const inner = data.subarray(3 * 512, data.length - 3 * 512);
    assert.ok((await read(12, 5 * BLOCKS + 3, inner.length)).equals(inner));
    const after = await settled();
    assert.ok(after < before + 65536, `nothing but the edges was moved: ${before} bytes were live, and ${after} are`);
    await copy(far, 0, 7, BLOCKS);
    assert.ok((await read(11, 7, data.length)).equals(data));
    await until("what was moved is counted", async () => (await live()) >= before + data.length);
    // A write to one of the copies leaves the others alone.
    one.lun = 10;
    await write(0, Buffer.alloc(data.length, 1));
    assert.ok((await read(10, 2 * BLOCKS, data.length)).equals(data));
    assert.ok((await read(12, 3 * BLOCKS, data.length)).equals(data));
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

  it("tshark finds nothing malformed in all of it", async () => {
    await capture.check({ messages: 500 });
  });
});
