/**
 * Our NBD client on a server that is killed with kill -9 and started again, many times, while operations are in flight:
 * whoever uses the client notices nothing but the time, and every byte is as it was written.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { connect } from "#library/connect";
import { differential } from "#test/support/differential";
import { chance } from "#test/support/random";
import { Server } from "#test/support/server";

const KILLS = 5;

test("kill -9 under load, and back: nothing is lost, doubled or twisted", async (context) => {
  const server = await Server.start(context);
  await server.ashlar("volume", "create", "db", "--size", "4M");
  const client = await connect(server.uri("db"), { giveUpMs: 60_000 });
  context.after(async () => {
    // It flushes, and for that the server must be there.
    if (server.isRunning) await client.close();
  });
  let kills = 0;
  let restarting: Promise<void> | undefined;
  await differential(
    client,
    chance((line) => context.diagnostic(line)),
    {
      operations: 3_000,
      workers: 16,
      lengthMax: 60_000,
      trimReadsZero: true,
      disturb: {
        every: Math.floor(3_000 / KILLS),
        by: () => {
          restarting ??= (async () => {
            await server.kill();
            await server.restart();
            kills++;
            restarting = undefined;
          })();
          // Not waited for: the others go on while it is away.
        },
      },
    },
  );
  await restarting;
  assert.ok(kills >= KILLS - 1, `${kills} kills`);
  assert.ok(client.figures.connectionsLost > 0);
  await client.close();
});
