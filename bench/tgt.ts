/** `tgtd` with a file as its disk, and QEMU's iSCSI initiator (libiscsi, in user space) as its host. */
import { join } from "node:path";
import { Program, run, until } from "#test/support/program";
import type { Work } from "./scp-host.ts";
import { fillFile } from "./servers.ts";

const IQN = "iqn.2026-01.test.ashlar:peer";
/** Places of a "random" access: a step that is odd in blocks meets every block once. */
const RANDOM_STEP_BLOCKS = 7919;

export class Tgt {
  readonly version: string;
  readonly #program: Program;
  readonly #url: string;
  readonly #hostPrefix: readonly string[];
  readonly #size: number;
  /** Operations in a second, as it last was: how many to ask for. */
  readonly #rates = new Map<Work, number>();

  private constructor(program: Program, url: string, hostPrefix: readonly string[], size: number, version: string) {
    this.#program = program;
    this.#url = url;
    this.#hostPrefix = hostPrefix;
    this.#size = size;
    this.version = version;
  }

  /** The prefixes are commands that run another one: in a network namespace, for example. */
  static async start(
    folder: string,
    size: number,
    at: { readonly host: string; readonly port: number },
    serverPrefix: readonly string[] = [],
    hostPrefix: readonly string[] = [],
  ): Promise<Tgt> {
    const file = join(folder, "tgt.img");
    fillFile(file, size);
    const control = String(1000 + (process.pid % 30_000));
    const command = [...serverPrefix, "tgtd", "-f", "-C", control, "--iscsi", `portal=${at.host}:${at.port}`];
    const program = new Program(command[0]!, command.slice(1));
    const admin = (...args: string[]) => run("tgtadm", ["-C", control, "--lld", "iscsi", ...args]);
    await until("tgtd up", async () => {
      if (program.end !== undefined) throw new Error(`tgtd ended (${program.end})\n${program.output}`);
      return admin("--op", "show", "--mode", "target").then(
        () => true,
        () => false,
      );
    });
    await admin("--op", "new", "--mode", "target", "--tid", "1", "-T", IQN);
    await admin("--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", "1", "-b", file);
    await admin("--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL");
    const version = (await run("tgtadm", ["--version"])).trim();
    return new Tgt(program, `iscsi://${at.host}:${at.port}/${IQN}/1`, hostPrefix, size, version);
  }

  /** Operations per second; it takes about `seconds`. */
  async measure(work: Work, seconds: number): Promise<number> {
    if (!this.#rates.has(work)) this.#rates.set(work, await this.#run(work, 16 * work.depth));
    const rate = await this.#run(work, Math.max(work.depth, Math.ceil(this.#rates.get(work)! * seconds)));
    this.#rates.set(work, rate);
    return rate;
  }

  async #run({ kind, length, depth, random }: Work, count: number): Promise<number> {
    const step = random ? RANDOM_STEP_BLOCKS * length : length;
    const command = [
      ...[...this.#hostPrefix, "qemu-img", "bench", "-f", "raw", "-t", "writeback"],
      ...["-c", String(count), "-d", String(depth), "-s", String(length), "-S", String(step % this.#size)],
      ...(kind === "write" ? ["-w", "--pattern=97"] : []),
      this.#url,
    ];
    const output = await run(command[0]!, command.slice(1));
    const took = /Run completed in ([\d.]+) seconds/.exec(output)?.[1];
    if (took === undefined) throw new Error(`qemu-img bench says:\n${output}`);
    return count / Number(took);
  }

  async stop(): Promise<void> {
    await this.#program.stop("SIGKILL");
  }
}
