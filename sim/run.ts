/**
 * The simulator's command line.
 *
 *     npm run sim -- --worlds 2000                 many worlds, from a seed that is printed, on all processors
 *     npm run sim -- --seed 17 [--scenario NAME]   one world, with everything that happens in it
 *     npm run sim -- --seed 17 --shrink            the shortest history that still fails
 *     npm run sim -- --canaries                    deliberate mistakes: how soon is each one found?
 *     npm run sim -- --worlds 200000 --keep soak   both, and a record of it in sim/results/soak.md
 */
import { parseArgs } from "node:util";
import { runCanaries } from "./canaries.ts";
import { commitNow, keepRecord } from "./record.ts";
import { makeResources, runScript, runSeed } from "./runner.ts";
import { SCENARIOS } from "./scenarios/all.ts";
import { describeAction } from "./script.ts";
import { shrink } from "./shrink.ts";
import { runSwarm, serveBatches } from "./swarm.ts";

function commandLine() {
  try {
    return parseArgs({
      options: {
        worlds: { type: "string" },
        minutes: { type: "string" },
        seed: { type: "string" },
        from: { type: "string" },
        scenario: { type: "string" },
        workers: { type: "string" },
        worker: { type: "boolean", default: false },
        shrink: { type: "boolean", default: false },
        quiet: { type: "boolean", default: false },
        canaries: { type: "boolean", default: false },
        keep: { type: "string" },
        list: { type: "boolean", default: false },
        help: { type: "boolean", short: "h", default: false },
      },
    }).values;
  } catch (error) {
    process.stderr.write(`${(error as Error).message.split(". ")[0]}. See npm run sim -- --help\n`);
    process.exit(2);
  }
}
const values = commandLine();

const scenario = values.scenario === undefined ? {} : { scenario: values.scenario };

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

function swarm(say: (line: string) => void): Promise<boolean> {
  return runSwarm(
    {
      from: values.from === undefined ? Math.floor(Math.random() * 2 ** 32) : Number(values.from),
      worlds: values.worlds === undefined ? Number.POSITIVE_INFINITY : Number(values.worlds),
      minutes: values.minutes === undefined ? Number.POSITIVE_INFINITY : Number(values.minutes),
      scenario: values.scenario,
      workers: values.workers === undefined ? undefined : Number(values.workers),
      withTable: !values.quiet || values.keep !== undefined,
    },
    say,
  );
}

/** Worlds, with the canaries after them where both are asked for, and the record of it where that is to be kept. */
async function swarmAndScore(): Promise<boolean> {
  const { keep } = values;
  const commit = keep === undefined ? "" : commitNow();
  const startedAt = new Date();
  const lines: string[] = [];
  const canaries: string[] = [];
  const into = (list: string[]) => (line: string) => {
    print(line);
    if (!line.startsWith("…")) list.push(...line.split("\n"));
  };
  let isGood = await swarm(into(lines));
  if (values.canaries || keep !== undefined) isGood = runCanaries(into(canaries)) && isGood;
  if (keep === undefined) return isGood;
  const command = `npm run sim -- ${process.argv.slice(2).join(" ")}`;
  print(`kept in ${keepRecord(keep, { commit, startedAt, command, lines, canaries })}`);
  return isGood;
}

function help(): void {
  print("npm run sim -- [--worlds N | --minutes N] [--from SEED] [--scenario NAME] [--workers N]   many worlds");
  print("npm run sim -- --seed SEED [--scenario NAME] [--shrink] [--quiet]           one world");
  print("npm run sim -- --canaries                                                   deliberate mistakes");
  print("npm run sim -- --worlds N --keep NAME      both, and a record of it in sim/results/NAME.md");
  print("npm run sim -- --list                                                       the scenarios");
}

let good = true;
if (values.worker) serveBatches();
else if (values.help) help();
else if (values.list)
  for (const each of SCENARIOS)
    print(`${each.name.padEnd(20)} ${each.about}\n${"".padEnd(20)} may go wrong: ${each.budget}`);
else if (values.seed !== undefined) good = replay(Number(values.seed));
else if (values.worlds !== undefined || values.minutes !== undefined) good = await swarmAndScore();
else if (values.canaries) good = runCanaries(print);
else help();
process.exitCode = good ? 0 : 1;
