/**
 * Where the time of a lane goes: V8's CPU profile under load, cut to the seconds of the load, as a flame graph and as a
 * table of microseconds per operation and stage; and how many bytes an operation allocates on the JavaScript heap.
 */
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { run, sleep } from "#test/support/program";
import { KIB, MIB } from "#test/support/temp";
import { measure, type Workload } from "./fio.ts";
import { type CpuProfile, collect, drawFlame, type Frame } from "./flame.ts";
import type { Context } from "./main.ts";
import { READ_THROUGH, READ_THROUGH_TIMES } from "./nbd.ts";
import { AshlarServer, fillFile } from "./servers.ts";
import { STAGES as ALL_STAGES, hasPerf, lookAt, NODE_ARGS_FOR_PERF } from "./stages.ts";
import { formatCount } from "./statistics.ts";
import type { Table } from "./table.ts";

const INTERVAL_US = 200;
const LOADS: readonly Workload[] = [
  { name: "4 KiB random read, depth 32, 2 clients", rw: "randread", block: 4 * KIB, depth: 32, clients: 2 },
  { name: "4 KiB random write, depth 32, 2 clients", rw: "randwrite", block: 4 * KIB, depth: 32, clients: 2 },
  { name: "4 KiB write + flush, 16 clients", rw: "randwrite", block: 4 * KIB, depth: 1, clients: 16, flush: true },
  { name: "128 KiB sequential read, depth 8", rw: "read", block: 128 * KIB, depth: 8, clients: 1 },
  { name: "128 KiB sequential write, depth 8", rw: "write", block: 128 * KIB, depth: 8, clients: 1 },
];

/** What the functions of a lane are for; for colours, and for where there is no `perf`. The first match decides. */
const STAGES: readonly (readonly [string, RegExp])[] = [
  ["idle", /^\(idle\)/],
  ["garbage collection", /^\(garbage collector\)/],
  ["checksum", /hash|xxh|checksum|wasm/i],
  ["in the kernel, or waiting for it", /(io_uring_enter|enter|koffi|syscall) .*env\/uring|native/],
  ["receive and send", /env\/(uring|node)\/.*(net|line|socket)|node:net|node:internal\/stream|net\.js/],
  ["disk and cache", /env\/(uring|node)\/.*(disk|file)|node:fs|store\/block-cache/],
  ["loop", /src\/(env|lane)\/|node:internal\/(process|timers)/],
  ["decode and encode", /src\/(wire|proto)\//],
  ["check", /src\/target\/.*(protect|guard|grant|table)|src\/device\/(guard|limit|meter)/],
  ["front", /src\/target\//],
  ["map", /src\/store\/(map|node|leaf|run)/],
  ["log", /src\/store\/(log|segment|format|cleaner|checkpoint|replay)/],
  ["volume", /src\/(store|device)\//],
  ["memory", /src\/base\//],
];
const COLORS = [
  "#eee",
  "#e57373",
  "#ffd54f",
  "#90a4ae",
  "#4fc3f7",
  "#81c784",
  "#b0bec5",
  "#ba68c8",
  "#f06292",
  "#7986cb",
];
const MORE_COLORS = ["#4db6ac", "#ffb74d", "#aed581", "#d4e157", "#ccc"];

function stageOf(frame: Frame): string {
  const text = `${frame.name} ${frame.url}`;
  return STAGES.find(([, pattern]) => pattern.test(text))?.[0] ?? "other";
}
function colorOf(frame: Frame): string {
  const index = STAGES.findIndex(([name]) => name === stageOf(frame));
  return [...COLORS, ...MORE_COLORS][index < 0 ? COLORS.length + MORE_COLORS.length - 1 : index]!;
}

interface Ran {
  readonly load: Workload;
  /** When, in microseconds of the monotonic clock. */
  readonly from: number;
  readonly to: number;
  readonly operations: number;
  /** Allocated on the heaps meanwhile. */
  readonly bytes: number;
  /** Processor time of the whole server, in microseconds. */
  readonly cpuPerOp: number;
}

/** As the NBD bench does: what is measured is how it goes on, not how the cache fills. */
async function readThrough({ uri, pid }: { readonly uri: string; readonly pid: number }, size: number): Promise<void> {
  for (let time = 0; time < READ_THROUGH_TIMES; time++) await measure(READ_THROUGH, uri, pid, size, 0);
}

export async function benchProfile(context: Context): Promise<Table[]> {
  const folder = join(context.folder, "profiles");
  mkdirSync(folder, { recursive: true });
  const size = context.quick ? 128 * MIB : 512 * MIB;
  const seconds = context.quick ? 2 : 4;
  const nodeArgs = ["--cpu-prof", `--cpu-prof-dir=${folder}`, `--cpu-prof-interval=${INTERVAL_US}`, "--trace-gc"];
  const env = context.envs[0]!;
  const server = await AshlarServer.start(join(context.folder, "data"), { nodeArgs, env, args: context.serveArgs });
  const file = join(context.folder, "fill.img");
  const ran: Ran[] = [];
  try {
    await server.ashlar("volume", "create", "bench", "--size", String(size));
    fillFile(file, size);
    await run("nbdcopy", ["--flush", file, server.uri]);
    await readThrough(server, size);
    for (const load of LOADS.filter((each) => each.name.includes(context.only))) {
      await measure(load, server.uri, server.pid, size, 1);
      const output = server.program.output.length;
      const from = monotonicUs();
      const { iops, cpuPerOp } = await measure(load, server.uri, server.pid, size, seconds);
      const to = monotonicUs();
      const bytes = allocatedBytes(server.program.output.slice(output));
      ran.push({ load, from, to, operations: iops * seconds, bytes, cpuPerOp });
      context.tell(`${load.name}: ${formatCount(iops)} op/s under the profiler`);
    }
  } finally {
    // Profiles are written when the process ends well.
    await server.stop("SIGTERM");
  }
  const profiles = readdirSync(folder)
    .filter((name) => name.endsWith(".cpuprofile"))
    .map((name) => JSON.parse(readFileSync(join(folder, name), "utf8")) as CpuProfile);
  mkdirSync("bench/results", { recursive: true });
  const tables = ran.map((one) => {
    const { load, from, to } = one;
    // Of all threads, the lane is the one that is busy.
    const busiest = profiles.map((profile) => collect(profile, from, to)).sort((a, b) => busy(b) - busy(a))[0]!;
    const slug = load.name.replace(/[^\w]+/g, "-").toLowerCase();
    writeFileSync(`bench/results/profile-${slug}.svg`, drawFlame(busiest, `${load.name}: one lane`, colorOf));
    return tabulate(one, busiest, `profile-${slug}.svg`);
  });
  return [await costPerStage(context, size, seconds), ...tables];
}

/** The same loads again, without V8's profiler, seen by `perf` if it is there: the kernel's part of each stage too. */
async function costPerStage(context: Context, size: number, seconds: number): Promise<Table> {
  const title = "What an operation costs, by stage";
  const loads = LOADS.filter((each) => each.name.includes(context.only));
  if (!hasPerf()) {
    const method = "Not measured: `perf` is not here (Debian: linux-perf).";
    return { title, method, columns: ["stage"], rows: [], data: {} };
  }
  const options = { nodeArgs: NODE_ARGS_FOR_PERF, env: context.envs[0]!, args: context.serveArgs };
  const server = await AshlarServer.start(join(context.folder, "stages"), options);
  const costs: Map<string, number>[] = [];
  const totals: number[] = [];
  try {
    await server.ashlar("volume", "create", "bench", "--size", String(size));
    await run("nbdcopy", ["--flush", join(context.folder, "fill.img"), server.uri]);
    await readThrough(server, size);
    for (const load of loads) {
      await measure(load, server.uri, server.pid, size, 2);
      const { cpuPerOp } = await measure(load, server.uri, server.pid, size, seconds);
      const loaded = measure(load, server.uri, server.pid, size, seconds + 2);
      await sleep(1000);
      const shares = await lookAt(server.pid, seconds, join(context.folder, "perf.data"));
      await loaded;
      costs.push(new Map([...shares].map(([stage, share]) => [stage, share * cpuPerOp])));
      totals.push(cpuPerOp);
      context.tell(`${load.name}: ${formatCount(cpuPerOp)} µs of the processor per operation`);
    }
  } finally {
    await server.stop();
  }
  const cell = (us: number | undefined) => (us === undefined || us < 0.005 ? "" : us.toFixed(2));
  return {
    title,
    method:
      "Microseconds of the server's processor time per operation, all threads, user and kernel: the shares of the stages by `perf`, of the time in /proc/PID/stat over the operations that fio counted. " +
      "What the kernel does for a stage is in it: the copy out of the page cache in *read*, TCP down to the client's socket in *send*. Waiting is in none.",
    columns: ["stage", ...loads.map(({ name }) => name)],
    rows: [
      ...ALL_STAGES.map((stage) => [stage, ...costs.map((cost) => cell(cost.get(stage)))]),
      ["**all**", ...totals.map((total) => `**${total.toFixed(2)}**`)],
    ],
    data: loads.map(({ name }, index) => ({ name, total: totals[index], stages: Object.fromEntries(costs[index]!) })),
  };
}

const monotonicUs = () => Number(process.hrtime.bigint() / 1000n);
const busy = (root: Frame) =>
  root.total - ([...root.children.values()].find((frame) => frame.name === "(idle)")?.total ?? 0);

function tabulate({ load, operations, bytes, cpuPerOp }: Ran, root: Frame, picture: string): Table {
  const stages = new Map<string, number>();
  const functions = new Map<string, number>();
  const visit = (frame: Frame) => {
    if (frame.self > 0) {
      const stage = stageOf(frame);
      stages.set(stage, (stages.get(stage) ?? 0) + frame.self);
      const name = `${frame.name} ${frame.url.replace(/^.*\/dist\/src\//, "")}`.trim();
      functions.set(name, (functions.get(name) ?? 0) + frame.self);
    }
    for (const child of frame.children.values()) visit(child);
  };
  visit(root);
  const perOp = (us: number) => (us / operations).toFixed(3);
  const share = (us: number) => `${((100 * us) / root.total).toFixed(1)} %`;
  const sorted = (map: Map<string, number>) => [...map].sort((a, b) => b[1] - a[1]);
  return {
    title: `Where the time goes: ${load.name}`,
    method: `[Flame graph](${picture}). ${formatCount(operations)} operations under the profiler (a sample each ${INTERVAL_US} µs slows it a little); ${formatCount(bytes / operations)} bytes of JavaScript heap allocated per operation, over all threads; ${formatCount(cpuPerOp)} µs of processor time per operation, kernel and all. What a lane spends "in the kernel" is also its waiting for a core that the client has.`,
    columns: ["stage, then the functions", "µs per operation", "of the time"],
    rows: [
      ...sorted(stages).map(([name, us]) => [`**${name}**`, perOp(us), share(us)]),
      ...sorted(functions)
        .slice(0, 25)
        .map(([name, us]) => [name.replaceAll("|", "\\|"), perOp(us), share(us)]),
    ],
    data: {
      stages: Object.fromEntries(stages),
      functions: Object.fromEntries(sorted(functions).slice(0, 60)),
      operations,
      bytes,
    },
  };
}

/** Bytes allocated on the heaps of all threads, from the lines of --trace-gc: what was there before each collection, less what was left by the one before. */
function allocatedBytes(output: string): number {
  const left = new Map<string, number>();
  let sum = 0;
  for (const match of output.matchAll(/\[\d+:(0x[0-9a-f]+)\].*?([\d.]+) \([\d.]+\) -> ([\d.]+) \(/g)) {
    const [, isolate, before, after] = match;
    const base = left.get(isolate!);
    if (base !== undefined) sum += Math.max(0, Number(before) - base);
    left.set(isolate!, Number(after));
  }
  return sum * MIB;
}
