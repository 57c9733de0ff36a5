/** iSCSI initiators that lie, stumble, vanish or come in crowds: each hurts nobody but itself, and leaves nothing behind. */
import assert from "node:assert/strict";
import { after, before, describe, it } from "node:test";
import { MIB } from "#base/units";
import { Capture } from "#test/support/capture";
import { header, type Pdu, RawInitiator, read10, TUR, text, write10 } from "#test/support/iscsi-client";
import { INITIATORS, startRig, TARGET } from "#test/support/iscsi-rig";
import { fileScope } from "#test/support/temp";

type Rig = Awaited<ReturnType<typeof startRig>>;
const NAME = INITIATORS[0]!;
const GOOD = { initiator: NAME, target: TARGET };
const CHAP = { user: "host", secret: "a secret of 16 b" };
const MUTUAL = { user: "target", secret: "another, for us." };
const DATA_IN = 0x25;
const RESPONSE = 0x21;
const REJECT = 0x3f;
/** Kinds of SNACK. */
const STATUS = 1;
const DATA_ACK = 2;
const R_DATA = 3;
const scope = fileScope();

describe("iSCSI initiators that misbehave", () => {
  let rig: Rig;
  let capture: Capture;
  before(async () => {
    rig = await startRig({ volumes: [{ name: "disk", size: 16 * MIB, blockSize: 512 }], memory: 64 * MIB });
    capture = await Capture.start(scope, [rig.port]);
  });
  after(async () => {
    await rig.stop();
    await capture.check({ messages: 1000, isHostile: true });
    assert.equal(rig.env.memory.used, 0, "all memory is given back");
    rig.env.close();
  });

  let isid = 100;
  const open = async (keys: Record<string, string> = {}): Promise<RawInitiator> => {
    const initiator = await RawInitiator.connect(rig.port);
    assert.equal(await initiator.login({ ...GOOD, isid: isid++, keys }), 0);
    await initiator.settle();
    return initiator;
  };
  /** A well-behaved initiator is served as if nothing were. */
  const serves = async (): Promise<void> => {
    const good = await open();
    assert.equal((await good.run(read10(0, 1), { read: 512 })).data.length, 512);
    good.close();
    await good.closed();
  };

  it("a write comes back, by immediate data, by R2T, and with digests", async () => {
    const good = await open({ HeaderDigest: "CRC32C", DataDigest: "CRC32C", MaxBurstLength: "8192" });
    const data = Buffer.from(Array.from({ length: 32768 }, (_, at) => (at * 7) & 0xff));
    assert.equal((await good.run(write10(8, 64), { write: data, immediate: 1024 })).status, 0);
    assert.deepEqual((await good.run(read10(8, 64), { read: 32768 })).data, data);
    assert.equal((await good.run(write10(72, 64), { write: data })).status, 0);
    assert.deepEqual((await good.run(read10(72, 64), { read: 32768 })).data, data);
    good.close();
  });

  it("a wrong header digest ends the connection, a wrong data digest too where nothing can be recovered", async () => {
    for (const damage of ["header", "data"] as const) {
      const bad = await open({ HeaderDigest: "CRC32C", DataDigest: "CRC32C" });
      bad.send(bad.command(write10(0, 1), 512, "write"), Buffer.alloc(512), damage);
      await bad.closed();
    }
    await serves();
  });

  it("with recovery, a damaged Data-Out is asked for again, and the write is whole", async () => {
    const bad = await open({ DataDigest: "CRC32C", ErrorRecoveryLevel: "1", InitialR2T: "Yes" });
    const data = Buffer.alloc(8192, 0x3c);
    const head = bad.command(write10(200, 16), 8192, "write");
    bad.send(head);
    const r2t = await bad.read();
    assert.equal(r2t.opcode, 0x31);
    const words = { 16: r2t.tag, 20: r2t.head.getUint32(20), 28: bad.expStatSn, 36: 0, 40: 0 };
    bad.send(header(0x05, 0x80, words), data, "data");
    let again = await bad.read();
    if (again.opcode === 0x3f) again = await bad.read();
    assert.equal(again.opcode, 0x31);
    bad.answerR2t(again, data);
    const response = await bad.read();
    assert.equal(response.opcode, 0x21);
    assert.equal(response.head.getUint8(3), 0);
    assert.deepEqual((await bad.run(read10(200, 16), { read: 8192 })).data, data);
    bad.close();
  });

  it("a status and data that were missed are sent again on request, with the same numbers", async () => {
    const bad = await open({ ErrorRecoveryLevel: "1", MaxRecvDataSegmentLength: "512" });
    const missed = await bad.run(read10(0, 4), { read: 2048 });
    assert.equal(missed.data.length, 2048);
    // The initiator acts as if it had not seen the status: StatSN one back.
    const statSn = (bad.expStatSn - 1) >>> 0;
    bad.expStatSn = statSn;
    bad.send(header(0x10, 0x81, { 16: 0xffffffff, 20: 0xffffffff, 28: statSn, 40: statSn, 44: 1 }));
    const again = await bad.read();
    assert.equal(again.head.getUint32(24), statSn);
    bad.expStatSn = statSn;
    const tag = bad.nextTag - 1;
    bad.send(header(0x10, 0x80, { 16: tag, 20: 0xffffffff, 28: statSn, 40: 1, 44: 2 }));
    const first = await bad.read();
    assert.equal(first.opcode, 0x25);
    assert.equal(first.head.getUint32(36), 1);
    assert.equal(first.head.getUint32(40), 512);
    assert.equal((await bad.read()).head.getUint32(36), 2);
    bad.close();
  });

  /** What is sent on until a status comes: of each Data-In PDU its number, its place, its length; and the status PDU. */
  const answerOf = async (one: RawInitiator): Promise<{ pdus: number[][]; data: Buffer; last: Pdu }> => {
    const pdus: number[][] = [];
    const data: Buffer[] = [];
    for (;;) {
      const pdu = await one.read();
      if (pdu.opcode === DATA_IN) {
        pdus.push([pdu.head.getUint32(36), pdu.head.getUint32(40), pdu.data.length]);
        data.push(pdu.data);
      }
      if (pdu.opcode !== DATA_IN || (pdu.flags & 1) !== 0) return { pdus, data: Buffer.concat(data), last: pdu };
    }
  };
  const snack = (one: RawInitiator, type: number, words: Record<number, number>): void =>
    one.send(header(0x10, 0x80 | type, { 16: 0xffffffff, 20: 0xffffffff, 28: one.expStatSn, ...words }));
  const takeAtMost = async (one: RawInitiator, bytes: number): Promise<void> => {
    const words = { 16: one.nextTag++, 20: 0xffffffff, 24: one.cmdSn++, 28: one.expStatSn };
    one.send(header(0x04, 0x80, words), text({ MaxRecvDataSegmentLength: String(bytes) }));
    assert.equal((await one.read()).opcode, 0x24);
  };

  it("who takes less than before gets all data anew, and then the status under its tag", async () => {
    const one = await open({ ErrorRecoveryLevel: "1", MaxRecvDataSegmentLength: "4096", DataDigest: "CRC32C" });
    const content = Buffer.from(Array.from({ length: 8192 }, (_, at) => (at * 11) & 0xff));
    assert.equal((await one.run(write10(400, 16), { write: content })).status, 0);
    one.send(one.command(read10(400, 16), 8192, "read"));
    const first = await answerOf(one);
    assert.deepEqual(first.pdus, [
      [0, 0, 4096],
      [1, 4096, 4096],
    ]);
    const statSn = first.last.head.getUint32(24);
    const tag = one.nextTag - 1;
    // The initiator acts as if it had seen none of it.
    one.expStatSn = statSn;
    await takeAtMost(one, 3000);
    one.expStatSn = statSn;
    // Asked for as it was, it would be too long now.
    snack(one, 0, { 16: tag });
    assert.equal((await one.read()).opcode, REJECT);
    for (const [index, length] of [3000, 5000].entries()) {
      one.expStatSn = statSn;
      if (index > 0) await takeAtMost(one, length);
      one.expStatSn = statSn;
      snack(one, R_DATA, { 16: tag, 20: 0x70 + index });
      const again = await answerOf(one);
      const lengths = [...Array(Math.floor(8192 / length)).fill(length), 8192 % length];
      assert.deepEqual(
        again.pdus,
        lengths.map((bytes, sn) => [sn, sn * length, bytes]),
      );
      assert.deepEqual(again.data, content);
      assert.equal(again.last.opcode, RESPONSE);
      assert.equal(again.last.head.getUint8(3), 0);
      assert.equal(again.last.head.getUint32(20), 0x70 + index, "the SNACK tag");
      assert.equal(again.last.head.getUint32(24), statSn, "a status keeps its number");
      assert.equal(again.last.head.getUint32(36), lengths.length, "ExpDataSN");
      // The status alone, and data as it is cut now, can be had again.
      one.expStatSn = statSn;
      snack(one, STATUS, { 40: statSn, 44: 1 });
      const { last } = await answerOf(one);
      assert.deepEqual(
        [last.opcode, last.head.getUint32(20), last.head.getUint32(24)],
        [RESPONSE, 0x70 + index, statSn],
      );
      one.expStatSn = statSn;
      snack(one, 0, { 16: tag, 40: 1, 44: 1 });
      const second = await one.read();
      assert.deepEqual([second.head.getUint32(36), second.head.getUint32(40)], [1, length]);
      assert.deepEqual(second.data, content.subarray(length, 2 * length));
    }
    one.close();
  });

  it("data that was acknowledged is not sent again, and cannot be asked for", async () => {
    const one = await open({ ErrorRecoveryLevel: "1", MaxRecvDataSegmentLength: "1024", MaxBurstLength: "2048" });
    one.send(one.command(read10(0, 16), 8192, "read"));
    const first = await answerOf(one);
    assert.equal(first.pdus.length, 8);
    const statSn = first.last.head.getUint32(24);
    const tag = one.nextTag - 1;
    one.expStatSn = statSn;
    // The first PDU of the second burst, again: as it was, with its transfer tag for the acknowledgement.
    snack(one, 0, { 16: tag, 40: 3, 44: 1 });
    const again = await one.read();
    assert.deepEqual([again.head.getUint32(36), again.flags & 0xc0], [3, 0xc0]);
    const transferTag = again.head.getUint32(20);
    assert.notEqual(transferTag, 0xffffffff);
    for (const begin of [9, 0xffffffff]) {
      snack(one, DATA_ACK, { 20: transferTag, 40: begin });
      assert.equal((await one.read()).opcode, REJECT, `nobody can have seen ${begin} PDUs`);
      one.expStatSn = statSn;
    }
    snack(one, DATA_ACK, { 20: transferTag, 40: 4 });
    snack(one, 0, { 16: tag, 40: 2, 44: 3 });
    assert.equal((await one.read()).opcode, REJECT);
    one.expStatSn = statSn;
    snack(one, 0, { 16: tag });
    assert.deepEqual((await answerOf(one)).pdus, first.pdus.slice(4));
    one.expStatSn = statSn;
    snack(one, R_DATA, { 16: tag, 20: 5 });
    const rest = await answerOf(one);
    assert.deepEqual(rest.pdus, first.pdus.slice(4));
    assert.equal(rest.last.head.getUint32(20), 5);
    assert.equal(rest.last.head.getUint32(36), 8, "ExpDataSN");
    one.close();
  });

  it("SNACKs for what never was are rejected, and those that come in floods do no harm", async () => {
    const one = await open({ ErrorRecoveryLevel: "2", MaxRecvDataSegmentLength: "512", InitialR2T: "Yes" });
    const written = one.command(write10(500, 4), 2048, "write");
    one.send(written);
    const r2t = await one.read();
    one.send(one.command(read10(0, 64), 32768, "read"));
    const { last } = await answerOf(one);
    const statSn = last.head.getUint32(24);
    const tag = one.nextTag - 1;
    const wrong: [number, Record<number, number>][] = [
      [R_DATA, { 16: tag, 20: 0 }],
      [R_DATA, { 16: tag, 20: 0xffffffff }],
      [R_DATA, { 16: tag, 20: 7, 40: 1 }],
      [R_DATA, { 16: tag, 20: 7, 44: 1 }],
      [R_DATA, { 16: tag + 1000, 20: 7 }],
      [R_DATA, { 16: 0xffffffff, 20: 7 }],
      [R_DATA, { 16: written.readUInt32BE(16), 20: 7 }],
      [0, { 16: tag, 40: 64 }],
      [0, { 16: tag, 40: 63, 44: 2 }],
      [0, { 16: tag, 40: 0xffffffff, 44: 0xffffffff }],
      [STATUS, { 40: statSn + 100, 44: 1 }],
      [7, { 16: tag }],
    ];
    for (const [type, words] of wrong) {
      one.expStatSn = statSn;
      snack(one, type, words);
      const answer = await one.read();
      const PROTOCOL_ERROR = 4;
      assert.deepEqual(
        [answer.opcode, answer.head.getUint8(2)],
        [REJECT, PROTOCOL_ERROR],
        JSON.stringify([type, words]),
      );
    }
    // Each begins the answer anew; with the status acknowledged in between, its buffer is given back while it is sent.
    one.expStatSn = statSn;
    const FLOOD = 500;
    for (let n = 1; n <= FLOOD; n++) {
      snack(one, n % 3 === 0 ? 0 : R_DATA, n % 3 === 0 ? { 16: tag } : { 16: tag, 20: n });
      if (n % 100 === 99) snack(one, STATUS, { 40: statSn, 44: 1 });
    }
    one.expStatSn = statSn + 100;
    one.answerR2t(r2t, Buffer.alloc(2048, 0x44));
    for (;;) {
      const pdu = await one.read();
      if (pdu.opcode === RESPONSE && pdu.tag === r2t.tag) break;
    }
    one.close();
    await serves();
  });

  it("what is sent again stays what it was, also when it is acknowledged before it has left", async () => {
    const slow = await open({ ErrorRecoveryLevel: "1", DataDigest: "CRC32C", MaxRecvDataSegmentLength: "262144" });
    const BLOCKS = 2048;
    for (let at = 0; at < BLOCKS; at += 128)
      assert.equal((await slow.run(write10(8192 + at, 128), { write: Buffer.alloc(65_536, 0xa1) })).status, 0);
    const read = await slow.run(read10(8192, BLOCKS), { read: MIB });
    assert.equal(read.data.length, MIB);
    const statSn = (slow.expStatSn - 1) >>> 0;
    slow.socket.pause();
    const SNACKS = 40;
    for (let n = 0; n < SNACKS; n++)
      slow.send(header(0x10, 0x80, { 16: slow.nextTag - 1, 20: 0xffffffff, 28: statSn }));
    // Much of it cannot leave yet. Now it is acknowledged, and others need memory.
    const ping = { 16: 0x7000, 20: 0xffffffff, 24: slow.cmdSn, 28: slow.expStatSn };
    slow.send(header(0x40, 0x80, ping));
    const other = await open();
    for (let n = 0; n < 8; n++)
      assert.equal((await other.run(write10(0, BLOCKS), { write: Buffer.alloc(MIB, 0xb2) })).status, 0);
    slow.socket.resume();
    let again = 0;
    for (let pdu = await slow.read(); pdu.opcode === DATA_IN; pdu = await slow.read(), again++)
      assert.ok(
        pdu.data.every((byte) => byte === 0xa1),
        "nobody else's data",
      );
    assert.ok(again > 0, "some of it was on its way");
    other.close();
    slow.close();
  });

  it("a task whose connection died is finished on another one", async () => {
    const first = await open({ ErrorRecoveryLevel: "2", MaxConnections: "2", InitialR2T: "Yes" });
    const head = first.command(write10(300, 16), 8192, "write");
    const tag = head.readUInt32BE(16);
    first.send(head);
    assert.equal((await first.read()).opcode, 0x31);
    first.close();
    await first.closed();
    const second = await RawInitiator.connect(rig.port);
    const options = { ...GOOD, isid: isid - 1, tsih: first.tsih, cid: 2, cmdSn: first.cmdSn };
    assert.equal(await second.login(options), 0);
    second.send(header(0x42, 0x88, { 16: 0x900, 20: tag, 24: first.cmdSn, 28: second.expStatSn }));
    const data = Buffer.alloc(8192, 0x77);
    let isWritten = false;
    for (let seen = 0; seen < 2; ) {
      const pdu = await second.read();
      if (pdu.opcode === 0x22) {
        assert.equal(pdu.head.getUint8(2), 0);
        seen++;
      } else if (pdu.opcode === 0x31) second.answerR2t(pdu, data);
      else if (pdu.opcode === 0x21) {
        assert.equal(pdu.head.getUint8(3), 0);
        isWritten = true;
        seen++;
      }
    }
    assert.ok(isWritten);
    second.cmdSn = first.cmdSn;
    second.nextTag = 50;
    assert.deepEqual((await second.run(read10(300, 16), { read: 8192 })).data, data);
    second.close();
  });

  it("commands of two connections are done in the order of their numbers", async () => {
    const first = await open({ MaxConnections: "2" });
    const second = await RawInitiator.connect(rig.port);
    assert.equal(await second.login({ ...GOOD, isid: isid - 1, tsih: first.tsih, cid: 2, cmdSn: first.cmdSn }), 0);
    // The later number comes first, on the second connection: it waits.
    second.cmdSn = first.cmdSn + 1;
    second.nextTag = 900;
    second.send(second.command(TUR, 0, "none"));
    assert.equal(await second.tryRead(200), undefined);
    assert.equal((await first.run(TUR)).status, 0);
    assert.equal((await second.read()).opcode, 0x21);
    first.close();
    second.close();
  });

  it("Data-Out for tasks that never were is skipped", async () => {
    const bad = await open();
    for (const tag of [0, 77, 0xffffffff])
      bad.send(header(0x05, 0x80, { 16: tag, 20: 5, 36: 9, 40: 4096 }), Buffer.alloc(4096));
    assert.equal((await bad.run(TUR)).status, 0);
    bad.close();
  });

  it("nonsense in text keys is refused, and what is unknown is said to be", async () => {
    const nonsense = [
      "=",
      "\x01=2",
      "no value",
      `${"K".repeat(80)}=1`,
      "lower=1",
      "A=1\0A=2",
      `Big=${"x".repeat(9000)}`,
    ];
    for (const bytes of nonsense) {
      const bad = await RawInitiator.connect(rig.port);
      const head = header(0x43, 0x87, { 16: 1, 20: 1 << 16, 24: 1 });
      bad.send(head, Buffer.from(`InitiatorName=${NAME}\0TargetName=${TARGET}\0${bytes}\0`, "latin1"));
      assert.equal((await bad.read()).head.getUint16(36), 0x0200, JSON.stringify(bytes.slice(0, 20)));
      await bad.closed();
    }
    const odd = await open({ "X-org.example.thing": "1", MaxBurstLength: "12", OFMarker: "Yes", Unheard: "Of" });
    assert.equal(odd.answers.get("X-org.example.thing"), "NotUnderstood");
    assert.equal(odd.answers.get("Unheard"), "NotUnderstood");
    assert.equal(odd.answers.get("MaxBurstLength"), "Reject");
    assert.equal(odd.answers.get("OFMarker"), "No");
    odd.close();
  });

  it("strangers and wrong targets are told why", async () => {
    const status = async (options: Parameters<RawInitiator["login"]>[0]): Promise<number> => {
      const one = await RawInitiator.connect(rig.port);
      const answer = await one.login(options);
      one.close();
      return answer;
    };
    assert.equal(await status({ ...GOOD, initiator: "iqn.2024-01.test:stranger" }), 0x0202);
    assert.equal(await status({ ...GOOD, target: "iqn.2024-01.test:elsewhere" }), 0x0203);
    assert.equal(await status({ ...GOOD, initiator: "me" }), 0x0200);
    assert.equal(await status({ ...GOOD, tsih: 999 }), 0x020a);
    assert.match(rig.front.refusals.map(({ why }) => why).join("\n"), /no host has the initiator name/);
  });

  it("a crowd that dawdles in the login keeps nobody out", { timeout: 60_000 }, async () => {
    const crowd = await Promise.all(Array.from({ length: 400 }, () => RawInitiator.connect(rig.port)));
    await serves();
    for (const one of crowd) one.close();
    await serves();
  });

  it("strangers that stay in discovery sessions keep nobody out", { timeout: 60_000 }, async () => {
    // More than an eighth of the target's memory has room for.
    const COUNT = 300;
    const crowd: RawInitiator[] = [];
    for (let index = 0; index < COUNT; index++) {
      const one = await RawInitiator.connect(rig.port);
      assert.equal(await one.login({ initiator: `iqn.2024-01.test:stranger${index}` }), 0);
      crowd.push(one);
    }
    await crowd[0]!.closed();
    assert.equal(await crowd.at(-1)!.sendTargets("All"), "", "the last ones are there, and are told of nothing");
    await serves();
    for (const one of crowd) one.close();
  });

  it("a second login of the same initiator port ends the first session, and only then begins", async () => {
    const first = await open();
    const second = await RawInitiator.connect(rig.port);
    assert.equal(await second.login({ ...GOOD, isid: isid - 1 }), 0);
    await first.closed();
    const lost = await second.run(TUR);
    assert.equal(lost.status, 2);
    assert.equal(lost.sense.readUInt16BE(12), 0x2907);
    second.close();
  });

  it("a flood of pings is answered in order, without the target's memory growing", async () => {
    const bad = await open();
    const count = 2000;
    for (let n = 0; n < count; n++)
      bad.send(header(0x40, 0x80, { 16: n, 20: 0xffffffff, 24: bad.cmdSn, 28: bad.expStatSn }), Buffer.alloc(1024, n));
    for (let n = 0; n < count; n++) assert.equal((await bad.read()).tag, n);
    bad.close();
  });
});

describe("CHAP", () => {
  let rig: Rig;
  let capture: Capture;
  before(async () => {
    rig = await startRig({ volumes: [{ name: "disk", size: MIB }], chap: CHAP, mutualChap: MUTUAL, memory: 16 * MIB });
    capture = await Capture.start(scope, [rig.port]);
  });
  after(async () => {
    await rig.stop();
    await capture.check({ messages: 30, isHostile: true });
    rig.env.close();
  });

  for (const algorithm of [5, 6, 7, 8])
    it(`proves both sides with algorithm ${algorithm}`, async () => {
      const good = await RawInitiator.connect(rig.port);
      assert.equal(await good.login({ ...GOOD, chap: { ...CHAP, algorithm }, mutual: MUTUAL }), 0);
      await good.settle();
      good.close();
    });

  it("refuses a wrong secret, a wrong name, and whoever leaves it out", async () => {
    const tries = [{ chap: { ...CHAP, secret: "a secret of 16 x" } }, { chap: { ...CHAP, user: "other" } }, {}];
    for (const attempt of tries) {
      const bad = await RawInitiator.connect(rig.port);
      assert.equal(await bad.login({ ...GOOD, ...attempt }), 0x0201);
      await bad.closed();
    }
    const skipping = await RawInitiator.connect(rig.port);
    const answer = await skipping.loginStep(GOOD, 0x87, { InitiatorName: NAME, TargetName: TARGET });
    assert.equal(answer.head.getUint16(36), 0x0201);
    await skipping.closed();
  });

  it("refuses its own challenge when it comes back", async () => {
    const bad = await RawInitiator.connect(rig.port);
    await bad.loginStep(GOOD, 0x81, { InitiatorName: NAME, TargetName: TARGET, AuthMethod: "CHAP" });
    await bad.loginStep(GOOD, 0x00, { CHAP_A: "5" });
    const { createHash } = await import("node:crypto");
    const challenge = bad.answers.get("CHAP_C")!;
    const id = Number(bad.answers.get("CHAP_I"));
    const response = createHash("md5")
      .update(Buffer.from([id]))
      .update(CHAP.secret)
      .update(Buffer.from(challenge.slice(2), "hex"))
      .digest("hex");
    const keys = { CHAP_N: CHAP.user, CHAP_R: `0x${response}`, CHAP_I: "9", CHAP_C: challenge };
    assert.equal((await bad.loginStep(GOOD, 0x81, keys)).head.getUint16(36), 0x0201);
    await bad.closed();
  });
});

describe("an iSCSI target that stops", () => {
  const ASYNC_MESSAGE = 0x32;
  const LOGOUT_REQUEST = 0x06;
  const LOGOUT_RESPONSE = 0x26;
  const LOGOUT_REQUESTED = 1;

  it("asks for logouts, serves until they come, and cuts off who stays", { timeout: 60_000 }, async () => {
    const rig = await startRig({ volumes: [{ name: "disk", size: MIB, blockSize: 512 }] });
    const open = async (isid: number): Promise<RawInitiator> => {
      const one = await RawInitiator.connect(rig.port);
      assert.equal(await one.login({ ...GOOD, isid }), 0);
      await one.settle();
      return one;
    };
    const polite = await open(1);
    const deaf = await open(2);
    let stopped = false;
    const stopping = rig.stop().then(() => {
      stopped = true;
    });
    const asked = await polite.read();
    assert.equal(asked.opcode, ASYNC_MESSAGE);
    assert.equal(asked.head.getUint8(36), LOGOUT_REQUESTED);
    const seconds = asked.head.getUint16(42);
    assert.ok(seconds > 0, "there is time to log out");
    assert.equal((await polite.run(write10(0, 1), { write: Buffer.alloc(512, 7) })).status, 0);
    polite.send(header(LOGOUT_REQUEST, 0x80, { 16: polite.nextTag++, 24: polite.cmdSn++, 28: polite.expStatSn }));
    assert.equal((await polite.read()).opcode, LOGOUT_RESPONSE);
    await polite.closed();
    assert.equal(stopped, false, "the other one has its time as well");
    await deaf.closed();
    await stopping;
    assert.equal(rig.env.memory.used, 0);
    rig.env.close();
  });
});
