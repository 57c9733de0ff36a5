/** Every example runs as its first line says, and does what it promises. */
import assert from "node:assert/strict";
import { readdirSync, readFileSync, statSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";
import { Program, run } from "#test/support/program";
import { tempFolder } from "#test/support/temp";

const LINES_MAX = 60;
const program = (name: string): string => join("dist/examples", `${name}.js`);

test("each example is short, and its first line is the command that starts it", () => {
  const names = readdirSync("examples").filter((name) => name.endsWith(".ts"));
  assert.deepEqual(names.sort(), ["copy-with-progress.ts", "read-and-write.ts", "serve-a-device.ts"]);
  for (const name of names) {
    const text = readFileSync(join("examples", name), "utf8");
    assert.ok(text.split("\n").length < LINES_MAX, `${name} is too long`);
    assert.ok(
      text.startsWith(`// node dist/examples/${name.replace(/ts$/, "js")} `),
      `${name} does not say how to run it`,
    );
    assert.match(text, /from "ashlar"/);
  }
});

test("a device of one's own is served; it is read, written and saved from TypeScript, and by nbdcopy", async (context) => {
  const folder = tempFolder(context);
  const server = new Program(process.execPath, [program("serve-a-device"), "127.0.0.1:0"]);
  context.after(() => server.stop());
  await server.until("serving", () => server.output.includes("nbd://"));
  const uri = /nbd:\S+/.exec(server.output)![0];

  const image = join(folder, "image");
  await run("dd", ["if=/dev/urandom", `of=${image}`, "bs=1M", "count=8"]);
  await run("nbdcopy", [image, uri]);
  assert.match(await run(process.execPath, [program("read-and-write"), uri]), /so that the blocks fit/);
  const copy = join(folder, "copy");
  assert.match(await run(process.execPath, [program("copy-with-progress"), uri, copy]), /8388608 were written/);
  assert.deepEqual(readFileSync(copy).subarray(0, 8 << 20), readFileSync(image));
  assert.ok(statSync(copy).blocks * 512 < 16 << 20, "the copy is not sparse");
  assert.equal(await server.stop("SIGTERM"), "exit status 0");
});

test("an example without a server says why, and fails", async () => {
  await assert.rejects(
    run(process.execPath, [program("read-and-write"), "nbd://127.0.0.1:1/x"]),
    /exit|ended with 1[\s\S]*Cannot connect to nbd:\/\/127\.0\.0\.1:1\/x/,
  );
});
