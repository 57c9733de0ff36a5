/**
 * A server with one unit for the host "web", and `ashlar attach` against it as its users have it. What is attached is
 * found under a run folder of the test's own, and is taken away after the test.
 */
import { existsSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { type Ended, Program, run, runAny, until } from "./program.ts";
import { ASHLAR, Server } from "./server.ts";
import { cleanUp, freePort, type Scope, tempFolder } from "./temp.ts";

export interface AttachedFacts {
  readonly id: string;
  readonly pid: number;
  readonly socket: string;
  readonly device?: string;
  readonly fuse?: string;
}

export class AttachStage {
  readonly server: Server;
  readonly port: number;
  readonly folder: string;
  readonly runFolder: string;
  readonly secretFile: string;
  readonly #environment: NodeJS.ProcessEnv;

  private constructor(server: Server, port: number, folder: string) {
    this.server = server;
    this.port = port;
    this.folder = folder;
    this.runFolder = join(folder, "run");
    this.secretFile = join(folder, "secret");
    this.#environment = { ASHLAR_RUN: this.runFolder };
  }

  /** @param args more arguments of `ashlar serve` */
  static async make(scope: Scope, size: string, args: readonly string[] = []): Promise<AttachStage> {
    const port = await freePort();
    const scp = ["--scp", `127.0.0.1:${port}`, "--scp-any-source-port"];
    const server = await Server.start(scope, { args: [...scp, ...args] });
    const stage = new AttachStage(server, port, tempFolder(scope));
    await server.ashlar("volume", "create", "db", "--size", size);
    await server.ashlar("host", "add", "web");
    writeFileSync(stage.secretFile, await server.ashlar("host", "secret", "web"));
    await server.ashlar("grant", "db", "web");
    cleanUp(scope, () => stage.detachAll());
    return stage;
  }

  /** What every `ashlar attach` here is told. */
  get identity(): readonly string[] {
    return [`127.0.0.1:${this.port}`, "--host", "web", "--secret-file", this.secretFile];
  }

  /** `ashlar attach`, in the background as users have it. */
  async attach(...args: readonly string[]): Promise<AttachedFacts> {
    return JSON.parse(await this.ashlar("attach", ...this.identity, ...args, "--json")) as AttachedFacts;
  }
  attachAny(...args: readonly string[]): Promise<Ended> {
    return runAny(process.execPath, [ASHLAR, "attach", ...this.identity, ...args], { env: this.#environment });
  }
  /** `ashlar attach --foreground`. */
  attachBeside(...args: readonly string[]): Program {
    return new Program(process.execPath, [ASHLAR, "attach", ...this.identity, ...args, "--foreground"], {
      env: this.#environment,
    });
  }
  ashlar(...args: readonly string[]): Promise<string> {
    return run(process.execPath, [ASHLAR, ...args], { env: this.#environment });
  }
  // biome-ignore lint/suspicious/noExplicitAny: tests look into it and fail where it is not as they expect
  async paths(): Promise<any> {
    return JSON.parse(await this.ashlar("paths", "--json"));
  }

  /** Waits until nothing is left of an attachment: files, mounts, loop devices, processes, its folder. */
  async gone({ id, pid, socket, fuse, device }: AttachedFacts): Promise<void> {
    const isThere = (): string | undefined => {
      if (existsSync(`/proc/${pid}/exe`)) return `process ${pid}`;
      if (existsSync(socket)) return socket;
      if (existsSync(join(this.runFolder, id))) return join(this.runFolder, id);
      if (fuse !== undefined && readFileSync("/proc/mounts", "utf8").includes(fuse)) return `the mount on ${fuse}`;
      if (device !== undefined && isLoopOf(device, this.folder)) return device;
      return undefined;
    };
    let left: string | undefined;
    await until(`all of attachment ${id} gone`, () => (left = isThere()) === undefined).catch((error: Error) => {
      throw new Error(`${error.message}: ${left} is there`);
    });
  }

  async detachAll(): Promise<void> {
    if (!existsSync(this.runFolder)) return;
    await this.ashlar("detach", "--all").catch(() => {});
    for (const id of readdirSync(this.runFolder))
      try {
        process.kill(Number(id), "SIGKILL");
      } catch {
        // It has ended.
      }
  }
}

/** Whether a loop device is over a file of this folder. */
function isLoopOf(device: string, folder: string): boolean {
  const path = `/sys/block/${device.replace("/dev/", "")}/loop/backing_file`;
  return existsSync(path) && readFileSync(path, "utf8").includes(folder);
}
