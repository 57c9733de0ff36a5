/**
 * What a request costs the server's processor, by the stages it goes through: `perf` looks many times a second at what
 * every thread does, kernel and all. What the kernel does for a stage counts for it: the copy out of the page cache is
 * "read", all of TCP under a send is "send".
 */
import { existsSync, rmSync } from "node:fs";
import { delimiter, join } from "node:path";
import { Program, run, sleep } from "#test/support/program";

/** Looks per second and thread. */
const LOOKS = 1999;
/** Given to Node, so that `perf` knows the names of what is compiled while it runs. */
export const NODE_ARGS_FOR_PERF = ["--perf-basic-prof"];

/** By what the kernel does, from the innermost call on: the first line that matches any of its frames. */
const KERNEL: readonly (readonly [string, RegExp])[] = [
  ["send", /sendmsg|io_send|sock_write_iter/],
  ["receive", /recvmsg|io_recv|sock_read_iter/],
  ["flush", /fsync|fdatasync|sync_file/],
  ["append", /write_iter|pwritev|vfs_write|io_write|fallocate/],
  ["read", /read_iter|pread|vfs_read|io_read|filemap_read/],
];
/** By the function itself. */
const USER: readonly (readonly [string, RegExp])[] = [
  ["checksum", /wasm-function|xxh3|xxhash|addon\.napi|checksums/],
  ["garbage collection", /Scaveng|MarkCompact|Sweep|Heap::|GCTracer|Marking/],
  ["receive", /(receive|Received)\b.*env\//i],
  ["send", /env\/(uring|node)\/.*(line|net)|fillIovecs|makeMessage/],
  ["read", /env\/(uring|node)\/.*(disk|file)|pread|read_extents|block-cache|memmove/],
  ["append", /store\/(log|segment|syncer|group|checkpoint|buffer-pool|sharing)|writev/],
  ["decode", /wire\/nbd\/request|proto\/nbd|nbd-intake|wire\/iscsi.*decode/],
  ["check", /protection|guard|limit|rights|fair-memory|checkRange/],
  ["encode", /nbd-answers|nbd-slot|wire\/nbd\/reply|meter|histogram/],
  ["map", /store\/(map|node|leaf|tree)/],
  ["volume", /store\/|device\//],
  ["front", /target\//],
  ["loop", /env\/|clock_gettime|performance/i],
];
/** In the order in which a request meets them. */
export const STAGES = [
  ...["receive", "decode", "check", "front", "volume", "map", "read", "append", "flush", "checksum", "encode", "send"],
  ...["loop", "garbage collection", "Node and V8", "kernel: the call, waking, switching"],
] as const;

export const hasPerf = (): boolean =>
  (process.env["PATH"] ?? "").split(delimiter).some((folder) => existsSync(join(folder, "perf")));

/** Looks at a process for some seconds; the share of its processor time that each stage takes. */
export async function lookAt(pid: number, seconds: number, file: string): Promise<Map<string, number>> {
  const looking = new Program("perf", [
    ...["record", "-q", "-e", "cpu-clock", "-F", String(LOOKS), "-g", "-p", String(pid), "-o", file],
    ...["--", "sleep", String(seconds)],
  ]);
  await looking.ended;
  await sleep(50);
  const text = await run("perf", ["script", "-i", file, "-F", "ip,sym,dso"], { limitMs: 120_000 });
  rmSync(file, { force: true });
  const counts = new Map<string, number>();
  let sum = 0;
  for (const block of text.split("\n\n")) {
    const frames = block.split("\n").filter((line) => line.trim() !== "");
    if (frames.length === 0) continue;
    const stage = stageOf(frames);
    counts.set(stage, (counts.get(stage) ?? 0) + 1);
    sum++;
  }
  return new Map([...counts].map(([stage, count]) => [stage, count / sum]));
}

function stageOf(frames: readonly string[]): string {
  const isKernel = (frame: string): boolean => frame.includes("([kernel");
  if (isKernel(frames[0]!)) {
    const kernel = frames.filter(isKernel).join("\n");
    return KERNEL.find(([, pattern]) => pattern.test(kernel))?.[0] ?? "kernel: the call, waking, switching";
  }
  return USER.find(([, pattern]) => pattern.test(frames[0]!))?.[0] ?? "Node and V8";
}
