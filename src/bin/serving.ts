/** `ashlar serve`: settings, log, server, signals. The order is that of the time it takes: lanes start while the API loads. */
import type { Command } from "commander";
import { takeActivatedSockets } from "#admin/activation";
import { dataDirectory } from "#admin/data-place";
import { FRONTS } from "#admin/fronts";
import { makeLog } from "#admin/log";
import { type EnvChoice, Server } from "#admin/server";
import { camelCase, type Settings, type SettingsText, settingsOf } from "#admin/settings";
import { REFUSALS } from "#base/refusal";
import { makeProgram, runProgram } from "#cli/program";
import { chooseEnv } from "#env/choose";
import { notifyServiceManager } from "#env/notify";
import { addServe } from "./serve-command.ts";

/** @returns the exit status. */
export async function serving(argv: readonly string[], version: string, laneProgram: URL): Promise<number> {
  const program = makeProgram(version, (all) => addServe(all, (command) => serve(command, version, laneProgram)));
  return await runProgram(program, argv);
}

async function serve(command: Command, version: string, laneProgram: URL): Promise<void> {
  const settings = await settingsFrom(command);
  const log = makeLog(settings.logLevel, settings.logFormat);
  const { kind, why } = chooseEnv(settings.env);
  const env: EnvChoice = { name: kind, reason: why };
  const server = new Server({ settings, log, version, env, laneProgram });
  const ended = untilSignal(server);
  log.info({ data: server.directory.path, env: env.name, reason: env.reason, lanes: server.lanes.count }, "Starting");
  try {
    await server.start(async () => (await import("#admin/api-server")).startApi(server));
  } catch (error) {
    await server.close();
    throw error;
  }
  log.info({ ms: Math.round(process.uptime() * 1000), volumes: server.registry.count("volume") }, "Ready");
  notifyServiceManager("READY=1");
  await ended;
}

/** A terminal's Ctrl-C reaches the server directly and through whatever started it: that is one signal. */
const SAME_SIGNAL_MS = 500;

/** The first SIGTERM or SIGINT drains; a second one ends at once. */
function untilSignal(server: Server): Promise<void> {
  return new Promise((resolve, reject) => {
    let first: number | undefined;
    const onSignal = (): void => {
      const now = performance.now();
      if (first !== undefined && now - first < SAME_SIGNAL_MS) return;
      if (first !== undefined) process.exit(REFUSALS.interrupted.exit);
      first = now;
      notifyServiceManager("STOPPING=1");
      server.drain().then(resolve, reject);
    };
    process.on("SIGTERM", onSignal);
    process.on("SIGINT", onSignal);
  });
}

async function settingsFrom(command: Command): Promise<Settings> {
  const flags = command.optsWithGlobals<Record<string, unknown>>();
  const said: Record<string, unknown> = {};
  for (const [name, value] of Object.entries(flags))
    if (command.getOptionValueSourceWithGlobals(name) === "cli") said[name] = value;
  const { config, ...rest } = said as { config?: string };
  // A socket from systemd is where the front listens, whatever else is said.
  const activated = takeActivatedSockets(process.env);
  const addressOf = (name: string) =>
    activated.has(name) ? `fd:${activated.get(name)}` : (said[name] as string | undefined);
  const fronts = Object.fromEntries(Object.keys(FRONTS).map((name) => [name, addressOf(name)]));
  const switchNames = Object.values(FRONTS).flatMap(({ switches = {} }) => Object.keys(switches));
  const switches = Object.fromEntries(switchNames.map((flag) => [flag, said[camelCase(flag)] as boolean | undefined]));
  const texts: SettingsText[] = [{ ...rest, fronts, switches }];
  if (config !== undefined) texts.push((await import("#admin/config-file")).readConfigFile(config));
  const data = dataDirectory(texts.map(({ data: given }) => given).find((given) => given !== undefined));
  return settingsOf(data, ...texts);
}
