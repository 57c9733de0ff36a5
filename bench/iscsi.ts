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
  if ("many units".includes(context.only)) tables.push(await manyUnits(context));
  if ("many sessions".includes(context.only)) tables.push(await manySessions(context));
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
  const users = Array.from({ length: load.sessions }, (): IscsiUser => ({ initiator: INITIATOR, lun: LUN }));
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
      `tgt (${version}) from a file on the same file system; all with page cache; ours with a checksum verified on every read. "Digests" are CRC32C of headers with iscsi-perf, which has no others, ` +
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

const HOT = MIB;
const ROUNDS = 3;

/** Logs in `users` and measures random 4 KiB reads of the first MiB of each unit. */
async function readRate(target: IscsiTarget, users: readonly IscsiUser[], depth: number, seconds: number) {
  const startedMs = performance.now();
  const sessions = await IscsiSessions.open(target, users, false);
  const loginMs = performance.now() - startedMs;
  try {
    const rates: number[] = [];
    for (let round = 0; round < ROUNDS; round++)
      rates.push(
        (
          await sessions.run({
            kind: "read",
            block: SMALL,
            depth,
            seconds,
            next: scattered(HOT, SMALL, round),
          })
        ).rate,
      );
    return { rate: median(rates), rates, loginMs };
  } finally {
    sessions.close();
  }
}

async function manyUnits(context: Context): Promise<Table> {
  const counts = context.quick ? [1, 100] : [1, 10, 100, 1000];
  const SESSIONS = 16;
  const rows: string[][] = [];
  const data: unknown[] = [];
  const folder = join(context.folder, "units");
  const { server, target } = await startTarget(folder, context, context.envs[0]!);
  let first = 0;
  let made = 0;
  let current = server;
  try {
    await server.ashlar("limits", "--units-per-host", String(Math.max(...counts)));
    await server.ashlar("host", "add", "bench", "--iqn", INITIATOR);
    for (const count of counts) {
      for (; made < count; made++) {
        await call(folder, "POST", "/v1/volumes", { name: `v${made}`, size: GIB });
        await call(folder, "POST", "/v1/grants", { host: "bench", device: `v${made}`, unit: made });
      }
      const luns = Array.from({ length: SESSIONS }, (_, index) => (index * 37) % count);
      await fillUnits(target, luns);
      const users = luns.map((lun) => ({ initiator: INITIATOR, lun }));
      const { rate, rates, loginMs } = await readRate(target, users, 16, context.quick ? 1 : 2);
      first ||= rate;
      const row = { count, rates, loginMs, resident: residentBytes(current.pid) };
      data.push(row);
      rows.push([
        String(count),
        formatCount(rate),
        `${Math.round((100 * rate) / first)} %`,
        `${formatCount(loginMs / SESSIONS)} ms`,
        `${formatCount(row.resident / MIB)} MiB`,
      ]);
      context.tell(`${count} units: ${formatCount(rate)} reads/s`);
    }
  } finally {
    await current.stop();
  }
  const startMs = await timed(async () => {
    current = (await startTarget(folder, context, context.envs[0]!)).server;
  });
  await current.stop();
  return {
    title: "iSCSI: many units",
    method: `4 KiB random reads of 1 MiB of each of ${SESSIONS} units, one session with 16 commands each, while the host has so many units; medians of ${ROUNDS} turns. With all ${made}, \`ashlar serve\` is ready ${formatCount(startMs)} ms after kill -9.`,
    columns: ["units", "reads/s", "of one", "login of a session", "resident"],
    rows,
    data: { points: data, startMs },
  };
}

/** Something to read in the first bytes of units. */
async function fillUnits(target: IscsiTarget, luns: readonly number[]): Promise<void> {
  const users = [...new Set(luns)].map((lun) => ({ initiator: INITIATOR, lun }));
  const sessions = await IscsiSessions.open(target, users, false);
  const at = users.map(() => 0);
  const next = (session: number): number => {
    at[session] = (at[session]! + LARGE) % HOT;
    return at[session]!;
  };
  await sessions.run({ kind: "write", block: LARGE, depth: 8, seconds: 1, next });
  sessions.close();
}

async function manySessions(context: Context): Promise<Table> {
  const counts = context.quick ? [1, 100] : [1, 10, 100, 500];
  const rows: string[][] = [];
  const data: unknown[] = [];
  const folder = join(context.folder, "sessions");
  const { server, target } = await startTarget(folder, context, context.envs[0]!);
  let first = 0;
  try {
    await server.ashlar("host", "add", "bench", "--iqn", INITIATOR);
    await server.ashlar("volume", "create", "bench", "--size", String(GIB));
    await server.ashlar("grant", "bench", "bench", "--unit", String(LUN));
    await fillUnits(target, [LUN]);
    for (const count of counts) {
      const users = Array.from({ length: count }, () => ({ initiator: INITIATOR, lun: LUN }));
      const { rate, rates, loginMs } = await readRate(target, users, 32, context.quick ? 1 : 2);
      first ||= rate;
      const row = { count, rates, loginMs, resident: residentBytes(server.pid) };
      data.push(row);
      rows.push([
        String(count),
        formatCount(rate),
        `${Math.round((100 * rate) / first)} %`,
        `${formatCount(loginMs / count)} ms`,
        `${formatCount(row.resident / MIB)} MiB`,
      ]);
      context.tell(`${count} sessions: ${formatCount(rate)} reads/s`);
    }
  } finally {
    await server.stop();
  }
  return {
    title: "iSCSI: many sessions",
    method: `4 KiB random reads of 1 MiB of one unit, 32 commands in flight in each session, all made by one thread; medians of ${ROUNDS} turns.`,
    columns: ["sessions", "reads/s", "of one", "login of a session", "resident"],
    rows,
    data,
  };
}
