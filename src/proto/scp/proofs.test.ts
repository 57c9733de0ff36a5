import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { it } from "node:test";
import { helloAnswerMac, helloMac, parseSecret, serverMac, sessionKeys } from "./proofs.ts";

interface Golden {
  readonly secret: string;
  readonly messages: readonly { name: string; hex: string }[];
}
const golden = JSON.parse(readFileSync(new URL("../../../../test/golden/scp.json", import.meta.url), "utf8")) as Golden;
const hexOf = (name: string) => golden.messages.find((one) => one.name === name)!.hex;
const hex = (bytes: Uint8Array) => Buffer.from(bytes).toString("hex");
const range = (from: number, count: number): Uint8Array => Uint8Array.from({ length: count }, (_, i) => from + i);

it("the proofs are those of the golden messages, which Python made", () => {
  const challenge = {
    capabilities: 7,
    depth: 64,
    dataMax: 1 << 20,
    serverId: range(0, 16),
    serverNonce: range(0x20, 32),
  };
  const proof = { capabilities: 3, instance: range(0xa0, 16), hostNonce: range(0x60, 32), hostName: "web" };
  const { hostMac, key } = sessionKeys(parseSecret(golden.secret)!, {
    versions: 3,
    random: 0x12345678,
    challenge,
    proof,
  });
  assert(hexOf("v2 answer").includes(hex(hostMac)));
  assert(hexOf("v2 verdict").includes(hex(serverMac(key, 0x0badcafe))));
  assert(hexOf("v2 hello").includes(hex(helloMac(key, 0x0badcafe, 9, 0x12345678))));
  assert(hexOf("v2 welcome").includes(hex(helloAnswerMac(key, 0x0badcafe, 9))));
});

it("a secret is 64 hex digits, and nothing else", () => {
  assert.equal(parseSecret(` ${"0A".repeat(32)}\n`)!.length, 32);
  for (const none of ["", "0".repeat(63), "g".repeat(64), "0".repeat(65)]) assert.equal(parseSecret(none), undefined);
});
