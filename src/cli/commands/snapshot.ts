/** `ashlar snapshot …`, `ashlar clone`, `ashlar rollback` */
import type { Command } from "commander";
import type { ApiReply } from "#admin/schema/api";
import { formatSize } from "#base/size";
import { Context } from "../context.ts";
import { formatMoment, paint, table } from "../output.ts";

type Snapshot = ApiReply<"GET /v1/snapshots/{name}">;

export function addSnapshotCommands(program: Command): void {
  const snapshot = program.command("snapshot").description("freeze states of volumes, list and delete them");
  snapshot
    .command("create <volume@snap>")
    .description("freeze a volume's present state")
    .action(async (name: string, _options: object, command: Command) => {
      const context = new Context(command);
      const made = await context.api.call("POST /v1/snapshots", { body: { name } });
      context.show(made, (one) => `${one.name}: ${formatSize(one.space.mapped)} of data`);
    });
  snapshot
    .command("ls [volume]")
    .alias("list")
    .description("list snapshots, oldest first")
    .action(async (volume: string | undefined, _options: object, command: Command) => {
      const context = new Context(command);
      const query = volume === undefined ? {} : { volume };
      context.show(await context.api.call("GET /v1/snapshots", { query }), formatSnapshots);
    });
  snapshot
    .command("rm <volume@snap>")
    .alias("delete")
    .description("delete a snapshot, anywhere in the tree")
    .action(async (name: string, _options: object, command: Command) => {
      const context = new Context(command);
      await context.api.call("DELETE /v1/snapshots/{name}", { params: { name } });
      context.show({ deleted: name }, () => `${name}: deleted`);
    });
  program
    .command("clone <volume@snap> <new>")
    .description("make a volume that begins as a snapshot, at once and without copying")
    .action(async (from: string, name: string, _options: object, command: Command) => {
      const context = new Context(command);
      const made = await context.api.call("POST /v1/snapshots/{name}/clone", {
        params: { name: from },
        body: { name },
      });
      context.show(
        made,
        (one) => `${one.name}: ${formatSize(one.size)}${one.uris[0] === undefined ? "" : `, ${one.uris[0]}`}`,
      );
    });
  program
    .command("rollback <volume@snap>")
    .description("give a volume the content of its snapshot; what it held is lost")
    .action(async (name: string, _options: object, command: Command) => {
      const context = new Context(command);
      const volume = await context.api.call("POST /v1/snapshots/{name}/rollback", { params: { name }, body: {} });
      context.show(volume, (one) => `${one.name}: as it was in ${name}`);
    });
}

function formatSnapshots(snapshots: readonly Snapshot[]): string {
  if (snapshots.length === 0) return paint("dim", "No snapshots. Make one: ashlar snapshot create VOLUME@NAME");
  return table(snapshots, [
    { title: "name", of: ({ name }) => name },
    { title: "made", of: ({ created }) => formatMoment(created) },
    { title: "size", right: true, of: ({ size }) => formatSize(size) },
    { title: "mapped", right: true, of: ({ space }) => formatSize(space.mapped) },
    { title: "exclusive", right: true, of: ({ space }) => formatSize(space.exclusive) },
    { title: "clones", of: ({ clones }) => clones.join(", ") },
  ]);
}
