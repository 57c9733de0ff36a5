import assert from "node:assert/strict";
import { spawnSync } from "node:child_process";
import { test } from "node:test";
import { chooseEnv } from "./choose.ts";

test("node is always to be had, and auto gives an Env with a reason", () => {
  assert.deepEqual(chooseEnv("node"), { kind: "node", why: "it was asked for" });
  assert.match(chooseEnv("auto").why, /\w+ \w+/);
});

test("without native code auto falls back to node in words, and uring is refused with what to do", () => {
  const script = `
    const Module = (await import("node:module")).default;
    const load = Module._load;
    Module._load = function (name, ...rest) {
      if (name === "koffi") throw new Error("no native code here");
      return load.call(this, name, ...rest);
    };
    const { chooseEnv } = await import(${JSON.stringify(new URL("./choose.js", import.meta.url).href)});
    const choice = chooseEnv("auto");
    let refused;
    try { chooseEnv("uring"); } catch (error) { refused = { code: error.code, message: error.message, hint: error.hint }; }
    console.log(JSON.stringify({ choice, refused }));
  `;
  const run = spawnSync(process.execPath, ["--input-type=module", "-e", script], { encoding: "utf8" });
  assert.equal(run.status, 0, run.stderr);
  const { choice, refused } = JSON.parse(run.stdout);
  assert.equal(choice.kind, "node");
  assert.match(choice.why, /koffi cannot be loaded: no native code here/);
  assert.equal(refused.code, "unsupported");
  assert.match(refused.message, /no native code here/);
  assert.match(refused.hint, /--env node/);
});
