/** Which portals are told to whom. */
import assert from "node:assert/strict";
import { test } from "node:test";
import type { PortalRecord } from "#base/rights";
import { portalsFor } from "./iscsi-portals.ts";

const portal = (host: string, port = 3260) => ({ address: { host, port } });
const record = (address: string, given: Partial<PortalRecord>): PortalRecord => ({
  address,
  groupTag: 1,
  networks: [],
  advertise: undefined,
  ...given,
});

test("what only this machine can reach is told only on it", () => {
  const all = [portal("127.0.0.1"), portal("10.0.0.5"), portal("10.1.0.5"), portal("fd00::5")];
  const from = (index: number, host: string, localHost: string) =>
    portalsFor({ portal: all[index]!, host, localHost }, all, []);
  assert.deepEqual(from(1, "10.0.0.9", "10.0.0.5"), ["10.0.0.5:3260,1", "10.1.0.5:3260,1", "[fd00::5]:3260,1"]);
  assert.deepEqual(from(0, "127.0.0.1", "127.0.0.1"), ["127.0.0.1:3260,1"]);
});

test("what listens everywhere is told by the address that the initiator has come to", () => {
  const all = [portal("0.0.0.0"), portal("::")];
  const from = (index: number, localHost: string) => portalsFor({ portal: all[index]!, host: "x", localHost }, all, []);
  assert.deepEqual(from(0, "10.0.0.5"), ["10.0.0.5:3260,1"]);
  assert.deepEqual(from(1, "fd00::5"), ["[fd00::5]:3260,1"]);
  assert.deepEqual(from(1, "fe80::5%eth0"), ["[fe80::5]:3260,1"]);
});

test("a portal that is for a network is told to initiators of that network, as it is advertised", () => {
  const all = [portal("10.0.0.5"), portal("10.1.0.5")];
  const records = [
    record("10.0.0.5:3260", { networks: ["10.0.0.0/24", "fd00::/64"] }),
    record("10.1.0.5:3260", { networks: ["10.1.0.0/24"], groupTag: 2, advertise: "san.example:3261" }),
  ];
  const from = (index: number, host: string) =>
    portalsFor({ portal: all[index]!, host, localHost: "10.0.0.5" }, all, records);
  assert.deepEqual(from(0, "10.0.0.9"), ["10.0.0.5:3260,1"]);
  assert.deepEqual(from(0, "fd00::9"), ["10.0.0.5:3260,1"]);
  assert.deepEqual(from(1, "10.1.0.9"), ["san.example:3261,2"]);
  assert.deepEqual(from(1, "192.168.0.9"), ["10.1.0.5:3260,2"], "whoever has come is told the way it came by");
});
