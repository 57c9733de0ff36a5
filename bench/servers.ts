/**
 * The servers that are compared, all on the same file system, all with the same promise: a write is answered once the
 * page cache has it, a flush once fdatasync has returned. All on TCP over loopback.
 */
import { randomFillSync } from "node:crypto";
import { closeSync, mkdirSync, openSync, readFileSync, writeFileSync, writeSync } from "node:fs";
import { join } from "node:path";
import { fileURLToPath } from "node:url";
import { TestClient } from "#test/support/nbd";
import { Program, run, until } from "#test/support/program";
import { ASHLAR } from "#test/support/server";
import { freePort, MIB } from "#test/support/temp";

/** The program module by module: a profile says in which one time was spent. */
const MODULES = fileURLToPath(new URL("../src/bin/ashlar.js", import.meta.url));
const NULL_SERVER = fileURLToPath(new URL("null-server.js", import.meta.url));

export interface Rival {
  readonly name: string;
  readonly version: string;
  readonly uri: string;
  readonly pid: number;
  stop(): Promise<void>;
}

/** Everything is written so often before it is measured, as SNIA's performance test does: nobody is new any more. */
const FILL_TIMES = 2;

/** A file of random bytes: what every peer serves, and what our volume is filled with. */
export function fillFile(path: string, size: number, times = FILL_TIMES): void {
  const file = openSync(path, "w");
  const piece = Buffer.alloc(4 * MIB);
  for (let time = 0; time < times; time++)
    for (let at = 0; at < size; at += piece.length) {
      randomFillSync(piece);
      writeSync(file, piece, 0, piece.length, at);
    }
  closeSync(file);
}

async function reachable(name: string, port: number): Promise<boolean> {
  try {
    await (await TestClient.open(port, name)).close();
    return true;
  } catch {
    return false;
  }
}

const firstLine = async (program: string, ...args: string[]) => (await run(program, args)).split("\n")[0]!.trim();

export async function startNbdkit(folder: string, size: number): Promise<Rival> {
  const file = join(folder, "nbdkit.img");
  fillFile(file, size);
  return await startNbdkitFor(file);
}

/** The same for a file that is there. */
export async function startNbdkitFor(file: string): Promise<Rival & { readonly port: number }> {
  const port = await freePort();
  const program = new Program("nbdkit", ["-f", "-i", "127.0.0.1", "-p", String(port), "file", file]);
  await program.until("listening", () => reachable("", port));
  return {
    name: "nbdkit",
    port,
    version: await firstLine("nbdkit", "--version"),
    uri: `nbd://127.0.0.1:${port}/`,
    pid: program.pid,
    stop: async () => void (await program.stop("SIGKILL")),
  };
}

export async function startQemuNbd(folder: string, size: number): Promise<Rival> {
  const file = join(folder, "qemu.img");
  fillFile(file, size);
  const port = await freePort();
  const program = new Program("qemu-nbd", [
    ...["-f", "raw", "--aio=io_uring", "--cache=writeback", "--shared=64", "--persistent"],
    ...["-b", "127.0.0.1", "-p", String(port), file],
  ]);
  await program.until("listening", () => reachable("", port));
  return {
    name: "qemu-nbd",
    version: await firstLine("qemu-nbd", "--version"),
    uri: `nbd://127.0.0.1:${port}/`,
    pid: program.pid,
    stop: async () => void (await program.stop("SIGKILL")),
  };
}

export async function startNbdServer(folder: string, size: number): Promise<Rival> {
  const file = join(folder, "nbd-server.img");
  fillFile(file, size);
  const port = await freePort();
  const [config, pidFile] = [join(folder, "nbd-server.conf"), join(folder, "nbd-server.pid")];
  writeFileSync(
    config,
    `[generic]\nlistenaddr = 127.0.0.1\nport = ${port}\n[disk]\nexportname = ${file}\nflush = true\nfua = true\ntrim = true\n`,
  );
  await run("nbd-server", ["-C", config, "-p", pidFile]);
  await until("nbd-server listening", () => reachable("disk", port));
  const pid = Number(readFileSync(pidFile, "latin1"));
  return {
    name: "nbd-server",
    version: (await firstLine("dpkg-query", "-W", "-f", "$" + "{Version}", "nbd-server").catch(() => "?")) || "?",
    uri: `nbd://127.0.0.1:${port}/disk`,
    pid,
    stop: async () => void process.kill(pid, "SIGTERM"),
  };
}

/**
 * Stores nothing: the ceiling that client, loopback and the loop leave. Not a rival. With a file, it reads that, without a
 * map and unchecked.
 */
export async function startNull(file?: string): Promise<Rival & { readonly port: number }> {
  const port = await freePort();
  const more = file === undefined ? [] : ["--file", file];
  const program = new Program(process.execPath, [NULL_SERVER, "--env", "uring", "--port", String(port), ...more]);
  await program.until("listening", () => reachable("", port));
  return {
    name: file === undefined ? "nothing stored" : "a file, unchecked",
    port,
    version: "bench/null-server.ts",
    uri: `nbd://127.0.0.1:${port}/`,
    pid: program.pid,
    stop: async () => void (await program.stop("SIGKILL")),
  };
}

export interface AshlarOptions {
  readonly env?: "auto" | "node" | "uring";
  readonly args?: readonly string[];
  readonly nodeArgs?: readonly string[];
  readonly cwd?: string;
  /** A command that runs the server: in a network namespace, for example. */
  readonly prefix?: readonly string[];
  /** Where NBD listens: 127.0.0.1 if nothing is said. */
  readonly address?: string;
}

/** Our server in a process of its own, with the command line that talks to it. */
export class AshlarServer implements Rival {
  readonly name: string;
  readonly version: string;
  readonly data: string;
  readonly port: number;
  readonly program: Program;

  private constructor(name: string, version: string, data: string, port: number, program: Program) {
    this.name = name;
    this.version = version;
    this.data = data;
    this.port = port;
    this.program = program;
  }

  static async start(data: string, options: AshlarOptions = {}): Promise<AshlarServer> {
    mkdirSync(data, { recursive: true });
    const port = await freePort();
    const kind = options.env ?? "auto";
    const nbd = `${options.address ?? "127.0.0.1"}:${port}`;
    const [command, ...args] = [
      ...[...(options.prefix ?? []), process.execPath, ...(options.nodeArgs ?? [])],
      ...[options.nodeArgs === undefined ? ASHLAR : MODULES, "serve", "--data", data, "--nbd", nbd],
      ...["--http", "off", "--env", kind],
      ...(options.args ?? []),
    ];
    const program = new Program(command!, args, options.cwd === undefined ? {} : { cwd: options.cwd });
    const name = kind === "auto" ? "ashlar" : `ashlar (${kind})`;
    const server = new AshlarServer(name, process.version, data, port, program);
    const ready = server.ashlar("status", "--wait", "60").then(() => undefined);
    const end = await Promise.race([ready, program.ended]);
    if (end !== undefined) throw new Error(`ashlar serve ended (${end})\n${program.output}`);
    return server;
  }

  get pid(): number {
    return this.program.pid;
  }
  get uri(): string {
    return this.uriOf("bench");
  }
  uriOf(volume: string): string {
    return `nbd://127.0.0.1:${this.port}/${encodeURIComponent(volume)}`;
  }
  ashlar(...args: string[]): Promise<string> {
    return run(process.execPath, [ASHLAR, "--data", this.data, ...args], { limitMs: 300_000 });
  }
  async stop(signal: NodeJS.Signals = "SIGKILL"): Promise<void> {
    await this.program.stop(signal);
  }
}

/** Our server with a volume of `size` bytes that has been written from end to end. */
export async function startAshlar(folder: string, size: number, options: AshlarOptions = {}): Promise<AshlarServer> {
  const server = await AshlarServer.start(join(folder, `ashlar-${options.env ?? "auto"}`), options);
  await server.ashlar("volume", "create", "bench", "--size", String(size));
  const file = join(folder, "fill.img");
  fillFile(file, size, 1);
  for (let time = 0; time < FILL_TIMES; time++)
    await run("nbdcopy", ["--flush", file, server.uri], { limitMs: 600_000 });
  await run("rm", [file]);
  return server;
}
