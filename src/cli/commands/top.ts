/** `ashlar top`: rates and latencies of every volume, refreshed. */
import { setTimeout as sleep } from "node:timers/promises";
import type { Command } from "commander";
import type { ApiReply } from "#admin/schema/api";
import { BUCKET_COUNT, quantile } from "#base/histogram";
import { Refusal } from "#base/refusal";
import { formatSize } from "#base/size";
import { Context } from "../context.ts";
import { paint, table } from "../output.ts";

type Statistics = ApiReply<"GET /v1/statistics">;
type Operations = Statistics["volumes"][number]["operations"];

interface Row {
  readonly volume: string;
  readonly front: string;
  readonly connections: number;
  readonly readsPerSecond: number;
  readonly writesPerSecond: number;
  readonly flushesPerSecond: number;
  readonly readBytesPerSecond: number;
  readonly writtenBytesPerSecond: number;
  /** Over the interval, all kinds of operations together. */
  readonly p50Ms: number;
  readonly p99Ms: number;
  readonly errorsPerSecond: number;
}

export function addTopCommand(program: Command): void {
  program
    .command("top")
    .description("operations, bytes and latencies of every volume, as they go")
    .option("--interval <seconds>", "between two looks", "1")
    .option("--count <n>", "stop after so many (1 when not on a terminal)")
    .action(async (options: { interval: string; count?: string }, command: Command) => {
      const context = new Context(command);
      const interval = parsePositive("interval", options.interval);
      const live = process.stdout.isTTY && !context.json;
      const count = options.count === undefined ? (live ? Infinity : 1) : parsePositive("count", options.count);
      let before = await context.api.call("GET /v1/statistics", {});
      for (let shown = 0; shown < count; shown++) {
        await sleep(interval * 1000);
        const now = await context.api.call("GET /v1/statistics", {});
        const rows = ratesOf(before, now);
        if (live) process.stdout.write("\u001b[H\u001b[2J");
        context.show({ at: now.at, volumes: rows }, ({ volumes }) => formatRows(volumes));
        before = now;
      }
    });
}

function parsePositive(what: string, text: string): number {
  const value = Number(text);
  if (value > 0 && Number.isFinite(value)) return value;
  throw new Refusal("bad-request", `"${text}" cannot be the ${what}`);
}

export function ratesOf(before: Statistics, now: Statistics): Row[] {
  const seconds = Math.max((Date.parse(now.at) - Date.parse(before.at)) / 1000, 0.001);
  return now.volumes.map(({ volume, front, connections, operations, errors }) => {
    const old = before.volumes.find((one) => one.volume === volume && one.front === front);
    const per = (kind: string, what: "count" | "bytes") =>
      ((operations[kind]?.[what] ?? 0) - (old?.operations[kind]?.[what] ?? 0)) / seconds;
    const counts = newCounts(old?.operations ?? {}, operations);
    const total = (all: Readonly<Record<string, number>> | undefined) =>
      Object.values(all ?? {}).reduce((sum, count) => sum + count, 0);
    return {
      volume,
      front,
      connections,
      readsPerSecond: per("read", "count"),
      writesPerSecond: per("write", "count"),
      flushesPerSecond: per("flush", "count"),
      readBytesPerSecond: per("read", "bytes"),
      writtenBytesPerSecond: per("write", "bytes"),
      p50Ms: quantile(counts, 0.5),
      p99Ms: quantile(counts, 0.99),
      errorsPerSecond: (total(errors) - total(old?.errors)) / seconds,
    };
  });
}

function newCounts(before: Operations, now: Operations): Float64Array {
  const counts = new Float64Array(BUCKET_COUNT);
  for (const { buckets } of Object.values(now)) for (const [index, count] of buckets) counts[index]! += count;
  for (const { buckets } of Object.values(before)) for (const [index, count] of buckets) counts[index]! -= count;
  return counts;
}

function formatRows(rows: readonly Row[]): string {
  const busy = rows.filter((row) => row.connections > 0 || row.readsPerSecond + row.writesPerSecond > 0);
  if (busy.length === 0) return paint("dim", "No volume is in use.");
  busy.sort((a, b) => b.readsPerSecond + b.writesPerSecond - a.readsPerSecond - a.writesPerSecond);
  const rate = (value: number) => (value < 10 ? value.toFixed(1) : String(Math.round(value)));
  return table(busy, [
    { title: "volume", of: ({ volume }) => volume },
    { title: "front", of: ({ front }) => front },
    { title: "conns", right: true, of: ({ connections }) => String(connections) },
    { title: "reads/s", right: true, of: (row) => rate(row.readsPerSecond) },
    { title: "read", right: true, of: (row) => `${formatSize(Math.round(row.readBytesPerSecond))}/s` },
    { title: "writes/s", right: true, of: (row) => rate(row.writesPerSecond) },
    { title: "written", right: true, of: (row) => `${formatSize(Math.round(row.writtenBytesPerSecond))}/s` },
    { title: "flushes/s", right: true, of: (row) => rate(row.flushesPerSecond) },
    { title: "p50", right: true, of: ({ p50Ms }) => formatMs(p50Ms) },
    { title: "p99", right: true, of: ({ p99Ms }) => formatMs(p99Ms) },
    { title: "errors/s", right: true, of: (row) => rate(row.errorsPerSecond) },
  ]);
}

const formatMs = (value: number): string =>
  value < 1 ? `${Math.round(value * 1000)} µs` : `${value.toFixed(value < 10 ? 1 : 0)} ms`;
