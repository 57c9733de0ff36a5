/** `ashlar attach`, `ashlar paths`, `ashlar detach`: this machine as a host of an SCP server */
import { spawn } from "node:child_process";
import { mkdirSync, openSync } from "node:fs";
import { connect } from "node:net";
import { hostname } from "node:os";
import { join, resolve as resolvePath } from "node:path";
import type { Command } from "commander";
import type { AttachOptions } from "#attach/attachment";
import { type AttachmentFacts, attachments, runFolder } from "#attach/run-folder";
import { Refusal, type RefusalCode } from "#base/refusal";
import { formatSize } from "#base/size";
import type { HostFacts, ScpSettings } from "#initiator/scp-host";
import { Context } from "../context.ts";
import { facts as formatFacts, formatSpan, paint, table } from "../output.ts";
import { readSecretFile, readText, wholeNumber } from "./host.ts";

interface Options {
  readonly host?: string;
  readonly secretFile?: string;
  readonly unit?: number;
  readonly socket?: string;
  readonly device?: string;
  readonly fuse?: string;
  readonly loop?: boolean;
  readonly allowVersion1?: boolean;
  readonly tls?: boolean;
  readonly tlsCa?: string;
  readonly tlsCert?: string;
  readonly tlsKey?: string;
  readonly tlsHostname?: string;
  readonly dataCrc?: boolean;
  readonly sockets?: number;
  readonly socketsMax?: number;
  readonly giveUp?: number;
  readonly silent?: number;
  readonly dead?: number;
  readonly retry?: number;
  readonly dial?: number;
  readonly foreground?: boolean;
  readonly env?: "auto" | "node" | "uring";
}

export interface AttachedNow extends Omit<AttachmentFacts, "undo"> {
  readonly units: readonly { number: number; name: string; size: number; readOnly: boolean }[];
  readonly connections: number;
  readonly paths: HostFacts;
}

type Told = { attached: AttachmentFacts } | { refused: { code: RefusalCode; message: string; hint?: string } };

export function addAttachCommands(program: Command): void {
  program
    .command("attach <servers>")
    .description(
      "make a server's units disks of this machine: SERVER[:PORT][,SERVER…], one address per network, or `discover`",
    )
    .option("--host <name>", "the name by which the server knows this machine (its host name)")
    .option("--secret-file <file>", "the host's secret (`ashlar host secret NAME` on the server)")
    .option("--unit <n>", "which unit; needed when there are several", wholeNumber)
    .option("--socket <path>", "as an NBD server on this Unix socket")
    .option("--device </dev/nbdN>", "as this device of the kernel")
    .option("--fuse <file>", "as this file")
    .option("--loop", "as a loop device")
    .option("--allow-version-1", "with a secret: use SCP version 1 where the server has nothing else")
    .option("--tls", "speak TLS or nothing; the host's secret is its key, unless there are certificates")
    .option("--tls-ca <file>", "certificates of the authorities that may vouch for the server")
    .option("--tls-cert <file>", "this host's certificate, where the server wants one")
    .option("--tls-key <file>", "the key of that certificate")
    .option("--tls-hostname <name>", "the name in the server's certificate, if it is not the address")
    .option("--no-data-crc", "no checksums over data")
    .option("--sockets <n>", "data sockets to open at once", wholeNumber)
    .option("--sockets-max <n>", "data sockets at most", wholeNumber)
    .option("--give-up <seconds>", "fail operations that cannot be done for so long; 0: never (120)", wholeNumber)
    .option(
      "--silent <ms>",
      "close a socket that owes an answer so long while others get on (35; version 1: 1000)",
      wholeNumber,
    )
    .option("--dead <seconds>", "close sockets when none gets an answer for so long (3; version 1: 20)", wholeNumber)
    .option("--dial <seconds>", "give up an attempt to open a socket after so long (2)", wholeNumber)
    .option("--retry <seconds>", "wait at most so long between attempts (2)", wholeNumber)
    .option("--foreground", "stay in the foreground")
    .option("--env <env>", "auto, uring or node (auto)")
    .action(async (servers: string, options: Options, command: Command) => {
      const context = new Context(command);
      const wanted = attachOptions(servers === "discover" ? await theOnlyServer() : servers, options);
      attachments();
      if (options.foreground === true) {
        const { attach } = await import("../../bin/attach.js" as string);
        await attach(wanted, options.env ?? "auto", (told: Told) => show(context, told));
        return new Promise<void>(() => {});
      }
      show(context, await inBackground(wanted, options.env ?? "auto"));
      return undefined;
    });
  program
    .command("discover [address...]")
    .description("find SCP servers by broadcast on every network, or ask at ADDRESS[:PORT]")
    .option("--seconds <n>", "how long to wait for answers (1)", wholeNumber)
    .action(async (addresses: string[], options: { seconds?: number }, command: Command) => {
      const context = new Context(command);
      const found = await find(addresses, options.seconds);
      context.show(found, (servers) =>
        servers.length === 0
          ? paint("dim", "No server answers.")
          : table(servers, [
              { title: "server", of: ({ host, port }) => `${host}:${port}` },
              { title: "id", of: ({ id }) => id },
              { title: "versions", of: ({ versions }) => [1, 2].filter((bit) => (versions & bit) !== 0).join(", ") },
            ]),
      );
    });
  program
    .command("paths")
    .description("show what is attached, and every network, socket and retry")
    .action(async (_options: object, command: Command) => {
      const context = new Context(command);
      const all = await Promise.all(attachments().map((one) => ask(one, { do: "paths" }) as Promise<AttachedNow>));
      context.show(all, formatPaths);
    });
  const network = program.command("network").description("the networks of an attachment, added and removed under load");
  for (const [verb, what, word] of [
    ["add", "one more address of the server", "add-network"],
    ["rm", "use an address of the server no more", "remove-network"],
  ] as const)
    network
      .command(`${verb} <server> [attachment]`)
      .description(what)
      .action(async (server: string, which: string | undefined, _options: object, command: Command) => {
        const context = new Context(command);
        const one = choose(which);
        await ask(one, { do: word, server });
        context.show(
          { attachment: one.id, server },
          () => `${one.id}: ${verb === "add" ? "added" : "removed"} ${server}`,
        );
      });
  program
    .command("detach [attachment]")
    .description(
      "take an attachment's disks away: by its number, socket, device or file; the only one if none is named",
    )
    .option("--all", "all of them")
    .action(async (which: string | undefined, options: { all?: boolean }, command: Command) => {
      const context = new Context(command);
      const chosen = options.all === true ? attachments() : [choose(which)];
      for (const one of chosen) await ask(one, { do: "detach" });
      context.show(
        { detached: chosen.map(({ id }) => id) },
        ({ detached }) => `${detached.join(", ") || "nothing"}: detached`,
      );
    });
}

async function find(addresses: readonly string[], seconds = 1) {
  const { discover } = await import("#library/discover-scp");
  return discover({ ...(addresses.length === 0 ? {} : { to: addresses }), waitMs: seconds * 1000 });
}

/** All addresses of the server that answers, if it is one. */
async function theOnlyServer(): Promise<string> {
  const found = await find([]);
  const ids = new Set(found.map(({ id }) => id));
  if (ids.size === 1) return found.map(({ host, port }) => `${host}:${port}`).join(",");
  if (ids.size === 0)
    throw new Refusal("not-found", "No server answers a broadcast", "Name it: `ashlar attach SERVER …`.");
  const all = found.map(({ host, port }) => `${host}:${port}`).join(", ");
  throw new Refusal("bad-request", `${ids.size} servers answer: ${all}`, "Name one of them.");
}

function attachOptions(servers: string, options: Options): AttachOptions {
  const ways = [options.socket, options.device, options.fuse, options.loop].filter((way) => way !== undefined);
  if (ways.length !== 1)
    throw new Refusal(
      "bad-request",
      "It is not clear where the disk should appear",
      "Give one of --socket PATH, --device /dev/nbdN, --fuse FILE, --loop.",
    );
  const secret = options.secretFile === undefined ? undefined : readSecretFile(options.secretFile);
  const giveUpMs =
    options.giveUp === undefined ? undefined : options.giveUp === 0 ? Number.MAX_SAFE_INTEGER : options.giveUp * 1000;
  return {
    servers: servers.split(","),
    host: options.host ?? hostname(),
    ...(secret === undefined ? {} : { secret }),
    allowVersion1: options.allowVersion1 === true,
    ...tlsOf(options),
    dataCrc: options.dataCrc !== false,
    settings: {
      ...(options.sockets === undefined
        ? {}
        : { socketsMin: options.sockets, socketsMax: Math.max(8, options.sockets) }),
      ...(options.socketsMax === undefined ? {} : { socketsMax: options.socketsMax }),
      ...(giveUpMs === undefined ? {} : { giveUpMs }),
      ...waitsOf(options),
    },
    unit: options.unit,
    socket: options.socket,
    device: options.device,
    fuse: options.fuse,
    loop: options.loop === true,
  };
}

/** A wait that is given holds for both versions. */
function waitsOf({ silent, dead, dial, retry }: Options): Partial<ScpSettings> {
  for (const [name, value] of Object.entries({ silent, dead, dial, retry }))
    if (value === 0) throw new Refusal("bad-request", `--${name} cannot be 0`, "Nothing answers in no time.");
  return {
    ...(silent === undefined ? {} : { silentMs: silent, stallMsV1: silent }),
    ...(dead === undefined ? {} : { deadMs: dead * 1000, deadMsV1: dead * 1000 }),
    ...(dial === undefined ? {} : { dialMs: dial * 1000 }),
    ...(retry === undefined ? {} : { retryMsMax: retry * 1000 }),
  };
}

function tlsOf({ tls, tlsCa, tlsCert, tlsKey, tlsHostname }: Options): Pick<AttachOptions, "tls"> {
  const files = [tlsCa, tlsCert, tlsKey, tlsHostname].some((one) => one !== undefined);
  if (!files) return tls === true ? { tls: "secret" } : {};
  if ((tlsCert === undefined) !== (tlsKey === undefined))
    throw new Refusal(
      "bad-request",
      "A certificate and its key belong together",
      "Give both --tls-cert and --tls-key.",
    );
  return {
    tls: {
      ...(tlsCa === undefined ? {} : { ca: readText(tlsCa) }),
      ...(tlsCert === undefined ? {} : { cert: readText(tlsCert) }),
      ...(tlsKey === undefined ? {} : { key: readText(tlsKey) }),
      ...(tlsHostname === undefined ? {} : { serverName: tlsHostname }),
    },
  };
}

/** Starts the process that stays, and waits until it has told what came of it. It logs to a file: our terminal goes. */
function inBackground(options: AttachOptions, env: string): Promise<Told> {
  const script = `const { attach } = await import(process.argv[1]);
    process.once("message", ({ options, env }) => attach(options, env, (told) => process.send(told, () => process.disconnect())));`;
  const module = new URL("../../bin/attach.js", import.meta.url).href;
  const folder = runFolder();
  mkdirSync(folder, { recursive: true, mode: 0o700 });
  const path = join(folder, "attach.log");
  const log = openSync(path, "a", 0o600);
  return new Promise((resolve, reject) => {
    const child = spawn(process.execPath, ["--input-type=module", "-e", script, module], {
      detached: true,
      stdio: ["ignore", "ignore", log, "ipc"],
    });
    child.once("message", (told) => {
      child.unref();
      resolve(told as Told);
    });
    child.once("error", reject);
    child.once("exit", (code) => reject(new Error(`the attachment ended (${code}) before it was made: see ${path}`)));
    child.send({ options, env });
  });
}

function show(context: Context, told: Told): void {
  if ("refused" in told) throw new Refusal(told.refused.code, told.refused.message, told.refused.hint);
  const { attached } = told;
  context.show(attached, (one) => {
    const where = one.device ?? one.fuse ?? `nbd+unix:///?socket=${one.socket}`;
    return `${where}\n${paint("dim", `attachment ${one.id}; \`ashlar paths\` shows it, \`ashlar detach ${one.id}\` ends it`)}`;
  });
}

function choose(which: string | undefined): AttachmentFacts {
  const all = attachments();
  const one =
    which === undefined
      ? all.length === 1
        ? all[0]
        : undefined
      : all.find(({ id, socket, device, fuse }) => id === which || [socket, device, fuse].includes(resolvePath(which)));
  if (one !== undefined) return one;
  if (all.length === 0)
    throw new Refusal("not-found", "Nothing is attached", "`ashlar attach SERVER …` attaches a server's units.");
  throw new Refusal(
    "not-found",
    which === undefined ? "There are several attachments" : `There is no attachment "${which}"`,
    `There are: ${all.map(({ id, device, fuse, socket }) => `${id} (${device ?? fuse ?? socket})`).join(", ")}.`,
  );
}

function ask(one: AttachmentFacts, request: object): Promise<object> {
  return new Promise((resolve, reject) => {
    const socket = connect(join(runFolder(), one.id, "control.sock"));
    let text = "";
    socket.setEncoding("utf8");
    socket.setTimeout(30_000, () => socket.destroy(new Error("no answer")));
    socket.on("data", (chunk: string) => {
      text += chunk;
    });
    socket.on("error", (error) =>
      reject(new Refusal("unreachable", `Attachment ${one.id} does not answer: ${error.message}`)),
    );
    socket.on("close", () => {
      try {
        const answer = JSON.parse(text || "{}") as { error?: string };
        if (answer.error !== undefined) reject(new Refusal("bad-request", answer.error));
        else resolve(answer);
      } catch {
        reject(new Refusal("unreachable", `Attachment ${one.id} does not answer`));
      }
    });
    socket.write(`${JSON.stringify(request)}\n`);
  });
}

function formatPaths(all: readonly AttachedNow[]): string {
  if (all.length === 0) return paint("dim", "Nothing is attached. Attach something: ashlar attach SERVER --loop");
  return all.map(formatOne).join("\n\n");
}

function formatOne({ id, host, unit, device, fuse, socket, units, paths }: AttachedNow): string {
  const attached = units.length === 1 ? units[0] : units.find(({ number }) => number === unit);
  const isGone = unit !== undefined && attached?.number !== unit;
  const lines = formatFacts([
    ["attachment", id],
    [
      "server",
      `${paths.server || "none"}, ${paths.state}${paths.version === 0 ? "" : `, version ${paths.version}${paths.tls ? " under TLS" : ""}`} as ${host}`,
    ],
    ["disk", `${device ?? fuse ?? socket}${isGone ? ` was unit ${unit}, which is gone` : nameOf(attached)}`],
    [
      "units",
      units
        .map((one) => `${one.number} ${one.name} ${formatSize(one.size)}${one.readOnly ? " read-only" : ""}`)
        .join(", "),
    ],
    ["sessions", `${paths.reconfigurations}${paths.lastDown === "" ? "" : `, last ended: ${paths.lastDown}`}`],
    ["fences", String(paths.fences)],
    ["queued", String(paths.queued)],
  ]);
  const networks = table(paths.networks, [
    { title: "network", of: ({ network, port }) => `${network}:${port}` },
    { title: "sockets", right: true, of: ({ sockets, socketsMax }) => `${sockets} of ${socketsMax}` },
    { title: "failures", right: true, of: ({ failures }) => String(failures) },
    { title: "retries", right: true, of: ({ retries }) => String(retries) },
    { title: "last closed", of: formatEnd },
  ]);
  const agents = table(paths.agents, [
    { title: "agent", right: true, of: (agent) => String(agent.id) },
    { title: "network", of: ({ network, port }) => `${network}:${port}` },
    { title: "state", of: ({ state }) => state },
    { title: "in flight", right: true, of: ({ inFlight }) => String(inFlight) },
    { title: "done", right: true, of: ({ done }) => String(done) },
    { title: "latency", right: true, of: ({ latencyMs }) => `${latencyMs.toFixed(2)} ms` },
    { title: "retries", right: true, of: ({ retries }) => String(retries) },
    { title: "last closed", of: formatEnd },
  ]);
  return `${lines}\n\n${networks}\n\n${agents}`;
}

/** "silent, 12 s ago". */
function formatEnd({ lastEnd, lastEndAt }: { lastEnd: string; lastEndAt: number }): string {
  return lastEnd === "" ? "" : `${lastEnd}, ${formatSpan((Date.now() - lastEndAt) / 1000)} ago`;
}

const nameOf = (unit: AttachedNow["units"][number] | undefined): string =>
  unit === undefined ? "" : ` is unit ${unit.number} ${unit.name}`;
