/** `npm test` counts honestly: what crashes, hangs or stops early is a failure, and what is left behind is cleared. */
import assert from "node:assert/strict";
import { mkdirSync, mkdtempSync, rmSync, writeFileSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import test from "node:test";
import { pathToFileURL } from "node:url";

interface Result {
  passed: number;
  failures: { name: string; detail: string }[];
  skipped: { name: string }[];
  notes: string[];
}

/** Runs a test file with this body as `npm test` would. */
async function run(body: string, hangMs = 30_000): Promise<Result> {
  const { runFile } = await import(pathToFileURL(join(process.cwd(), "tools/test/run-file.mjs")).href);
  const cache = mkdtempSync(join(tmpdir(), "ashlar-runner-"));
  try {
    mkdirSync(join(cache, "test-logs"));
    const program = join(cache, "sample.mjs");
    writeFileSync(program, `import test from "node:test"; import assert from "node:assert/strict";\n${body}\n`);
    return await runFile(cache, { path: "sample.test.ts", program }, { name: undefined, hangMs, cache });
  } finally {
    rmSync(cache, { recursive: true });
  }
}

test("tests that pass, fail and are skipped are counted apart, each under its whole name", async () => {
  const result = await run(`
    test("good", () => {});
    test.skip("later", () => {});
    test("outer", async (t) => { await t.test("bad", () => assert.equal(1, 2)); });`);
  assert.equal(result.passed, 1);
  assert.deepEqual(
    result.failures.map((failure) => failure.name),
    ["outer > bad", "outer"],
  );
  assert.deepEqual(
    result.skipped.map((skipped) => skipped.name),
    ["later"],
  );
});

test("a file that ends in the middle of its tests has failed, whatever its exit status", async () => {
  const result = await run(`test("good", () => {}); test("exits", async () => process.exit(0));`);
  assert.equal(result.failures.length, 1);
  assert.match(result.failures[0]!.detail, /before its tests did/);
});

test("a file that crashes has failed", async () => {
  const result = await run(`test("good", () => {}); process.abort();`);
  assert.match(result.failures[0]!.detail, /SIGABRT/);
});

test("a file that cannot be loaded has failed", async () => {
  assert.equal((await run(`import "./missing.mjs";`)).failures.length, 1);
});

test("a file that hangs is killed and has failed, with the name of the test that did", async () => {
  const hangs = `test("hangs", () => new Promise((resolve) => setTimeout(resolve, 60_000)));`;
  const result = await run(`test("good", () => {}); ${hangs}`, 1_000);
  assert.match(result.failures.at(-1)!.detail, /still running after 1 s; killed in "hangs"/);
  const within = await run(
    `import { suite } from "node:test"; suite("outer", () => { test("good", () => {}); ${hangs} });`,
    1_000,
  );
  assert.match(within.failures.at(-1)!.detail, /in "outer > hangs"/);
});

test("a process that outlives its file is killed and named", async () => {
  const result = await run(`
    import { spawn } from "node:child_process";
    test("good", () => { spawn("sleep", ["61"], { detached: true, stdio: "ignore" }).unref(); });`);
  assert.equal(result.passed, 1);
  assert.match(result.notes[0]!, /sleep 61/);
});
