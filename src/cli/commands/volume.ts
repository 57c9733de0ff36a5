/** `ashlar volume …` */
import type { Command } from "commander";
import type { ApiReply } from "#admin/schema/api";
import { Refusal } from "#base/refusal";
import { formatSize, parseSize } from "#base/size";
import { Context } from "../context.ts";
import { facts, formatMoment, paint, table } from "../output.ts";
import { addCopyCommands } from "./copy.ts";

type Volume = ApiReply<"GET /v1/volumes/{name}">;

export function addVolumeCommands(program: Command): void {
  const volume = program.command("volume").description("make, show, change and delete volumes");
  volume
    .command("create <name>")
    .description("make a volume; it takes space as it is written")
    .requiredOption("--size <size>", "its size: 10G or 10GiB (1024^3), 10GB (1000^3), or bytes")
    .option("--block-size <bytes>", "the smallest block that hosts may write: 512 or 4096", "512")
    .action(async (name: string, options: { size: string; blockSize: string }, command: Command) => {
      const context = new Context(command);
      const blockSize = parseBlockSize(options.blockSize);
      const size = parseSize(options.size);
      const made = await context.api.call("POST /v1/volumes", { body: { name, size, blockSize } });
      context.show(
        made,
        (one) => `${one.name}: ${formatSize(one.size)}${one.uris[0] === undefined ? "" : `, ${one.uris[0]}`}`,
      );
    });
  volume
    .command("ls")
    .alias("list")
    .description("list volumes")
    .action(async (_options: object, command: Command) => {
      const context = new Context(command);
      context.show(await context.api.call("GET /v1/volumes", {}), formatVolumes);
    });
  volume
    .command("show <name>")
    .description("show everything about a volume")
    .action(async (name: string, _options: object, command: Command) => {
      const context = new Context(command);
      context.show(await context.api.call("GET /v1/volumes/{name}", { params: { name } }), formatVolume);
    });
  volume
    .command("resize <name>")
    .description("grow a volume while hosts use it")
    .requiredOption("--size <size>", "the new size; +10G adds to the present one")
    .action(async (name: string, options: { size: string }, command: Command) => {
      const context = new Context(command);
      const { size: before } = options.size.startsWith("+")
        ? await context.api.call("GET /v1/volumes/{name}", { params: { name } })
        : { size: 0 };
      const size = before + parseSize(options.size.replace(/^\+/, ""));
      const grown = await context.api.call("PATCH /v1/volumes/{name}", { params: { name }, body: { size } });
      context.show(grown, (one) => `${one.name}: ${formatSize(one.size)}`);
    });
  volume
    .command("rm <name>")
    .alias("delete")
    .description("delete a volume")
    .option("--force", "also when hosts use it or snapshots hang on it")
    .action(async (name: string, options: { force?: boolean }, command: Command) => {
      const context = new Context(command);
      const force = options.force === true ? "true" : "false";
      await context.api.call("DELETE /v1/volumes/{name}", { params: { name }, query: { force } });
      context.show({ deleted: name }, () => `${name}: deleted`);
    });
  volume
    .command("rename <name> <new>")
    .description("give a volume another name, while no host uses it")
    .action(async (name: string, newName: string, _options: object, command: Command) => {
      const context = new Context(command);
      await context.api.call("PATCH /v1/volumes/{name}", { params: { name }, body: { name: newName } });
      context.show({ renamed: name, name: newName }, () => `${name}: now ${newName}`);
    });
  addCopyCommands(volume);
}

function parseBlockSize(text: string): 512 | 4096 {
  if (text === "512") return 512;
  if (text === "4096" || text.toLowerCase() === "4k") return 4096;
  throw new Refusal("bad-request", `"${text}" cannot be a block size`, "It is 512 or 4096.");
}

function formatVolumes(volumes: readonly Volume[]): string {
  if (volumes.length === 0) return paint("dim", "No volumes yet. Make one: ashlar volume create NAME --size 10G");
  return table(volumes, [
    { title: "name", of: ({ name }) => name },
    { title: "size", right: true, of: ({ size }) => formatSize(size) },
    { title: "mapped", right: true, of: ({ space }) => formatSize(space.mapped) },
    { title: "exclusive", right: true, of: ({ space }) => formatSize(space.exclusive) },
    { title: "snapshots", right: true, of: ({ snapshots }) => String(snapshots) },
    { title: "hosts", right: true, of: ({ connections }) => String(connections) },
    { title: "state", of: formatState },
    { title: "origin", of: ({ origin }) => origin ?? "" },
  ]);
}

function formatVolume(volume: Volume): string {
  const { space } = volume;
  return facts([
    ["name", volume.name],
    ["state", formatState(volume) + (volume.reason === undefined ? "" : `: ${volume.reason}`)],
    ["size", `${formatSize(volume.size)} (${volume.size} bytes)`],
    ["block size", String(volume.blockSize)],
    ["mapped", formatSize(space.mapped)],
    ["exclusive", formatSize(space.exclusive)],
    ["shared", formatSize(space.shared)],
    ["reclaimable", formatSize(space.reclaimable)],
    ["snapshots", String(volume.snapshots)],
    ["origin", volume.origin ?? "none"],
    ["made", formatMoment(volume.created)],
    ["uuid", volume.uuid],
    ["version set", volume.set],
    ["lane", volume.lane === null ? "none" : String(volume.lane)],
    ["connections", String(volume.connections)],
    ...volume.uris.map((uri) => ["uri", uri] as const),
  ]);
}

const formatState = ({ state }: Pick<Volume, "state">): string =>
  paint(state === "online" ? "green" : state === "opening" ? "yellow" : "red", state);
