/**
 * SCP over 1, 2, 4 and 8 sockets against one NBD connection to the same server, and against tgt with an iSCSI initiator
 * in user space; what cutting requests up gains on a link that limits each socket; and how long an application stands
 * still when one of two networks is cut. The host is a process of its own (bench/scp-host.ts).
 */
import { spawn } from "node:child_process";
import { join } from "node:path";
import { createInterface } from "node:readline";
import { fileURLToPath } from "node:url";
import { call } from "#test/support/admin";
import { run } from "#test/support/program";
import { freePort, KIB, MIB } from "#test/support/temp";
import { TwoNetworks } from "#test/support/two-networks";
import type { Context } from "./main.ts";
import type { Load, Longest, Measure, Measured, Target, Work } from "./scp-host.ts";
import { AshlarServer } from "./servers.ts";
import { type Shape, ShapedLink } from "./shaped-link.ts";
import { formatCount, median, pairedRatio, quantile } from "./statistics.ts";
import type { Table } from "./table.ts";
import { Tgt } from "./tgt.ts";

const SIZE = 256 * MIB;
const HOST = fileURLToPath(new URL("scp-host.js", import.meta.url));
/** Requests are cut into these, and not at all. */
const PIECE = 64 * KIB;
const WHOLE = MIB;

/** Parts of this bench, for `--only`. Those that need namespaces need root. */
const PARTS: Record<string, (context: Context) => Promise<Table>> = {
  loopback: (context) => rates(context, undefined),
  link: (context) => rates(context, GIGABIT),
  splitting,
  stall: stalls,
};

export async function benchScp(context: Context): Promise<Table[]> {
  const tables: Table[] = [];
  for (const [name, part] of Object.entries(PARTS)) if (name.includes(context.only)) tables.push(await part(context));
  return tables;
}

/* ---- both ends */

/** What runs a command where the server or the host is. */
interface Place {
  readonly server: readonly string[];
  readonly host: readonly string[];
  readonly address: string;
}
const HERE: Place = { server: [], host: [], address: "127.0.0.1" };
const across = (link: ShapedLink): Place => ({
  server: ["ip", "netns", "exec", link.server],
  host: ["ip", "netns", "exec", link.host],
  address: link.serverAddress,
});

interface Served {
  readonly server: AshlarServer;
  readonly nbd: Target;
  scp(sockets: number, splitBytes?: number, dataCrc?: boolean): Target;
}

/** A server with the unit "db", written from end to end, for the host "bench". */
async function serveUnit(context: Context, place: Place, addresses = [place.address]): Promise<Served> {
  const { address } = place;
  const port = await freePort();
  const scp = addresses.map((one) => `${one}:${port}`);
  const data = join(context.folder, `scp-${port}`);
  const server = await AshlarServer.start(data, {
    prefix: place.server,
    address,
    args: ["--trust-the-network", "--scp", scp.join(","), "--scp-any-source-port", ...context.serveArgs],
  });
  await call(data, "POST", "/v1/volumes", { name: "db", size: SIZE });
  await call(data, "POST", "/v1/hosts", { name: "bench" });
  const { secret } = await call<{ secret: string }>(data, "POST", "/v1/hosts/bench/secret", {});
  await call(data, "POST", "/v1/grants", { device: "db", host: "bench" });
  return {
    server,
    nbd: { protocol: "nbd", host: address, port: server.port },
    scp: (sockets, splitBytes = PIECE, dataCrc = true) => ({
      ...{ protocol: "scp", servers: scp, secret, sockets, splitBytes, dataCrc },
    }),
  };
}

class Host {
  readonly #child;
  readonly #answers: AsyncIterator<string>;

  constructor(prefix: readonly string[]) {
    const [command, ...args] = [...prefix, process.execPath, HOST];
    this.#child = spawn(command!, args, { stdio: ["pipe", "pipe", "inherit"] });
    this.#answers = createInterface({ input: this.#child.stdout! })[Symbol.asyncIterator]();
  }

  async #ask(command: Measure | Load | Longest): Promise<unknown> {
    this.#child.stdin!.write(`${JSON.stringify(command)}\n`);
    const { value, done } = await this.#answers.next();
    if (done === true) throw new Error("the host's process has ended");
    return JSON.parse(value);
  }
  async measure(target: Target, work: Work, seconds: number): Promise<number> {
    return ((await this.#ask({ command: "measure", target, work, size: SIZE, seconds })) as Measured).rate;
  }
  async load(target: Target): Promise<void> {
    await this.#ask({ command: "load", target });
  }
  async longestMs(): Promise<number> {
    return (await this.#ask({ command: "longest" })) as number;
  }
  stop(): void {
    this.#child.kill("SIGKILL");
  }
}

/* ---- rates by number of sockets */

const GIGABIT: Shape = { roundTripMs: 1, bytesPerSecond: 125e6, share: "shared" };
const WORKS: ReadonlyMap<string, Work> = new Map([
  ["4 KiB random read, depth 32", { kind: "read", length: 4 * KIB, depth: 32, random: true }],
  ["4 KiB random write, depth 32", { kind: "write", length: 4 * KIB, depth: 32, random: true }],
  ["4 KiB random read, depth 1", { kind: "read", length: 4 * KIB, depth: 1, random: true }],
  ["1 MiB sequential read, depth 4", { kind: "read", length: MIB, depth: 4, random: false }],
  ["1 MiB sequential write, depth 4", { kind: "write", length: MIB, depth: 4, random: false }],
]);
const SOCKETS = [1, 2, 4, 8];
/** The column whose ratios to the others are told; and the same without checksums over data, which no peer has. */
const TYPICAL = 4;
const HEADERS_ONLY = `${TYPICAL}, headers only`;

async function rates(context: Context, shape: Shape | undefined): Promise<Table> {
  const seconds = context.quick ? 0.3 : 1;
  const rounds = context.quick ? 1 : 4;
  const link = shape === undefined ? undefined : await ShapedLink.make(shape);
  const cleaners: (() => unknown)[] = [() => link?.remove()];
  const found = new Map<string, Map<string, number[]>>();
  try {
    const place = link === undefined ? HERE : across(link);
    const { server, nbd, scp } = await serveUnit(context, place);
    cleaners.unshift(() => server.stop());
    const at = { host: place.address, port: await freePort() };
    const tgt = await Tgt.start(context.folder, SIZE, at, place.server, place.host);
    cleaners.unshift(() => tgt.stop());
    const host = new Host(place.host);
    cleaners.unshift(() => host.stop());
    const contestants = new Map<string, (work: Work) => Promise<number>>([
      ["NBD, 1 connection", (work) => host.measure(nbd, work, seconds)],
      ["tgt, iSCSI", (work) => tgt.measure(work, seconds)],
      ...SOCKETS.map(
        (sockets) => [String(sockets), (work: Work) => host.measure(scp(sockets), work, seconds)] as const,
      ),
      [HEADERS_ONLY, (work) => host.measure(scp(TYPICAL, PIECE, false), work, seconds)],
    ]);
    // Written from end to end, so that every read finds data.
    await host.measure(nbd, { kind: "write", length: MIB, depth: 4, random: false }, context.quick ? 2 : 4);
    for (const [name, work] of WORKS) {
      const row = new Map([...contestants.keys()].map((column) => [column, [] as number[]]));
      found.set(name, row);
      for (let round = 0; round < rounds; round++) {
        const turn = [...contestants];
        for (const [column, measure] of round % 2 === 0 ? turn : turn.reverse()) {
          row.get(column)!.push(await measure(work));
          // What it left in the page cache is written back now, and not in the next one's turn.
          if (work.kind === "write") await run("sync", ["-f", context.folder]);
        }
      }
      const shown = [...row].map(([column, list]) => `${column}: ${formatCount(median(list))}`);
      context.tell(`scp, ${link === undefined ? "loopback" : "link"}: ${name}: ${shown.join(", ")}`);
    }
  } finally {
    for (const clean of cleaners) await clean();
  }
  const columns = ["NBD, 1 connection", "tgt, iSCSI", ...SOCKETS.map(String), HEADERS_ONLY];
  const ratios = [String(TYPICAL), HEADERS_ONLY].flatMap((ours) =>
    ["NBD, 1 connection", "tgt, iSCSI"].map((peer) => ({ ours, peer })),
  );
  const where =
    shape === undefined
      ? "over loopback"
      : `over a link of ${(shape.bytesPerSecond * 8) / 1e9} Gbit/s each way and ${shape.roundTripMs} ms there and back (${link?.means}, between two network namespaces)`;
  return {
    title: `SCP: rates by number of sockets, ${shape === undefined ? "loopback" : "shaped link"}`,
    method:
      `Server and host ${where}, on the same cores; SCP version 2 with checksums over data, which neither NBD nor tgt has, ` +
      `and in the column "${HEADERS_ONLY}" without (\`attach --no-data-crc\`). Operations per second, medians of ` +
      `${rounds} alternating turns of ${seconds} s; ratios are medians of those within each turn. tgt's host is \`qemu-img bench\`.`,
    columns: ["workload", ...columns, ...ratios.map(({ ours, peer }) => `${ours} : ${peer.split(",")[0]}`)],
    rows: [...found].map(([name, row]) => [
      name,
      ...columns.map((column) => formatCount(median(row.get(column)!))),
      ...ratios.map(({ ours, peer }) => pairedRatio(row.get(ours)!, row.get(peer)!).toFixed(2)),
    ]),
    data: [...found].map(([name, row]) => ({ name, rates: Object.fromEntries(row) })),
  };
}

/* ---- what cutting requests up gains */

const SOCKET_LIMITED: Shape = { roundTripMs: 2, bytesPerSecond: 50 * MIB, share: "per-socket" };
const GAIN_MIN = 1.8;

async function splitting(context: Context): Promise<Table> {
  const seconds = context.quick ? 0.5 : 1.5;
  const rounds = context.quick ? 1 : 5;
  const link = await ShapedLink.make(SOCKET_LIMITED);
  const cleaners: (() => unknown)[] = [() => link.remove()];
  const rows: string[][] = [];
  const data: object[] = [];
  try {
    const place = across(link);
    const { server, scp } = await serveUnit(context, place);
    cleaners.unshift(() => server.stop());
    const host = new Host(place.host);
    cleaners.unshift(() => host.stop());
    const ways = [scp(1, WHOLE), scp(4, WHOLE), ...SOCKETS.map((sockets) => scp(sockets, PIECE))];
    for (const kind of ["write", "read"] as const) {
      const found = ways.map(() => [] as number[]);
      for (let round = 0; round < rounds; round++)
        for (const [index, way] of ways.entries())
          found[index]!.push(await host.measure(way, { kind, length: MIB, depth: 1, random: false }, seconds));
      const gain = pairedRatio(found[4]!, found[1]!);
      rows.push([`1 MiB ${kind}, depth 1`, ...found.map((rate) => formatCount(median(rate))), `${gain.toFixed(2)} x`]);
      data.push({ kind, rates: found });
      context.tell(`scp: splitting, ${kind}: ${gain.toFixed(2)} x`);
    }
  } finally {
    for (const clean of cleaners) await clean();
  }
  return {
    title: "SCP: what cutting requests up gains",
    method:
      `A link (bench/link.ts) that limits each socket to ${SOCKET_LIMITED.bytesPerSecond / MIB} MiB/s each way, ${SOCKET_LIMITED.roundTripMs} ms there and back. ` +
      `1 MiB requests per second, medians of ${rounds} turns of ${seconds} s; the gain is 4 sockets with pieces of 64 KiB against 4 sockets ` +
      `with whole requests; to be at least ${GAIN_MIN}.`,
    columns: ["workload", "whole, 1 socket", "whole, 4", "64 KiB pieces, 1", "2", "4", "8", "gain"],
    rows,
    data,
  };
}

/* ---- how long an application stands still */

const STALL_MS_MAX = 100;

/** Two networks between two namespaces; one of them goes silent while writes and reads go on over both. */
async function stalls(context: Context): Promise<Table> {
  const cleaners: (() => unknown)[] = [];
  const networks = new TwoNetworks({ after: (clean) => cleaners.unshift(clean) });
  const cuts = context.quick ? 6 : 40;
  const longest: number[] = [];
  try {
    const place = { server: networks.inside(networks.server), host: networks.inside(networks.host) };
    const addresses = [1, 2].map((network) => networks.serverAddress(network));
    const { server, scp } = await serveUnit(context, { ...place, address: addresses[0]! }, addresses);
    cleaners.unshift(() => server.stop());
    const host = new Host(place.host);
    cleaners.unshift(() => host.stop());
    await host.load(scp(2));
    await pause(1500);
    for (let cut = 0; cut < cuts; cut++) {
      const network = 1 + (cut % 2);
      await host.longestMs();
      networks.cut(network);
      await pause(600);
      longest.push(await host.longestMs());
      networks.heal(network);
      // Until both are used again: the system dials a second time after one.
      await pause(1800);
    }
  } finally {
    for (const clean of cleaners) await clean();
  }
  const row = [0.5, 0.9, 0.99, 1].map((share) => quantile(longest, share).toFixed(0));
  context.tell(`scp: ${cuts} cuts, stalls of ${row.join(", ")} ms (50, 90, 99, 100 %)`);
  return {
    title: "SCP: how long an application stands still when one of two networks is cut",
    method:
      "Two veth pairs between two namespaces; all packets of one are lost without a word. 8 loops that write and 8 that read " +
      `4 KiB; the longest operation of each of ${cuts} cuts, in ms; 99 % to be under ${STALL_MS_MAX}.`,
    columns: ["", "median", "90 %", "99 %", "longest"],
    rows: [["ms", ...row]],
    data: longest,
  };
}

const pause = (ms: number): Promise<void> => new Promise((resolve) => setTimeout(resolve, ms));
