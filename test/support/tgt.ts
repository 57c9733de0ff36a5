/** tgt, the iSCSI target that we are compared with: a daemon of its own, with one disk that everyone may use. */
import { rmSync } from "node:fs";
import { Program, run, runAny, until } from "./program.ts";
import { freePort } from "./temp.ts";

const IQN = "iqn.2024-01.test:tgt";

export class Tgt {
  readonly port: number;
  readonly program: Program;
  readonly #control: string;

  private constructor(port: number, control: string) {
    this.port = port;
    this.#control = control;
    this.program = new Program("tgtd", ["-f", "-C", control, "--iscsi", `portal=127.0.0.1:${port}`]);
  }

  /** Serves the file `disk` as LUN 1. `stop` it in the end. */
  static async start(disk: string): Promise<Tgt> {
    const port = await freePort();
    // Its control sockets have a number in one name space with those of all other instances.
    const tgt = new Tgt(port, String(20_000 + (port % 10_000)));
    try {
      await until("tgtd is ready", async () => {
        if (tgt.program.end !== undefined) throw new Error(`tgtd ended (${tgt.program.end})\n${tgt.program.output}`);
        return (await runAny("tgtadm", tgt.#arguments("show", "target"))).status === 0;
      });
      await tgt.#admin("new", "target", "-T", IQN);
      await tgt.#admin("new", "logicalunit", "--lun", "1", "-b", disk);
      await tgt.#admin("update", "logicalunit", "--lun", "1", "--params", "thin_provisioning=1");
      await tgt.#admin("bind", "target", "-I", "ALL");
    } catch (error) {
      await tgt.stop();
      throw error;
    }
    return tgt;
  }

  get iqn(): string {
    return IQN;
  }
  /** Where libiscsi's clients find the disk. */
  get url(): string {
    return `iscsi://127.0.0.1:${this.port}/${IQN}/1`;
  }

  async stop(): Promise<void> {
    await this.program.stop("SIGKILL");
    rmSync(`/var/run/tgtd/socket.${this.#control}`, { force: true });
    rmSync(`/var/run/tgtd.ipc_abstract_namespace.${this.#control}`, { force: true });
  }

  #arguments(op: string, mode: string, ...more: string[]): string[] {
    const tid = op === "show" ? [] : ["--tid", "1"];
    return ["-C", this.#control, "--lld", "iscsi", "--op", op, "--mode", mode, ...tid, ...more];
  }
  async #admin(op: string, mode: string, ...more: string[]): Promise<void> {
    await run("tgtadm", this.#arguments(op, mode, ...more));
  }
}
