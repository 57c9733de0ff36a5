/** fio with its NBD engine: one workload against one server, and what came of it. */
import { run } from "#test/support/program";
import { cpuMs } from "./cpu.ts";

export interface Workload {
  readonly name: string;
  readonly rw: "randread" | "randwrite" | "read" | "write";
  /** Bytes per request. */
  readonly block: number;
  readonly depth: number;
  readonly clients: number;
  /** Flush after each write. */
  readonly flush?: boolean;
  /** From the first byte to the last, and not for so many seconds. */
  readonly once?: boolean;
}

export interface Outcome {
  readonly iops: number;
  readonly bytesPerSecond: number;
  /** From when the client begins to send until it has the answer, in microseconds; with flushes, of these. */
  readonly p50: number;
  readonly p99: number;
  /** Processor time of the server per operation, in microseconds. */
  readonly cpuPerOp: number;
}

const ONCE_SECONDS_MAX = 300;

/** Runs a workload for `seconds`, or once through, against `uri` over `size` bytes; `pid` is the server's. */
export async function measure(
  load: Workload,
  uri: string,
  pid: number,
  size: number,
  seconds: number,
): Promise<Outcome> {
  const before = cpuMs(pid);
  const output = await run(
    "fio",
    [
      ...["--output-format=json", "--ioengine=nbd", `--uri=${uri}`, `--rw=${load.rw}`, `--bs=${load.block}`],
      ...[`--iodepth=${load.depth}`, `--numjobs=${load.clients}`, `--size=${size}`],
      ...(load.once === true ? [] : ["--time_based", `--runtime=${seconds}`]),
      ...["--group_reporting", "--randrepeat=0", "--norandommap", "--name=bench", "--thread"],
      // Sequential clients start apart from each other; buffers are not zeroes, which some server might not store.
      ...(load.clients > 1 && !load.rw.startsWith("rand")
        ? [`--offset_increment=${Math.floor(100 / load.clients)}%`]
        : []),
      ...(load.flush === true ? ["--fsync=1"] : []),
      ...["--refill_buffers=0", "--buffer_pattern=0x6173686c6172", "--gtod_reduce=0", "--lat_percentiles=1"],
    ],
    { cwd: "/tmp", limitMs: ((load.once === true ? ONCE_SECONDS_MAX : seconds) + 30) * 1000 },
  );
  const cpu = cpuMs(pid) - before;
  const job = JSON.parse(output.slice(output.indexOf("{"))).jobs[0];
  const side = load.rw.includes("read") ? job.read : job.write;
  // Not `clat`, which begins when the request has been sent: on a busy machine the answer may be there by then.
  const latency = load.flush === true ? job.sync.lat_ns : side.lat_ns;
  return {
    iops: side.iops,
    bytesPerSecond: side.bw_bytes,
    p50: (latency.percentile?.["50.000000"] ?? Number.NaN) / 1000,
    p99: (latency.percentile?.["99.000000"] ?? Number.NaN) / 1000,
    cpuPerOp: (cpu * 1000) / side.total_ios,
  };
}
