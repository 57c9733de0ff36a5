/** The engine: snapshots and clones, opening after a crash, memory per block, space under overwriting, scrub. */
import { mkdirSync, statfsSync } from "node:fs";
import { join } from "node:path";
import { call, timed } from "#test/support/admin";
import { run, sleep } from "#test/support/program";
import { GIB, KIB, MIB, smallFileSystem } from "#test/support/temp";
import { cpuMs, residentBytes } from "./cpu.ts";
import { everyOnce, generate, scattered } from "./load.ts";
import type { Context } from "./main.ts";
import { AshlarServer } from "./servers.ts";
import { formatCount, median } from "./statistics.ts";
import type { Table } from "./table.ts";

const BLOCK = 4 * KIB;

interface Status {
  readonly space: { readonly mapped: number };
}

export async function benchEngine(context: Context): Promise<Table[]> {
  const tables: Table[] = [];
  for (const part of [snapshots, opening, sequential, overwriting, scrubbing])
    if (part.name.includes(context.only)) tables.push(await part(context));
  return tables;
}

async function snapshots(context: Context): Promise<Table> {
  const server = await AshlarServer.start(`${context.folder}/snapshots`, { args: context.serveArgs });
  const rows: string[][] = [];
  const data: Record<string, { snapshot: number[]; clone: number[] }> = {};
  const count = context.quick ? 5 : 15;
  try {
    for (const [label, size] of [
      ["1 GiB", GIB],
      ["100 GiB", 100 * GIB],
      ["1 TiB", 1024 * GIB],
    ] as const) {
      const name = `v${label.replace(" ", "")}`;
      await call(server.data, "POST", "/v1/volumes", { name, size });
      // A quarter of a million extents, spread over the whole volume.
      const next = everyOnce(0, size, size / (context.quick ? 16384 : 262144));
      await generate({ kind: "write", port: server.port, volumes: [name, name], depth: 64, next });
      const [snapshot, clone]: [number[], number[]] = [[], []];
      for (let index = 0; index < count; index++) {
        const target = `${name}@s${index}`;
        snapshot.push(await timed(() => call(server.data, "POST", "/v1/snapshots", { name: target })));
        const path = `/v1/snapshots/${encodeURIComponent(target)}/clone`;
        clone.push(await timed(() => call(server.data, "POST", path, { name: `${name}-c${index}` })));
        // A few writes in between, so that each snapshot has leaves of its own to part from.
        let left = 64;
        const some = scattered(size, BLOCK, index);
        await generate({
          kind: "write",
          port: server.port,
          volumes: [name],
          depth: 8,
          next: () => (left-- > 0 ? some() : undefined),
        });
      }
      data[label] = { snapshot, clone };
      rows.push([
        label,
        ...[snapshot, clone].flatMap((times) => [median(times), Math.max(...times)].map((ms) => `${ms.toFixed(1)} ms`)),
        "< 10 ms",
      ]);
      context.tell(`snapshots at ${label}: ${median(snapshot).toFixed(1)} ms, clones ${median(clone).toFixed(1)} ms`);
    }
  } finally {
    await server.stop();
  }
  return {
    title: "Snapshots and clones",
    method: `A volume with ${context.quick ? "16 thousand" : "262 thousand"} scattered extents; ${count} snapshots, each cloned, with writes in between. Times of the API calls, which answer when it is durable. Goal: flat, and under 10 ms.`,
    columns: ["provisioned", "snapshot, median", "longest", "clone, median", "longest", "goal, median"],
    rows,
    data,
  };
}

async function opening(context: Context): Promise<Table> {
  const rows: string[][] = [];
  const data: unknown[] = [];
  for (const extents of context.quick ? [100_000] : [10_000, 100_000, 1_000_000]) {
    const folder = `${context.folder}/opening-${extents}`;
    let server = await AshlarServer.start(folder, { args: context.serveArgs });
    await call(server.data, "POST", "/v1/volumes", { name: "db", size: 1024 * GIB });
    await call(server.data, "POST", "/v1/volumes", { name: "other", size: GIB });
    await server.stop("SIGTERM");
    server = await AshlarServer.start(folder, { args: context.serveArgs });
    const empty = residentBytes(server.pid);
    const next = everyOnce(0, extents * 64 * KIB, 64 * KIB);
    await generate({ kind: "write", port: server.port, volumes: ["db", "db"], depth: 64, next });
    await server.stop("SIGKILL");

    const opened = async () => {
      const again = await AshlarServer.start(folder, { args: context.serveArgs });
      // From the process's start to the first block read, less what starting takes without any data.
      await generate({ kind: "read", port: again.port, volumes: ["db"], depth: 1, next: once() });
      return again;
    };
    const afterCrash = await timed(async () => {
      server = await opened();
    });
    const processorMs = cpuMs(server.pid);
    await sleep(1000);
    const resident = residentBytes(server.pid) - empty;
    const map = await mapBytes(server.data);
    await server.stop("SIGTERM");
    const afterClose = await timed(async () => {
      server = await opened();
    });
    await sleep(1000);
    const clean = residentBytes(server.pid) - empty;
    await server.stop("SIGKILL");
    await run("rm", ["-rf", folder]);
    data.push({ extents, afterCrash, afterClose, processorMs, resident, clean, map });
    rows.push([
      extents.toLocaleString("en-US"),
      `${formatCount(afterCrash)} ms`,
      "< 2 s",
      `${formatCount(processorMs)} ms`,
      `${formatCount(afterClose)} ms`,
      `${formatCount(map / extents)} B`,
      "≤ 8 B",
      `${formatCount(resident / extents)} B`,
      `${formatCount(clean / extents)} B`,
    ]);
    context.tell(
      `opening ${extents} extents: ${formatCount(afterCrash)} ms after kill -9, ${formatCount(afterClose)} ms after a clean end`,
    );
  }
  return {
    title: "Opening, and memory per scattered block",
    method:
      "A volume of scattered 4 KiB blocks, no two neighbours. Time from starting the process (node, `status --wait` and all) to the first block read, after kill -9 under load and after a clean end. Memory per block: of the map as `ashlar_set_map_bytes` tells, and as growth of the whole process against an empty server, the garbage of the replay included.",
    columns: [
      ...["extents", "after kill -9", "goal", "processor time of that", "after SIGTERM"],
      ...["map, per block", "goal", "process, after kill -9", "after SIGTERM"],
    ],
    rows,
    data,
  };
}

/** What a server's maps take in memory, all sets together. */
async function mapBytes(data: string): Promise<number> {
  const text = await call<string>(data, "GET", "/metrics");
  return [...text.matchAll(/^ashlar_set_map_bytes\{.*\} (\d+)$/gm)].reduce((sum, [, bytes]) => sum + Number(bytes), 0);
}

/** What data costs that was written from end to end, in pieces of 128 KiB, by two writers at once. */
async function sequential(context: Context): Promise<Table> {
  const size = (context.quick ? 1 : 8) * GIB;
  const server = await AshlarServer.start(`${context.folder}/sequential`, { args: context.serveArgs });
  try {
    await call(server.data, "POST", "/v1/volumes", { name: "db", size });
    const before = residentBytes(server.pid);
    const uri = `--uri=nbd://127.0.0.1:${server.port}/db`;
    const layout = ["--rw=write", "--bs=128k", "--iodepth=16", `--size=${size / 2}`, `--offset_increment=${size / 2}`];
    await run("fio", ["--name=x", "--ioengine=nbd", uri, "--numjobs=2", ...layout], { cwd: "/tmp", limitMs: 280_000 });
    const [map, resident] = [await mapBytes(server.data), residentBytes(server.pid) - before];
    return {
      title: "Memory per TiB written sequentially",
      method: `${size / GIB} GiB in pieces of 128 KiB by two writers, carried over to 1 TiB. The map as \`ashlar_set_map_bytes\` tells; the whole process has grown by ${formatCount(resident / MIB)} MiB, with buffers and the cache of checksums, which are bounded.`,
      columns: ["", "measured", "goal"],
      rows: [["map, per TiB", `${formatCount((map * 1024 * GIB) / size / MIB)} MiB`, "next to nothing"]],
      data: { size, map, resident },
    };
  } finally {
    await server.stop();
  }
}

const once = () => {
  let left = 1;
  return () => (left-- > 0 ? 0 : undefined);
};

async function overwriting(context: Context): Promise<Table> {
  const disk = context.quick ? GIB : 4 * GIB;
  const cleanups: (() => void | Promise<void>)[] = [];
  const mount = await smallFileSystem({ after: (clean) => void cleanups.push(clean) }, disk);
  const data = join(mount, "data");
  mkdirSync(data);
  let server: AshlarServer | undefined;
  try {
    server = await AshlarServer.start(data, { args: context.serveArgs });
    const { port, pid } = server;
    const total = statfsSync(mount).blocks * statfsSync(mount).bsize;
    const size = Math.floor((total * 0.8) / (64 * MIB)) * 64 * MIB;
    await call(data, "POST", "/v1/volumes", { name: "db", size });
    const used = () => (statfsSync(mount).blocks - statfsSync(mount).bfree) * statfsSync(mount).bsize;
    let at = 0;
    const fillSeconds =
      (await timed(() =>
        generate({
          kind: "write",
          port,
          volumes: ["db"],
          depth: 64,
          next: () => (at < size ? (at += BLOCK) - BLOCK : undefined),
        }),
      )) / 1000;
    const load = (seconds: number, rate: number) => paced(port, size, seconds, rate);
    const seconds = context.quick ? 8 : 240;
    const full = await load(seconds / 4, Number.POSITIVE_INFINITY);
    const spaces: number[] = [];
    const sampler = setInterval(() => spaces.push(used() / size), 500);
    const sustained = await load(seconds, Number.POSITIVE_INFINITY);
    const paceRate = Math.floor(sustained.rate / 3);
    const pacedRun = await load(seconds / 2, paceRate);
    clearInterval(sampler);
    const operations = full.operations + sustained.operations + pacedRun.operations;
    const rewritten = (operations * BLOCK) / size;
    context.tell(
      `overwriting at 80 %: ${formatCount(sustained.rate)} writes/s, space ${Math.max(...spaces).toFixed(2)}, p99 ${formatCount(sustained.p99)} ms`,
    );
    const row = (label: string, found: Paced, goal: string) => [
      label,
      formatCount(found.rate),
      formatCount(found.p50),
      formatCount(found.p99),
      goal,
      formatCount(found.longest),
    ];
    return {
      title: "Overwriting at 80 % of the disk",
      method: `An ext4 of ${disk / MIB} MiB on a loop device, a volume of 80 % of it, written from end to end in ${formatCount(fillSeconds)} s, then overwritten at random, ${formatCount(rewritten)} times over, with 32 writes of 4 KiB in flight: as many as ${formatCount(operations / 3600)} a second are in an hour. Space used on the disk against the volume's data: at most ${Math.max(...spaces).toFixed(3)} (goal: 1.3 and what the disk allows, 1.25), median ${median(spaces).toFixed(3)}. Resident memory ${formatCount(residentBytes(pid) / MIB)} MiB.`,
      columns: ["", "writes/s", "p50 ms", "p99 ms", "goal", "longest ms"],
      rows: [
        row("the first overwrites", full, ""),
        row("as fast as it goes", sustained, ""),
        row("at a third of that", pacedRun, "≤ 5 ms"),
      ],
      data: { size, spaces, full, sustained, paced: pacedRun },
    };
  } finally {
    await server?.stop();
    for (const clean of cleanups.reverse()) await clean();
  }
}

interface Paced {
  readonly rate: number;
  readonly operations: number;
  readonly p50: number;
  readonly p99: number;
  readonly longest: number;
}

/** Random overwrites with fio, at most `rate` per second, with latencies in milliseconds. */
async function paced(port: number, size: number, seconds: number, rate: number): Promise<Paced> {
  const output = await run(
    "fio",
    [
      ...[
        "--output-format=json",
        "--ioengine=nbd",
        `--uri=nbd://127.0.0.1:${port}/db`,
        "--rw=randwrite",
        "--bs=4k",
        "--name=x",
      ],
      ...[
        "--iodepth=32",
        `--size=${size}`,
        "--time_based",
        `--runtime=${Math.ceil(seconds)}`,
        "--norandommap",
        "--randrepeat=0",
      ],
      ...(Number.isFinite(rate) ? [`--rate_iops=${rate}`] : []),
    ],
    { cwd: "/tmp", limitMs: (seconds + 60) * 1000 },
  );
  const { write } = JSON.parse(output.slice(output.indexOf("{"))).jobs[0];
  const { percentile } = write.clat_ns;
  return {
    rate: write.iops,
    operations: write.total_ios,
    p50: percentile["50.000000"] / 1e6,
    p99: percentile["99.000000"] / 1e6,
    longest: write.clat_ns.max / 1e6,
  };
}

async function scrubbing(context: Context): Promise<Table> {
  const server = await AshlarServer.start(`${context.folder}/scrub`, { args: context.serveArgs });
  const size = context.quick ? 256 * MIB : 2 * GIB;
  try {
    await call(server.data, "POST", "/v1/volumes", { name: "db", size });
    let at = 0;
    const next = () => (at < size ? (at += BLOCK) - BLOCK : undefined);
    await generate({ kind: "write", port: server.port, volumes: ["db", "db"], depth: 64, next });
    const rates: number[] = [];
    for (let round = 0; round < 3; round++)
      rates.push(size / MIB / ((await timed(() => server.ashlar("scrub", "--json"))) / 1000));
    const { space } = await call<Status>(server.data, "GET", "/v1/volumes/db");
    return {
      title: "Scrub",
      method: `${formatCount(space.mapped / MIB)} MiB of live data in the page cache, every block against its checksum; median of three runs of \`ashlar scrub\`, the start of the command included.`,
      columns: ["", "measured", "goal"],
      rows: [["rate", `${formatCount(median(rates))} MiB/s`, "as fast as the disk"]],
      data: { rates },
    };
  } finally {
    await server.stop();
  }
}
