/**
 * kill -9 at any instant under load, fifty times in a row: every acknowledged block is there, every other one is whole
 * and either old or new, snapshots are what they were, and the server comes up again without anybody's help.
 */
import assert from "node:assert/strict";
import test from "node:test";
import { BLOCK_BYTES, Oracle } from "../support/oracle.ts";
import { sleep } from "../support/program.ts";
import { chance } from "../support/random.ts";
import { Server } from "../support/server.ts";
import { checkAll, load } from "./load.ts";

const KILLS = 50;
const BLOCKS = 12_288;
const SIZE = String(BLOCKS * BLOCK_BYTES);
const LOAD_MS_MAX = 500;

test("fifty times killed under load, nothing that was acknowledged is lost", async (t) => {
  const random = chance((line) => t.diagnostic(line));
  const server = await Server.start(t);
  await server.ashlar("volume", "create", "db", "--size", SIZE);
  const db = new Oracle(1, BLOCKS);
  let writes = 0;
  for (let kill = 0; kill < KILLS; kill++) {
    const loaded = load(server.nbd, "db", db, random, { clients: 1 + random.below(4), workers: 1 + random.below(16) });
    await sleep(random.below(LOAD_MS_MAX));
    await server.kill();
    const done = await loaded.catch((error: Error) => {
      throw new Error(`seed ${random.seed}, kill ${kill}, under load: ${error.message}`, { cause: error });
    });
    writes += done.writes;
    await server.restart();
    await checkAll(server.nbd, "db", db).catch((error: Error) => {
      throw new Error(`seed ${random.seed}, after kill ${kill}: ${error.message}\n${server.lastWords}`);
    });
  }
  t.diagnostic(`${writes} acknowledged writes`);
  assert.ok(writes > KILLS * 20, `only ${writes} writes were acknowledged: too little load to mean anything`);
  const { damage } = await server.json("scrub");
  assert.deepEqual(damage, []);
});

test("killed while snapshots and clones are made and deleted, each is either whole or not there", async (t) => {
  const random = chance((line) => t.diagnostic(line));
  const server = await Server.start(t);
  await server.ashlar("volume", "create", "db", "--size", SIZE);
  /** What each export must hold. */
  const oracles = new Map([["db", new Oracle(2, BLOCKS)]]);
  const names = async () => {
    const [volumes, snapshots] = [await server.json("volume", "ls"), await server.json("snapshot", "ls")];
    return new Set<string>([...volumes, ...snapshots].map((each: { name: string }) => each.name));
  };

  for (let kill = 0; kill < 12; kill++) {
    await load(server.nbd, "db", oracles.get("db")!, random, { operations: 200 });
    const target = `db@s${kill}`;
    const old = [...oracles.keys()].filter((name) => name !== "db");
    // At rest, so that it is known what the new snapshot must hold; a kill comes anywhere before or after the answer.
    const [args, made, gone] = random.pick([
      [["snapshot", "create", target], target, undefined],
      ...(old.length > 2 ? [deletion(random.pick(old))] : []),
      ...old.filter((name) => name.includes("@")).map((name) => [["clone", name, `c${kill}`], `c${kill}`, undefined]),
    ] as [string[], string | undefined, string | undefined][]);
    const source = args[0] === "clone" ? args[1]! : "db";
    const pending = server.ashlarAny(args);
    await sleep(random.below(400));
    await server.kill();
    const { status } = await pending;
    await server.restart();

    const found = await names();
    if (made !== undefined && found.has(made)) oracles.set(made, oracles.get(source)!.copy());
    else assert.ok(made === undefined || status !== 0, `${args.join(" ")} succeeded, and is not there after kill -9`);
    if (gone !== undefined && !found.has(gone)) oracles.delete(gone);
    else assert.ok(gone === undefined || status !== 0, `${args.join(" ")} succeeded, and it is back after kill -9`);
    assert.deepEqual([...found].sort(), [...oracles.keys()].sort(), `seed ${random.seed}, after kill ${kill}`);
    for (const [name, oracle] of oracles)
      await checkAll(server.nbd, name, oracle).catch((error: Error) => {
        throw new Error(
          `seed ${random.seed}, after kill ${kill} in ${args.join(" ")}: ${error.message}\n${server.lastWords}`,
        );
      });
  }
});

function deletion(name: string): [string[], undefined, string] {
  return [name.includes("@") ? ["snapshot", "rm", name] : ["volume", "rm", name, "--force"], undefined, name];
}
