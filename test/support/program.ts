/** Programs run by tests: to their end with `run`, or beside the test with `Program`. Nothing outlives its limit. */
import { type ChildProcess, spawn } from "node:child_process";

const LIMIT_MS_DEFAULT = 60_000;

export interface Ended {
  readonly status: number | null;
  readonly signal: NodeJS.Signals | null;
  readonly stdout: string;
  readonly stderr: string;
}
export interface RunOptions {
  readonly input?: string | Uint8Array;
  readonly limitMs?: number;
  readonly cwd?: string;
  readonly env?: NodeJS.ProcessEnv;
}

/** Runs a program to its end, whatever that is. Throws when it cannot be started or does not end within the limit. */
export async function runAny(program: string, args: readonly string[], options: RunOptions = {}): Promise<Ended> {
  const limitMs = options.limitMs ?? LIMIT_MS_DEFAULT;
  const child = spawn(program, args, {
    stdio: ["pipe", "pipe", "pipe"],
    cwd: options.cwd,
    env: { ...process.env, PATH: PATH(), ...options.env },
  });
  const stdout: Buffer[] = [];
  const stderr: Buffer[] = [];
  child.stdout.on("data", (chunk: Buffer) => stdout.push(chunk));
  child.stderr.on("data", (chunk: Buffer) => stderr.push(chunk));
  child.stdin.on("error", () => {});
  child.stdin.end(options.input ?? "");
  let late = false;
  const timer = setTimeout(() => {
    late = true;
    child.kill("SIGKILL");
  }, limitMs);
  try {
    const [status, signal] = await new Promise<[number | null, NodeJS.Signals | null]>((resolve, reject) => {
      child.once("error", (error) => reject(new Error(`${program} could not be started: ${error.message}`)));
      child.once("close", (code, by) => resolve([code, by]));
    });
    const ended = { status, signal, stdout: text(stdout), stderr: text(stderr) };
    if (late) throw new Error(`${line(program, args)} was still running after ${limitMs} ms\n${told(ended)}`);
    return ended;
  } finally {
    clearTimeout(timer);
  }
}

/** Runs a program that must end with status 0, and returns what it wrote to its standard output. */
export async function run(program: string, args: readonly string[], options: RunOptions = {}): Promise<string> {
  const ended = await runAny(program, args, options);
  if (ended.status !== 0)
    throw new Error(`${line(program, args)} ended with ${ended.signal ?? ended.status}\n${told(ended)}`);
  return ended.stdout;
}

/** A program that runs beside the test. `stop` it in a `finally` or an `after`. */
export class Program {
  readonly child: ChildProcess;
  readonly #line: string;
  /** Settles when it ends, with how: "SIGKILL", "exit status 0". */
  readonly ended: Promise<string>;
  #output = "";
  #end: string | undefined;
  #watchers: (() => void)[] = [];

  constructor(program: string, args: readonly string[], options: Omit<RunOptions, "input" | "limitMs"> = {}) {
    this.#line = line(program, args);
    this.child = spawn(program, args, {
      stdio: ["ignore", "pipe", "pipe"],
      cwd: options.cwd,
      env: { ...process.env, PATH: PATH(), ...options.env },
    });
    const hear = (chunk: Buffer) => {
      this.#output += chunk.toString();
      for (const watcher of this.#watchers) watcher();
    };
    this.child.stdout!.on("data", hear);
    this.child.stderr!.on("data", hear);
    this.ended = new Promise((resolve) => {
      const end = (how: string) => {
        this.#end ??= how;
        resolve(this.#end);
        for (const watcher of this.#watchers) watcher();
      };
      this.child.once("error", (error) => end(`could not be started: ${error.message}`));
      this.child.once("exit", (code, signal) => end(signal ?? `exit status ${code}`));
    });
  }

  get pid(): number {
    return this.child.pid!;
  }
  /** All that it has written so far, both streams in the order in which they came. */
  get output(): string {
    return this.#output;
  }
  /** How it ended ("SIGKILL", "exit status 0"), or undefined while it runs. */
  get end(): string | undefined {
    return this.#end;
  }

  /** Waits until `ready` says yes; it is asked whenever the program says something, and often in between. */
  async until(what: string, ready: () => boolean | Promise<boolean>, limitMs = 20_000): Promise<void> {
    const deadline = Date.now() + limitMs;
    while (!(await ready())) {
      if (this.#end !== undefined)
        throw new Error(`${this.#line} ended (${this.#end}) before ${what}\n${this.#output}`);
      if (Date.now() > deadline) throw new Error(`${this.#line}: not ${what} after ${limitMs} ms\n${this.#output}`);
      await new Promise<void>((resolve) => {
        const timer = setTimeout(resolve, 20);
        this.#watchers = [
          () => {
            clearTimeout(timer);
            resolve();
          },
        ];
      });
    }
  }

  /** Sends a signal and waits for the end; after `limitMs` it is killed, and that is an error. Returns how it ended. */
  async stop(signal: NodeJS.Signals = "SIGTERM", limitMs = 20_000): Promise<string> {
    if (this.#end !== undefined) return this.#end;
    this.child.kill(signal);
    const timer = setTimeout(() => this.child.kill("SIGKILL"), limitMs);
    const end = await this.ended;
    clearTimeout(timer);
    if (end === "SIGKILL" && signal !== "SIGKILL")
      throw new Error(`${this.#line} did not end within ${limitMs} ms of ${signal}\n${this.#output}`);
    return end;
  }
}

/** Waits until `ready` says yes, asking every few milliseconds. */
export async function until(what: string, ready: () => boolean | Promise<boolean>, limitMs = 20_000): Promise<void> {
  const deadline = Date.now() + limitMs;
  while (!(await ready())) {
    if (Date.now() > deadline) throw new Error(`not ${what} after ${limitMs} ms`);
    await sleep(10);
  }
}

export const sleep = (ms: number) => new Promise<void>((resolve) => setTimeout(resolve, ms));

/** Debian keeps programs for administrators where the PATH of others does not look. */
const PATH = () => `${process.env["PATH"] ?? ""}:/usr/sbin:/sbin`;
const text = (chunks: Buffer[]) => Buffer.concat(chunks).toString();
const line = (program: string, args: readonly string[]) => [program, ...args].join(" ");
const told = (ended: Ended) => `${ended.stdout}${ended.stderr}`.trimEnd();
