/**
 * One volume over iSCSI, NBD and SCP at once, under one oracle: what is written by one front is read by every other,
 * while all three write, and after kill -9 in the middle of it.
 */
import assert from "node:assert/strict";
import test from "node:test";
import { Capture } from "../support/capture.ts";
import { BLOCK_BYTES, Oracle } from "../support/oracle.ts";
import { sleep } from "../support/program.ts";
import { chance } from "../support/random.ts";
import { Server } from "../support/server.ts";
import { cleanUp, freePort } from "../support/temp.ts";
import { checkAll, INITIATOR, LUN, load, openIscsi, openNbd, openScp, type Tally, type Way } from "./three-ways.ts";

const BLOCKS = 4096;
const KILLS = 4;
const LOAD_MS_MIN = 300;
const LOAD_MS_MAX = 900;
const OPERATIONS_AT_REST = 600;

test("iSCSI, NBD and SCP show one volume, whoever writes it, through kill -9", { timeout: 240_000 }, async (t) => {
  const random = chance((line) => t.diagnostic(line));
  const [iscsi, scp] = [await freePort(), await freePort()];
  const args = ["--iscsi", `127.0.0.1:${iscsi}`, "--scp", `127.0.0.1:${scp}`, "--scp-any-source-port"];
  const server = await Server.start(t, { args });
  const capture = await Capture.start(t, [iscsi]);
  await server.ashlar("volume", "create", "db", "--size", String(BLOCKS * BLOCK_BYTES), "--block-size", "512");
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
  const digests = { HeaderDigest: "CRC32C", DataDigest: "CRC32C" };
  const openOthers = async (): Promise<Way[]> => [
    await openIscsi(iscsi, iqn, 1, {}),
    await openIscsi(iscsi, iqn, 2, digests),
    await openIscsi(iscsi, iqn, 3, { ...digests, MaxBurstLength: "16384", MaxRecvDataSegmentLength: "8192" }),
    await openNbd(server.nbd),
    await openNbd(server.nbd),
  ];

  let others = await openOthers();
  const sum = { iscsi: 0, nbd: 0, scp: 0 };
  const add = (tally: Tally) => {
    for (const front of ["iscsi", "nbd", "scp"] as const) sum[front] += tally[front];
  };
  for (let kill = 0; kill < KILLS; kill++) {
    let gone = false;
    let ended = false;
    const loaded = load(
      [...others, ...scpWays],
      oracle,
      random,
      () => ended,
      () => gone,
    );
    // A failure is reported by the wait below; until then it must not count as unhandled.
    loaded.catch(() => {});
    await sleep(LOAD_MS_MIN + random.below(LOAD_MS_MAX - LOAD_MS_MIN));
    gone = true;
    await server.kill();
    ended = true;
    await server.restart();
    // What SCP had in flight is done now, by the server that has come back.
    add(await loaded);
    for (const way of others) await way.close();
    others = await openOthers();
    for (const way of [others[1]!, others[3]!, scpWays[0]!]) await checkAll(way, oracle);
  }
  let left = OPERATIONS_AT_REST;
  add(
    await load(
      [...others, ...scpWays],
      oracle,
      random,
      () => left-- <= 0,
      () => false,
    ),
  );
  for (const way of [others[0]!, others[4]!, scpWays[1]!]) await checkAll(way, oracle);
  for (const way of others) await way.close();
  await capture.check({ messages: 500 });
  t.diagnostic(`operations: iSCSI ${sum.iscsi}, NBD ${sum.nbd}, SCP ${sum.scp}`);
  for (const count of Object.values(sum)) assert.ok(count > 50, "too little load to mean anything");
  const { damage } = await server.json("scrub");
  assert.deepEqual(damage, []);
});
