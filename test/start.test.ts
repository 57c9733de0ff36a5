/** `npm start`: what a person sees first. */
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { Program, run } from "./support/program.ts";
import { ASHLAR } from "./support/server.ts";
import { freePort, tempFolder } from "./support/temp.ts";

test("npm start shows a server at work, says what to type next, and stops in order on Ctrl-C", async (t) => {
  const data = join(tempFolder(t), "data");
  const port = await freePort();
  const start = new Program(process.execPath, ["tools/start.mjs", "--data", data, "--port", String(port)]);
  t.after(async () => void (await start.stop("SIGKILL")));
  await start.until("at its end", () => start.output.includes("Ctrl-C stops it"), 150_000);
  assert.match(start.output, /random write +4 KiB +[\d,]+/);
  assert.match(start.output, /blocks read back and compared: all as written/);
  assert.match(start.output, new RegExp(`nbd://127\\.0\\.0\\.1:${port}/demo`));
  const volumes = JSON.parse(await run(process.execPath, [ASHLAR, "--data", data, "volume", "ls", "--json"]));
  assert.deepEqual(
    volumes.map(({ name }: { name: string }) => name),
    ["demo"],
  );
  start.child.kill("SIGINT");
  assert.equal(await Promise.race([start.ended, sleep(30_000, "still running")]), "exit status 0");
  assert.match(start.output, /nothing is lost/);
  assert.ok(!existsSync(join(data, "ashlar.sock")), "the server is gone");
});
