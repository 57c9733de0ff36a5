/**
 * iSCSI initiators whose PDUs are wrong in one place: any byte of any header, any number out of its sequence, any text, a
 * stream that ends after any byte. Whoever sends such a thing may lose its connection; the others are served, the target
 * gives all memory back, and what a write that was refused has not written is as it was.
 */
import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { MIB } from "#base/units";
import { Capture } from "#test/support/capture";
import { crc32c, header, type Pdu, RawInitiator, read10, TUR, text, write10 } from "#test/support/iscsi-client";
import { INITIATORS, startRig, TARGET } from "#test/support/iscsi-rig";
import { until } from "#test/support/program";
import { chance } from "#test/support/random";
import { fileScope } from "#test/support/temp";

const NAME = INITIATORS[0]!;
const GOOD = { initiator: NAME, target: TARGET };
const DIGESTS = { HeaderDigest: "CRC32C", DataDigest: "CRC32C" };
const SECTOR = 512;
const BHS_BYTES = 48;
const R2T = 0x31;
const RESPONSE = 0x21;
const REJECT = 0x3f;
const ABORTED_COMMAND = 0x0b;

let rig: Awaited<ReturnType<typeof startRig>>;
let capture: Capture;
let isid = 1;

async function open(keys: Record<string, string> = {}): Promise<RawInitiator> {
  const initiator = await RawInitiator.connect(rig.port);
  assert.equal(await initiator.login({ ...GOOD, isid: isid++ & 0xffff, keys }), 0);
  await initiator.settle();
  return initiator;
}
/** A well-behaved initiator is served as if nothing were. */
async function serves(): Promise<void> {
  const good = await open(DIGESTS);
  const data = Buffer.alloc(8192, isid);
  assert.equal((await good.run(write10(64, 16), { write: data, immediate: 1024 })).status, 0);
  assert.deepEqual((await good.run(read10(64, 16), { read: 8192 })).data, data);
  good.close();
  await good.closed();
}
/** The bytes of a PDU, with the digests that the initiator has agreed to; they are right whatever the header says. */
function bytesOf(initiator: RawInitiator, head: Buffer, data: Buffer = Buffer.alloc(0)): Buffer {
  const digest = (of: Buffer): Buffer => {
    const bytes = Buffer.alloc(4);
    bytes.writeUInt32LE(crc32c(of));
    return bytes;
  };
  const body = Buffer.concat([data, Buffer.alloc(-data.length & 3)]);
  return Buffer.concat([
    head,
    ...(initiator.headerDigest ? [digest(head)] : []),
    body,
    ...(initiator.dataDigest && body.length > 0 ? [digest(body)] : []),
  ]);
}
/** Says its last words and hangs up; the target does the same. */
async function sayAndLeave(initiator: RawInitiator, bytes: Buffer): Promise<void> {
  initiator.socket.resume();
  initiator.socket.end(bytes);
  await initiator.closed();
}

before(async () => {
  rig = await startRig({ volumes: [{ name: "disk", size: 16 * MIB, blockSize: 512 }], memory: 64 * MIB });
  capture = await Capture.start(scope, [rig.port]);
});
after(async () => {
  await serves();
  await rig.stop();
  await capture.check({ messages: 10_000, isHostile: true });
  assert.equal(rig.env.memory.used, 0, "all memory is given back");
  rig.env.close();
});
/** Cleans up after the hook above, which checks the capture. */
const scope = fileScope();

describe("any byte of any header", () => {
  const sized = (head: Buffer, length: number): Buffer => {
    head.writeUInt32BE(length, 4);
    return head;
  };
  /** Each kind of PDU, well-formed and in its place. */
  const KINDS: Record<string, (one: RawInitiator) => Promise<readonly [Buffer, Buffer?]>> = {
    "a write with immediate data": async (one) => [
      sized(one.command(write10(0, 1), SECTOR, "write"), SECTOR),
      Buffer.alloc(SECTOR),
    ],
    "a write that begins with unsolicited data": async (one) => [one.command(write10(0, 1), SECTOR, "write", false)],
    "a read": async (one) => [one.command(read10(0, 8), 8 * SECTOR, "read")],
    "Data-Out": async (one) => {
      one.send(one.command(write10(0, 4), 4 * SECTOR, "write"));
      const r2t = await one.read();
      const words = { 4: 4 * SECTOR, 16: r2t.tag, 20: r2t.head.getUint32(20), 28: one.expStatSn };
      return [header(0x05, 0x80, words), Buffer.alloc(4 * SECTOR)];
    },
    "task management": async (one) => [
      header(0x02, 0x81, { 16: 900, 20: 1, 24: one.cmdSn, 28: one.expStatSn, 32: one.cmdSn }),
    ],
    NOP: async (one) => [
      sized(header(0x00, 0x80, { 16: 900, 20: 0xffffffff, 24: one.cmdSn, 28: one.expStatSn }), 8),
      Buffer.alloc(8, 1),
    ],
    text: async (one) => [
      sized(header(0x04, 0x80, { 16: 900, 20: 0xffffffff, 24: one.cmdSn, 28: one.expStatSn }), 12),
      Buffer.from("SendTargets="),
    ],
    SNACK: async (one) => [header(0x10, 0x80, { 16: 1, 20: 0xffffffff, 28: one.expStatSn, 44: 1 })],
    logout: async (one) => [header(0x06, 0x81, { 16: 900, 20: 1 << 16, 24: one.cmdSn, 28: one.expStatSn })],
  };
  const VALUES = [0x00, 0x01, 0x7f, 0x80, 0xff];

  for (const [kind, make] of Object.entries(KINDS))
    it(`of ${kind} may be anything, with digests that are right for it`, { timeout: 120_000 }, async () => {
      for (let at = 0; at < BHS_BYTES; at++)
        for (const value of VALUES) {
          const recovers = value === 0x7f ? { ErrorRecoveryLevel: "2" } : {};
          const bad = await open(at % 2 === 0 ? recovers : { ...DIGESTS, ...recovers });
          const [head, data] = await make(bad);
          head[at] = value;
          await sayAndLeave(bad, bytesOf(bad, head, data));
        }
      await serves();
    });

  it("of a login request may be anything", { timeout: 120_000 }, async () => {
    const keys = text({ InitiatorName: NAME, TargetName: TARGET });
    for (let at = 0; at < BHS_BYTES; at++)
      for (const value of VALUES) {
        const head = header(0x43, 0x87, { 4: keys.length, 8: 0x80000000, 12: 0xfff00000, 16: 1, 20: 1 << 16, 24: 1 });
        head[at] = value;
        const bad = await RawInitiator.connect(rig.port);
        await sayAndLeave(bad, bytesOf(bad, head, keys));
      }
    await serves();
  });

  it("a kind of PDU that there is not is rejected, and the connection goes on", async () => {
    const odd = await open();
    for (const opcode of [0x07, 0x0f, 0x11, 0x1c, 0x1f, 0x20, 0x25, 0x31, 0x3f]) {
      odd.send(header(opcode, 0x80, { 16: 5, 24: odd.cmdSn, 28: odd.expStatSn }));
      const answer = await odd.tryRead(2000);
      if (odd.isClosed) assert.fail(`opcode ${opcode} ended the connection`);
      assert.equal(answer?.opcode, REJECT, `opcode ${opcode}`);
    }
    assert.equal((await odd.run(TUR)).status, 0);
    odd.close();
  });
});

describe("numbers out of their sequence", () => {
  it("commands before and beyond the window are dropped, and the session goes on", async () => {
    const odd = await open();
    const right = odd.cmdSn;
    for (const cmdSn of [right - 1, right - 1000, right + 128, right + 0x7fffffff, right + 0x80000000]) {
      odd.cmdSn = cmdSn >>> 0;
      odd.send(odd.command(write10(0, 1), SECTOR, "write"), Buffer.alloc(SECTOR, 0xee));
    }
    odd.cmdSn = right;
    const read = await odd.run(read10(0, 1), { read: SECTOR });
    assert.equal(read.status, 0);
    assert.ok(!read.data.includes(0xee), "nothing of them has been done");
    odd.close();
  });

  it("the same number twice is one command", async () => {
    const odd = await open();
    odd.cmdSn++;
    odd.send(odd.command(TUR, 0, "none"));
    odd.cmdSn--;
    odd.send(odd.command(TUR, 0, "none"));
    odd.cmdSn -= 2;
    odd.send(odd.command(TUR, 0, "none"));
    odd.cmdSn++;
    const tags = [(await odd.read()).tag, (await odd.read()).tag];
    assert.deepEqual(tags, [odd.nextTag - 1, odd.nextTag - 3]);
    assert.equal(await odd.tryRead(100), undefined);
    assert.equal((await odd.run(TUR)).status, 0);
    odd.close();
  });

  it("acknowledgements of what was never said change nothing, at any recovery level", async () => {
    for (const level of ["0", "1", "2"]) {
      const odd = await open({ ErrorRecoveryLevel: level });
      for (const off of [1, 1000, 0x7fffffff, -1, -1000]) {
        const right = odd.expStatSn;
        odd.expStatSn = (right + off) >>> 0;
        odd.send(odd.command(read10(0, 1), SECTOR, "read"));
        const data = await odd.read();
        assert.equal(data.opcode, 0x25, `level ${level}, off by ${off}`);
      }
      assert.equal((await odd.run(TUR)).status, 0);
      odd.close();
    }
  });

  /** Data-Out that does not fit what was asked for: by its change to the header, and the data that it carries. */
  const WRONG: Record<string, (head: Buffer, r2t: Pdu) => number> = {
    "a DataSN that is not its turn": (head) => {
      head.writeUInt32BE(3, 36);
      return 2048;
    },
    "an offset before what was asked for": (head) => {
      head.writeUInt32BE(0, 40);
      return 2048;
    },
    "an offset behind what was asked for": (head) => {
      head.writeUInt32BE(0xfffffe00, 40);
      return 2048;
    },
    "more than was asked for": () => 4096,
  };
  for (const [what, spoil] of Object.entries(WRONG))
    it(`Data-Out with ${what} fails the command and writes nothing`, async () => {
      const odd = await open({ MaxBurstLength: "2048", FirstBurstLength: "2048", InitialR2T: "Yes" });
      const before = (await odd.run(read10(512, 8), { read: 4096 })).data;
      odd.send(odd.command(write10(512, 8), 4096, "write"));
      // The first burst is as it should be; the second is wrong.
      odd.answerR2t(await odd.read(), Buffer.alloc(4096, 0xdd));
      const r2t = await odd.read();
      assert.equal(r2t.opcode, R2T);
      const words = { 16: r2t.tag, 20: r2t.head.getUint32(20), 28: odd.expStatSn, 40: 2048 };
      const head = header(0x05, 0x80, words);
      odd.send(head, Buffer.alloc(spoil(head, r2t), 0xdd));
      const response = await odd.read();
      assert.equal(response.opcode, RESPONSE);
      assert.equal(response.head.getUint8(3), 2);
      assert.equal(response.data[4]! & 0xf, ABORTED_COMMAND, response.data.toString("hex"));
      assert.deepEqual((await odd.run(read10(512, 8), { read: 4096 })).data, before);
      odd.close();
    });

  it("Data-Out with a transfer tag that was not given is skipped, and the command waits for the right one", async () => {
    const odd = await open({ InitialR2T: "Yes" });
    odd.send(odd.command(write10(600, 4), 2048, "write"));
    const r2t = await odd.read();
    for (const tag of [0, 0xffffffff, (r2t.head.getUint32(20) + 1) >>> 0])
      odd.send(header(0x05, 0x80, { 16: r2t.tag, 20: tag, 28: odd.expStatSn }), Buffer.alloc(2048, 0xdd));
    odd.answerR2t(r2t, Buffer.alloc(2048, 0x5a));
    assert.equal((await odd.read()).head.getUint8(3), 0);
    // And once more, for a task that is over.
    odd.answerR2t(r2t, Buffer.alloc(2048, 0xdd));
    assert.deepEqual((await odd.run(read10(600, 4), { read: 2048 })).data, Buffer.alloc(2048, 0x5a));
    odd.close();
  });
});

describe("text of every kind", () => {
  it("random bytes and random keys end a login or are answered, and never more", { timeout: 60_000 }, async (t) => {
    const random = chance((line) => t.diagnostic(line));
    const KEYS = ["MaxBurstLength", "HeaderDigest", "CHAP_A", "SessionType", "TargetName", "InitiatorName", "X-a", ""];
    const VALUES = [
      "Yes",
      "0",
      "-1",
      "99999999999999999999",
      "0x",
      "0xffffffffffff",
      "a,b,c",
      "Reject",
      "\xff\xfe",
      "",
    ];
    for (let round = 0; round < 400; round++) {
      const bytes = random.oneIn(2)
        ? Buffer.from(Array.from({ length: random.below(600) }, () => random.below(256)))
        : Buffer.from(
            Array.from(
              { length: 1 + random.below(30) },
              () => `${random.pick(KEYS)}${random.pick(["=", "", "=="])}${random.pick(VALUES)}\0`,
            ).join(""),
            "latin1",
          );
      const names = text({ InitiatorName: NAME, TargetName: TARGET });
      const data = random.oneIn(2) ? Buffer.concat([names, bytes]) : bytes;
      const flags = random.pick([0x87, 0x81, 0x83, 0x84, 0x04, 0x44, 0x00]);
      const head = header(0x43, flags, { 4: data.length, 8: 0x80000000, 12: 0xffe00000, 16: 1, 20: 1 << 16, 24: 1 });
      const bad = await RawInitiator.connect(rig.port);
      await sayAndLeave(bad, bytesOf(bad, head, data));
    }
    await serves();
  });

  it("random text requests in a session are answered or rejected", { timeout: 60_000 }, async (t) => {
    const random = chance((line) => t.diagnostic(line));
    let odd = await open();
    for (let round = 0; round < 300; round++) {
      if (odd.isClosed) odd = await open();
      const data = Buffer.from(Array.from({ length: random.below(300) }, () => random.below(256)));
      const flags = random.pick([0x80, 0x00, 0x40, 0xc0]);
      const words = { 16: 7000 + round, 20: random.pick([0xffffffff, 0, 77]), 24: odd.cmdSn, 28: odd.expStatSn };
      odd.send(header(0x44, flags, words), data);
      const answer = await odd.tryRead(5000);
      assert.ok(odd.isClosed || [0x24, REJECT].includes(answer!.opcode), `round ${round}: ${answer?.opcode}`);
    }
    odd.close();
    await serves();
  });
});

describe("a stream that ends", () => {
  it("after every byte of a login and a write, orderly and by a reset", { timeout: 120_000 }, async () => {
    const keys = text({ InitiatorName: NAME, TargetName: TARGET, ImmediateData: "Yes" });
    const login = header(0x43, 0x87, { 4: keys.length, 8: 0x80000000, 12: 0xffd00000, 16: 1, 20: 1 << 16, 24: 1 });
    const write = header(0x01, 0xa1, { 4: SECTOR, 16: 2, 20: SECTOR, 24: 1, 28: 1 });
    write.set(write10(0, 1), 32);
    const whole = Buffer.concat([login, keys, Buffer.alloc(-keys.length & 3), write, Buffer.alloc(SECTOR)]);
    for (let length = 0; length <= whole.length; length++) {
      const bad = await RawInitiator.connect(rig.port);
      if (length % 2 === 0) await sayAndLeave(bad, whole.subarray(0, length));
      else bad.socket.write(whole.subarray(0, length), () => bad.socket.resetAndDestroy());
    }
    await serves();
  });

  it("after every byte of a Data-Out with digests; a write is whole or not there", { timeout: 120_000 }, async () => {
    const LBA = 800;
    const reader = await open();
    const old = Buffer.alloc(SECTOR, 0x11);
    assert.equal((await reader.run(write10(LBA, 1), { write: old })).status, 0);
    const PDU_BYTES = BHS_BYTES + 4 + SECTOR + 4;
    for (let length = 0; length < PDU_BYTES; length++) {
      const bad = await open({ ...DIGESTS, InitialR2T: "Yes" });
      bad.send(bad.command(write10(LBA, 1), SECTOR, "write"));
      const r2t = await bad.read();
      const words = { 4: SECTOR, 16: r2t.tag, 20: r2t.head.getUint32(20), 28: bad.expStatSn };
      await sayAndLeave(bad, bytesOf(bad, header(0x05, 0x80, words), Buffer.alloc(SECTOR, 0x22)).subarray(0, length));
    }
    assert.deepEqual((await reader.run(read10(LBA, 1), { read: SECTOR })).data, old);
    reader.close();
  });
});

describe("logins by the thousand", () => {
  const COUNT = 2000;
  const AT_ONCE = 50;
  /** Runs `each` so often, many at a time. */
  const crowd = async (each: (index: number) => Promise<void>): Promise<void> => {
    let next = 0;
    const work = async () => {
      for (let index = next++; index < COUNT; index = next++) await each(index);
    };
    await Promise.all(Array.from({ length: AT_ONCE }, work));
  };

  it("that come, log in and go: none is left", { timeout: 120_000 }, async () => {
    await crowd(async (index) => {
      const one = await RawInitiator.connect(rig.port);
      assert.equal(await one.login({ ...GOOD, isid: index }), 0);
      one.close();
      await one.closed();
    });
    await serves();
    // Sessions of level 2 wait for their initiators to come back; those of earlier tests do so still.
    const left = () => rig.front.sessions.filter(({ parameters }) => parameters.errorRecoveryLevel < 2).length;
    await until("all sessions have ended", () => left() === 0);
  });

  it("of strangers, and with halves of logins: all are refused or forgotten", { timeout: 120_000 }, async () => {
    await crowd(async (index) => {
      const one = await RawInitiator.connect(rig.port);
      if (index % 2 === 0) assert.equal(await one.login({ ...GOOD, initiator: `iqn.2024-01.test:s${index}` }), 0x0202);
      else await one.loginStep(GOOD, 0x01, { InitiatorName: NAME, TargetName: TARGET, AuthMethod: "None" });
      one.close();
    });
    await serves();
  });

  it("of one initiator port, each of which ends the one before", { timeout: 120_000 }, async () => {
    let last: RawInitiator | undefined;
    for (let index = 0; index < COUNT / 4; index++) {
      const one = await RawInitiator.connect(rig.port);
      assert.equal(await one.login({ ...GOOD, isid: 0xabc }), 0);
      await last?.closed();
      last = one;
    }
    await last!.settle();
    assert.equal(rig.front.sessions.filter(({ isid: of }) => of.endsWith("0abc")).length, 1);
    last!.close();
  });
});
