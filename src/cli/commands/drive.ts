/** `ashlar drive …`, `ashlar partition …`, `ashlar nsu …` */
import { readFileSync } from "node:fs";
import { resolve } from "node:path";
import type { Command } from "commander";
import type { ApiReply } from "#admin/schema/api";
import { Refusal } from "#base/refusal";
import { formatSize, parseSize } from "#base/size";
import { Context } from "../context.ts";
import { paint, table } from "../output.ts";

type Drive = ApiReply<"POST /v1/drives">;
type Partition = ApiReply<"POST /v1/partitions">;

export function addDriveCommands(program: Command): void {
  const drive = program.command("drive").description("raw files and block devices that hold partitions");
  drive
    .command("add <name> <file-or-device>")
    .description("give the server a raw file or a block device as a whole; nothing is written to it")
    .action(async (name: string, path: string, _options: object, command: Command) => {
      const context = new Context(command);
      const made = await context.api.call("POST /v1/drives", { body: { name, path: resolve(path) } });
      context.show(made, (one) => `${one.name}: ${formatSize(one.size)}, ${formatSize(one.free)} free`);
    });
  drive
    .command("ls")
    .alias("list")
    .description("list drives")
    .action(async (_options: object, command: Command) => {
      const context = new Context(command);
      context.show(await context.api.call("GET /v1/drives", {}), formatDrives);
    });
  drive
    .command("rm <name>")
    .alias("delete")
    .description("take a drive without partitions back")
    .action(async (name: string, _options: object, command: Command) => {
      const context = new Context(command);
      await context.api.call("DELETE /v1/drives/{name}", { params: { name } });
      context.show({ deleted: name }, () => `${name}: taken back`);
    });
  addPartitionCommands(program);
  addNsuCommands(program);
}

function addPartitionCommands(program: Command): void {
  const partition = program.command("partition").description("slices of drives: thick, in place, without snapshots");
  partition
    .command("create <name>")
    .description("make a partition where it fits best")
    .requiredOption("--size <size>", "its size, such as 10G")
    .option("--drive <name>", "only on this drive")
    .option("--zero", "zero every part of it before its first access")
    .action(async (name: string, options: { size: string; drive?: string; zero?: boolean }, command: Command) => {
      const context = new Context(command);
      const size = parseSize(options.size);
      const drive = options.drive === undefined ? {} : { drive: options.drive };
      const body = { name, size, zero: options.zero === true, ...drive };
      context.show(await context.api.call("POST /v1/partitions", { body }), formatPlace);
    });
  partition
    .command("ls")
    .alias("list")
    .description("list partitions, and the free space")
    .action(async (_options: object, command: Command) => {
      const context = new Context(command);
      context.show(await context.api.call("GET /v1/partitions", {}), formatPartitions);
    });
  partition
    .command("resize <name>")
    .description("grow a partition while hosts use it")
    .requiredOption("--size <size>", "the new size; +10G adds to the present one")
    .action(async (name: string, options: { size: string }, command: Command) => {
      const context = new Context(command);
      const { partitions } = await context.api.call("GET /v1/partitions", {});
      const before = options.size.startsWith("+") ? (partitions.find((one) => one.name === name)?.size ?? 0) : 0;
      const size = before + parseSize(options.size.replace(/^\+/, ""));
      const grown = await context.api.call("PATCH /v1/partitions/{name}", { params: { name }, body: { size } });
      context.show(grown, formatPlace);
    });
  partition
    .command("rm <name>")
    .alias("delete")
    .description("delete a partition, and the grants of it")
    .action(async (name: string, _options: object, command: Command) => {
      const context = new Context(command);
      const { revoked } = await context.api.call("DELETE /v1/partitions/{name}", { params: { name } });
      const from = revoked.length === 0 ? "" : `, taken away from ${revoked.join(", ")}`;
      context.show({ deleted: name, revoked }, () => `${name}: deleted${from}`);
    });
}

function addNsuCommands(program: Command): void {
  const nsu = program.command("nsu").description("hosts and their partitions as an nsu.conf (WO 02/15018)");
  nsu
    .command("export")
    .description("print it")
    .action(async (_options: object, command: Command) => {
      const context = new Context(command);
      context.show(await context.api.call("GET /v1/nsu", {}), ({ text }) => text.trimEnd());
    });
  nsu
    .command("import <file>")
    .description("make hosts, partitions and grants as it says; all of it or nothing")
    .action(async (path: string, _options: object, command: Command) => {
      const context = new Context(command);
      const made = await context.api.call("POST /v1/nsu", { body: { text: readText(path) } });
      context.show(
        made,
        ({ hosts, partitions, grants }) =>
          `${hosts} hosts and ${partitions} partitions made, ${grants} grants in force`,
      );
    });
}

function readText(path: string): string {
  try {
    return readFileSync(path === "-" ? 0 : path, "utf8");
  } catch (error) {
    throw new Refusal("bad-request", `Cannot read ${path}: ${(error as Error).message}`, "Check the path.");
  }
}

function formatDrives(drives: readonly Drive[]): string {
  if (drives.length === 0) return paint("dim", "No drives. Add one: ashlar drive add NAME FILE_OR_DEVICE");
  return table(drives, [
    { title: "name", of: ({ name }) => name },
    { title: "size", right: true, of: ({ size }) => formatSize(size) },
    { title: "free", right: true, of: ({ free }) => formatSize(free) },
    { title: "partitions", right: true, of: ({ partitions }) => String(partitions.length) },
    { title: "state", of: ({ state, reason }) => (reason === undefined ? state : `${state}: ${reason}`) },
    { title: "path", of: ({ path }) => path },
  ]);
}

/** Free ranges beyond these are only counted. */
const FREE_RANGES_SHOWN = 4;

function formatPartitions({ free, freeRanges, partitions }: ApiReply<"GET /v1/partitions">): string {
  const more = freeRanges.length - FREE_RANGES_SHOWN;
  const where = `${placeOf({ ranges: freeRanges.slice(0, FREE_RANGES_SHOWN) })}${more > 0 ? ` and ${more} more` : ""}`;
  const rows = [
    { number: 0, name: paint("dim", "(free)"), size: free, where, state: "", hosts: "" },
    ...partitions.map((one) => ({
      number: one.number,
      name: one.name,
      size: one.size,
      where: placeOf(one),
      state: one.zeroLeft > 0 ? `${one.state}, ${formatSize(one.zeroLeft)} to zero` : one.state,
      hosts: one.hosts
        .map(({ host, unit, access }) => `${host}:${unit}${access === "read-only" ? " (ro)" : ""}`)
        .join(", "),
    })),
  ];
  return table(rows, [
    { title: "#", right: true, of: ({ number }) => String(number) },
    { title: "name", of: ({ name }) => name },
    { title: "size", right: true, of: ({ size }) => formatSize(size) },
    { title: "where", of: ({ where }) => where },
    { title: "state", of: ({ state }) => state },
    { title: "hosts", of: ({ hosts }) => hosts },
  ]);
}

const placeOf = ({ ranges }: Pick<Partition, "ranges">): string =>
  ranges.map(({ drive, first, last }) => `${drive}(${first},${last})`).join(" + ");
const formatPlace = (one: Partition): string => `${one.name}: ${formatSize(one.size)} at ${placeOf(one)}`;
