/**
 * Lanes that die under load, by a mistake of their own or ended from outside, with nobody left to close anything: it is
 * told, the volumes are opened again, hosts come back over NBD, SCP and iSCSI, and an oracle misses nothing.
 */
import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import test from "node:test";
import { call } from "../support/admin.ts";
import { Capture } from "../support/capture.ts";
import { BLOCK_BYTES, Oracle } from "../support/oracle.ts";
import { sleep, until } from "../support/program.ts";
import { chance } from "../support/random.ts";
import { Server } from "../support/server.ts";
import { cleanUp, freePort } from "../support/temp.ts";
import { checkAll, INITIATOR, LUN, load, openIscsi, openNbd, openScp, type Way } from "./three-ways.ts";

const isNode = process.env["ASHLAR_ENV"] === "node";
const LANES = isNode ? 1 : 2;
const BLOCKS = 4096;
const LOAD_MS_MIN = 200;
const LOAD_MS_MAX = 600;
/** Which lane dies, and whether it is ended from outside. */
const DEATHS = isNode
  ? ([
      [0, false],
      [0, true],
    ] as const)
  : ([
      [0, false],
      [1, true],
      [0, true],
      [1, false],
    ] as const);

interface Status {
  readonly lanes: readonly { readonly state: string; readonly restarts: number }[];
  readonly problems: readonly object[];
}

test("lanes that die under load lose nothing, and everybody comes back", { timeout: 240_000 }, async (t) => {
  const random = chance((line) => t.diagnostic(line));
  const [iscsi, scp] = [await freePort(), await freePort()];
  const args = ["--iscsi", `127.0.0.1:${iscsi}`, "--scp", `127.0.0.1:${scp}`, "--scp-any-source-port"];
  const server = await Server.start(t, { args: [...args, "--lanes", String(LANES)] });
  const capture = await Capture.start(t, [iscsi]);
  // The volume is of the lane that accepts nothing, where there is one: connections to it are given away, or pass through.
  if (LANES > 1) await server.ashlar("volume", "create", "other", "--size", "16M");
  const size = ["--size", String(BLOCKS * BLOCK_BYTES), "--block-size", "512"];
  assert.equal((await server.json("volume", "create", "db", ...size)).lane, LANES - 1);
  await server.ashlar("host", "add", "three", "--iqn", INITIATOR);
  await server.ashlar("grant", "db", "three", "--unit", String(LUN));
  await server.ashlar("host", "add", "web");
  await server.ashlar("grant", "db", "web");
  const secret = (await server.ashlar("host", "secret", "web")).trim();
  const { iqn } = await server.json("target", "show");
  const oracle = new Oracle(3, BLOCKS);
  const scpWays = [await openScp(scp, secret), await openScp(scp, secret)];
  cleanUp(t, async () => {
    for (const way of scpWays) await way.close();
  });
  const openOthers = async (): Promise<Way[]> => [
    await openIscsi(iscsi, iqn, 1, {}),
    await openIscsi(iscsi, iqn, 2, { HeaderDigest: "CRC32C", DataDigest: "CRC32C" }),
    await openNbd(server.nbd),
    await openNbd(server.nbd),
  ];
  const lanes = async () => {
    const status = await call<Status>(server.data, "GET", "/v1/status");
    return status.lanes.map((lane) => ({ ...lane, isWell: lane.state === "running" && status.problems.length === 0 }));
  };
  const descriptors = () => readdirSync(`/proc/${server.pid}/fd`).length;

  let others = await openOthers();
  let before = 0;
  const sum = { iscsi: 0, nbd: 0, scp: 0 };
  for (const [lane, force] of DEATHS) {
    let gone = false;
    let ended = false;
    const loaded = load(
      [...others, ...scpWays],
      oracle,
      random,
      () => ended,
      () => gone,
    );
    loaded.catch(() => {});
    await sleep(LOAD_MS_MIN + random.below(LOAD_MS_MAX - LOAD_MS_MIN));
    const { restarts } = (await lanes())[lane]!;
    gone = true;
    await call(server.data, "POST", `/v1/lanes/${lane}/restart`, { force });
    await until("the lane is back", async () => {
      const { isWell, restarts: now } = (await lanes())[lane]!;
      return isWell && now > restarts;
    });
    ended = true;
    const tally = await loaded;
    for (const front of ["iscsi", "nbd", "scp"] as const) sum[front] += tally[front];
    for (const way of others) await way.close();
    others = await openOthers();
    for (const way of [others[1]!, others[2]!, scpWays[0]!]) await checkAll(way, oracle);
    // Nothing of the dead lane stays open. The first deaths load what later ones have, and connections come and go.
    if (before === 0) before = descriptors();
    assert.ok(descriptors() < before + 20, `${descriptors()} descriptors are open, and ${before} were`);
  }
  for (const way of others) await way.close();
  await capture.check({ messages: 200 });
  assert.equal(server.log.match(/A lane died and is being replaced/g)?.length, DEATHS.length);
  assert.match(server.log, /the control plane wanted it so/);
  assert.match(server.log, /ended from outside/);
  t.diagnostic(`operations: iSCSI ${sum.iscsi}, NBD ${sum.nbd}, SCP ${sum.scp}`);
  for (const count of Object.values(sum)) assert.ok(count > 20, "too little load to mean anything");
  assert.deepEqual((await server.json("scrub")).damage, []);
  await server.stop();
});
