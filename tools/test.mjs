#!/usr/bin/env node
/**
 * `npm test`: from a fresh checkout to a verdict. Installs what is missing, builds, lints, and runs every test file in
 * a process of its own. Short when all is well, complete when not; the last line is "N passed, N failed".
 *
 *   npm test                     everything
 *   npm test -- interop          files whose path or suite contains "interop" (several words: any of them)
 *   npm test -- --name PATTERN   only tests with such a name
 *   npm test -- --list           what would run
 *
 * Counted are tests, not suites. A file that crashes, hangs, or ends before its tests do counts as a failed test; a
 * skipped test counts as nothing, and is listed. Plain Node, nothing to install: it must run before anything else does.
 */
import { mkdirSync } from "node:fs";
import { join } from "node:path";
import { installDependencies, installPeers, ROOT, runStep } from "./test/ground.mjs";
import { Report } from "./test/report.mjs";
import { runFile } from "./test/run-file.mjs";
import { findFiles, readTimes, writeTimes } from "./test/suites.mjs";

/** All of it; what has not run by then has failed. */
const RUN_MS_MAX = 25 * 60_000;
const WORKERS = 2;

const words = [];
let name;
let listOnly = false;
for (let args = process.argv.slice(2); args.length > 0; ) {
  const word = args.shift();
  if (word === "--name") name = args.shift();
  else if (word === "--list") listOnly = true;
  else words.push(word);
}

const cache = join(ROOT, ".cache");
mkdirSync(join(cache, "test-logs"), { recursive: true });
const times = readTimes(cache);
const files = findFiles(ROOT, words, times);

if (listOnly) {
  for (const file of files) console.log(`${file.suite.name.padEnd(9)} ${file.path}`);
  process.exit(0);
}

const report = new Report();
const deadline = Date.now() + RUN_MS_MAX;
const whole = words.length === 0 && name === undefined;

report.step("dependencies", await installDependencies());
if (report.failed === 0)
  report.step("the source compiles", await runStep("npm", ["run", "build", "--silent"], 300_000));
if (report.failed > 0) report.end();
if (whole) report.step("the linter has nothing to say", await runStep("npm", ["run", "lint", "--silent"], 120_000));
if (files.some((file) => file.suite.peers)) report.notes.push(...(await installPeers()));
if (files.length === 0) report.fail("npm test", `no test file matches ${words.join(" ")}`, "");

/** Takes one file after the other from `queue` until it is empty. */
async function work(queue) {
  for (let file = queue.shift(); file !== undefined; file = queue.shift()) {
    const left = deadline - Date.now();
    if (left <= 0) {
      report.fail(
        "the file is run",
        `there was no time left: the whole run may take ${RUN_MS_MAX / 60_000} minutes`,
        file.path,
      );
      continue;
    }
    const result = await runFile(ROOT, file, { name, hangMs: Math.min(file.suite.hangMs, left), cache });
    if (result.failures.length === 0 && name === undefined) times[file.path] = result.ms;
    report.add(file, result);
  }
}

const together = files.filter((file) => !file.suite.alone);
await Promise.all(Array.from({ length: WORKERS }, () => work(together)));
await work(files.filter((file) => file.suite.alone));

writeTimes(cache, times);
report.end();
