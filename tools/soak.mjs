#!/usr/bin/env node
/**
 * `npm run soak -- --minutes N`: the simulator for as long as you like, on every core but one, and what it found at the
 * end. Seeds begin at the time of day, so that no two soaks try the same; `--from SEED` repeats one. Other options go to
 * the simulator (`--scenario NAME`). Build first (`npm run build`).
 */
import { spawn } from "node:child_process";
import { cpus } from "node:os";
import { dirname, join } from "node:path";
import { fileURLToPath } from "node:url";
import { parseArgs } from "node:util";

const ROOT = join(dirname(fileURLToPath(import.meta.url)), "..");
/** Far enough from each other that no two workers meet. */
const SEEDS_PER_WORKER = 1_000_000_000;

const { values } = parseArgs({
  options: {
    minutes: { type: "string", default: "60" },
    from: { type: "string" },
    scenario: { type: "string" },
    workers: { type: "string" },
  },
});
const first = values.from === undefined ? Math.floor(Date.now() / 1000) : Number(values.from);
const workers = values.workers === undefined ? Math.max(1, cpus().length - 1) : Number(values.workers);

function run(worker) {
  const from = first + worker * SEEDS_PER_WORKER;
  const args = [join(ROOT, "dist/sim/run.js"), "--minutes", values.minutes, "--from", `${from}`, "--quiet"];
  if (values.scenario !== undefined) args.push("--scenario", values.scenario);
  return new Promise((resolve) => {
    const child = spawn(process.execPath, args, { cwd: ROOT, stdio: ["ignore", "inherit", "inherit"] });
    child.on("exit", (code) => resolve(code === 0));
  });
}

const good = await Promise.all(Array.from({ length: workers }, (_, worker) => run(worker)));
process.exitCode = good.every(Boolean) ? 0 : 1;
