/** What it costs to grow: more volumes, more connections, more that is mapped. Each point against the best of its row. */
import { rmSync, truncateSync, writeFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { call, timed } from "#test/support/admin";
import { run } from "#test/support/program";
import { GIB, KIB, MIB } from "#test/support/temp";
import { residentBytes } from "./cpu.ts";
import { everyOnce, generate, scattered } from "./load.ts";
import type { Context } from "./main.ts";
import { AshlarServer, startNbdkitFor, startNull } from "./servers.ts";
import { formatCount, median, pairedRatio, quantile } from "./statistics.ts";
import type { Table } from "./table.ts";

const API_PROBE = fileURLToPath(new URL("api-probe.js", import.meta.url));
const BLOCK = 4 * KIB;
const ROUNDS = 5;
/** One 4 KiB block in sixteen is written: more work for the map than a volume that is full. */
const STRIDE = 16 * BLOCK;
const HOT = 64 * MIB;
/** Of more, the blocks of both would not fit in the page cache. */
const PEER_GIB_MAX = 64;

export async function benchGrowth(context: Context): Promise<Table[]> {
  const seconds = context.quick ? 1 : 2;
  const tables: Table[] = [];
  const parts = [
    ["volumes", () => manyVolumes(context, context.quick ? [1, 10, 100] : [1, 10, 100, 1000], seconds)],
    ["connections", () => manyConnections(context, [1, 10, 100, 500], seconds)],
    ["mapped", () => muchMapped(context, context.quick ? [1, 8] : [1, 8, 64, 200], seconds)],
  ] as const;
  for (const [name, part] of parts) if (name.includes(context.only)) tables.push(await part());
  return tables;
}

interface Point {
  readonly label: string;
  readonly rates: number[];
  extra: string;
}

function tabulate(title: string, method: string, first: string, extra: string, points: readonly Point[]): Table {
  const best = points.toSorted((a, b) => median(b.rates) - median(a.rates))[0]!;
  return {
    title,
    method,
    columns: [first, "reads/s", "of the best", extra],
    rows: points.map((point) => [
      point.label,
      formatCount(median(point.rates)),
      `${Math.round(100 * pairedRatio(point.rates, best.rates))} %`,
      point.extra,
    ]),
    data: points,
  };
}

const names = (count: number) => Array.from({ length: count }, (_, index) => `v${index}`);

/** Writes the first `HOT` bytes of each volume, or all of `bytes`. */
async function fill(port: number, volumes: readonly string[], bytes: number): Promise<void> {
  for (const volume of volumes) {
    let at = 0;
    const next = () => (at < bytes ? (at += BLOCK) - BLOCK : undefined);
    await generate({ kind: "write", port, volumes: [volume], depth: 64, next });
  }
}

async function manyVolumes(context: Context, counts: readonly number[], seconds: number): Promise<Table> {
  const server = await AshlarServer.start(`${context.folder}/volumes`, { args: context.serveArgs });
  const CONNECTIONS = 64;
  const points: Point[] = counts.map((count) => ({ label: String(count), rates: [], extra: "" }));
  try {
    let made = 0;
    for (const [index, count] of counts.entries()) {
      const fresh = names(count).slice(made);
      for (const name of fresh) await call(server.data, "POST", "/v1/volumes", { name, size: GIB });
      await fill(server.port, fresh, HOT / Math.min(made + 1, CONNECTIONS));
      made = count;
      const status: number[] = [];
      for (let times = 0; times < 20; times++) status.push(await timed(() => call(server.data, "GET", "/v1/status")));
      points[index]!.extra =
        `${formatCount(residentBytes(server.pid) / MIB)} MiB, status ${formatCount(median(status))} ms`;
    }
    // All volumes are there in every turn; what differs is how many are asked. Each takes a part of the same 64 MiB, or
    // one volume would be read from the processor's cache.
    for (let round = 0; round < ROUNDS; round++)
      for (const [index, count] of counts.entries()) {
        const volumes = Array.from({ length: CONNECTIONS }, (_, line) => `v${(line * 37 + round * 11) % count}`);
        const next = scattered(Math.floor(HOT / new Set(volumes).size / BLOCK) * BLOCK, BLOCK, round);
        const { rate } = await generate({ kind: "read", port: server.port, volumes, depth: 16, next, seconds });
        points[index]!.rates.push(rate);
      }
    for (const { label, rates } of points) context.tell(`${label} volumes: ${formatCount(median(rates))} reads/s`);
  } finally {
    await server.stop();
  }
  return tabulate(
    "More volumes",
    `4 KiB random reads of ${HOT / MIB} MiB in all, ${CONNECTIONS} connections with 16 requests each, spread over so many volumes; medians of ${ROUNDS} turns through all rows. Memory, and how long \`GET /v1/status\` takes, are those of a server that has just so many volumes.`,
    "volumes",
    "server",
    points,
  );
}

async function manyConnections(context: Context, counts: readonly number[], seconds: number): Promise<Table> {
  const server = await AshlarServer.start(`${context.folder}/connections`, { args: context.serveArgs });
  const empty = await startNull();
  const points: Point[] = [];
  const found = counts.map(() => ({ rates: [] as number[], ceiling: [] as number[], answers: [] as number[], mib: 0 }));
  try {
    await call(server.data, "POST", "/v1/volumes", { name: "v0", size: GIB });
    await fill(server.port, ["v0"], HOT);
    for (let round = 0; round < ROUNDS; round++)
      for (const [index, count] of counts.entries()) {
        const { rates, ceiling, answers } = found[index]!;
        const volumes = Array.from({ length: count }, () => "v0");
        const load = { kind: "read", volumes, depth: 32, next: scattered(HOT, BLOCK, round) } as const;
        rates.push((await generate({ ...load, port: server.port, seconds })).rate);
        if (round === 0) found[index]!.mib = residentBytes(server.pid) / MIB;
        ceiling.push((await generate({ ...load, port: empty.port, seconds })).rate);
        // The control plane under full load, in a turn of its own: the one who asks takes processor time too.
        let probe = Promise.resolve("[]");
        const onOpen = () => {
          probe = run(process.execPath, [API_PROBE, server.data, String(seconds * 0.9)]);
        };
        await generate({ ...load, port: server.port, seconds, onOpen });
        answers.push(...(JSON.parse(await probe) as number[]));
      }
    for (const [index, { rates, ceiling, answers, mib }] of found.entries()) {
      const share = formatCount(pairedRatio(rates, ceiling));
      const p99 = formatCount(quantile(answers, 0.99));
      points.push({
        label: String(counts[index]),
        rates,
        extra: `${share} of a server that stores nothing, ${formatCount(mib)} MiB, API p99 ${p99} ms`,
      });
      context.tell(`${counts[index]} connections: ${formatCount(median(rates))} reads/s, ${points.at(-1)!.extra}`);
    }
  } finally {
    await server.stop();
    await empty.stop();
  }
  return tabulate(
    "More connections",
    `4 KiB random reads of ${HOT / MIB} MiB of one volume, 32 requests in flight on each connection; medians of ${ROUNDS} turns through all rows. Beside it, in the same turns, a server that stores nothing: what client, loopback and memory make of more connections. Resident memory of the whole server. The API's answers to \`GET /v1/status\` are timed by another process under the same load, on the same two cores as load and lanes.`,
    "connections",
    "server",
    points,
  );
}

async function muchMapped(context: Context, sizes: readonly number[], seconds: number): Promise<Table> {
  const server = await AshlarServer.start(`${context.folder}/mapped`, { args: context.serveArgs });
  const file = `${context.folder}/mapped.img`;
  writeFileSync(file, "");
  truncateSync(file, 256 * GIB);
  const nbdkit = await startNbdkitFor(file);
  const points: Point[] = [];
  let nbdkitAtFirst: number | undefined;
  try {
    await call(server.data, "POST", "/v1/volumes", { name: "v0", size: 256 * GIB });
    const volumes = Array.from({ length: 8 }, () => "v0");
    let filled = 0;
    for (const size of sizes) {
      const ports = size <= PEER_GIB_MAX ? [server.port, nbdkit.port] : [server.port];
      for (const port of ports)
        await generate({
          kind: "write",
          port,
          volumes,
          depth: 32,
          next: everyOnce(filled * GIB, size * GIB, STRIDE),
        });
      filled = size;
      const all: number[][] = ports.map(() => []);
      for (let round = 0; round < ROUNDS; round++)
        for (const [index, port] of ports.entries()) {
          const next = scattered(size * GIB, STRIDE, round);
          all[index]!.push((await generate({ kind: "read", port, volumes, depth: 32, next, seconds })).rate);
        }
      const [rates, peers] = all as [number[], number[]?];
      if (peers !== undefined) nbdkitAtFirst ??= median(peers);
      const peer =
        peers === undefined
          ? ""
          : `; nbdkit ${formatCount(median(peers))}, ${Math.round((100 * median(peers)) / nbdkitAtFirst!)} % of its first`;
      points.push({
        label: `${size} GiB`,
        rates,
        extra: `${formatCount((size * GIB) / STRIDE / 1e6)} M extents, ${formatCount(residentBytes(server.pid) / MIB)} MiB${peer}`,
      });
      context.tell(`${size} GiB mapped: ${formatCount(median(rates))} reads/s, ${points.at(-1)!.extra}`);
    }
  } finally {
    await server.stop();
    await nbdkit.stop();
    rmSync(file);
  }
  return tabulate(
    "More that is mapped",
    `One volume; in each 64 KiB of the range one 4 KiB block, written in random order, so that no two are neighbours in the log: an extent each. 4 KiB random reads of all of them, 8 connections with 32 requests each, everything in the page cache. Beside it, in the same turns, nbdkit with the same blocks in a sparse file, which has no map: what more memory costs on this machine (of 200 GiB, both would not fit in it).`,
    "range",
    "map",
    points,
  );
}
