/** Runs one test file in a process of its own, with a limit, and clears away what it leaves behind. */
import { spawn } from "node:child_process";
import { randomUUID } from "node:crypto";
import { closeSync, openSync, readdirSync, readFileSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

const REPORTER = fileURLToPath(new URL("reporter.mjs", import.meta.url));
/** What ends by itself has this long after its test file before it is called left over. */
const LEFTOVER_GRACE_MS = 2_000;
/** How much of a failed file's own output is shown; all of it is in the log. */
const OUTPUT_BYTES_MAX = 40_000;

/**
 * @returns { passed, failures: [{name, detail}], skipped: [{name, why}], tests: [{name, ms}], ms, notes }
 */
export async function runFile(root, file, { name, hangMs, cache }) {
  const log = join(cache, "test-logs", `${file.path.replaceAll(/[/ ]/g, "~")}.log`);
  const told = join(tmpdir(), `ashlar-test-${randomUUID()}.jsonl`);
  const mark = `ASHLAR_TEST_FILE=${randomUUID()}`;
  const args = ["--enable-source-maps", `--test-reporter=${REPORTER}`, `--test-reporter-destination=${told}`];
  if (name !== undefined) args.push(`--test-name-pattern=${name}`);

  const result = { passed: 0, failures: [], skipped: [], tests: [], ms: 0, notes: [], log };
  const startedMs = Date.now();
  const output = openSync(log, "w");
  const [key, value] = mark.split("=");
  const child = spawn(process.execPath, [...args, file.program], {
    cwd: root,
    env: { ...process.env, ...file.env, [key]: value },
    stdio: ["ignore", output, output],
    detached: true,
  });
  let hung = false;
  const timer = setTimeout(() => {
    hung = true;
    kill(-child.pid);
  }, hangMs);
  const end = await new Promise((resolve) => {
    child.once("error", (error) => resolve(`could not be started: ${error.message}`));
    child.once("exit", (code, signal) => resolve(code === 0 ? "" : `ended with ${signal ?? `exit status ${code}`}`));
  });
  clearTimeout(timer);
  closeSync(output);
  result.ms = Date.now() - startedMs;
  await clearLeftovers(mark, hung, result);

  const { ended, running } = readTold(told, result);
  rmSync(told, { force: true });
  if (hung)
    result.failures.push({
      name: "the file ends",
      detail: `still running after ${Math.round(hangMs / 1000)} s; killed${running === "" ? "" : ` in "${running}"`}`,
    });
  else if (!ended)
    result.failures.push({ name: "the file ends after its tests", detail: end || "ended before its tests did" });
  else if (end !== "" && result.failures.length === 0)
    result.failures.push({ name: "the file ends well", detail: end });
  if (result.failures.length > 0) result.output = tail(log);
  return result;
}

/** Adds what the reporter wrote to `result`. Whether it wrote to the end, and the whole name of the test that had not ended. */
function readTold(path, result) {
  let ended = false;
  const lines = readLines(path);
  const running = [];
  for (const { begins, name, nesting } of lines)
    if (begins === true) running.splice(nesting, Number.POSITIVE_INFINITY, name);
    else if (name !== undefined && running[nesting] === name) running.length = nesting;
  const parents = [];
  // Parents are told after their children, so reading backwards names every test by its whole path.
  for (const test of lines.reverse()) {
    if (test.begins === true) continue;
    if (test.end === true) {
      ended = true;
      continue;
    }
    parents.length = test.nesting;
    const whole = [...parents, test.name].join(" > ");
    parents.push(test.name);
    if (test.skip !== undefined) result.skipped.push({ name: whole, why: test.skip });
    else if (!test.passed && !(test.suite && test.because === "subtestsFailed"))
      result.failures.push({ name: whole, detail: test.error ?? "" });
    else if (test.passed && !test.suite) {
      result.passed++;
      result.tests.push({ name: whole, ms: test.ms });
    }
  }
  result.failures.reverse();
  return { ended, running: running.join(" > ") };
}

/** What is there: the last line of a file that was killed may be cut. */
function readLines(path) {
  try {
    return readFileSync(path, "utf8")
      .split("\n")
      .flatMap((line) => {
        try {
          return [JSON.parse(line)];
        } catch {
          return [];
        }
      });
  } catch {
    return [];
  }
}

/** Processes that carry the file's mark in their environment and outlive it are killed one by one, and named. */
async function clearLeftovers(mark, atOnce, result) {
  const graceEnd = Date.now() + (atOnce ? 0 : LEFTOVER_GRACE_MS);
  let left = marked(mark);
  while (left.length > 0 && Date.now() < graceEnd) {
    await new Promise((resolve) => setTimeout(resolve, 50));
    left = marked(mark);
  }
  for (const { pid, command } of left) {
    result.notes.push(`left a process behind, killed: ${pid} ${command}`);
    kill(pid);
  }
}

function marked(mark) {
  const found = [];
  for (const entry of readdirSync("/proc")) {
    if (!/^\d+$/.test(entry) || Number(entry) === process.pid) continue;
    try {
      if (!readFileSync(`/proc/${entry}/environ`, "latin1").includes(mark)) continue;
      const command = readFileSync(`/proc/${entry}/cmdline`, "latin1").replaceAll("\0", " ").trim();
      if (command !== "") found.push({ pid: Number(entry), command: command.slice(0, 200) });
    } catch {
      // It has ended meanwhile, or belongs to somebody else.
    }
  }
  return found;
}

function kill(pid) {
  try {
    process.kill(pid, "SIGKILL");
  } catch {
    // It has ended by itself.
  }
}

function tail(path) {
  const text = readFileSync(path, "utf8");
  return text.length <= OUTPUT_BYTES_MAX ? text : `… (all of it: ${path})\n${text.slice(-OUTPUT_BYTES_MAX)}`;
}
