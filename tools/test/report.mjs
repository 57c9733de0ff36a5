/** What the run says: a line per suite when it is well, everything about what is not. */

const SLOW_MS = 5_000;
const SLOW_COUNT_MAX = 10;

export class Report {
  passed = 0;
  failed = 0;
  notes = [];
  #startedMs = Date.now();
  #suites = new Map();
  #slow = [];
  #skipped = [];

  /** A step before the tests: counts as one test. `fault` is what it printed when it failed, or undefined. */
  step(name, fault) {
    if (fault === undefined) this.passed++;
    else this.fail(name, fault, "");
  }

  fail(name, detail, where) {
    this.failed++;
    console.log(`\n✖ ${name}${where === "" ? "" : `   (${where})`}`);
    if (detail !== "") console.log(indent(detail.trimEnd()));
  }

  /** What one file came to. */
  add(file, result) {
    const suite = this.#suites.get(file.suite.name) ?? {
      files: 0,
      passed: 0,
      failed: 0,
      ms: 0,
      order: file.suite.order,
    };
    this.#suites.set(file.suite.name, suite);
    suite.files++;
    suite.ms += result.ms;
    suite.passed += result.passed;
    suite.failed += result.failures.length;
    this.passed += result.passed;
    for (const { name, detail } of result.failures) this.fail(name, detail, file.path);
    if (result.failures.length > 0 && result.output.trim() !== "")
      console.log(`\n  ${file.path} printed:\n${indent(result.output.trimEnd())}`);
    for (const { name, ms } of result.tests) if (ms >= SLOW_MS) this.#slow.push({ name, ms, path: file.path });
    for (const { name, why } of result.skipped) this.#skipped.push(`${file.path}: ${name}${why && ` (${why})`}`);
    for (const note of result.notes) this.notes.push(`${file.path} ${note}`);
    if (process.stdout.isTTY)
      console.log(`${result.failures.length > 0 ? "✖" : "✔"} ${file.path} ${seconds(result.ms)}`);
  }

  /** Prints the summary, and ends the process with the verdict. */
  end() {
    console.log("");
    for (const [name, suite] of [...this.#suites].sort((a, b) => a[1].order - b[1].order)) {
      const failed = suite.failed > 0 ? `, ${suite.failed} failed` : "";
      console.log(
        `${name.padEnd(9)} ${String(suite.passed).padStart(5)} passed${failed} in ${suite.files} files, ${seconds(suite.ms)}`,
      );
    }
    const slow = this.#slow.sort((a, b) => b.ms - a.ms).slice(0, SLOW_COUNT_MAX);
    if (slow.length > 0) console.log("\nslow:");
    for (const { name, ms, path } of slow) console.log(`  ${seconds(ms).padStart(7)}  ${path}: ${name}`);
    if (this.#skipped.length > 0) console.log(`\nskipped:\n${indent(this.#skipped.join("\n"))}`);
    if (this.notes.length > 0) console.log(`\nnotes:\n${indent(this.notes.join("\n"))}`);
    console.log(`\nin ${seconds(Date.now() - this.#startedMs)}`);
    console.log(`${this.passed} passed, ${this.failed} failed`);
    process.exit(this.failed === 0 && this.passed > 0 ? 0 : 1);
  }
}

const seconds = (ms) => `${(ms / 1000).toFixed(1)} s`;
const indent = (text) => text.replace(/^/gm, "  ");
