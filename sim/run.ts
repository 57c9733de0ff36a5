/**
 * The simulator's command line.
 *
 *     npm run sim -- --worlds 2000                 many worlds, from a seed that is printed
 *     npm run sim -- --seed 17 [--scenario NAME]   one world, with everything that happens in it
 *     npm run sim -- --seed 17 --shrink            the shortest history that still fails
 *     npm run sim -- --canaries                    deliberate mistakes: how soon is each one found?
 */
import { parseArgs } from "node:util";
import { runCanaries } from "./canaries.ts";
import { Coverage } from "./coverage.ts";
import { REGRESSIONS } from "./regressions.ts";
import { makeResources, type Result, runScript, runSeed } from "./runner.ts";
import { SCENARIOS } from "./scenarios/all.ts";
import { describeAction } from "./script.ts";
import { shrink } from "./shrink.ts";

const FAILURES_SHOWN_MAX = 10;

const { values } = parseArgs({
  options: {
    worlds: { type: "string" },
    minutes: { type: "string" },
    seed: { type: "string" },
    from: { type: "string" },
    scenario: { type: "string" },
    shrink: { type: "boolean", default: false },
    quiet: { type: "boolean", default: false },
    canaries: { type: "boolean", default: false },
    list: { type: "boolean", default: false },
    help: { type: "boolean", short: "h", default: false },
  },
});

const scenario = values.scenario === undefined ? {} : { scenario: values.scenario };
const replayLine = (result: Result): string =>
  `npm run sim -- --seed ${result.seed} --scenario ${result.scenario.name}`;

function print(line: string): void {
  process.stdout.write(`${line}\n`);
}

function replay(seed: number): boolean {
  const resources = makeResources();
  let result = runSeed(seed, resources, scenario);
  if (values.shrink && result.failure !== undefined) {
    const before = result.script.actions.length;
    result = shrink(result, resources);
    print(`shrunk from ${before} actions to ${result.script.actions.length}:`);
    print(JSON.stringify(result.script.setup));
    for (const action of result.script.actions) print(`  ${describeAction(action)}`);
    if (!values.quiet) runScript(seed, result.scenario, result.script, makeResources(), { onLine: print });
    print(`${result.failure}\n${result.stack ?? ""}`);
    return false;
  }
  if (!values.quiet) runSeed(seed, makeResources(), { ...scenario, onLine: print });
  print(
    `seed ${seed}, ${result.scenario.name}: ${result.failure ?? result.end} after ${result.steps} events, trace ${result.trace >>> 0}`,
  );
  if (result.stack !== undefined) print(result.stack);
  return result.failure === undefined;
}

function swarm(): boolean {
  const resources = makeResources();
  const coverage = new Coverage();
  const first = values.from === undefined ? Math.floor(Math.random() * 2 ** 32) : Number(values.from);
  const worldsMax = values.worlds === undefined ? Number.POSITIVE_INFINITY : Number(values.worlds);
  const endAt = values.minutes === undefined ? Number.POSITIVE_INFINITY : Date.now() + Number(values.minutes) * 60_000;
  const startedAt = Date.now();
  const ends = new Map<string, number>();
  const failures: Result[] = [];
  let worlds = 0;
  let ios = 0;
  let virtualMs = 0;
  let saidAt = startedAt;
  const runOne = (seed: number, only: { scenario?: string }): void => {
    const result = runSeed(seed, resources, { ...only, coverage });
    worlds++;
    ios += result.ioCount;
    virtualMs += result.virtualMs;
    const end = `${result.scenario.name}: ${result.end}`;
    ends.set(end, (ends.get(end) ?? 0) + 1);
    if (result.failure === undefined) return;
    failures.push(result);
    if (failures.length <= FAILURES_SHOWN_MAX) {
      print(`FAILED seed=${result.seed} ${result.scenario.name}: ${result.failure}`);
      print(`  ${replayLine(result)}`);
    }
  };
  print(`worlds from seed ${first}`);
  for (const { seed, scenario: name } of REGRESSIONS) runOne(seed, { scenario: name });
  for (let seed = first; worlds < worldsMax && Date.now() < endAt; seed++) {
    runOne(seed, scenario);
    if (Date.now() - saidAt > 60_000) {
      saidAt = Date.now();
      print(`… ${worlds} worlds, seed ${seed}, ${failures.length} failed`);
    }
  }
  const seconds = (Date.now() - startedAt) / 1000;
  if (!values.quiet) print(coverage.table());
  for (const [end, count] of [...ends].sort()) print(`${end.padEnd(40)} ${count}`);
  print(
    `${worlds} worlds in ${seconds.toFixed(1)} s, seeds ${first} to ${first + worlds - REGRESSIONS.length - 1} and ${REGRESSIONS.length} regressions: ` +
      `${Math.round(ios / seconds)} simulated I/Os and ${Math.round(virtualMs / 1000 / seconds)} virtual seconds per second; ${failures.length} failed`,
  );
  return failures.length === 0;
}

function help(): void {
  print("npm run sim -- [--worlds N | --minutes N] [--from SEED] [--scenario NAME]   many worlds");
  print("npm run sim -- --seed SEED [--scenario NAME] [--shrink] [--quiet]           one world");
  print("npm run sim -- --canaries                                                   deliberate mistakes");
  print("npm run sim -- --list                                                       the scenarios");
}

let good = true;
if (values.help) help();
else if (values.list)
  for (const each of SCENARIOS)
    print(`${each.name.padEnd(20)} ${each.about}\n${"".padEnd(20)} may go wrong: ${each.budget}`);
else if (values.canaries) good = runCanaries(print);
else if (values.seed !== undefined) good = replay(Number(values.seed));
else if (values.worlds !== undefined || values.minutes !== undefined) good = swarm();
else help();
process.exitCode = good ? 0 : 1;
