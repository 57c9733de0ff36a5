/** `ashlar host …`, `ashlar grant`, `ashlar revoke`, `ashlar limits` */
import { readFileSync } from "node:fs";
import { type Command, InvalidArgumentError } from "commander";
import type { ApiReply } from "#admin/schema/api";
import { Refusal } from "#base/refusal";
import { parseSize } from "#base/size";
import { Context } from "../context.ts";
import { facts, paint, table } from "../output.ts";

type Host = ApiReply<"GET /v1/hosts/{name}">;

interface HostOptions {
  readonly address?: string[];
  readonly iqn?: string[];
  readonly tlsName?: string[];
  readonly requireSecret?: boolean;
  readonly requireTls?: boolean;
  readonly chapUser?: string;
  readonly chapSecretFile?: string;
  readonly mutualUser?: string;
  readonly mutualSecretFile?: string;
  readonly dataSockets?: number;
}

export function addHostCommands(program: Command): void {
  const host = program.command("host").description("hosts: who may use volumes and partitions");
  credentials(host.command("add <name>").description("make a host known")).action(
    async (name: string, options: HostOptions, command: Command) => {
      const context = new Context(command);
      const made = await context.api.call("POST /v1/hosts", { body: { name, ...given(options) } });
      context.show(made, formatHost);
    },
  );
  credentials(host.command("set <name>").description("change how a host shows who it is")).action(
    async (name: string, options: HostOptions, command: Command) => {
      const context = new Context(command);
      const changed = await context.api.call("PATCH /v1/hosts/{name}", { params: { name }, body: given(options) });
      context.show(changed, formatHost);
    },
  );
  host
    .command("ls")
    .alias("list")
    .description("list hosts")
    .action(async (_options: object, command: Command) => {
      const context = new Context(command);
      context.show(await context.api.call("GET /v1/hosts", {}), formatHosts);
    });
  host
    .command("show <name>")
    .description("show a host, and what it may use")
    .action(async (name: string, _options: object, command: Command) => {
      const context = new Context(command);
      context.show(await context.api.call("GET /v1/hosts/{name}", { params: { name } }), formatHost);
    });
  host
    .command("secret <name>")
    .description("print the secret with which the host proves itself; made the first time")
    .option("--renew", "make a new one; the host must be given it before it can come back")
    .action(async (name: string, options: { renew?: boolean }, command: Command) => {
      const context = new Context(command);
      const body = { renew: options.renew === true };
      const made = await context.api.call("POST /v1/hosts/{name}/secret", { params: { name }, body });
      context.show(made, ({ secret }) => secret);
    });
  host
    .command("rm <name>")
    .alias("delete")
    .description("forget a host and its grants; its sessions end")
    .action(async (name: string, _options: object, command: Command) => {
      const context = new Context(command);
      await context.api.call("DELETE /v1/hosts/{name}", { params: { name } });
      context.show({ deleted: name }, () => `${name}: deleted`);
    });
  addGrantCommands(program);
}

function addGrantCommands(program: Command): void {
  program
    .command("grant <device> <host>")
    .description("give a host a volume, a snapshot or a partition as a unit")
    .option("--read-only", "it may only read")
    .option("--unit <n>", "the unit number (the LUN of iSCSI); by default the one it had, or the next", wholeNumber)
    .option("--range <offset:length>", "only this part of it, in sizes such as 0:10G")
    .action(
      async (
        device: string,
        host: string,
        options: { readOnly?: boolean; unit?: number; range?: string },
        command: Command,
      ) => {
        const context = new Context(command);
        const access = options.readOnly === true ? "read-only" : "read-write";
        const unit = options.unit === undefined ? {} : { unit: options.unit };
        const range = options.range === undefined ? {} : { range: parseRange(options.range) };
        const made = await context.api.call("POST /v1/grants", { body: { device, host, access, ...unit, ...range } });
        context.show(made, (one) => `${one.device}: unit ${one.unit} of ${one.host}, ${one.access}`);
      },
    );
  program
    .command("revoke <device> <host>")
    .description("take a unit away from a host, at once")
    .action(async (device: string, host: string, _options: object, command: Command) => {
      const context = new Context(command);
      await context.api.call("DELETE /v1/grants/{device}/{host}", { params: { device, host } });
      context.show({ revoked: device, host }, () => `${device}: taken away from ${host}`);
    });
  program
    .command("limits")
    .description("show or change how many partitions, and units per host, there may be")
    .option("--partitions <n>", "partitions of this server", wholeNumber)
    .option("--units-per-host <n>", "units of one host", wholeNumber)
    .action(async (options: { partitions?: number; unitsPerHost?: number }, command: Command) => {
      const context = new Context(command);
      const body = {
        ...(options.partitions === undefined ? {} : { partitionsMax: options.partitions }),
        ...(options.unitsPerHost === undefined ? {} : { unitsPerHostMax: options.unitsPerHost }),
      };
      const limits = await (Object.keys(body).length === 0
        ? context.api.call("GET /v1/limits", {})
        : context.api.call("PATCH /v1/limits", { body }));
      context.show(limits, ({ partitionsMax, unitsPerHostMax }) =>
        facts([
          ["partitions", String(partitionsMax)],
          ["units per host", String(unitsPerHostMax)],
        ]),
      );
    });
}

function credentials(command: Command): Command {
  return command
    .option("--address <ip>", "an address from which it comes (SCP version 1); may be repeated", collect)
    .option("--iqn <name>", "its iSCSI initiator name; may be repeated", collect)
    .option("--tls-name <name>", "a name that it proves by TLS; may be repeated", collect)
    .option("--require-secret", "refuse it without proof of its secret (SCP version 1)")
    .option("--no-require-secret", "let it use SCP version 1")
    .option("--require-tls", "refuse SCP without TLS from it")
    .option("--no-require-tls", "let it use SCP without TLS")
    .option("--chap-user <name>", "the name with which it proves itself by CHAP")
    .option("--chap-secret-file <file>", "a file with the secret for that")
    .option("--mutual-user <name>", "the name with which the target proves itself to it")
    .option("--mutual-secret-file <file>", "a file with the secret for that")
    .option("--data-sockets <n>", "SCP data sockets that it may open per data port", wholeNumber);
}

function given(options: HostOptions) {
  const chap = chapOf("chap", options.chapUser, options.chapSecretFile);
  const mutualChap = chapOf("mutual", options.mutualUser, options.mutualSecretFile);
  return {
    ...(options.address === undefined ? {} : { addresses: options.address }),
    ...(options.iqn === undefined ? {} : { iqns: options.iqn }),
    ...(options.tlsName === undefined ? {} : { tlsNames: options.tlsName }),
    ...(options.requireSecret === undefined ? {} : { requireSecret: options.requireSecret }),
    ...(options.requireTls === undefined ? {} : { requireTls: options.requireTls }),
    ...(chap === undefined ? {} : { chap }),
    ...(mutualChap === undefined ? {} : { mutualChap }),
    ...(options.dataSockets === undefined ? {} : { dataSocketsMax: options.dataSockets }),
  };
}

function chapOf(what: string, user: string | undefined, file: string | undefined) {
  if (user === undefined && file === undefined) return undefined;
  if (user === undefined || file === undefined)
    throw new Refusal(
      "bad-request",
      "A CHAP name and its secret belong together",
      `Give --${what}-user and --${what}-secret-file.`,
    );
  return { user, secret: readSecretFile(file) };
}

/** A whole file. @throws Refusal */
export function readText(path: string): string {
  try {
    return readFileSync(path, "utf8");
  } catch (error) {
    throw new Refusal("bad-request", `Cannot read ${path}: ${(error as Error).message}`, "Check the path.");
  }
}

/** The first line of a file. @throws Refusal */
export function readSecretFile(path: string): string {
  const line = readText(path).split("\n")[0]!.trim();
  if (line === "") throw new Refusal("bad-request", `${path} holds no secret`, "Write it into the first line.");
  return line;
}

const collect = (value: string, before: string[] | undefined): string[] => [...(before ?? []), value];

export function wholeNumber(text: string): number {
  if (!/^\d+$/.test(text)) throw new InvalidArgumentError("It must be a whole number.");
  return Number(text);
}

function parseRange(text: string): { offset: number; length: number } {
  const [offset, length, ...rest] = text.split(":");
  if (offset === undefined || length === undefined || rest.length > 0)
    throw new Refusal("bad-request", `"${text}" is no range`, "Write OFFSET:LENGTH, such as 0:10G.");
  return { offset: offset === "0" ? 0 : parseSize(offset), length: parseSize(length) };
}

function formatHosts(hosts: readonly Host[]): string {
  if (hosts.length === 0) return paint("dim", "No hosts. Make one: ashlar host add NAME");
  return table(hosts, [
    { title: "name", of: ({ name }) => name },
    { title: "addresses", of: ({ addresses }) => addresses.join(", ") },
    { title: "iqn", of: ({ iqns }) => iqns.join(", ") },
    {
      title: "secret",
      of: ({ hasSecret, requireSecret }) => (hasSecret ? (requireSecret ? "required" : "yes") : "no"),
    },
    { title: "units", right: true, of: ({ grants }) => String(grants.length) },
  ]);
}

function formatHost(host: Host): string {
  const lines = facts([
    ["name", host.name],
    ["addresses", host.addresses.join(", ") || "none"],
    ["iqn", host.iqns.join(", ") || "none"],
    ["TLS names", host.tlsNames.join(", ") || "none"],
    ["SCP without TLS", host.requireTls ? "refused" : "allowed"],
    ["secret", host.hasSecret ? (host.requireSecret ? "yes, and required" : "yes") : "no"],
    ["CHAP", [host.chapUser, host.mutualChapUser].filter((user) => user !== null).join(", mutual ") || "no"],
    ["data sockets", host.dataSocketsMax === null ? "as the server says" : String(host.dataSocketsMax)],
  ]);
  if (host.grants.length === 0) return lines;
  const grants = table(host.grants, [
    { title: "unit", right: true, of: ({ unit }) => String(unit) },
    { title: "device", of: ({ device }) => device },
    { title: "access", of: ({ access }) => access },
    { title: "range", of: ({ range }) => (range === undefined ? "" : `${range.offset}:${range.length}`) },
  ]);
  return `${lines}\n\n${grants}`;
}
