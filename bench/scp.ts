/**
 * SCP against one NBD connection to the same server: rates over 1, 2, 4 and 8 sockets; what cutting requests up gains on
 * a link that limits each socket; and how long an application stands still when one of two networks is cut.
 */

import { spawn } from "node:child_process";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import type { Pieces } from "#base/memory";
import { promiseOf } from "#base/task";
import { type BlockDevice, BlockOp, type OpKind } from "#device/device";
import { chooseEnv } from "#env/choose";
import type { Address, DialOptions, Ear, Env, Line, LineEnd, Peer } from "#env/env";
import { isNetError } from "#env/env";
import { makeEnv } from "#env/make-env";
import { NbdClient } from "#initiator/nbd-client";
import { run } from "#test/support/program";
import { freePort, KIB, MIB } from "#test/support/temp";
import { TwoNetworks } from "#test/support/two-networks";
import { connectScp, type ScpConnection } from "../src/library/connect-scp.ts";
import { call } from "./admin.ts";
import type { Context } from "./main.ts";
import { AshlarServer } from "./servers.ts";
import { formatCount, median, quantile } from "./statistics.ts";
import type { Table } from "./table.ts";

const SIZE = 256 * MIB;
const QUIET = { debug() {}, info() {}, warn() {}, error() {} };

export async function benchScp(context: Context): Promise<Table[]> {
  const tables = [await rates(context), await splitting(context)];
  if (process.getuid?.() === 0) tables.push(await stalls(context));
  return tables;
}

interface Served {
  readonly server: AshlarServer;
  readonly port: number;
  readonly secret: string;
}

async function serveUnit(context: Context, folder: string): Promise<Served> {
  const port = await freePort();
  const args = ["--scp", `127.0.0.1:${port}`, "--scp-any-source-port", ...context.serveArgs];
  const server = await AshlarServer.start(join(context.folder, folder), { args });
  await call(server.data, "POST", "/v1/volumes", { name: "db", size: SIZE });
  await call(server.data, "POST", "/v1/hosts", { name: "bench" });
  const { secret } = await call<{ secret: string }>(server.data, "POST", "/v1/hosts/bench/secret", {});
  await call(server.data, "POST", "/v1/grants", { device: "db", host: "bench" });
  return { server, port, secret };
}

/** Keeps `depth` operations in flight for `seconds`; operations per second and the latencies in ms. */
async function drive(
  env: Env,
  device: BlockDevice,
  kind: OpKind,
  length: number,
  depth: number,
  seconds: number,
  random: boolean,
): Promise<{ rate: number; took: number[] }> {
  const took: number[] = [];
  const end = performance.now() + seconds * 1000;
  let place = 0;
  let running = depth;
  const began = performance.now();
  await new Promise<void>((resolve, reject) => {
    for (let slot = 0; slot < depth; slot++) {
      const at = env.memory.allocate(length);
      let since = 0;
      const op = new BlockOp(() => {
        if (op.status !== "ok") reject(new Error(`a ${kind} ended with ${op.status}`));
        const now = performance.now();
        took.push(now - since);
        if (now < end) next();
        else {
          env.memory.free(at);
          if (--running === 0) resolve();
        }
      });
      const next = (): void => {
        const slots = SIZE / length;
        op.kind = kind;
        op.length = length;
        op.offset = (random ? Math.floor(Math.random() * slots) : place++ % slots) * length;
        op.at = at;
        since = performance.now();
        device.submit(op);
      };
      next();
    }
  });
  return { rate: took.length / ((performance.now() - began) / 1000), took };
}

const WORKLOADS = [
  { name: "4 KiB random read, depth 32", kind: "read", length: 4 * KIB, depth: 32, random: true },
  { name: "4 KiB random write, depth 32", kind: "write", length: 4 * KIB, depth: 32, random: true },
  { name: "4 KiB random read, depth 1", kind: "read", length: 4 * KIB, depth: 1, random: true },
  { name: "1 MiB sequential read, depth 4", kind: "read", length: MIB, depth: 4, random: false },
  { name: "1 MiB sequential write, depth 4", kind: "write", length: MIB, depth: 4, random: false },
] as const;

async function rates(context: Context): Promise<Table> {
  const { server, port, secret } = await serveUnit(context, "scp");
  const seconds = context.quick ? 0.5 : 2;
  const rounds = context.quick ? 1 : 3;
  const env = makeEnv(chooseEnv("auto").kind, { memoryBytes: 256 * MIB, log: QUIET });
  const found = new Map<string, Map<string, number[]>>();
  const columns = ["NBD, 1 connection", "1 socket", "2", "4", "8", "8, no CRC"];
  try {
    const target = { address: { host: "127.0.0.1", port: server.port }, exportName: "db", tls: undefined };
    const nbd = await promiseOf(NbdClient.open(env, target, { connections: 1 }));
    await drive(env, nbd, "write", MIB, 4, 1.5, false);
    for (let round = 0; round < rounds; round++)
      for (const work of WORKLOADS) {
        const row = found.get(work.name) ?? new Map<string, number[]>();
        found.set(work.name, row);
        const measure = async (column: string, device: BlockDevice): Promise<void> => {
          const { rate } = await drive(env, device, work.kind, work.length, work.depth, seconds, work.random);
          row.set(column, [...(row.get(column) ?? []), rate]);
        };
        await measure(columns[0]!, nbd);
        for (const [sockets, dataCrc] of [
          [1, true],
          [2, true],
          [4, true],
          [8, true],
          [8, false],
        ] as const) {
          const connection = await open(env, port, secret, sockets, dataCrc);
          await measure(dataCrc ? (sockets === 1 ? "1 socket" : String(sockets)) : "8, no CRC", connection.find("db"));
          await connection.close();
        }
        context.tell(`scp: ${work.name}`);
      }
    await new Promise<void>((resolve) => nbd.close()(resolve));
  } finally {
    await server.stop();
  }
  return {
    title: "SCP: rates by number of sockets",
    method:
      "One `ashlar serve`, one host process on the same two cores, `version 2` with checksums over data except in the last " +
      `column; operations per second, medians of ${rounds} turns of ${seconds} s.`,
    columns: ["workload", ...columns],
    rows: [...found].map(([name, row]) => [
      name,
      ...columns.map((column) => formatCount(median(row.get(column) ?? []))),
    ]),
    data: [...found].map(([name, row]) => ({ name, rates: Object.fromEntries(row) })),
  };
}

async function open(
  env: Env,
  port: number,
  secret: string,
  sockets: number,
  dataCrc = true,
  splitBytes = 64 * KIB,
): Promise<ScpConnection> {
  const connection = await connectScp({
    servers: [`127.0.0.1:${port}`],
    host: "bench",
    secret,
    dataCrc,
    env,
    settings: { socketsMin: sockets, socketsMax: sockets, splitBytes },
  });
  for (let waited = 0; connection.paths.agents.filter(({ state }) => state === "ready").length < sockets; waited++) {
    if (waited > 2000) throw new Error(`${sockets} sockets do not open`);
    await new Promise((resolve) => setTimeout(resolve, 1));
  }
  return connection;
}

const LINK_BYTES_PER_SECOND = 50 * MIB;
const LINK_DELAY_MS = 2;

/** What requests gain from being cut up, on a link with a delay that gives every socket the same share. */
async function splitting(context: Context): Promise<Table> {
  const { server, port, secret } = await serveUnit(context, "split");
  const rows: string[][] = [];
  const data: object[] = [];
  try {
    for (const kind of ["read", "write"] as const) {
      const rate: number[] = [];
      for (const [sockets, splitBytes] of [
        [1, MIB],
        [4, MIB],
        [1, 64 * KIB],
        [2, 64 * KIB],
        [4, 64 * KIB],
        [8, 64 * KIB],
      ] as const) {
        const real = makeEnv("node", { memoryBytes: 128 * MIB, log: QUIET });
        const env = shapedEnv(real, port);
        const connection = await open(env, port, secret, sockets, true, splitBytes);
        const result = await drive(env, connection.find("db"), kind, MIB, 1, context.quick ? 1 : 4, false);
        rate.push(result.rate);
        await connection.close();
      }
      rows.push([`1 MiB ${kind}, depth 1`, ...rate.map(formatCount), `${(rate[4]! / rate[1]!).toFixed(2)} x`]);
      data.push({ kind, rate });
      context.tell(`scp: splitting, ${kind}`);
    }
  } finally {
    await server.stop();
  }
  return {
    title: "SCP: what cutting requests up gains",
    method:
      `Each socket is limited to ${LINK_BYTES_PER_SECOND / MIB} MiB/s each way and ${LINK_DELAY_MS} ms later (made in the host process: the machine's kernel ` +
      "has no netem). 1 MiB requests per second; the last column is 4 sockets cut against 4 sockets whole.",
    columns: ["workload", "whole, 1 socket", "whole, 4", "64 KiB pieces, 1", "2", "4", "8", "gain"],
    rows,
    data,
  };
}

/** The same Env, with data sockets that are slow and late. */
function shapedEnv(env: Env, configPort: number): Env {
  const { clock, random, memory, turn, disk, log, net } = env;
  return {
    clock,
    random,
    memory,
    turn,
    disk,
    log,
    net: {
      listen: (at, accept) => net.listen(at, accept),
      secure: (line, tls) => net.secure(line, tls),
      dial: (to: Address, options?: DialOptions) => (resume) =>
        net.dial(
          to,
          options,
        )((line) => resume(isNetError(line) || !("port" in to) || to.port === configPort ? line : new SlowLine(line))),
    },
  };
}

class SlowLine implements Line {
  ear!: Ear;
  readonly #line: Line;
  #inFreeAt = 0;
  #outFreeAt = 0;
  #closed = false;

  constructor(line: Line) {
    this.#line = line;
    line.ear = {
      onReceived: (count) => {
        this.#inFreeAt = later(this.#inFreeAt, count);
        this.#at(this.#inFreeAt + LINK_DELAY_MS / 2, () => this.ear.onReceived(count));
      },
      onSent: () => this.ear.onSent(),
      onClosed: (end: LineEnd) => {
        this.#closed = true;
        this.ear.onClosed(end);
      },
    };
  }
  get peer(): Peer {
    return this.#line.peer;
  }
  receive(at: number, length: number): void {
    // Small steps, as a link delivers.
    this.#line.receive(at, Math.min(length, 64 * KIB));
  }
  send(pieces: Pieces): void {
    this.#outFreeAt = later(this.#outFreeAt, pieces.total);
    this.#at(this.#outFreeAt + LINK_DELAY_MS / 2, () => this.#line.send(pieces));
  }
  close(): void {
    this.#line.close();
  }
  #at(when: number, what: () => void): void {
    setTimeout(
      () => {
        if (!this.#closed) what();
      },
      Math.max(0, when - performance.now()),
    );
  }
}

const later = (freeAt: number, bytes: number): number =>
  Math.max(freeAt, performance.now()) + (bytes / LINK_BYTES_PER_SECOND) * 1000;

/** Two networks between two namespaces; one of them goes silent while writes and reads go on over both. */
async function stalls(context: Context): Promise<Table> {
  const cleaners: (() => void | Promise<void>)[] = [];
  const networks = new TwoNetworks({ after: (clean) => cleaners.unshift(clean) });
  const data = join(context.folder, "stalls");
  const where = [1, 2].map((network) => `${networks.serverAddress(network)}:10001`).join(",");
  const command = networks.inside(
    networks.server,
    process.execPath,
    "bin/ashlar",
    "serve",
    "--data",
    data,
    "--nbd",
    "off",
    "--http",
    "off",
    "--scp",
    where,
  );
  const server = spawn(command[0], command.slice(1), { stdio: "ignore" });
  cleaners.unshift(() => void server.kill("SIGKILL"));
  try {
    const ashlar = (...args: string[]) => run(process.execPath, ["bin/ashlar", "--data", data, ...args]);
    await ashlar("status", "--wait", "30");
    await ashlar("volume", "create", "db", "--size", "64M");
    await ashlar("host", "add", "bench");
    const secret = join(context.folder, "secret");
    writeFileSync(secret, await ashlar("host", "secret", "bench"));
    await ashlar("grant", "db", "bench");
    const script = join(context.folder, "stall.mjs");
    writeFileSync(script, STALL_SCRIPT);
    const servers = [1, 2].map((network) => networks.serverAddress(network)).join(",");
    const [program, ...args] = networks.inside(networks.host, process.execPath, script, process.cwd(), servers, secret);
    const host = spawn(program, args, { stdio: ["pipe", "pipe", "inherit"] });
    cleaners.unshift(() => void host.kill("SIGKILL"));
    const lines = lineReader(host.stdout!);
    await lines();
    const worst: number[] = [];
    const cuts = context.quick ? 4 : 24;
    for (let cut = 0; cut < cuts; cut++) {
      const network = 1 + (cut % 2);
      await pause(400);
      networks.cut(network);
      await pause(700);
      host.stdin!.write("worst\n");
      worst.push(Number(await lines()));
      networks.heal(network);
      await pause(1200);
      host.stdin!.write("worst\n");
      await lines();
    }
    context.tell(`scp: ${cuts} cuts, longest stall ${Math.max(...worst).toFixed(0)} ms`);
    return {
      title: "SCP: how long an application stands still when one of two networks is cut",
      method: `Two veth pairs between two namespaces; all packets of one are lost without a word. 8 writers and 8 readers of 4 KiB; the longest operation of each of ${cuts} cuts.`,
      columns: ["", "median", "90 %", "99 %", "longest"],
      rows: [["ms", ...[0.5, 0.9, 0.99, 1].map((share) => quantile(worst, share).toFixed(0))]],
      data: worst,
    };
  } finally {
    for (const clean of cleaners) await clean();
  }
}

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));

function lineReader(stream: NodeJS.ReadableStream): () => Promise<string> {
  let text = "";
  let wake: (() => void) | undefined;
  stream.on("data", (chunk) => {
    text += String(chunk);
    wake?.();
  });
  return async () => {
    while (!text.includes("\n")) await new Promise<void>((resolve) => (wake = resolve));
    const end = text.indexOf("\n");
    const line = text.slice(0, end);
    text = text.slice(end + 1);
    return line;
  };
}

/** Runs in the host's namespace: loads a unit, and tells the longest operation since it was asked last. */
const STALL_SCRIPT = `
import { readFileSync } from "node:fs";
const [root, servers, secretFile] = process.argv.slice(2);
const { connectScp } = await import(root + "/dist/src/index.js");
const secret = readFileSync(secretFile, "utf8").trim();
const connection = await connectScp({ servers: servers.split(","), host: "bench", secret });
const device = connection.open("db");
let worst = 0;
const load = async (region, write) => {
  const data = new Uint8Array(4096).fill(region);
  for (;;) {
    const began = performance.now();
    if (write) await device.write(region * 4096, data);
    else await device.read(region * 4096, 4096);
    worst = Math.max(worst, performance.now() - began);
  }
};
for (let i = 0; i < 16; i++) load(i, i % 2 === 0);
process.stdin.on("data", () => { console.log(worst); worst = 0; });
console.log("ready");
`;
