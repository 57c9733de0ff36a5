import assert from "node:assert/strict";
import { test } from "node:test";
import { formatSize, parseSize } from "./size.ts";

test("a size is read exactly, binary by default and decimal with B", () => {
  assert.equal(parseSize("10G"), 10 * 1024 ** 3);
  assert.equal(parseSize("10GiB"), 10 * 1024 ** 3);
  assert.equal(parseSize("10gb"), 10_000_000_000);
  assert.equal(parseSize("1.5T"), 1.5 * 1024 ** 4);
  assert.equal(parseSize("4096"), 4096);
  assert.equal(parseSize("512B"), 512);
  assert.equal(parseSize("0.1KB"), 100);
  assert.equal(parseSize(" 7 MiB "), 7 * 1024 ** 2);
});

test("what is not a whole number of bytes, or no size at all, is refused", () => {
  for (const text of ["", "G", "-1G", "1.0001K", "1e9", "10 apples", "9P1", "9000000P", "0x10", "1,5G"])
    assert.throws(() => parseSize(text), { name: "Refusal", code: "bad-request" }, text);
});

test("a size is printed short", () => {
  assert.equal(formatSize(0), "0 B");
  assert.equal(formatSize(1023), "1023 B");
  assert.equal(formatSize(10 * 1024 ** 3), "10 GiB");
  assert.equal(formatSize(1.5 * 1024 ** 4), "1.5 TiB");
  assert.equal(formatSize(123_456_789), "118 MiB");
});
