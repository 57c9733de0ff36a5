/**
 * `npm run bench [-- NAME …] [options]`: measures, prints, and keeps what it found under bench/results/.
 *
 *   NAMES   nbd iscsi growth engine process scp (these by default), profile
 *   --quick           small sizes, few turns: for a first look, not for a claim
 *   --rounds N        turns of each workload (nbd)
 *   --seconds N       how long each turn is (nbd; 2 by default)
 *   --peers           only the peers, to know the baseline
 *   --null            also a server that stores nothing, and one that only reads a file: what this machine leaves (nbd)
 *   --only WORDS      only workloads whose name contains this (nbd), or parts of the bench (engine: snapshots, …)
 *   --env LIST        which Envs of ours to measure: auto (default), uring, node; comma-separated
 *   --serve ARG       another argument for `ashlar serve` (several times)
 *   --keep NAME       write bench/results/NAME.{json,md}; by default the date and the commit
 *   --profile         the same as the name: where the time goes in a lane, flame graphs and cost per stage
 */
import { mkdirSync, rmSync } from "node:fs";
import { resolve } from "node:path";
import { parseArgs } from "node:util";
import { benchEngine } from "./engine.ts";
import { benchGrowth } from "./growth.ts";
import { benchIscsi } from "./iscsi.ts";
import { benchNbd } from "./nbd.ts";
import { benchProcess } from "./process.ts";
import { benchProfile } from "./profile.ts";
import { benchScp } from "./scp.ts";
import { describeMachine, formatTable, keep, type Table } from "./table.ts";

export interface Context {
  /** An empty folder on the file system that is measured. */
  readonly folder: string;
  readonly quick: boolean;
  /** Turns of each workload, where something else was asked for than the default. */
  readonly rounds: number | undefined;
  /** Of each turn, where something else was asked for than the default. */
  readonly seconds: number | undefined;
  readonly peersOnly: boolean;
  /** Also a server that stores nothing. */
  readonly ceiling: boolean;
  readonly only: string;
  readonly envs: readonly ("auto" | "node" | "uring")[];
  readonly serveArgs: readonly string[];
  tell(line: string): void;
}

const BENCHES: Record<string, (context: Context) => Promise<Table[]>> = {
  nbd: benchNbd,
  iscsi: benchIscsi,
  growth: benchGrowth,
  engine: benchEngine,
  process: benchProcess,
  scp: benchScp,
  profile: benchProfile,
};

function commandLine() {
  try {
    return parseArgs({
      allowPositionals: true,
      options: {
        quick: { type: "boolean", default: false },
        rounds: { type: "string" },
        seconds: { type: "string" },
        peers: { type: "boolean", default: false },
        null: { type: "boolean", default: false },
        only: { type: "string", default: "" },
        env: { type: "string", default: "auto" },
        serve: { type: "string", multiple: true, default: [] },
        keep: { type: "string" },
        folder: { type: "string", default: ".cache/bench" },
        profile: { type: "boolean", default: false },
      },
    });
  } catch (error) {
    console.error(
      `${(error as Error).message.split(". ")[0]}. What there is stands at the beginning of bench/main.ts.`,
    );
    process.exit(2);
  }
}
const { values, positionals } = commandLine();

const names = positionals.length > 0 ? positionals : Object.keys(BENCHES).filter((name) => name !== "profile");
if (values.profile) names.splice(0, names.length, "profile");
for (const name of names)
  if (BENCHES[name] === undefined) {
    console.error(`There is no bench "${name}": ${Object.keys(BENCHES).join(", ")}`);
    process.exit(2);
  }

const folder = resolve(values.folder);
const tables: Table[] = [];
const startedMs = Date.now();
try {
  mkdirSync(folder, { recursive: true });
  // Before anything is kept, and whoever changes something meanwhile: the commit that the programs were built from.
  const machine = await describeMachine(folder);
  for (const name of names) {
    rmSync(folder, { recursive: true, force: true });
    mkdirSync(folder, { recursive: true });
    const found = await BENCHES[name]!({
      folder,
      quick: values.quick,
      rounds: values.rounds === undefined ? undefined : Number(values.rounds),
      seconds: values.seconds === undefined ? undefined : Number(values.seconds),
      peersOnly: values.peers,
      ceiling: values.null,
      only: values.only,
      envs: values.env.split(",") as Context["envs"],
      serveArgs: values.serve,
      tell: (line) => console.error(`${((Date.now() - startedMs) / 1000).toFixed(0).padStart(5)} s  ${line}`),
    });
    tables.push(...found);
  }
  console.log(`\n${tables.map(formatTable).join("\n")}`);
  const name = values.keep ?? (values.quick ? undefined : `${machine.date.replace(/[ :]/g, "-")}-${machine.commit}`);
  if (name !== undefined) console.log(`kept in ${keep("bench/results", name, machine, tables)}`);
} finally {
  rmSync(folder, { recursive: true, force: true });
}
