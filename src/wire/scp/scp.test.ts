import assert from "node:assert/strict";
import { createHash, createHmac } from "node:crypto";
import { readFileSync } from "node:fs";
import { describe, it } from "node:test";
import { equalBytes, hmacSha256, sha256 } from "#base/sha256";
import { ByteBox } from "./byte-box.ts";
import { Event, nameOf, Op, STATUS_CODE, STATUS_REFUSED, statusOf, Type } from "./codes.ts";
import {
  addressWords,
  decodeCapacities,
  decodeChallenge,
  decodeDataPorts,
  decodeHello,
  decodeHelloAnswer,
  decodeProof,
  decodeUnits,
  decodeVerdict,
  encodeCapacities,
  encodeChallenge,
  encodeDataPorts,
  encodeHello,
  encodeHelloAnswer,
  encodeProof,
  encodeUnits,
  encodeVerdict,
  wordsAddress,
} from "./config.ts";
import { decodeFrame, encodeFrame, FRAME, Frame } from "./frame.ts";
import { decodeZnReq, encodeZnReq, ZNREQ, ZnReq } from "./znreq.ts";

interface Golden {
  readonly messages: readonly { name: string; means: string; hex: string }[];
}
const golden = JSON.parse(readFileSync(new URL("../../../../test/golden/scp.json", import.meta.url), "utf8")) as Golden;

/** "0000 dd*512" as bytes. */
function bytesOf(name: string): Buffer {
  const message = golden.messages.find((one) => one.name === name);
  assert(message !== undefined, name);
  const parts = message.hex.split(" ").map((part) => {
    const [byte, count] = part.split("*");
    return count === undefined ? Buffer.from(part, "hex") : Buffer.alloc(Number(count), Number.parseInt(byte!, 16));
  });
  return Buffer.concat(parts);
}

const R = 0x12345678;
const session = 0x0badcafe;
const range = (from: number, count: number): Uint8Array => Uint8Array.from({ length: count }, (_, i) => from + i);

describe("znreq_t", () => {
  const cases: [string, Partial<ZnReq>, number?][] = [
    ["v1 greeting", { op: Op.Z_GET_VERSION, reqszLo: R }],
    ["v1 answer", { op: Op.Z_GET_VERSION, reqszLo: ~R >>> 0 }],
    ["v1 verdict", { op: Op.Z_GET_VERSION, reqszLo: ~R >>> 0 }],
    ["v1 verdict refused", { op: Op.Z_GET_VERSION, reqszLo: ~R >>> 0, status: STATUS_REFUSED }],
    ["v1 starttime", { op: Op.Z_GET_STARTTIME }],
    ["v1 starttime reply", { op: Op.Z_GET_STARTTIME, reqszLo: 0xc00c1e5 }],
    ["v1 capacities", { op: Op.Z_GET_CAPACITIES }],
    ["v1 dataport", { op: Op.Z_GET_DATAPORT }],
    ["v1 hello", { op: Op.Z_HELLO, reqszLo: R }],
    ["v1 hello refused", { op: Op.Z_HELLO, status: STATUS_REFUSED }],
    ["v1 read", { zlun: 3, op: Op.READ, reqszLo: 65536, lbaHi: 2, lbaLo: 8 }],
    ["v1 read reply", { zlun: 3, op: Op.READ, reqszLo: 65536, lbaHi: 2, lbaLo: 8 }],
    ["v1 write failed", { op: Op.WRITE, status: STATUS_REFUSED, flags: STATUS_CODE.denied, lbaLo: 1 }],
  ];
  for (const [name, fields] of cases)
    it(`is ${name}, both ways`, () => {
      const wanted = bytesOf(name);
      const box = new ByteBox(Buffer.alloc(512, 0xff));
      const end = encodeZnReq(Object.assign(new ZnReq(), fields), box.view, 0);
      assert.equal(end, 512);
      assert.deepEqual(Buffer.from(box.bytes), wanted);
      const slot = new ZnReq();
      decodeZnReq(slot, new ByteBox(wanted).view, 0);
      assert.deepEqual({ ...slot }, { ...Object.assign(new ZnReq(), fields) });
    });

  it("has 64-bit lengths and addresses in two halves", () => {
    const slot = new ZnReq();
    slot.lba = 2 ** 33 + 8;
    assert.deepEqual([slot.lbaHi, slot.lbaLo, slot.lba], [2, 8, 2 ** 33 + 8]);
    slot.reqszHi = 0xffff_ffff;
    slot.reqszLo = 0xffff_ffff;
    assert(slot.length >= 2 ** 53);
  });
});

describe("lists of the configuration protocol", () => {
  it("carry capacities in bytes", () => {
    const message = bytesOf("v1 capacities reply");
    const sizes = decodeCapacities(new ByteBox(message).view, ZNREQ.byteLength, 2);
    assert.deepEqual(sizes, [20 * 2 ** 30, 2 ** 53 - 513]);
    const box = new ByteBox(528);
    encodeCapacities(sizes!, box.view, ZNREQ.byteLength);
    assert.deepEqual(Buffer.from(box.bytes.subarray(512)), message.subarray(512));
    new ByteBox(message).view.setUint32(512, 0x7fff_ffff);
    assert.equal(decodeCapacities(new ByteBox(message).view, 512, 2), undefined, "a size beyond 2^53");
    assert.equal(decodeCapacities(new ByteBox(message).view, 512, 1e6), undefined, "too many");
  });

  it("carry data ports of both families", () => {
    const message = bytesOf("v1 dataport reply");
    const ports = decodeDataPorts(new ByteBox(message).view, 512, 2)!;
    assert.deepEqual(ports, [
      { address: "10.1.1.1", port: 10002, socketsMax: 10 },
      { address: "2001:db8::1", port: 10003, socketsMax: 12 },
    ]);
    const box = new ByteBox(512 + 56);
    encodeDataPorts(ports, box.view, 512);
    assert.deepEqual(Buffer.from(box.bytes.subarray(512)), message.subarray(512));
    for (const [offset, value] of [
      [0, 5],
      [20, 0],
      [20, 65536],
    ] as const) {
      const bad = new ByteBox(Buffer.from(message));
      bad.view.setUint32(512 + offset, value);
      assert.equal(decodeDataPorts(bad.view, 512, 2), undefined);
    }
  });

  it("carry units", () => {
    const message = bytesOf("v2 units reply");
    const units = decodeUnits(new ByteBox(message).view, FRAME.byteLength, 1)!;
    assert.deepEqual(units, [
      {
        unit: 7,
        name: "p2",
        size: 60 * 2 ** 20,
        blockSize: 512,
        preferredBlockSize: 4096,
        readOnly: true,
        away: false,
        uuid: "00112233445566778899aabbccddeeff",
      },
    ]);
    const box = new ByteBox(message.length);
    encodeUnits(units, box.view, FRAME.byteLength);
    assert.deepEqual(Buffer.from(box.bytes.subarray(64)), message.subarray(64));
    const bad = new ByteBox(Buffer.from(message));
    bad.view.setUint32(64 + 16, 777);
    assert.equal(decodeUnits(bad.view, 64, 1), undefined, "a block size of 777");
  });

  it("write addresses as RFC 5952 does", () => {
    for (const address of [
      "0.0.0.0",
      "255.255.255.255",
      "::",
      "::1",
      "fe80::1:0:0:1",
      "1:2:3:4:5:6:7:8",
      "1:0:3:4:5:6:7:8",
    ])
      assert.equal(wordsAddress(addressWords(address)), address);
    for (const none of ["", "1.2.3", "1.2.3.256", "1::2::3", "g::", "1:2:3:4:5:6:7:8:9", "host"])
      assert.throws(() => addressWords(none), /no IP address/, none);
  });
});

describe("proofs of version 2", () => {
  const challenge = {
    capabilities: 7,
    depth: 64,
    dataMax: 1 << 20,
    serverId: range(0, 16),
    serverNonce: range(0x20, 32),
  };

  it("lie in the padding where the page says", () => {
    const box = new ByteBox(512);
    encodeZnReq(Object.assign(new ZnReq(), { op: Op.Z_GET_VERSION, version: 3, reqszLo: R }), box.view, 0);
    encodeChallenge(challenge, box.view, 0);
    assert.deepEqual(Buffer.from(box.bytes), bytesOf("v2 greeting"));
    assert.deepEqual(decodeChallenge(box.view, 0), challenge);

    const proof = decodeProof(new ByteBox(bytesOf("v2 answer")).view, 0)!;
    assert.deepEqual([proof.hostName, proof.capabilities], ["web", 3]);
    const again = new ByteBox(Buffer.from(bytesOf("v2 answer")));
    again.bytes.fill(0, 64);
    encodeProof(proof, again.view, 0);
    assert.deepEqual(Buffer.from(again.bytes), bytesOf("v2 answer"));
    for (const name of ["", "a".repeat(64), "a b", "ä"]) {
      const bad = new ByteBox(Buffer.from(bytesOf("v2 answer")));
      bad.bytes.fill(0, 148, 212);
      Buffer.from(name, "latin1").copy(bad.bytes, 148);
      assert.equal(decodeProof(bad.view, 0), undefined, JSON.stringify(name));
    }
  });

  it("of verdicts, hellos and welcomes, too", () => {
    const verdict = new ByteBox(Buffer.from(bytesOf("v2 verdict")));
    const { session: id, mac } = decodeVerdict(verdict.view, 0);
    assert.equal(id, session);
    encodeVerdict(id, mac, verdict.view, 0);
    assert.deepEqual(Buffer.from(verdict.bytes), bytesOf("v2 verdict"));
    const hello = new ByteBox(Buffer.from(bytesOf("v2 hello")));
    const said = decodeHello(hello.view, 0);
    assert.deepEqual([said.session, said.serial], [session, 9]);
    encodeHello(said, hello.view, 0);
    assert.deepEqual(Buffer.from(hello.bytes), bytesOf("v2 hello"));
    const welcome = new ByteBox(Buffer.from(bytesOf("v2 welcome")));
    const answer = decodeHelloAnswer(welcome.view, 0);
    encodeHelloAnswer(answer.serial, answer.mac, welcome.view, 0);
    assert.deepEqual(Buffer.from(welcome.bytes), bytesOf("v2 welcome"));
  });
});

describe("frames of version 2", () => {
  const frame = (fields: Partial<Frame>): Frame => Object.assign(new Frame(), { session, ...fields });
  const cases: [string, Partial<Frame>][] = [
    ["v2 read", { unit: 7, op: Op.READ, tag: 0x305, length: 4096, lba: 2 ** 33 }],
    [
      "v2 read reply",
      { type: Type.RESPONSE, unit: 7, op: Op.READ, tag: 0x305, length: 4096, lba: 2 ** 33, bodyLength: 4096 },
    ],
    ["v2 write", { unit: 7, op: Op.WRITE, flags: 1, tag: 1, length: 512, lba: 1, bodyLength: 512 }],
    ["v2 write failed", { type: Type.RESPONSE, unit: 7, op: Op.WRITE, tag: 1, status: STATUS_CODE.full, lba: 1 }],
    [
      "v2 miscompare",
      {
        type: Type.RESPONSE,
        unit: 7,
        op: Op.COMPARE_WRITE,
        tag: 2,
        status: STATUS_CODE.miscompare,
        length: 100,
        lba: 1,
      },
    ],
    ["v2 zero", { unit: 7, op: Op.ZERO, flags: 2, tag: 3, length: 2 ** 40 }],
    ["v2 ping", { op: Op.PING, tag: 0xffff_ffff }],
    ["v2 fence", { unit: 9, op: Op.Z_FENCE, tag: 16 }],
    ["v2 event", { type: Type.EVENT, op: Op.Z_EVENT, flags: Event.UNIT_RESIZED, unit: 7 }],
  ];
  for (const [name, fields] of cases)
    it(`are ${name}, both ways`, () => {
      const message = bytesOf(name);
      const box = new ByteBox(Buffer.from(message));
      const slot = new Frame();
      assert.equal(decodeFrame(slot, box, 0), undefined);
      if (slot.bodyLength > 0) assert.equal(slot.bodyCrc, box.crc32c(64, slot.bodyLength));
      assert.deepEqual({ ...slot }, { ...frame({ ...fields, bodyCrc: slot.bodyCrc }) });
      box.bytes.fill(0xff, 0, 64);
      assert.equal(encodeFrame(slot, box, 0), 64);
      assert.deepEqual(Buffer.from(box.bytes), message);
    });

  it("with any bit changed are no frames", () => {
    const message = bytesOf("v2 read");
    for (let bit = 0; bit < 512; bit++) {
      const box = new ByteBox(Buffer.from(message));
      box.bytes[bit >> 3]! ^= 1 << (bit & 7);
      assert.notEqual(decodeFrame(new Frame(), box, 0), undefined, `bit ${bit}`);
    }
  });
});

describe("SHA-256", () => {
  it("is what Node's is, for every length around the block's, and with keys of every kind", () => {
    for (let length = 0; length < 200; length++) {
      const bytes = range(0, length);
      assert.deepEqual(Buffer.from(sha256(bytes)), createHash("sha256").update(bytes).digest());
      const keyed = createHmac("sha256", bytes).update("abc").digest();
      assert(equalBytes(hmacSha256(bytes, Buffer.from("a"), Buffer.from("bc")), keyed));
    }
  });
});

describe("codes", () => {
  it("give every status its number and back", () => {
    for (const [status, code] of Object.entries(STATUS_CODE)) assert.equal(statusOf(code), status);
    assert.equal(statusOf(0xffff_ffff), "medium");
    assert.equal(nameOf(Op, 0x1007), "Z_GET_CAPACITIES");
  });
});
