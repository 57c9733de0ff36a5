/**
 * `iscsi-test-cu` of libiscsi, and an honest count of what it says: CUnit prints "passed" for a test that skipped
 * itself, so that every test's own lines are searched for "[SKIPPED]".
 */
import { run, runAny } from "./program.ts";

export type CuOutcome = "passed" | "skipped" | "failed";
export interface CuTest {
  readonly suite: string;
  readonly name: string;
  readonly outcome: CuOutcome;
  /** What it says of itself when it skips itself; else empty. */
  readonly reason: string;
}

/** The longest that one suite may take: Sanitize sleeps for a minute of its own. */
const SUITE_MS_MAX = 240_000;

/** Names of all suites. */
export async function cuSuites(): Promise<string[]> {
  const listed = await run("iscsi-test-cu", ["-l"]);
  return listed.split("\n").flatMap((line) => /^ALL\.([^.]+)$/.exec(line.trim())?.[1] ?? []);
}

/** Reads the verbose output of a run. A test that says nothing at its end has failed. */
export function parseCu(output: string): CuTest[] {
  const tests: { suite: string; name: string; reason: string; ended: "passed" | "failed" | undefined }[] = [];
  let suite = "";
  for (const line of output.split("\n")) {
    const started = /^Suite: (\S+)/.exec(line);
    if (started !== null) {
      suite = started[1]!;
      continue;
    }
    const test = /^\s+Test: (.+?) \.\.\.(.*)/.exec(line);
    if (test !== null) tests.push({ suite, name: test[1]!, reason: "", ended: undefined });
    const current = tests.at(-1);
    if (current === undefined || (current.ended !== undefined && test === null)) continue;
    const skip = /\[SKIPPED\]\s*(.*)/.exec(line);
    if (skip !== null && current.reason === "") current.reason = skip[1]! || "no reason given";
    const end = test === null ? line : test[2]!;
    if (/^passed/.test(end.trimStart())) current.ended = "passed";
    if (/^FAILED/.test(end.trimStart())) current.ended = "failed";
  }
  return tests.map(({ suite: of, name, reason, ended }) => ({
    suite: of,
    name,
    outcome: ended !== "passed" ? "failed" : reason !== "" ? "skipped" : "passed",
    reason,
  }));
}

/** Runs one suite in a process of its own, with the URL given `times` times. */
export async function runCuSuite(suite: string, url: string, times: 1 | 2): Promise<CuTest[]> {
  const urls = Array.from({ length: times }, () => url);
  const ended = await runAny("iscsi-test-cu", ["-d", "-f", "-S", "-V", "-t", `ALL.${suite}`, ...urls], {
    limitMs: SUITE_MS_MAX,
  });
  const tests = parseCu(`${ended.stdout}\n${ended.stderr}`);
  if (tests.length === 0) throw new Error(`suite ${suite} ran no test: ${ended.stdout}${ended.stderr}`);
  return tests;
}

export function countCu(tests: readonly CuTest[]): Record<CuOutcome, number> {
  const count = { passed: 0, skipped: 0, failed: 0 };
  for (const { outcome } of tests) count[outcome]++;
  return count;
}
export const namesOf = (tests: readonly CuTest[], outcome: CuOutcome): string[] =>
  tests.filter((test) => test.outcome === outcome).map(({ suite, name }) => `${suite}.${name}`);
