/**
 * Conversations of real NBD clients with our server, kept as text: what the client sent (C) and what we answered (S), in
 * hexadecimal. `node dist/test/support/nbd-golden.js` records them anew with the clients that are installed; review the
 * difference. The test plays them back without the clients.
 */
import { mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { connect, createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { promiseOf } from "#base/task";
import { MIB } from "#base/units";
import { MemoryDevice } from "#device/memory-device";
import type { Env } from "#env/env";
import { NodeEnv } from "#env/node/node-env";
import { OpenExportTable } from "#target/exports";
import { NbdFront } from "#target/nbd-front";
import { run, runAny } from "./program.ts";

export interface Turn {
  readonly who: "C" | "S";
  readonly bytes: Uint8Array;
}
export interface Conversation {
  /** File name without its ending. */
  readonly name: string;
  /** The program and its version, and what it was asked to do. */
  readonly title: string;
  /** One list of turns per connection, in the order in which they were made. */
  readonly connections: readonly (readonly Turn[])[];
}

const FOLDER = fileURLToPath(new URL("../../../test/golden/", import.meta.url));
const LINE_BYTES = 48;

/** The server that all conversations are held with. */
export function goldenFront(env: Env): NbdFront {
  const device = new MemoryDevice(env.memory, 4 * MIB, { blockSize: 4096 });
  device.poke(
    0,
    new Uint8Array(8192).map((_, index) => index >> 8),
  );
  const exports = new OpenExportTable().add("db", device, { description: "the database" });
  return new NbdFront(env, exports);
}

export function readConversations(): Conversation[] {
  const files = readdirSync(FOLDER).filter((file) => /^nbd-.*\.txt$/.test(file));
  return files.sort().map((file) => parse(file.replace(/\.txt$/, ""), readFileSync(join(FOLDER, file), "utf8")));
}

function parse(name: string, text: string): Conversation {
  const connections: { who: "C" | "S"; parts: Buffer[] }[][] = [];
  let title = "";
  for (const line of text.split("\n")) {
    if (line.startsWith("# ")) title = line.slice(2);
    else if (line === "----") connections.push([]);
    else if (line !== "") {
      const who = line[0] as "C" | "S";
      const turns = connections.at(-1)!;
      if (line[1] !== "+") turns.push({ who, parts: [] });
      turns.at(-1)!.parts.push(Buffer.from(line.slice(2), "hex"));
    }
  }
  const join_ = (turn: { who: "C" | "S"; parts: Buffer[] }): Turn => ({
    who: turn.who,
    bytes: Buffer.concat(turn.parts),
  });
  return { name, title, connections: connections.map((turns) => turns.map(join_)) };
}

function format({ title, connections }: Omit<Conversation, "name">): string {
  const lines = [`# ${title}`];
  for (const turns of connections) {
    lines.push("----");
    for (const { who, bytes } of turns)
      for (let at = 0; at < bytes.length; at += LINE_BYTES) {
        const hex = Buffer.from(bytes.subarray(at, at + LINE_BYTES)).toString("hex");
        lines.push(`${who}${at === 0 ? " " : "+"}${hex}`);
      }
  }
  return `${lines.join("\n")}\n`;
}

async function record(): Promise<void> {
  const folder = mkdtempSync(join(tmpdir(), "ashlar-golden-"));
  const version = async (program: string) => (await runAny(program, ["--version"])).stdout.split("\n")[0]!;
  const libnbd = await version("nbdinfo");
  const qemu = (await version("qemu-img")).replace(/ \(.*/, "");
  for (const [name, title, program, args] of [
    ["nbd-nbdinfo", `${libnbd}, nbdinfo --list`, "nbdinfo", ["--list", "URI"]],
    ["nbd-nbdinfo-map", `${libnbd}, nbdinfo --map`, "nbdinfo", ["--map", "URI"]],
    ["nbd-nbdcopy", `${libnbd}, nbdcopy to null:`, "nbdcopy", ["--connections=1", "URI", "null:"]],
    ["nbd-qemu-img-map", `${qemu}, map`, "qemu-img", ["map", "-f", "raw", "URI"]],
    [
      "nbd-qemu-io",
      `${qemu.replace("qemu-img", "qemu-io")}, writes, zeroes, discards, flushes`,
      "qemu-io",
      ["-f", "raw", "-c", "write -P 7 8k 4k", "-c", "write -f -z 0 64k", "-c", "discard 0 4k", "-c", "flush", "URI"],
    ],
    [
      "nbd-nbdkit",
      `${await version("nbdkit")}, its nbd plugin`,
      "nbdkit",
      ["-U", "-", "nbd", "uri=URI", "--run", "nbdinfo --size $uri"],
    ],
  ] as const) {
    const env = new NodeEnv({ memoryBytes: 32 * MIB, log: { debug() {}, info() {}, warn() {}, error() {} } });
    const front = goldenFront(env);
    await promiseOf(front.listen({ path: join(folder, "server") }));
    const connections: Turn[][] = [];
    const proxy = createServer({ allowHalfOpen: true }, (client) => {
      const turns: Turn[] = [];
      connections.push(turns);
      const server = connect({ path: join(folder, "server"), allowHalfOpen: true });
      const note = (who: "C" | "S") => (bytes: Buffer) => {
        const last = turns.at(-1);
        if (last?.who === who) turns[turns.length - 1] = { who, bytes: Buffer.concat([last.bytes, bytes]) };
        else turns.push({ who, bytes });
      };
      client.on("data", note("C")).pipe(server);
      server.on("data", note("S")).pipe(client);
      client.on("error", () => {});
      server.on("error", () => {});
    });
    await new Promise<void>((resolve) => proxy.listen(join(folder, "proxy"), resolve));
    const uri = `nbd+unix:///db?socket=${join(folder, "proxy")}`;
    await run(
      program,
      args.map((arg) => arg.replace("URI", uri)),
    );
    await new Promise<void>((resolve) => front.drain()(() => resolve()));
    proxy.close();
    rmSync(join(folder, "server"), { force: true });
    writeFileSync(join(FOLDER, `${name}.txt`), format({ title, connections }));
    console.log(`${name}: ${connections.length} connections`);
  }
  rmSync(folder, { recursive: true, force: true });
}

if (process.argv[1] === fileURLToPath(import.meta.url)) await record();
