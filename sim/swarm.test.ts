import assert from "node:assert/strict";
import { execFile } from "node:child_process";
import { readFileSync } from "node:fs";
import test from "node:test";
import { promisify } from "node:util";
import { CANARIES, hunt } from "./canaries.ts";
import { REGRESSIONS } from "./regressions.ts";
import { makeResources, runScript, runSeed } from "./runner.ts";
import { SCENARIOS } from "./scenarios/all.ts";

const WORLDS = 2000;

test(`${WORLDS} worlds keep every promise`, { timeout: 600_000 }, async () => {
  // Always the same ones, so that a commit's verdict is its own; `npm run soak` tries new ones.
  const run = promisify(execFile)(process.execPath, ["dist/sim/run.js", "--worlds", `${WORLDS}`, "--from", "1"], {
    maxBuffer: 16 * 1024 * 1024,
  });
  const { stdout } = await run.catch((error: { stdout: string }) => error);
  console.log(stdout);
  assert.match(stdout, / 0 failed\n$/);
});

for (const canary of CANARIES)
  test(`it is noticed when ${canary.what} (${canary.name})`, { timeout: 600_000 }, () => {
    const { worlds } = hunt(canary);
    assert.ok(worlds !== undefined, `not noticed in ${canary.worldsMax} worlds`);
  });

test("a seed gives the same world again, and a script alone does so too", () => {
  for (const scenario of SCENARIOS) {
    const results = [1, 2].map(() => runSeed(7, makeResources(), { scenario: scenario.name }));
    const again = runScript(7, scenario, results[0]!.script, makeResources());
    assert.equal(results[0]!.trace, results[1]!.trace, scenario.name);
    assert.equal(results[0]!.trace, again.trace, scenario.name);
  }
});

test("the document tells of every seed that has found something", () => {
  const text = readFileSync("docs/design/simulation.md", "utf8");
  for (const { scenario, seed } of REGRESSIONS) assert.ok(text.includes(`${scenario} ${seed}`), `${scenario} ${seed}`);
});
