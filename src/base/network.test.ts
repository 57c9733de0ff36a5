import assert from "node:assert/strict";
import { test } from "node:test";
import { addressBytes, isInNetwork, parseNetwork } from "./network.ts";

test("addresses of both families are read, and what is none is not", () => {
  assert.deepEqual(addressBytes("10.1.2.3"), [10, 1, 2, 3]);
  assert.deepEqual(addressBytes("::ffff:10.1.2.3"), [10, 1, 2, 3]);
  assert.deepEqual(addressBytes("fe80::1%eth0")?.slice(0, 2), [0xfe, 0x80]);
  assert.deepEqual(
    addressBytes("::"),
    Array.from({ length: 16 }, () => 0),
  );
  for (const text of ["", "10.1.2", "10.1.2.256", "1:2", "1::2::3", "1:2:3:4:5:6:7:8:9", "::g", ":1"])
    assert.equal(addressBytes(text), undefined, text);
});

test("an address is in a network of its family, by the prefix's bits", () => {
  const isIn = (address: string, network: string): boolean => isInNetwork(address, parseNetwork(network)!);
  assert.ok(isIn("10.1.255.255", "10.1.0.0/16"));
  assert.ok(!isIn("10.2.0.0", "10.1.0.0/16"));
  assert.ok(isIn("10.1.3.1", "10.1.2.0/23"));
  assert.ok(!isIn("10.1.4.1", "10.1.2.0/23"));
  assert.ok(isIn("::ffff:10.1.2.3", "0.0.0.0/0"));
  assert.ok(isIn("fd00:1::5", "fd00::/8"));
  assert.ok(!isIn("fe80::5", "fd00::/8"));
  assert.ok(!isIn("10.1.2.3", "::/0"));
  assert.ok(isIn("10.1.2.3", "10.1.2.3"));
  for (const text of ["10.1.0.0/33", "10.1.0.0/", "x/8", "fe80::%1/64"]) assert.equal(parseNetwork(text), undefined);
});
