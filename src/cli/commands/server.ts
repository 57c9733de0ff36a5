/** `ashlar status`, `doctor`, `top`, `metrics`, `events`, `settings`, `connections` */
import { setTimeout as sleep } from "node:timers/promises";
import type { Command } from "commander";
import type { ApiReply } from "#admin/schema/api";
import { Refusal } from "#base/refusal";
import { formatSize } from "#base/size";
import { Context } from "../context.ts";
import { facts, formatMoment, formatSpan, paint, table } from "../output.ts";
import { parseMetrics } from "../prometheus.ts";

type Status = ApiReply<"GET /v1/status">;
type Check = ApiReply<"GET /v1/doctor">["checks"][number];

/** Between two looks of `status --wait`. */
const LOOK_EVERY_MS = 25;

export function addServerCommands(program: Command): void {
  program
    .command("status")
    .description("the server at a glance; exit status 0 when it is ready")
    .option("--wait <seconds>", "wait so long for it to become ready")
    .action(async (options: { wait?: string }, command: Command) => {
      const context = new Context(command);
      const status = await waitForReady(context, parseSeconds(options.wait));
      context.show(status, formatStatus);
      if (status.state !== "ready") throw new Refusal("unreachable", `The server is ${status.state}`);
    });
  program
    .command("doctor")
    .description("check the server and the machine, and say what is wrong in words")
    .action(async (_options: object, command: Command) => {
      const context = new Context(command);
      const checks = await checkUp(context);
      context.show({ checks }, () => checks.map(formatCheck).join("\n"));
      if (checks.some(({ result }) => result === "error")) process.exitCode = 1;
    });
  program
    .command("metrics")
    .description("print what Prometheus would scrape")
    .action(async (_options: object, command: Command) => {
      const context = new Context(command);
      const text = await context.api.call("GET /metrics", {});
      if (!context.json) process.stdout.write(text);
      else context.show(parseMetrics(text), String);
    });
  program
    .command("connections")
    .description("who is connected, to what, since when")
    .action(async (_options: object, command: Command) => {
      const context = new Context(command);
      context.show(await context.api.call("GET /v1/connections", {}), (all) =>
        all.length === 0
          ? paint("dim", "Nobody is connected.")
          : table(all, [
              { title: "front", of: ({ front }) => front },
              { title: "peer", of: ({ peer }) => peer },
              { title: "export", of: (one) => one.export },
              { title: "requests", right: true, of: ({ requests }) => String(requests) },
              { title: "since", of: ({ since }) => formatMoment(since) },
            ]),
      );
    });
  addLaneCommands(program);
  program
    .command("settings")
    .description("the settings that are in force")
    .action(async (_options: object, command: Command) => {
      const context = new Context(command);
      const settings = await context.api.call("GET /v1/settings", {});
      context.show(settings, (all) =>
        facts(
          Object.entries(all).map(([name, value]) => [name, typeof value === "string" ? value : JSON.stringify(value)]),
        ),
      );
    });
  program
    .command("events")
    .description("print what happens, as it happens")
    .action(async (_options: object, command: Command) => {
      const context = new Context(command);
      for await (const event of eventsOf(context)) {
        const line = context.json
          ? JSON.stringify(event)
          : `${formatMoment(event.at)}  ${event.type}  ${event.message}`;
        process.stdout.write(`${line}\n`);
      }
    });
}

function addLaneCommands(program: Command): void {
  const lane = program.command("lane").description("the threads that do the I/O");
  lane
    .command("restart <index>")
    .description("end a lane and replace it; its volumes are opened again, its hosts reconnect")
    .option("--force", "end its thread from outside, for a lane that hangs")
    .action(async (index: string, { force = false }: { force?: boolean }, command: Command) => {
      const context = new Context(command);
      await context.api.call("POST /v1/lanes/{index}/restart", { params: { index }, body: { force } });
      context.show(
        { restarted: Number(index) },
        () => `lane ${index}: restarting; \`ashlar status\` shows when it is back`,
      );
    });
}

/** The status, as soon as the server is ready, or as it is after `seconds`. @throws Refusal unreachable, timeout */
export async function waitForReady(context: Context, seconds: number): Promise<Status> {
  const until = performance.now() + seconds * 1000;
  for (;;) {
    try {
      const status = await context.api.call("GET /v1/status", {});
      if (status.state === "ready" || performance.now() >= until) return status;
    } catch (error) {
      if (!(error instanceof Refusal) || error.code !== "unreachable" || performance.now() >= until) throw error;
    }
    await sleep(LOOK_EVERY_MS);
  }
}

function parseSeconds(text: string | undefined): number {
  if (text === undefined) return 0;
  const seconds = Number(text);
  if (Number.isFinite(seconds) && seconds >= 0) return seconds;
  throw new Refusal("bad-request", `"${text}" is not a number of seconds`);
}

/** The server's own check, or without a server what can be seen from here. */
async function checkUp(context: Context): Promise<Check[]> {
  try {
    return (await context.api.call("GET /v1/doctor", {})).checks;
  } catch (error) {
    if (!(error instanceof Refusal) || error.code !== "unreachable") throw error;
    const { directoryChecks, machineChecks } = await import("#admin/doctor");
    return [
      {
        name: "server",
        result: "note",
        message: error.message,
        ...(error.hint === undefined ? {} : { hint: error.hint }),
      },
      ...directoryChecks(context.data),
      ...machineChecks(),
    ];
  }
}

interface ServerEvent {
  readonly at: string;
  readonly type: string;
  readonly message: string;
}
async function* eventsOf(context: Context): AsyncGenerator<ServerEvent> {
  const response = await context.api.send("GET /v1/events", {});
  let text = "";
  for await (const chunk of response) {
    text += (chunk as Buffer).toString("utf8");
    for (let end = text.indexOf("\n\n"); end >= 0; end = text.indexOf("\n\n")) {
      const data = /^data: (.*)$/m.exec(text.slice(0, end))?.[1];
      text = text.slice(end + 2);
      if (data !== undefined) yield JSON.parse(data) as ServerEvent;
    }
  }
}

function formatStatus(status: Status): string {
  const { space, lanes, problems } = status;
  const memory = lanes.reduce((sum, lane) => sum + lane.memory.size, 0);
  const cache = lanes.reduce((sum, lane) => sum + lane.cache.size, 0);
  const level = { ok: "green", soft: "yellow", hard: "red" } as const;
  const lines = facts([
    [
      "server",
      `${paint(status.state === "ready" ? "green" : "yellow", status.state)} since ${formatSpan(status.uptimeSeconds)}, version ${status.version}, pid ${status.pid}`,
    ],
    ["data", status.data],
    ["env", `${status.env.name} (${status.env.reason})`],
    [
      "lanes",
      `${lanes.filter(({ state }) => state === "running").length} of ${lanes.length} running, ${formatSize(memory)} for requests, ${formatSize(cache)} for blocks read lately`,
    ],
    ["volumes", `${status.volumes}, ${status.snapshots} snapshots`],
    ["space", `${paint(level[space.level], `${formatSize(space.available)} free`)} of ${formatSize(space.capacity)}`],
    ...status.fronts.map(({ name, uri, tls }) => [name, tls === "off" ? uri : `${uri} (TLS ${tls})`] as const),
  ]);
  const told = problems.map(({ severity, message, hint }) => {
    const head = paint(severity === "error" ? "red" : "yellow", `${severity}:`);
    return `${head} ${message}${hint === undefined ? "" : `\n  ${hint}`}`;
  });
  return [lines, ...told].join("\n");
}

function formatCheck({ name, result, message, hint }: Check): string {
  const colour = { ok: "green", note: "blue", warning: "yellow", error: "red" } as const;
  const head = `${paint(colour[result], result.padEnd(7))}  ${name.padEnd(12)}  ${message}`;
  return hint === undefined ? head : `${head}\n${" ".repeat(23)}${paint("dim", hint)}`;
}
