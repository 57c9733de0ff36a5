/**
 * The product as its users have it: `bin/ashlar serve` in a process of its own, and the command line against it.
 *
 *   const server = await Server.start(t);                       // in a folder of its own, on a Unix socket
 *   await server.ashlar("volume", "create", "db", "--size", "64M");
 *   await run("nbdinfo", [server.uri("db")]);
 *   await server.kill(); await server.restart();                // kill -9, and open the same data again
 */
import { get } from "node:http";
import { join, resolve } from "node:path";
import { type Ended, Program, type RunOptions, run, runAny, until } from "./program.ts";
import { cleanUp, freePort, type Scope, tempFolder } from "./temp.ts";

/** The program under test: this checkout, or an installed one. */
export const ASHLAR = resolve(process.env["ASHLAR_PROGRAM"] ?? "bin/ashlar");
const READY_SECONDS = 30;
const LOG_CHARS_SHOWN = 4_000;

export interface ServerOptions {
  /** The data directory; a new one by default. */
  readonly data?: string;
  /** Listen for NBD on a TCP port of 127.0.0.1 rather than on a Unix socket. */
  readonly tcp?: boolean;
  /** More arguments of `ashlar serve`. */
  readonly args?: readonly string[];
}

export class Server {
  readonly data: string;
  /** The Unix socket or the TCP port of the NBD front. */
  readonly nbd: string | number;
  readonly #args: readonly string[];
  #program: Program | undefined;
  #started = false;

  private constructor(data: string, nbd: string | number, args: readonly string[]) {
    this.data = data;
    this.nbd = nbd;
    this.#args = args;
  }

  /** Starts a server and waits until it is ready; it is killed after the test if it still runs. */
  static async start(scope: Scope, options: ServerOptions = {}): Promise<Server> {
    const folder = tempFolder(scope);
    const nbd = options.tcp === true ? await freePort() : join(folder, "nbd.sock");
    const at = typeof nbd === "number" ? `127.0.0.1:${nbd}` : `unix:${nbd}`;
    const data = options.data ?? join(folder, "data");
    const env = process.env["ASHLAR_ENV"];
    const args = ["--nbd", at, "--http", "off", ...(env === undefined ? [] : ["--env", env]), ...(options.args ?? [])];
    const server = new Server(data, nbd, args);
    cleanUp(scope, () => server.kill());
    await server.restart();
    return server;
  }

  get pid(): number {
    return this.#program!.pid;
  }
  /** The last that it has logged, for messages. */
  get lastWords(): string {
    return this.log.slice(-LOG_CHARS_SHOWN);
  }
  /** All that it has logged since it was started last. */
  get log(): string {
    return this.#program?.output ?? "";
  }
  get isRunning(): boolean {
    return this.#program !== undefined && this.#program.end === undefined;
  }

  /** Where clients find a volume or a snapshot ("db@monday"). */
  uri(name: string): string {
    const path = encodeURIComponent(name);
    return typeof this.nbd === "number"
      ? `nbd://127.0.0.1:${this.nbd}/${path}`
      : `nbd+unix:///${path}?socket=${this.nbd}`;
  }

  /** Starts it (again) on the same data. */
  async restart(): Promise<void> {
    if (this.isRunning) throw new Error("the server is running");
    this.#program = new Program(process.execPath, [ASHLAR, "serve", "--data", this.data, ...this.#args]);
    const program = this.#program;
    const ready = this.#started ? this.#healthy() : this.ashlar("status", "--wait", String(READY_SECONDS));
    this.#started = true;
    const first = await Promise.race([ready.then(() => undefined), program.ended]).catch((error: Error) => {
      throw new Error(`the server is not ready: ${error.message}\n${this.lastWords}`);
    });
    if (first !== undefined) throw new Error(`the server ended (${first}) before it was ready\n${this.lastWords}`);
  }

  /** As `status --wait`, without the time that a command takes to start. */
  #healthy(): Promise<void> {
    const ask = () =>
      new Promise<boolean>((resolve) => {
        const asked = get({ socketPath: join(this.data, "ashlar.sock"), path: "/health" }, (reply) => {
          reply.resume();
          resolve(reply.statusCode === 200);
        });
        asked.on("error", () => resolve(!this.isRunning));
      });
    return until("ready", ask, READY_SECONDS * 1000);
  }

  /** Ends it as an operator does, and waits. */
  async stop(): Promise<void> {
    const end = (await this.#program?.stop("SIGTERM")) ?? "exit status 0";
    if (end !== "exit status 0") throw new Error(`the server ended with ${end}\n${this.log}`);
  }

  /** kill -9, if it runs. */
  async kill(): Promise<void> {
    await this.#program?.stop("SIGKILL");
  }

  /** Runs a command that must succeed; returns what it printed. */
  ashlar(...args: string[]): Promise<string> {
    return run(process.execPath, [ASHLAR, "--data", this.data, ...args]);
  }
  /** Runs a command, whatever its end. */
  ashlarAny(args: readonly string[], options?: RunOptions): Promise<Ended> {
    return runAny(process.execPath, [ASHLAR, "--data", this.data, ...args], options);
  }
  /** Runs a command with `--json`, and returns what it said. */
  // biome-ignore lint/suspicious/noExplicitAny: tests look into it and fail where it is not as they expect
  async json(...args: string[]): Promise<any> {
    return JSON.parse(await this.ashlar(...args, "--json"));
  }
}
