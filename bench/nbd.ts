/** NBD against the C servers: the same workloads, the same file system, in alternating turns of a few seconds. */
import { join } from "node:path";
import { run } from "#test/support/program";
import { KIB, MIB } from "#test/support/temp";
import { measure, type Outcome, type Workload } from "./fio.ts";
import type { Context } from "./main.ts";
import { type Rival, startAshlar, startNbdkit, startNbdServer, startNull, startQemuNbd } from "./servers.ts";
import { formatCount, median, pairedRatio } from "./statistics.ts";
import type { Table } from "./table.ts";

const SMALL = 4 * KIB;
const LARGE = 128 * KIB;

/** Whom the ratios are against. */
const PEERS = new Set(["nbdkit", "qemu-nbd", "nbd-server"]);

interface Row {
  readonly load: Workload;
  /** What counts, and whether more of it is better. */
  readonly unit: "iops" | "MB/s" | "p50 µs" | "p99 µs" | "CPU µs/op";
  /** The ratio that issue and README ask for, if they do. */
  readonly goal?: number;
}

const load = (
  name: string,
  rw: Workload["rw"],
  block: number,
  depth: number,
  clients: number,
  flush = false,
): Workload => ({
  name,
  rw,
  block,
  depth,
  clients,
  flush,
});
const RANDOM_READ = load("4 KiB random read, depth 32, 1 client", "randread", SMALL, 32, 1);
const SINGLE_READ = load("4 KiB random read, depth 1", "randread", SMALL, 1, 1);
const RANDOM_WRITE = load("4 KiB random write, depth 32, 1 client", "randwrite", SMALL, 32, 1);

/**
 * Before random reads, everything is read so often in pieces of 4 KiB, by all: whoever keeps what was read lately has it then,
 * as after some time of use. The table shows the first time, when that is still being brought in.
 */
export const READ_THROUGH: Workload = {
  ...load("4 KiB read, depth 32, everything for the first time", "read", SMALL, 32, 1),
  once: true,
};
export const READ_THROUGH_TIMES = 3;

/** In this order: long reads first find what was written in one go, and at the end what single blocks have left of it. */
const ROWS: readonly Row[] = [
  { load: load("128 KiB sequential read, depth 8", "read", LARGE, 8, 1), unit: "MB/s", goal: 1.1 },
  { load: load("128 KiB sequential write, depth 8", "write", LARGE, 8, 1), unit: "MB/s", goal: 1.0 },
  { load: READ_THROUGH, unit: "iops" },
  { load: RANDOM_READ, unit: "iops", goal: 1.2 },
  { load: RANDOM_READ, unit: "CPU µs/op", goal: 0.6 },
  { load: load("4 KiB random read, depth 32, 2 clients", "randread", SMALL, 32, 2), unit: "iops", goal: 1.5 },
  { load: SINGLE_READ, unit: "p50 µs", goal: 1.0 },
  { load: SINGLE_READ, unit: "p99 µs", goal: 1.0 },
  { load: RANDOM_WRITE, unit: "iops", goal: 1.2 },
  { load: RANDOM_WRITE, unit: "CPU µs/op", goal: 0.6 },
  { load: load("4 KiB random write, depth 32, 2 clients", "randwrite", SMALL, 32, 2), unit: "iops", goal: 1.2 },
  { load: load("4 KiB write + flush, 1 client", "randwrite", SMALL, 1, 1, true), unit: "iops", goal: 1.0 },
  { load: load("4 KiB write + flush, 16 clients", "randwrite", SMALL, 1, 16, true), unit: "iops", goal: 2.0 },
  { load: load("4 KiB random write, depth 1", "randwrite", SMALL, 1, 1), unit: "iops", goal: 1.0 },
  { load: load("128 KiB sequential read of random writes, depth 8", "read", LARGE, 8, 1), unit: "MB/s", goal: 1.0 },
];

const value = (outcome: Outcome, unit: Row["unit"]): number => {
  if (unit === "iops") return outcome.iops;
  if (unit === "MB/s") return outcome.bytesPerSecond / 1e6;
  if (unit === "p50 µs") return outcome.p50;
  return unit === "p99 µs" ? outcome.p99 : outcome.cpuPerOp;
};
const isMoreBetter = (unit: Row["unit"]) => unit === "iops" || unit === "MB/s";

export async function benchNbd(context: Context): Promise<Table[]> {
  const size = context.quick ? 256 * MIB : 1024 * MIB;
  const seconds = context.seconds ?? (context.quick ? 1 : 2);
  const rounds = context.rounds ?? (context.quick ? 2 : 5);
  const rivals: Rival[] = [];
  try {
    for (const start of [startNbdkit, startQemuNbd, startNbdServer]) rivals.push(await start(context.folder, size));
    if (!context.peersOnly)
      for (const env of context.envs)
        rivals.push(await startAshlar(context.folder, size, { env, args: context.serveArgs }));
    // The second one reads the file of the first peer.
    if (context.ceiling) rivals.push(await startNull(), await startNull(join(context.folder, "nbdkit.img")));
    const wanted = (each: Workload) => each.name.includes(context.only);
    const anyRandom = ROWS.some((row) => row.load.rw === "randread" && wanted(row.load));
    const loads = [...new Set(ROWS.map((row) => row.load))].filter((each) =>
      each === READ_THROUGH ? anyRandom : wanted(each),
    );
    const found = new Map<Workload, Map<string, Outcome[]>>();
    for (const each of loads) {
      const outcomes = new Map(rivals.map((rival) => [rival.name, [] as Outcome[]]));
      found.set(each, outcomes);
      const times = each === READ_THROUGH ? READ_THROUGH_TIMES : rounds;
      for (let round = 0; round < times; round++) {
        // Every other round backwards, so that nobody always follows the same one.
        for (const rival of round % 2 === 0 ? rivals : rivals.toReversed()) {
          outcomes.get(rival.name)!.push(await measure(each, rival.uri, rival.pid, size, seconds));
          // What it left in the page cache is written back now, and not in the next one's turn.
          if (each.rw.includes("write")) await run("sync", ["-f", context.folder]);
        }
      }
      if (each === READ_THROUGH) for (const list of outcomes.values()) list.length = 1;
      const shown = [...outcomes].map(([name, list]) => `${name} ${formatCount(median(list.map((one) => one.iops)))}`);
      context.tell(`${each.name}: ${shown.join(", ")} op/s`);
    }
    return [tabulate(rivals, found, { size, seconds, rounds })];
  } finally {
    for (const rival of rivals) await rival.stop();
    await run("rm", ["-rf", ...["nbdkit.img", "qemu.img", "nbd-server.img"].map((name) => join(context.folder, name))]);
  }
}

function tabulate(
  rivals: readonly Rival[],
  found: Map<Workload, Map<string, Outcome[]>>,
  { size, seconds, rounds }: { size: number; seconds: number; rounds: number },
): Table {
  const ours = rivals.filter((rival) => rival.name.startsWith("ashlar"));
  const peers = rivals.filter((rival) => PEERS.has(rival.name));
  const rows: string[][] = [];
  for (const { load: each, unit, goal } of ROWS) {
    const outcomes = found.get(each);
    if (outcomes === undefined) continue;
    const of = (rival: Rival) => outcomes.get(rival.name)!.map((outcome) => value(outcome, unit));
    const better = (a: Rival, b: Rival) =>
      isMoreBetter(unit) ? median(of(b)) - median(of(a)) : median(of(a)) - median(of(b));
    const best = [...peers].sort(better)[0]!;
    const cells = [`${each.name}, ${unit}`];
    for (const rival of rivals) cells.push(formatCount(median(of(rival))));
    for (const own of ours) {
      const ratio = pairedRatio(of(own), of(best));
      const isMet = goal !== undefined && (isMoreBetter(unit) ? ratio >= goal : ratio <= goal);
      cells.push(`${isMet ? "**" : ""}${ratio.toFixed(2)}${isMet ? "**" : ""} of ${best.name}`);
    }
    cells.push(goal === undefined ? "" : `${isMoreBetter(unit) ? "≥" : "≤"} ${goal}`);
    rows.push(cells);
  }
  return {
    title: "NBD",
    method:
      `fio with its NBD engine over TCP on loopback, client and server on the same cores; ${size / MIB} MiB of random data, all of it written twice before, and before random reads read ${READ_THROUGH_TIMES} times in pieces of 4 KiB (the row of the first time is one turn); ` +
      `all with page cache and fdatasync on flush; ours with a checksum verified on every read of the page cache, and a cache of blocks before it. Medians of ${rounds} alternating turns of ${seconds} s; ` +
      `the ratio is the median of those within each turn, against the best peer of that row. ${rivals.map((rival) => `${rival.name}: ${rival.version}`).join("; ")}.`,
    columns: ["", ...rivals.map((rival) => rival.name), ...ours.map((own) => `ratio, ${own.name}`), "goal"],
    rows,
    data: Object.fromEntries([...found].map(([each, outcomes]) => [each.name, Object.fromEntries(outcomes)])),
  };
}
