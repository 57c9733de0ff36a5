/**
 * Many worlds, over all processors: the seeds are handed out in batches to worker processes, and what they found is added
 * up. Which worlds are run, and how each of them ends, does not depend on the number of workers.
 */
import { type ChildProcess, fork } from "node:child_process";
import { availableParallelism } from "node:os";
import { Coverage, type CoverageCounts } from "./coverage.ts";
import { REGRESSIONS } from "./regressions.ts";
import { makeResources, runSeed } from "./runner.ts";

const BATCH_WORLDS = 40;
const FAILURES_SHOWN_MAX = 10;
const SAY_EVERY_MS = 60_000;
/** A worker that is silent for so long has a world that goes in circles: it is stopped, and its seeds are named. */
const SILENCE_MS_MAX = 600_000;
/** Worlds are short: most of what they allocate is garbage before a young generation of this size is full. */
const YOUNG_MIB = 64;

export interface SwarmOptions {
  readonly from: number;
  readonly worlds: number;
  readonly minutes: number;
  readonly scenario: string | undefined;
  readonly workers: number | undefined;
  readonly withTable: boolean;
}

/** Worlds for a worker: seeds in a row, or the regressions. */
type Batch =
  | { readonly kind: "seeds"; readonly from: number; readonly count: number; readonly scenario: string | undefined }
  | { readonly kind: "regressions" };

interface Failure {
  readonly seed: number;
  readonly scenario: string;
  readonly failure: string;
}

/** What a batch came to. */
interface Sum {
  readonly worlds: number;
  readonly ioCount: number;
  readonly virtualMs: number;
  readonly ends: readonly (readonly [string, number])[];
  readonly failures: readonly Failure[];
  readonly coverage: CoverageCounts;
}

/** The work of a worker process: batches come as messages, and sums go back. */
export function serveBatches(): void {
  const resources = makeResources();
  process.on("message", (batch: Batch) => {
    process.send?.(runBatch(batch, resources));
  });
}

function runBatch(batch: Batch, resources: ReturnType<typeof makeResources>): Sum {
  const coverage = new Coverage();
  const ends = new Map<string, number>();
  const failures: Failure[] = [];
  let worlds = 0;
  let ioCount = 0;
  let virtualMs = 0;
  const run = (seed: number, scenario: string | undefined): void => {
    const result = runSeed(seed, resources, { ...(scenario === undefined ? {} : { scenario }), coverage });
    worlds++;
    ioCount += result.ioCount;
    virtualMs += result.virtualMs;
    const end = `${result.scenario.name}: ${result.end}`;
    ends.set(end, (ends.get(end) ?? 0) + 1);
    if (result.failure !== undefined) failures.push({ seed, scenario: result.scenario.name, failure: result.failure });
  };
  if (batch.kind === "regressions") for (const { seed, scenario } of REGRESSIONS) run(seed, scenario);
  else for (let seed = batch.from; seed < batch.from + batch.count; seed++) run(seed, batch.scenario);
  return { worlds, ioCount, virtualMs, ends: [...ends], failures, coverage: coverage.counts };
}

/** Runs the regressions and then the seeds from `from` on. True when nothing was found. */
export async function runSwarm(options: SwarmOptions, print: (line: string) => void): Promise<boolean> {
  const { from, scenario } = options;
  const startedAt = Date.now();
  const endAt = startedAt + options.minutes * 60_000;
  const seedsEnd = from + options.worlds;
  const workers = options.workers ?? availableParallelism();
  const coverage = new Coverage();
  const ends = new Map<string, number>();
  const failures: Failure[] = [];
  let worlds = 0;
  let ioCount = 0;
  let virtualMs = 0;
  let nextSeed = from;
  let hasRegressions = true;
  let saidAt = startedAt;

  const next = (): Batch | undefined => {
    if (hasRegressions) {
      hasRegressions = false;
      return { kind: "regressions" };
    }
    if (nextSeed >= seedsEnd || Date.now() >= endAt) return undefined;
    const batch = {
      kind: "seeds",
      from: nextSeed,
      count: Math.min(BATCH_WORLDS, seedsEnd - nextSeed),
      scenario,
    } as const;
    nextSeed += batch.count;
    return batch;
  };
  const fail = (failure: Failure): void => {
    failures.push(failure);
    if (failures.length > FAILURES_SHOWN_MAX) return;
    print(`FAILED seed=${failure.seed} ${failure.scenario}: ${failure.failure}`);
    print(`  npm run sim -- --seed ${failure.seed} --scenario ${failure.scenario}`);
  };
  const rate = (): string => `${(worlds / ((Date.now() - startedAt) / 1000)).toFixed(0)} worlds/s`;
  const take = (sum: Sum): void => {
    worlds += sum.worlds;
    ioCount += sum.ioCount;
    virtualMs += sum.virtualMs;
    for (const [end, count] of sum.ends) ends.set(end, (ends.get(end) ?? 0) + count);
    sum.failures.forEach(fail);
    coverage.merge(sum.coverage);
    if (Date.now() - saidAt < SAY_EVERY_MS) return;
    saidAt = Date.now();
    print(`… ${worlds} worlds, ${rate()}, before seed ${nextSeed}; ${failures.length} failed`);
  };

  print(`worlds from seed ${from}, ${workers} ${workers === 1 ? "process" : "processes"}`);
  await Promise.all(Array.from({ length: workers }, () => work(next, take, (why) => fail(why))));
  const seconds = (Date.now() - startedAt) / 1000;
  if (options.withTable) print(coverage.table());
  for (const [end, count] of [...ends].sort()) print(`${end.padEnd(40)} ${count}`);
  print(`the next seed is ${nextSeed}: npm run sim -- --from ${nextSeed}`);
  print(
    `${worlds} worlds in ${seconds.toFixed(1)} s, ${rate()}, seeds ${from} to ${nextSeed - 1} and ${REGRESSIONS.length} regressions: ` +
      `${Math.round(ioCount / seconds)} simulated I/Os and ${Math.round(virtualMs / 1000 / seconds)} virtual seconds per second; ${failures.length} failed`,
  );
  return failures.length === 0;
}

/** One worker's life: it gets batch after batch until there is none. */
function work(
  next: () => Batch | undefined,
  take: (sum: Sum) => void,
  fail: (failure: Failure) => void,
): Promise<void> {
  return new Promise((resolve) => {
    const child = fork(process.argv[1]!, ["--worker"], { execArgv: [`--max-semi-space-size=${YOUNG_MIB}`] });
    let batch: Batch | undefined;
    let watchdog: NodeJS.Timeout | undefined;
    const give = (to: ChildProcess): void => {
      clearTimeout(watchdog);
      batch = next();
      if (batch === undefined) {
        to.disconnect();
        return;
      }
      watchdog = setTimeout(() => to.kill("SIGKILL"), SILENCE_MS_MAX);
      to.send(batch);
    };
    child.on("message", (sum: Sum) => {
      take(sum);
      give(child);
    });
    child.on("exit", (code, signal) => {
      clearTimeout(watchdog);
      if (batch !== undefined) {
        const seeds =
          batch.kind === "seeds" ? `one of ${batch.from} to ${batch.from + batch.count - 1}` : "a regression";
        const failure = `the worker ended with ${code ?? signal} in ${seeds}`;
        fail({ seed: batch.kind === "seeds" ? batch.from : 0, scenario: "unknown", failure });
      }
      resolve();
    });
    give(child);
  });
}
