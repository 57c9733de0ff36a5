/**
 * iSCSI against tgt: the same workloads, files on the same file system, in alternating turns. `iscsi-perf` reads, without
 * digests and with those of headers, which is all that libiscsi knows; a generator of our own (bench/iscsi-load.ts) writes,
 * and does both with header and data digests.
 */
import { join } from "node:path";
import { call, timed } from "#test/support/admin";
import { run } from "#test/support/program";
import { GIB, KIB, MIB } from "#test/support/temp";
import { Tgt } from "#test/support/tgt";
import { cpuMs, residentBytes } from "./cpu.ts";
import { type IscsiLoad, IscsiSessions, type IscsiTarget, type IscsiUser } from "./iscsi-load.ts";
import { scattered } from "./load.ts";
import type { Context } from "./main.ts";
import { AshlarServer, fillFile } from "./servers.ts";
import { formatCount, median, pairedRatio } from "./statistics.ts";
import type { Table } from "./table.ts";

const SECTOR = 512;
const LUN = 1;
const INITIATOR = "iqn.2024-01.test:bench";
const SMALL = 4 * KIB;
const LARGE = 128 * KIB;

interface Workload {
  readonly name: string;
  readonly client: "iscsi-perf" | "own";
  readonly kind: "read" | "write";
  readonly random: boolean;
  readonly block: number;
  readonly depth: number;
  readonly sessions: number;
}
interface Outcome {
  readonly iops: number;
  /** Processor time of the target per operation, in microseconds. */
  readonly cpuPerOp: number;
}
/** A target as one client may use it. */
interface Side {
  readonly name: string;
  readonly target: IscsiTarget;
  readonly pid: number;
  readonly digests: boolean;
}

const WORKLOADS: readonly Workload[] = [...describe("iscsi-perf", ["read"]), ...describe("own", ["read", "write"])];

function describe(client: Workload["client"], kinds: readonly Workload["kind"][]): Workload[] {
  return kinds.flatMap((kind) =>
    [SMALL, LARGE].flatMap((block) =>
      [1, 32].flatMap((depth) =>
        // One command at a time from several sessions says nothing that one session with several does not.
        (depth === 1 && client === "own" ? [1] : [1, 4]).map((sessions) => {
          const random = block === SMALL;
          const what = `${block / KIB} KiB ${random ? "random" : "sequential"} ${kind}`;
          const how = `depth ${depth}, ${sessions} session${sessions === 1 ? "" : "s"}`;
          return { name: `${client}: ${what}, ${how}`, client, kind, random, block, depth, sessions };
        }),
      ),
    ),
  );
}

export async function benchIscsi(context: Context): Promise<Table[]> {
  const loads = WORKLOADS.filter(({ name }) => name.includes(context.only));
  const tables: Table[] = [];
  if (loads.length > 0) tables.push(...(await againstTgt(context, loads)));
  if ("many units and sessions".includes(context.only)) tables.push(await many(context));
  return tables;
}

/* ------------------------------------------------------------------------------------ tgt */

async function againstTgt(context: Context, loads: readonly Workload[]): Promise<Table[]> {
  const size = context.quick ? 128 * MIB : 512 * MIB;
  const seconds = 1;
  const rounds = context.quick ? 2 : 5;
  const disk = join(context.folder, "tgt.img");
  fillFile(disk, size);
  const tgt = await Tgt.start(disk);
  const servers: AshlarServer[] = [];
  const sides: Side[] = [
    { name: "tgt", target: { port: tgt.port, iqn: tgt.iqn }, pid: tgt.program.pid, digests: false },
  ];
  try {
    if (!context.peersOnly)
      for (const env of context.envs) {
        const { server, target } = await startTarget(join(context.folder, `ashlar-${env}`), context, env);
        servers.push(server);
        await server.ashlar("volume", "create", "bench", "--size", String(size));
        await server.ashlar("host", "add", "bench", "--iqn", INITIATOR);
        await server.ashlar("grant", "bench", "bench", "--unit", String(LUN));
        await run("nbdcopy", ["--flush", disk, server.uri], { limitMs: 600_000 });
        for (const digests of [false, true])
          sides.push({ name: `${server.name}${digests ? ", digests" : ""}`, target, pid: server.pid, digests });
      }
    const found = new Map<Workload, Map<Side, Outcome[]>>();
    for (const load of loads) {
      const outcomes = new Map(sides.map((side) => [side, [] as Outcome[]]));
      found.set(load, outcomes);
      for (let round = 0; round < rounds; round++)
        // Every other round backwards, so that nobody always follows the same one.
        for (const side of round % 2 === 0 ? sides : sides.toReversed()) {
          outcomes.get(side)!.push(await measure(load, side, size, seconds, round));
          if (load.kind === "write") await run("sync", ["-f", context.folder]);
        }
      const shown = [...outcomes].map(([{ name }, list]) => `${name} ${formatCount(median(list.map((o) => o.iops)))}`);
      context.tell(`${load.name}: ${shown.join("; ")} op/s`);
    }
    const version = (await run("tgtadm", ["--version"]).catch(() => "?")).trim();
    return [tabulate(sides, found, { size, seconds, rounds, version })];
  } finally {
    await tgt.stop();
    for (const server of servers) await server.stop();
  }
}

async function startTarget(data: string, context: Context, env: Context["envs"][number]) {
  const server = await AshlarServer.start(data, { env, args: ["--iscsi", "127.0.0.1:0", ...context.serveArgs] });
  const { iqn, portals } = JSON.parse(await server.ashlar("target", "show", "--json"));
  return { server, target: { iqn, port: Number(/\d+$/.exec(portals[0].address)![0]) } };
}

async function measure(load: Workload, side: Side, size: number, seconds: number, seed: number): Promise<Outcome> {
  return load.client === "own" ? measureOwn(load, side, size, seconds, seed) : measurePerf(load, side, seconds);
}

async function measurePerf(load: Workload, side: Side, seconds: number): Promise<Outcome> {
  const { port, iqn } = side.target;
  const url = `iscsi://127.0.0.1:${port}/${iqn}/${LUN}${side.digests ? "?header_digest=crc32c" : ""}`;
  const args = ["-i", INITIATOR, "-b", String(load.block / SECTOR), "-m", String(load.depth), "-t", String(seconds)];
  const before = cpuMs(side.pid);
  const outputs = await Promise.all(
    Array.from({ length: load.sessions }, () =>
      run("iscsi-perf", [...args, ...(load.random ? ["-r"] : []), url], { limitMs: (seconds + 20) * 1000 }),
    ),
  );
  const cpu = cpuMs(side.pid) - before;
  const iops = outputs.reduce((sum, output) => {
    const [, average] = /.*iops average (\d+)/s.exec(output) ?? [];
    if (average === undefined) throw new Error(`iscsi-perf says no rate: ${output}`);
    return sum + Number(average);
  }, 0);
  return { iops, cpuPerOp: (cpu * 1000) / (iops * seconds) };
}

async function measureOwn(load: Workload, side: Side, size: number, seconds: number, seed: number): Promise<Outcome> {
  const users = Array.from({ length: load.sessions }, (): IscsiUser => ({ initiator: INITIATOR, luns: [LUN] }));
  const sessions = await IscsiSessions.open(side.target, users, side.digests);
  try {
    const before = cpuMs(side.pid);
    const { operations, rate } = await sessions.run({ ...load, seconds, next: placesOf(load, size, seed) });
    return { iops: rate, cpuPerOp: ((cpuMs(side.pid) - before) * 1000) / operations };
  } finally {
    sessions.close();
  }
}

/** Random places in all of the volume, or each session in order through a part of its own. */
function placesOf(load: Workload, size: number, seed: number): IscsiLoad["next"] {
  if (load.random) return scattered(size, load.block, seed);
  const part = size / load.sessions;
  const at = Array.from({ length: load.sessions }, () => 0);
  return (session) => {
    const place = at[session]!;
    at[session] = (place + load.block) % part;
    return session * part + place;
  };
}

/** What issue and README ask for, of reads: `iscsi-perf` does nothing else. 0 where they ask for nothing. */
function goalOf(load: Workload, digests: boolean): number {
  if (load.kind === "write") return 0;
  if (load.depth === 1) return digests ? 0 : 1;
  return digests ? 1.5 : 2;
}

function tabulate(
  sides: readonly Side[],
  found: Map<Workload, Map<Side, Outcome[]>>,
  { size, seconds, rounds, version }: { size: number; seconds: number; rounds: number; version: string },
): Table {
  const [tgt, ...ours] = sides as [Side, ...Side[]];
  const rows = [...found].map(([load, outcomes]) => {
    const rates = (side: Side) => outcomes.get(side)!.map(({ iops }) => iops);
    const ratios = ours.map((side) => {
      const ratio = pairedRatio(rates(side), rates(tgt));
      const goal = goalOf(load, side.digests);
      const mark = goal > 0 && ratio >= goal ? "**" : "";
      return `${mark}${ratio.toFixed(2)}${mark}${goal > 0 ? ` (≥ ${goal})` : ""}`;
    });
    const cpu = sides.map((side) => median(outcomes.get(side)!.map(({ cpuPerOp }) => cpuPerOp)).toFixed(1));
    return [load.name, ...sides.map((side) => formatCount(median(rates(side)))), ...ratios, cpu.join(" / ")];
  });
  return {
    title: "iSCSI",
    method:
      `iscsi-perf of libiscsi, and a generator of our own for writes and for data digests, over TCP on loopback; clients and targets on the same cores; ${size / MIB} MiB of random data, ` +
      `tgt (${version}) from a file on the same file system; all with page cache; ours with a checksum verified on every read of the page cache, and a cache of blocks before it. "Digests" are CRC32C of headers with iscsi-perf, which has no others, ` +
      `and of headers and data with our generator; tgt has none in any row. Operations per second, medians of ${rounds} alternating turns of ${seconds} s; the ratio is the median of those within each turn, with the goal behind it. ` +
      `Processor time is the target's per operation, kernel and all.`,
    columns: [
      "",
      ...sides.map(({ name }) => name),
      ...ours.map(({ name }) => `ratio, ${name}`),
      `processor, µs (${sides.map(({ name }) => name).join(" / ")})`,
    ],
    rows,
    data: Object.fromEntries(
      [...found].map(([load, outcomes]) => [
        load.name,
        Object.fromEntries([...outcomes].map(([{ name }, list]) => [name, list])),
      ]),
    ),
  };
}

/* ---------------------------------------------------------------------- units, sessions */

const ROUNDS = 7;
const TURN_SECONDS = 1;
const DEPTH = 32;
/** What is written and read, of all units of a server together: as much of one as of a thousand. */
const HOT = 64 * MIB;
const FILL_BYTES = 64 * KIB;
const CROWD = "iqn.2024-01.test:crowd";
/** What is asked for: with many units and sessions, at least so much of the rate with one. */
const RATIO_MIN = 0.85;

interface Crowd {
  readonly name: string;
  readonly server: AshlarServer;
  readonly target: IscsiTarget;
  readonly users: readonly IscsiUser[];
  /** How much of each unit is read. */
  readonly hot: number;
}

/** One unit and one session against a thousand units and five hundred sessions, in alternating turns. */
async function many(context: Context): Promise<Table> {
  const unitCount = context.quick ? 100 : 1000;
  const sessionCount = context.quick ? 50 : 500;
  const [smallData, largeData] = [join(context.folder, "small"), join(context.folder, "large")];
  let small = await startTarget(smallData, context, context.envs[0]!);
  let large = await startTarget(largeData, context, context.envs[0]!);
  try {
    await makeUnits(small, smallData, 1);
    context.tell("one unit made");
    await makeUnits(large, largeData, unitCount);
    context.tell(`${unitCount} units made`);
    const startMs: number[] = [];
    small = await restart(small, smallData, context, startMs);
    large = await restart(large, largeData, context, startMs);
    const residentIdle = [small, large].map(({ server }) => residentBytes(server.pid));
    const crowd = (initiator: string, side: typeof small, sessions: number, units: number): Crowd => ({
      ...side,
      name: `${counted(sessions, "session")}, ${counted(units, "unit")}`,
      hot: hotOf(units),
      // Each session has units of its own, as far as there are enough.
      users: Array.from({ length: sessions }, (_, session) => ({
        initiator,
        luns:
          units < sessions
            ? [session % units]
            : Array.from({ length: Math.floor(units / sessions) }, (_, index) => session + index * sessions),
      })),
    });
    const one = crowd(INITIATOR, small, 1, 1);
    const pairs: [Crowd, Crowd][] = [
      [crowd(INITIATOR, small, 16, 1), crowd(CROWD, large, 16, unitCount)],
      [one, crowd(CROWD, small, sessionCount, 1)],
      [one, crowd(CROWD, large, sessionCount, unitCount)],
      [crowd(INITIATOR, small, sessionCount, 1), crowd(CROWD, large, sessionCount, unitCount)],
    ];
    const rows: string[][] = [];
    const data: unknown[] = [];
    for (const pair of pairs) {
      const { rates, cpu, loginMs, resident } = await compare(pair, context);
      const ratio = pairedRatio(rates[1], rates[0]);
      const mark = ratio >= RATIO_MIN ? "**" : "";
      rows.push([
        `${pair[1].name} to ${pair[0].name}`,
        formatCount(median(rates[0])),
        formatCount(median(rates[1])),
        `${mark}${ratio.toFixed(2)}${mark} (≥ ${RATIO_MIN})`,
        cpu.map((each) => median(each).toFixed(1)).join(" / "),
        `${formatCount(loginMs)} ms`,
        `${formatCount(resident / MIB)} MiB`,
      ]);
      data.push({ pair: pair.map(({ name }) => name), rates, cpu, loginMs, resident });
      context.tell(rows.at(-1)!.join("  "));
    }
    const startsOf = startMs.map((ms) => `${formatCount(ms)} ms`).join(" and ");
    const residentOf = residentIdle.map((bytes) => `${formatCount(bytes / MIB)} MiB`).join(" and ");
    return {
      title: "iSCSI: many units, many sessions",
      method:
        `4 KiB random reads of ${HOT / MIB} MiB, in equal parts of all units, ${DEPTH} commands in flight in each session, all made by one thread; ` +
        `two servers, with 1 and with ${unitCount} volumes of 1 GiB that one host has as its units. Medians of ${ROUNDS} alternating turns of ${TURN_SECONDS} s; the ratio is the median of those within each turn. ` +
        `All sessions of a row log in at the same moment. After kill -9, \`ashlar serve\` with 1 and with ${unitCount} volumes is ready after ${startsOf}, and has ${residentOf} of memory.`,
      columns: ["", "one", "many", "ratio", "processor, µs", "login of all", "resident with all"],
      rows,
      data: { points: data, startMs, residentIdle },
    };
  } finally {
    await small.server.stop();
    await large.server.stop();
  }
}
const hotOf = (units: number): number => Math.max(FILL_BYTES, Math.floor(HOT / units / FILL_BYTES) * FILL_BYTES);
const counted = (count: number, what: string): string => `${count} ${what}${count === 1 ? "" : "s"}`;

/** Volumes of a host with two initiators, each written at its start. */
async function makeUnits(
  { server, target }: { server: AshlarServer; target: IscsiTarget },
  folder: string,
  count: number,
): Promise<void> {
  await server.ashlar("limits", "--units-per-host", String(count));
  await server.ashlar("host", "add", "bench", "--iqn", INITIATOR, "--iqn", CROWD);
  for (let unit = 0; unit < count; unit++) {
    await call(folder, "POST", "/v1/volumes", { name: `v${unit}`, size: GIB });
    await call(folder, "POST", "/v1/grants", { host: "bench", device: `v${unit}`, unit });
  }
  const luns = Array.from({ length: count }, (_, lun) => lun);
  const sessions = await IscsiSessions.open(target, [{ initiator: INITIATOR, luns }], false);
  try {
    const hot = hotOf(count);
    let sent = 0;
    // The generator goes from unit to unit: a round of all of them, then the next place.
    const next = () => (Math.floor(sent++ / count) * FILL_BYTES) % hot;
    while (sent < count * (hot / FILL_BYTES))
      await sessions.run({ kind: "write", block: FILL_BYTES, depth: 8, seconds: 1, next });
  } finally {
    sessions.close();
  }
}

async function restart(
  side: { server: AshlarServer; target: IscsiTarget },
  folder: string,
  context: Context,
  tookMs: number[],
) {
  await side.server.stop("SIGKILL");
  let again = side;
  tookMs.push(
    await timed(async () => {
      again = await startTarget(folder, context, context.envs[0]!);
    }),
  );
  return again;
}

/** Both in alternating turns; the sessions of both stay logged in. What was found of each, and of the login of the second. */
async function compare(pair: readonly [Crowd, Crowd], context: Context) {
  const rates: [number[], number[]] = [[], []];
  const cpu: [number[], number[]] = [[], []];
  const open: IscsiSessions[] = [];
  let loginMs = 0;
  try {
    for (const { target, users } of pair) {
      const startedMs = performance.now();
      open.push(await IscsiSessions.open(target, users, false));
      loginMs = performance.now() - startedMs;
    }
    const turn = async (index: 0 | 1, round: number): Promise<void> => {
      const { server, hot } = pair[index];
      const { pid } = server;
      const before = cpuMs(pid);
      const next = scattered(hot, SMALL, round);
      const { rate, operations } = await open[index]!.run({
        ...{ kind: "read", block: SMALL, depth: DEPTH, next },
        seconds: context.quick ? TURN_SECONDS / 2 : TURN_SECONDS,
      });
      rates[index].push(rate);
      cpu[index].push(((cpuMs(pid) - before) * 1000) / operations);
    };
    // The first turns do not count: code that has just begun to run is slow, whatever it serves.
    for (const index of [0, 1] as const) {
      await turn(index, ROUNDS);
      rates[index].length = cpu[index].length = 0;
    }
    for (let round = 0; round < ROUNDS; round++)
      for (const index of round % 2 === 0 ? ([0, 1] as const) : ([1, 0] as const)) await turn(index, round);
    return { rates, cpu, loginMs, resident: residentBytes(pair[1].server.pid) };
  } finally {
    for (const sessions of open) sessions.close();
  }
}
