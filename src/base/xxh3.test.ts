import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { describe, test } from "node:test";
import addon from "xxhash-addon";
import { crc32c } from "./crc32c.ts";
import { MIB } from "./units.ts";
import { Hasher } from "./xxh3.ts";

const ROOM = 2 * MIB;
const hasher = new Hasher(ROOM + MIB);
const bytes = new Uint8Array(hasher.buffer);
fillRandomly(bytes.subarray(MIB), 1);

/** As the C library computes it. */
function expected(at: number, length: number): bigint {
  return addon.XXHash3.hash(Buffer.from(bytes.buffer, at, length)).readBigUInt64BE();
}

describe("XXH3-64", () => {
  test("agrees with the C library for every length up to 1100 bytes, at aligned and odd positions", () => {
    for (let length = 0; length <= 1100; length++) {
      for (const at of [MIB, MIB + 1 + (length % 63)])
        assert.equal(hasher.hash64(at, length), expected(at, length), `length ${length} at ${at}`);
    }
  });

  test("agrees with the C library for long pieces, and around every multiple of the 1024-byte block", () => {
    for (let length = 1024; length <= 70 * 1024; length += 1024)
      for (const more of [-65, -64, -1, 0, 1, 63, 64, 65])
        assert.equal(hasher.hash64(MIB, length + more), expected(MIB, length + more), `length ${length + more}`);
    assert.equal(hasher.hash64(MIB, ROOM), expected(MIB, ROOM));
  });

  test("gives the values that xxHash publishes", () => {
    // xxHash 0.8 tests/sanity_test_vectors.h: the buffer is made by the generator below.
    const prime32 = 2654435761n;
    const prime64 = 11400714785074694797n;
    let state = prime32;
    const at = MIB + 8;
    const kept = bytes.slice(at, at + 2400);
    for (let i = 0; i < 2400; i++) {
      bytes[at + i] = Number(state >> 56n);
      state = (state * prime64) & 0xffff_ffff_ffff_ffffn;
    }
    assert.equal(hasher.hash64(at, 0), 0x2d06800538d394c2n);
    assert.equal(hasher.hash64(at, 1), 0xc44bdff4074eecdbn);
    assert.equal(hasher.hash64(at, 6), 0x27b56a84cd2d7325n);
    assert.equal(hasher.hash64(at, 12), 0xa713daf0dfbb77e7n);
    assert.equal(hasher.hash64(at, 24), 0xa3fe70bf9d3510ebn);
    assert.equal(hasher.hash64(at, 48), 0x397da259ecba1f11n);
    assert.equal(hasher.hash64(at, 80), 0xbcdefbbb2c47c90an);
    assert.equal(hasher.hash64(at, 195), 0xcd94217ee362ec3an);
    bytes.set(kept, at);
  });

  test("hash is the low 32 bits, without a sign", () => {
    for (let length = 0; length < 600; length += 7)
      assert.equal(hasher.hash(MIB + length, length), Number(hasher.hash64(MIB + length, length) & 0xffff_ffffn));
  });
});

describe("CRC32C", () => {
  /** RFC 3720 appendix B.4, and the check value of the Rocksoft catalogue. */
  const VECTORS: [string, Uint8Array, number][] = [
    ["123456789", new TextEncoder().encode("123456789"), 0xe3069283],
    ["32 zeroes", new Uint8Array(32), 0x8a9136aa],
    ["32 ones", new Uint8Array(32).fill(0xff), 0x62a8ab43],
    ["32 ascending", Uint8Array.from({ length: 32 }, (_, i) => i), 0x46dd794e],
    ["32 descending", Uint8Array.from({ length: 32 }, (_, i) => 31 - i), 0x113fdb5c],
    ["nothing", new Uint8Array(0), 0],
  ];
  for (const [name, data, sum] of VECTORS)
    test(`gives the published value of ${name}, in both ways`, () => {
      assert.equal(crc32c(data), sum);
      bytes.set(data, MIB + 3);
      assert.equal(hasher.crc32c(MIB + 3, data.length), sum);
    });

  test("both ways agree at every length and alignment, and go on from the sum of what came before", () => {
    const short = Array.from({ length: 200 }, (_, length) => length);
    // From 1 KiB on it is done in another way: in blocks of 4 KiB, with a rest of 544 bytes; from 16 KiB on first in blocks
    // of 64 KiB, with a rest of 5312 bytes.
    const long = Array.from({ length: 600 }, (_, index) => 1000 + 29 * index + (index % 3));
    const longer = [16383, 16384, 16385, 16447, 16448, 40000, 65535, 65536, 70848, 70849, 131072, 200_001];
    for (const length of [...short, ...long, 4640, 4656, 8192 + 544, ...longer]) {
      const at = MIB + 4096 + (length % 17);
      const whole = crc32c(bytes.subarray(at, at + length));
      assert.equal(hasher.crc32c(at, length), whole, `length ${length}`);
      const cut = length >> 1;
      assert.equal(hasher.crc32c(at + cut, length - cut, hasher.crc32c(at, cut)), whole);
      assert.equal(crc32c(bytes.subarray(at + cut, at + length), crc32c(bytes.subarray(at, at + cut))), whole);
    }
  });
});

test("the bytes in hash-wasm.ts are what hash.wat assembles to", () => {
  const root = new URL("../../../", import.meta.url).pathname;
  execFileSync(process.execPath, ["tools/hash-wasm.mjs", "--check"], { cwd: root });
});

/** A generator good enough for test data: the same bytes for the same seed. */
function fillRandomly(to: Uint8Array, seed: number): void {
  for (let at = 0; at < to.length; at++) {
    seed = Math.imul(seed ^ (seed >>> 15), 0x2c1b3c6d) + 0x9e3779b9;
    to[at] = seed >>> 24;
  }
}
