/** Socket activation as systemd does it: libnbd's clients start us themselves and hand us the listening socket. */
import assert from "node:assert/strict";
import { join } from "node:path";
import test from "node:test";
import { run } from "../support/program.ts";
import { ASHLAR, Server } from "../support/server.ts";
import { tempFolder } from "../support/temp.ts";

test("nbdinfo starts a server on a socket of its own and lists its volumes", async (t) => {
  const data = join(tempFolder(t), "data");
  const server = await Server.start(t, { data });
  await server.ashlar("volume", "create", "db", "--size", "8M");
  await server.stop();
  const command = [process.execPath, ASHLAR, "serve", "--data", data, "--http", "off"];
  const { exports } = JSON.parse(await run("nbdinfo", ["--list", "--json", "--", "[", ...command, "]"]));
  assert.deepEqual(
    exports.map((each: { "export-name": string }) => each["export-name"]),
    ["db"],
  );
});
