/** Which test files there are, what kind each is, and in which order they run. */
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

/**
 * The kinds of test, in the order in which they run: what is quick and close to the source first. The first match of
 * `path` decides. `peers`: needs programs from Debian. `alone`: needs both cores, so nothing runs beside it.
 */
const SUITES = [
  { name: "guest", path: /(^test\/guest\/|\.guest\.test\.ts$)/, hangMs: 600_000, peers: true, alone: true, order: 9 },
  { name: "unit", path: /^src\//, hangMs: 180_000, peers: false, alone: false, order: 0 },
  { name: "examples", path: /^examples\//, hangMs: 120_000, peers: true, alone: false, order: 3 },
  { name: "bench", path: /^bench\//, hangMs: 120_000, peers: true, alone: false, order: 4 },
  { name: "sim", path: /^sim\//, hangMs: 420_000, peers: true, alone: false, order: 5 },
  { name: "faults", path: /^test\/faults\//, hangMs: 300_000, peers: true, alone: false, order: 6 },
  { name: "interop", path: /^test\/interop\//, hangMs: 420_000, peers: true, alone: false, order: 7 },
  { name: "crash", path: /^test\/crash\//, hangMs: 600_000, peers: true, alone: false, order: 8 },
  { name: "whole", path: /^test\//, hangMs: 300_000, peers: true, alone: false, order: 2 },
];
/**
 * Run a second time with `--env node`: without io_uring, in a container or on an old kernel, the same must be true. What
 * is below Env has its contract for all of them; these are whole servers. `ASHLAR_ENV=node npm test` runs all of it so.
 */
const ALSO_ON_NODE = new Set([
  "test/api.test.ts",
  "test/lanes.test.ts",
  "test/server-life.test.ts",
  "test/scp/reservations.test.ts",
  "test/interop/fio.test.ts",
  "test/interop/nbdinfo.test.ts",
  "test/crash/lane-death.test.ts",
  "test/crash/three-fronts.test.ts",
]);
const ROOTS = ["src", "test", "sim", "bench", "examples"];

/** Test files are found by their source, so that what was deleted there does not live on in dist/. */
export function findFiles(root, words, times) {
  const files = [];
  const walk = (folder) => {
    for (const entry of readdirSync(join(root, folder), { withFileTypes: true })) {
      const path = `${folder}/${entry.name}`;
      if (entry.isDirectory()) walk(path);
      else if (entry.name.endsWith(".test.ts")) {
        const suite = SUITES.find((candidate) => candidate.path.test(path));
        const program = join(root, "dist", path.replace(/\.ts$/, ".js"));
        files.push({ path, suite, program });
        if (ALSO_ON_NODE.has(path) && process.env.ASHLAR_ENV === undefined)
          files.push({ path: `${path} on node`, suite, program, env: { ASHLAR_ENV: "node" } });
      }
    }
  };
  for (const folder of ROOTS) if (existsSync(join(root, folder))) walk(folder);
  // Within a suite the longest first, so that the last worker does not end long after the others.
  return files
    .filter((file) => words.length === 0 || words.some((word) => `${file.suite.name} ${file.path}`.includes(word)))
    .sort((a, b) => a.suite.order - b.suite.order || (times[b.path] ?? 0) - (times[a.path] ?? 0));
}

/** How long each file took when it last passed, in milliseconds. */
export function readTimes(cache) {
  try {
    return JSON.parse(readFileSync(join(cache, "test-times.json"), "utf8"));
  } catch {
    return {};
  }
}

export function writeTimes(cache, times) {
  writeFileSync(join(cache, "test-times.json"), `${JSON.stringify(times, null, 1)}\n`);
}
