/**
 * SCSI commands byte by byte, where no client of others looks so closely: what is offered is what the documents say,
 * thresholds, access states, failed sanitizes, and what a reservation does not forbid.
 */
import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { KIB, MIB } from "#base/units";
import type { BlockDevice, BlockOp } from "#device/device";
import { Capture } from "./support/capture.ts";
import { RawInitiator, read10, TUR, write10 } from "./support/iscsi-client.ts";
import { INITIATORS, startRig, TARGET } from "./support/iscsi-rig.ts";
import { fileScope } from "./support/temp.ts";

const [ONE, TWO] = INITIATORS as [string, string];
const GOOD = 0;
const CHECK = 2;
const CONFLICT = 0x18;
const BLOCK = 512;
const u32 = (value: number): number[] => [value >>> 24, (value >>> 16) & 255, (value >>> 8) & 255, value & 255];

interface Answer {
  readonly status: number;
  readonly data: Buffer;
  readonly sense: Buffer;
}
const keyOf = ({ sense }: Answer): number => sense[2]! & 0x0f;
const ascOf = ({ sense }: Answer): number => sense.readUInt16BE(12);

const scope = fileScope();
const space = { available: 900 * MIB, used: 100 * MIB, soft: 200 * MIB };

describe("SCSI commands", () => {
  let rig: Awaited<ReturnType<typeof startRig>>;
  let capture: Capture;
  let isid = 1;
  const open = async (initiator: string, lun = 0, port = rig.port): Promise<RawInitiator> => {
    const one = await RawInitiator.connect(port);
    assert.equal(await one.login({ initiator, target: TARGET, isid: isid++ }), 0);
    one.lun = lun;
    await one.settle();
    return one;
  };

  before(async () => {
    const provisioning = { available: () => space.available, used: () => space.used, soft: () => space.soft };
    rig = await startRig({
      volumes: [
        { name: "disk", size: 16 * MIB, blockSize: 512, options: { provisioning } },
        { name: "other", size: 16 * MIB, blockSize: 512 },
      ],
      memory: 64 * MIB,
    });
    capture = await Capture.start(scope, [rig.port]);
  });
  after(async () => {
    await rig.stop();
    await capture.check({ messages: 500 });
    assert.equal(rig.env.memory.used, 0, "all memory is given back");
    rig.env.close();
  });

  /** Operation codes, and their service actions, as docs/protocols/scsi.md lists them. */
  const OFFERED: Record<string, readonly (readonly [number, number?])[]> = {
    "TEST UNIT READY, REQUEST SENSE, INQUIRY, REPORT LUNS": [[0x00], [0x03], [0x12], [0xa0]],
    "READ CAPACITY (10), (16)": [[0x25], [0x9e, 0x10]],
    "READ and WRITE (6), (10), (12), (16)": [[0x08], [0x28], [0xa8], [0x88], [0x0a], [0x2a], [0xaa], [0x8a]],
    "WRITE AND VERIFY, VERIFY (10), (12), (16)": [[0x2e], [0xae], [0x8e], [0x2f], [0xaf], [0x8f]],
    "SYNCHRONIZE CACHE, PRE-FETCH": [[0x35], [0x91], [0x34], [0x90]],
    "UNMAP, WRITE SAME (10), (16)": [[0x42], [0x41], [0x93]],
    "COMPARE AND WRITE, ORWRITE, WRITE ATOMIC": [[0x89], [0x8b], [0x9c]],
    "GET LBA STATUS": [[0x9e, 0x12]],
    "SANITIZE: overwrite, block erase, exit failure mode": [
      [0x48, 1],
      [0x48, 2],
      [0x48, 0x1f],
    ],
    "START STOP UNIT, PREVENT ALLOW": [[0x1b], [0x1e]],
    "MODE SENSE, MODE SELECT, LOG SENSE": [[0x1a], [0x5a], [0x15], [0x55], [0x4d]],
    "RESERVE, RELEASE (6), (10)": [[0x16], [0x56], [0x17], [0x57]],
    "PERSISTENT RESERVE IN": [0, 1, 2, 3].map((action) => [0x5e, action] as const),
    "PERSISTENT RESERVE OUT": [0, 1, 2, 3, 4, 5, 6, 7].map((action) => [0x5f, action] as const),
    "REPORT and SET TARGET PORT GROUPS": [
      [0xa3, 0x0a],
      [0xa4, 0x0a],
    ],
    "REPORT SUPPORTED OPERATION CODES, TASK MANAGEMENT FUNCTIONS": [
      [0xa3, 0x0c],
      [0xa3, 0x0d],
    ],
    "EXTENDED COPY, RECEIVE COPY RESULTS": [[0x83, 0], ...[0, 1, 3, 4].map((action) => [0x84, action] as const)],
  };
  for (const [what, codes] of Object.entries(OFFERED))
    it(`offers ${what}`, async () => {
      const one = await open(ONE);
      for (const [opcode, action] of codes) {
        const options = action === undefined ? 1 : 2;
        const cdb = [0xa3, 0x0c, options, opcode, 0, action ?? 0, ...u32(512), 0, 0];
        const { status, data } = await one.run(cdb, { read: 512 });
        assert.equal(status, GOOD);
        const SUPPORTED = 3;
        assert.equal(data[1]! & 7, SUPPORTED, `${opcode.toString(16)}h ${action ?? ""}`);
        assert.equal(data[4], opcode);
      }
      one.close();
    });

  it("says in its list of operation codes what it says when asked for each", async () => {
    const one = await open(ONE);
    const { data } = await one.run([0xa3, 0x0c, 0, 0, 0, 0, ...u32(4096), 0, 0], { read: 4096 });
    const length = data.readUInt32BE(0);
    assert.equal(length % 8, 0);
    for (let at = 4; at < 4 + length; at += 8) {
      const hasAction = (data[at + 5]! & 1) !== 0;
      const action = [data[at + 2]!, data[at + 3]!];
      const cdb = [0xa3, 0x0c, hasAction ? 2 : 1, data[at]!, ...action, ...u32(512), 0, 0];
      const single = (await one.run(cdb, { read: 512 })).data;
      assert.equal(single[1]! & 7, 3);
      assert.equal(single.readUInt16BE(2), data.readUInt16BE(at + 6), "the length of the CDB");
    }
    one.close();
  });

  it("has the pages of vital product data, each of the length that it says", async () => {
    const one = await open(ONE);
    const page = async (code: number): Promise<Buffer> => (await one.run([0x12, 1, code, 2, 0, 0], { read: 512 })).data;
    const pages = [...(await page(0)).subarray(4)];
    assert.deepEqual(pages, [0x00, 0x80, 0x83, 0x86, 0x87, 0xb0, 0xb1, 0xb2]);
    for (const code of pages) {
      const data = await page(code);
      assert.equal(data[1], code);
      assert.equal(data.readUInt16BE(2), data.length - 4, `page ${code.toString(16)}h`);
    }
    assert.equal((await one.run([0x12, 1, 0xc0, 2, 0, 0], { read: 512 })).status, CHECK);
    one.close();
  });

  it("sense is fixed, or in descriptors for who asks for it", async () => {
    const one = await open(ONE);
    const beyond = read10(0x7fffffff, 1);
    assert.equal((await one.run(beyond, { read: BLOCK })).sense[0]! & 0x7f, 0x70);
    const control = (await one.run([0x1a, 8, 0x0a, 0, 64, 0], { read: 64 })).data;
    const select = async (descriptors: boolean): Promise<void> => {
      const list = Buffer.from(control);
      list[0] = 0;
      list[6] = descriptors ? list[6]! | 0x04 : list[6]! & ~0x04;
      assert.equal((await one.run([0x15, 0x10, 0, 0, list.length, 0], { write: list })).status, GOOD);
    };
    await select(true);
    const { sense } = await one.run(beyond, { read: BLOCK });
    assert.equal(sense[0], 0x72);
    assert.equal(sense.readUInt16BE(2), 0x2100);
    assert.equal(sense[7], sense.length - 8);
    await select(false);
    one.close();
  });

  it("tells hosts once when space comes to the threshold, where they have set it", async () => {
    const one = await open(ONE);
    const now = (available: number): void => {
      const before = space.available;
      space.available = available;
      rig.front.spaceChanged(before, available);
    };
    const next = (): Promise<Answer> => one.run(TUR);
    now(201 * MIB);
    assert.equal((await next()).status, GOOD);
    now(200 * MIB);
    assert.equal(ascOf(await next()), 0x3807);
    now(100 * MIB);
    assert.equal((await next()).status, GOOD, "it is told once");
    now(900 * MIB);

    // Page 1Ch, subpage 02h: one soft threshold of available space, in sets of 2048 blocks, that is MiB here.
    const SENSE_PAGE = [0x5a, 8, 0x1c, 2, 0, 0, 0, 0, 64, 0];
    const page = (await one.run(SENSE_PAGE, { read: 64 })).data;
    assert.deepEqual([page[8], page[9], page.readUInt16BE(10)], [0x5c, 0x02, 20]);
    assert.deepEqual([page[24], page[25], page.readUInt32BE(28)], [0x80, 0x01, 200]);
    const select = async (change: (list: Buffer) => void): Promise<Answer> => {
      const list = Buffer.from(page);
      list.writeUInt16BE(0, 0);
      change(list);
      return one.run([0x55, 0x10, 0, 0, 0, 0, 0, 0, list.length, 0], { write: list });
    };
    assert.equal((await select((list) => list.writeUInt32BE(500, 28))).status, GOOD);
    assert.equal((await one.run(SENSE_PAGE, { read: 64 })).data.readUInt32BE(28), 500);
    const defaults = [0x5a, 8, 0x9c, 2, 0, 0, 0, 0, 64, 0];
    assert.equal((await one.run(defaults, { read: 64 })).data.readUInt32BE(28), 200);
    now(450 * MIB);
    assert.equal(ascOf(await next()), 0x3807);
    now(900 * MIB);
    // Another resource cannot be watched, and what is refused has changed nothing.
    const wrong = await select((list) => (list[25] = 2));
    assert.deepEqual([keyOf(wrong), ascOf(wrong)], [5, 0x2600]);
    // Switched off, it is silent: by the descriptor, and by LBPERE of the page of error recovery.
    assert.equal((await select((list) => (list[24] = 0))).status, GOOD);
    now(10 * MIB);
    assert.equal((await next()).status, GOOD);
    now(900 * MIB);
    assert.equal((await select(() => {})).status, GOOD);
    const recovery = (await one.run([0x1a, 8, 0x01, 0, 64, 0], { read: 64 })).data;
    assert.equal(recovery[4 + 7], 0x80);
    recovery[0] = 0;
    recovery[4 + 7] = 0;
    assert.equal((await one.run([0x15, 0x10, 0, 0, recovery.length, 0], { write: recovery })).status, GOOD);
    now(10 * MIB);
    assert.equal((await next()).status, GOOD);
    now(900 * MIB);
    // Of a unit without thresholds, the page is not there; and all pages with all subpages are each other's sum.
    one.lun = 1;
    assert.equal((await one.run(SENSE_PAGE, { read: 64 })).status, CHECK);
    one.lun = 0;
    const all = async (subpage: number): Promise<number> =>
      (await one.run([0x5a, 8, 0x3f, subpage, 0, 0, 0, 1, 0, 0], { read: 256 })).data.length;
    assert.equal((await all(0xff)) - (await all(0)), 24);
    one.close();
  });

  it("an access state is that of one unit: other units' paths stay as they are", async () => {
    const one = await open(ONE);
    const two = await open(TWO);
    const groups = async (from: RawInitiator): Promise<Buffer> =>
      (await from.run([0xa3, 0x0a, 0, 0, 0, 0, ...u32(256), 0, 0], { read: 256 })).data;
    const set = (state: number): Promise<Answer> =>
      one.run([0xa4, 0x0a, 0, 0, 0, 0, ...u32(8), 0, 0], { write: Buffer.from([0, 0, 0, 0, state, 0, 0, 1]) });
    const STANDBY = 2;
    const refused = await set(STANDBY);
    assert.deepEqual([keyOf(refused), ascOf(refused)], [5, 0x2600], "the last usable path cannot be taken away");
    const NON_OPTIMIZED = 1;
    assert.equal((await set(NON_OPTIMIZED)).status, GOOD);
    assert.equal(ascOf(await two.run(TUR)), 0x2a06);
    assert.deepEqual([(await groups(one))[4]! & 0x0f, (await groups(one))[4 + 5]], [NON_OPTIMIZED, 1]);
    one.lun = two.lun = 1;
    assert.deepEqual([(await groups(one))[4]! & 0x0f, (await groups(one))[4 + 5]], [0, 0]);
    await two.settle();
    one.lun = two.lun = 0;
    assert.equal((await set(0)).status, GOOD);
    one.close();
    two.close();
  });

  const prOut = (action: number, type: number): number[] => [0x5f, action, type, 0, 0, ...u32(24), 0];
  const key = (byte: number): number[] => [0, 0, 0, 0, 0, 0, 0, byte];
  const list = (own: number, other: number, flags = 0): Buffer =>
    Buffer.from([...key(own), ...key(other), 0, 0, 0, 0, flags, 0, 0, 0]);

  it("a reservation lets others start the unit and allow removals, and looks at types where they count", async () => {
    const one = await open(ONE);
    const two = await open(TWO);
    assert.equal((await one.run(prOut(0, 0), { write: list(0, 1) })).status, GOOD);
    assert.equal((await two.run(prOut(0, 0), { write: list(0, 2) })).status, GOOD);
    assert.equal((await one.run(prOut(1, 3), { write: list(1, 0) })).status, GOOD);
    assert.equal((await two.run([0x1b, 0, 0, 0, 1, 0])).status, GOOD, "START");
    assert.equal((await two.run([0x1b, 0, 0, 0, 0, 0])).status, CONFLICT, "STOP");
    assert.equal((await two.run([0x1e, 0, 0, 0, 0, 0])).status, GOOD, "ALLOW");
    assert.equal((await two.run([0x1e, 0, 0, 0, 1, 0])).status, CONFLICT, "PREVENT");
    for (const free of [
      [0x12, 0, 0, 0, 64, 0],
      [0xa0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 0, 0],
      [0x4d, 0, 0, 0, 0, 0, 0, 0, 64, 0],
    ])
      assert.equal((await two.run(free, { read: 256 })).status, GOOD);
    assert.equal((await two.run(read10(0, 1), { read: BLOCK })).status, CONFLICT);

    // PREEMPT of a registration without a reservation: the type is not looked at. SPC-4 §5.13.11.
    assert.equal((await one.run(prOut(4, 0), { write: list(1, 2) })).status, GOOD);
    assert.equal(ascOf(await two.run(TUR)), 0x2a05);
    // That of the reservation's own holder makes a new reservation, and needs one.
    const wrong = await one.run(prOut(4, 0), { write: list(1, 1) });
    assert.deepEqual([keyOf(wrong), ascOf(wrong)], [5, 0x2400]);
    assert.equal((await one.run(prOut(4, 5), { write: list(1, 1) })).status, GOOD);
    assert.equal((await one.run([0x5e, 1, 0, 0, 0, 0, 0, 1, 0, 0], { read: 256 })).data[21], 5);
    assert.equal((await one.run(prOut(3, 0), { write: list(1, 0) })).status, GOOD, "CLEAR");
    one.close();
    two.close();
  });

  it("a sanitize that has failed leaves the unit unreadable until another one is done, or is given up", async () => {
    const broken = await startRig({ volumes: [{ name: "disk", size: 4 * MIB, blockSize: 512 }], memory: 32 * MIB });
    const device = broken.devices.map.get("disk")!;
    let fails = true;
    const { size, blockSize, preferredBlockSize, readOnly, uuid } = device;
    const failing: BlockDevice = {
      ...{ size, blockSize, preferredBlockSize, readOnly, uuid },
      watch: (watcher) => device.watch(watcher),
      submit(op: BlockOp): void {
        if (!fails || op.kind !== "zero") return device.submit(op);
        op.status = "failed";
        op.done(op);
      },
    };
    broken.devices.map.set("disk", failing);
    const one = await open(ONE, 0, broken.port);
    const sanitize = (action: number, unrestricted: boolean): Promise<Answer> =>
      one.run([0x48, action | (unrestricted ? 0x20 : 0), 0, 0, 0, 0, 0, 0, 0, 0]);
    const [ERASE, EXIT] = [2, 0x1f];
    for (const unrestricted of [false, true]) {
      fails = true;
      assert.equal(keyOf(await sanitize(ERASE, unrestricted)), 4);
      const read = await one.run(read10(0, 1), { read: BLOCK });
      assert.deepEqual([keyOf(read), ascOf(read)], [3, 0x3103]);
      const write = await one.run(write10(0, 1), { write: Buffer.alloc(BLOCK) });
      assert.deepEqual([keyOf(write), ascOf(write)], [3, 0x3103]);
      const polled = (await one.run([0x03, 0, 0, 0, 64, 0], { read: 64 })).data;
      assert.deepEqual([polled[2]! & 15, polled.readUInt16BE(12)], [3, 0x3103]);
      assert.equal((await one.run([0x12, 0, 0, 0, 64, 0], { read: 64 })).status, GOOD);
      fails = false;
      assert.equal((await sanitize(EXIT, false)).status, unrestricted ? GOOD : CHECK);
      if (!unrestricted) assert.equal((await sanitize(ERASE, false)).status, GOOD);
      assert.equal((await one.run(read10(0, 1), { read: BLOCK })).status, GOOD);
    }
    one.close();
    await broken.stop();
    broken.env.close();
  });
});

describe("bursts", () => {
  it("of every combination of the parameters carry data whole", { timeout: 120_000 }, async () => {
    const rig = await startRig({ volumes: [{ name: "disk", size: 4 * MIB, blockSize: 512 }], memory: 64 * MIB });
    const BYTES = 12 * KIB + BLOCK;
    const BLOCKS = BYTES / BLOCK;
    const capture = await Capture.start(scope, [rig.port]);
    let isid = 1;
    let fill = 0;
    for (const InitialR2T of ["Yes", "No"])
      for (const ImmediateData of ["Yes", "No"])
        for (const burst of [512, 5120, 16384])
          for (const first of [512, 4096, 16384])
            for (const outstanding of [1, 3])
              for (const digests of ["None", "CRC32C"]) {
                const one = await RawInitiator.connect(rig.port);
                const keys = {
                  ...{ InitialR2T, ImmediateData, HeaderDigest: digests, DataDigest: digests },
                  ...{ MaxBurstLength: String(burst), FirstBurstLength: String(first) },
                  ...{ MaxOutstandingR2T: String(outstanding), MaxRecvDataSegmentLength: String(first) },
                };
                assert.equal(await one.login({ initiator: ONE, target: TARGET, isid: isid++, keys }), 0);
                await one.settle();
                const what = JSON.stringify(keys);
                const firstMax = Math.min(first, burst);
                const immediate = ImmediateData === "Yes" ? Math.min(firstMax, BYTES) : 0;
                // What comes without being asked: immediate data, Data-Out, or both.
                for (const part of new Set([Math.floor(immediate / 1024) * 512, immediate])) {
                  const data = Buffer.alloc(BYTES, ++fill & 0xff);
                  data.writeUInt32BE(fill, BYTES - 8);
                  const unsolicited = InitialR2T === "No" ? firstMax : part;
                  assert.equal((await one.write(write10(9, BLOCKS), data, part, unsolicited)).status, GOOD, what);
                  assert.ok((await one.run(read10(9, BLOCKS), { read: BYTES })).data.equals(data), what);
                }
                assert.ok(one.r2tsAtOnce <= outstanding, what);
                one.close();
              }
    await rig.stop();
    assert.equal(rig.env.memory.used, 0);
    rig.env.close();
    await capture.check({ messages: 2000 });
  });
});
