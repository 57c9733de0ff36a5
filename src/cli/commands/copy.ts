/** `ashlar volume import` and `ashlar volume export`: raw images in and out, over the server's private NBD socket. */
import { statSync } from "node:fs";
import type { Command } from "commander";
import type { ApiReply } from "#admin/schema/api";
import { socketPath } from "#admin/socket-path";
import { checkName } from "#base/names";
import { Refusal } from "#base/refusal";
import { formatSize, parseSize } from "#base/size";
import type { RemoteHandle } from "#library/connect";
import type { CopyOptions, CopyProgress, CopyResult } from "#library/copy";
import { Context } from "../context.ts";
import { formatSpan } from "../output.ts";
import { Progress } from "../progress.ts";

type Volume = ApiReply<"GET /v1/volumes/{name}">;

interface CommonOptions {
  readonly resume?: boolean;
  readonly verify?: boolean;
}
interface ImportOptions extends CommonOptions {
  readonly size?: string;
  readonly blockSize: string;
  readonly overwrite?: boolean;
}
interface ExportOptions extends CommonOptions {
  readonly overwrite?: boolean;
}

const PRIVATE_SOCKET = "nbd.sock";
const GRAIN_BYTES = 4096;
/** A volume is called so until all of its image is there: nobody takes a half for the whole. */
const PARTIAL = ".importing";

/** @param volume the command `ashlar volume`. */
export function addCopyCommands(volume: Command): void {
  volume
    .command("import <name> <file>")
    .description("write a raw image (- for standard input) into a volume, which is made when it is not there")
    .option("--size <size>", "of the volume that is made (that of the image)")
    .option("--block-size <bytes>", "of the volume that is made: 512 or 4096", "512")
    .option("--overwrite", "replace what an existing volume holds")
    .option("--resume", "go on with an import that was broken off")
    .option("--verify", "read everything again at the end, and compare")
    .action(async (name: string, file: string, options: ImportOptions, command: Command) => {
      const context = new Context(command);
      const { target, made } = await targetFor(context, name, file, options);
      const { importFile } = await import("#library/copy");
      const result = await withDevice(
        context,
        target,
        "import",
        options,
        `volume import ${name} ${file}`,
        (device, copy) => importFile(file, device, { ...copy, targetIsZero: made }),
      );
      if (target !== name)
        await context.api.call("PATCH /v1/volumes/{name}", { params: { name: target }, body: { name } });
      context.show({ volume: name, file, ...result }, () => `${name}: ${formatResult(result)}`);
    });
  volume
    .command("export <name> <file>")
    .description("write a volume or snapshot to a raw image (- for standard output), sparse")
    .option("--overwrite", "replace the file when there is one")
    .option("--resume", "go on with an export that was broken off")
    .option("--verify", "read everything again at the end, and compare")
    .action(async (name: string, file: string, options: ExportOptions, command: Command) => {
      const context = new Context(command);
      const { exportFile } = await import("#library/copy");
      const overwrite = options.overwrite === true;
      const result = await withDevice(
        context,
        name,
        "export",
        options,
        `volume export ${name} ${file}`,
        (device, copy) => exportFile(device, file, { ...copy, overwrite }),
      );
      // Standard output is the image.
      if (file !== "-") context.show({ volume: name, file, ...result }, () => `${file}: ${formatResult(result)}`);
    });
}

/**
 * The volume to write to: the one that is there, if it may be overwritten; otherwise one that gets its name when all of
 * the image is in it. `made`: just now, so that it is all zeroes.
 */
async function targetFor(
  context: Context,
  name: string,
  file: string,
  options: ImportOptions,
): Promise<{ target: string; made: boolean }> {
  const mayReplace = options.overwrite === true || options.resume === true;
  if ((await find(context, name)) !== undefined) {
    if (mayReplace) return { target: name, made: false };
    throw new Refusal("exists", `There is already a volume "${name}"`, "--overwrite replaces what it holds.");
  }
  const target = `${checkName("volume", name)}${PARTIAL}`;
  if ((await find(context, target)) !== undefined) {
    if (mayReplace) return { target, made: false };
    const hint = `--resume goes on with it; --overwrite begins anew in its place; \`ashlar volume rm ${target}\` drops it.`;
    throw new Refusal("exists", `An import of "${name}" was broken off`, hint);
  }
  if (options.size === undefined && file === "-")
    throw new Refusal("bad-request", "Standard input does not tell its size", "Give the volume's size with --size.");
  const wanted = options.size === undefined ? imageSize(file) : parseSize(options.size);
  const size = Math.max(Math.ceil(wanted / GRAIN_BYTES) * GRAIN_BYTES, GRAIN_BYTES);
  const blockSize = options.blockSize === "4096" ? 4096 : 512;
  await context.api.call("POST /v1/volumes", { body: { name: target, size, blockSize } });
  return { target, made: true };
}

async function find(context: Context, name: string): Promise<Volume | undefined> {
  try {
    return await context.api.call("GET /v1/volumes/{name}", { params: { name } });
  } catch (error) {
    if (error instanceof Refusal && error.code === "not-found") return undefined;
    throw error;
  }
}

function imageSize(file: string): number {
  let facts: ReturnType<typeof statSync>;
  try {
    facts = statSync(file);
  } catch (error) {
    throw new Refusal("not-found", `Cannot read ${file}: ${(error as Error).message}`, "Check the path.");
  }
  if (facts.isFile()) return facts.size;
  throw new Refusal("bad-request", `${file} does not tell its size`, "Give the volume's size with --size.");
}

/** Connects to the volume, shows the progress, and lets Ctrl-C break off in order. */
async function withDevice(
  context: Context,
  name: string,
  title: string,
  options: CommonOptions,
  again: string,
  copy: (device: RemoteHandle, options: CopyOptions) => Promise<CopyResult>,
): Promise<CopyResult> {
  const { uri, close } = await uriOf(context, name);
  const { connect } = await import("#library/connect");
  const progress = new Progress(title, context.json);
  const abort = new AbortController();
  const onSignal = () => abort.abort();
  process.on("SIGINT", onSignal);
  process.on("SIGTERM", onSignal);
  const onProgress = ({ done, total }: CopyProgress) => progress.update(done, total);
  const device = await connect(uri);
  try {
    const { resume, verify } = options;
    return await copy(device, { onProgress, signal: abort.signal, resume: resume === true, verify: verify === true });
  } catch (error) {
    if (!(error instanceof Refusal) || error.code !== "interrupted") throw error;
    throw new Refusal("interrupted", error.message, `Go on with: ashlar ${again} --resume`);
  } finally {
    progress.end();
    process.off("SIGINT", onSignal);
    process.off("SIGTERM", onSignal);
    await device.close();
    close();
  }
}

/** The private socket in the data directory, or with `--api` what the server tells. @throws Refusal not-found */
async function uriOf(context: Context, name: string): Promise<{ uri: string; close: () => void }> {
  const route = name.includes("@") ? ("GET /v1/snapshots/{name}" as const) : ("GET /v1/volumes/{name}" as const);
  const { uris } = await context.api.call(route, { params: { name } });
  if ("data" in context.api.address) {
    const { path, close } = socketPath(context.api.address.data, PRIVATE_SOCKET);
    return { uri: `nbd+unix:///${encodeURIComponent(name)}?socket=${encodeURIComponent(path)}`, close };
  }
  const [uri] = uris;
  if (uri === undefined)
    throw new Refusal("unreachable", "The server has no NBD front", "Start it with --nbd ADDR:PORT.");
  return { uri, close: () => {} };
}

function formatResult({ size, written, same, elapsedMs }: CopyResult): string {
  const rate = elapsedMs > 0 ? `, ${formatSize(Math.round((written / elapsedMs) * 1000))}/s` : "";
  const kept = same > 0 ? `, ${formatSize(same)} was there` : "";
  return `${formatSize(size)}, ${formatSize(written)} of data${kept} in ${formatSpan(elapsedMs / 1000)}${rate}`;
}
