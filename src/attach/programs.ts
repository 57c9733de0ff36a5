/**
 * The programs that turn our NBD socket into a disk of this machine: `nbd-client` for /dev/nbdN, `nbdfuse` for a file,
 * and `losetup` over it for /dev/loopN. Each step says how to undo it; a shell that waits for our end undoes all of it
 * when we are killed, and nobody else can.
 */
import { type ChildProcess, execFile, spawn } from "node:child_process";
import { existsSync, statSync } from "node:fs";
import { promisify } from "node:util";
import { Refusal } from "#base/refusal";

const run = promisify(execFile);
const WAIT_MS_MAX = 10_000;
const LOOK_MS = 20;

/** Commands that are run in reverse order, at the end or when this process is gone. */
export class Undo {
  readonly commands: string[] = [];
  readonly #reaper: ChildProcess;

  constructor() {
    // It reads what there is to do and does it when its input ends, which a kill -9 of ours does as well.
    this.#reaper = spawn("sh", ["-c", 'while IFS= read -r line; do todo="$line"; done; eval "$todo"'], {
      stdio: ["pipe", "ignore", "ignore"],
      detached: true,
    });
    this.#reaper.unref();
    this.#reaper.stdin!.on("error", () => {});
  }

  add(command: string): void {
    this.commands.unshift(command);
    this.#reaper.stdin!.write(`${this.commands.join("; ")}\n`);
  }

  /** Does it now; nothing is left to do afterwards. */
  async run(): Promise<void> {
    for (const command of this.commands.splice(0))
      await run("sh", ["-c", command], { timeout: WAIT_MS_MAX }).catch(() => {});
    this.#reaper.stdin!.end(":\n");
  }
}

/** The kernel's own client. @throws Refusal unsupported, in-use */
export async function attachKernel(socket: string, name: string, device: string, undo: Undo): Promise<void> {
  if (!existsSync(device))
    throw new Refusal(
      "unsupported",
      `There is no ${device}`,
      "Load the driver (`modprobe nbd`), or use --fuse or --loop.",
    );
  undo.add(`nbd-client -d ${quote(device)}`);
  await program("nbd-client", ["-unix", socket, device, "-name", name, "-block-size", "512", "-timeout", "0"]);
}

/** A file of this machine whose content is the unit. It is made if it does not exist. */
export async function attachFuse(socket: string, name: string, file: string, undo: Undo): Promise<void> {
  undo.add(`fusermount3 -u -z ${quote(file)}`);
  const uri = `nbd+unix:///${encodeURIComponent(name)}?socket=${encodeURIComponent(socket)}`;
  const child = spawn("nbdfuse", [file, uri], { stdio: ["ignore", "ignore", "pipe"], detached: true });
  let said = "";
  let ended = false;
  child.stderr!.on("data", (chunk) => {
    said += String(chunk);
  });
  child.on("error", (error) => {
    said += error.message;
    ended = true;
  });
  child.on("exit", () => {
    ended = true;
  });
  child.unref();
  for (const end = Date.now() + WAIT_MS_MAX; ; ) {
    if (sizeOf(file) > 0) return;
    if (ended || Date.now() > end)
      throw new Refusal(
        "unsupported",
        `nbdfuse does not serve ${file}: ${said.trim() || "no answer"}`,
        "It is in the Debian package nbdfuse, and needs /dev/fuse.",
      );
    await new Promise((resolve) => setTimeout(resolve, LOOK_MS));
  }
}

/** A block device of the kernel over such a file. */
export async function attachLoop(file: string, undo: Undo): Promise<string> {
  const device = (await program("losetup", ["--find", "--show", "--direct-io=off", file])).trim();
  undo.add(`losetup -d ${quote(device)}`);
  return device;
}

async function program(name: string, args: readonly string[]): Promise<string> {
  try {
    const { stdout } = await run(name, [...args], { timeout: WAIT_MS_MAX });
    return stdout;
  } catch (error) {
    const { code, stderr } = error as { code?: string | number; stderr?: string };
    if (code === "ENOENT")
      throw new Refusal("unsupported", `There is no ${name} on this machine`, `Install the package that has it.`);
    throw new Refusal("unsupported", `${name} failed: ${(stderr ?? String(error)).trim()}`);
  }
}

function sizeOf(path: string): number {
  try {
    return statSync(path).size;
  } catch {
    return 0;
  }
}

export const quote = (text: string): string => `'${text.replaceAll("'", "'\\''")}'`;
