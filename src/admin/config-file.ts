/** `ashlar.toml`: the flags of `ashlar serve` by their long names, without the dashes, checked strictly. */
import { readFileSync } from "node:fs";
import { parse } from "smol-toml";
import { z } from "zod";
import { Refusal } from "#base/refusal";
import { FRONTS } from "./fronts.ts";
import type { SettingsText } from "./settings.ts";

const size = z.union([z.string(), z.int().nonnegative()]).transform(String);
const ConfigFile = z.strictObject({
  data: z.string().optional(),
  env: z.enum(["auto", "node", "uring"]).optional(),
  lanes: z
    .union([z.literal("auto"), z.int()])
    .transform(String)
    .optional(),
  memory: size.optional(),
  cache: size.optional(),
  http: z.string().optional(),
  "http-token-file": z.string().optional(),
  "tls-cert": z.string().optional(),
  "tls-key": z.string().optional(),
  "tls-ca": z.string().optional(),
  "tls-psk": z.string().optional(),
  "tls-require": z.boolean().optional(),
  "trust-the-network": z.boolean().optional(),
  capacity: size.optional(),
  "soft-percent": z.number().optional(),
  "hard-percent": z.number().optional(),
  "log-level": z.enum(["debug", "info", "warn", "error"]).optional(),
  "log-format": z.enum(["auto", "json", "text"]).optional(),
  "drain-seconds": z.number().nonnegative().optional(),
  ...Object.fromEntries(Object.keys(FRONTS).map((front) => [front, z.string().optional()])),
  ...Object.fromEntries(switchFlags().map((flag) => [flag, z.boolean().optional()])),
});

function switchFlags(): string[] {
  return Object.values(FRONTS).flatMap(({ switches = {} }) => Object.keys(switches));
}

/** @throws Refusal bad-request, with every key that is wrong */
export function readConfigFile(path: string): SettingsText {
  let text: string;
  try {
    text = readFileSync(path, "utf8");
  } catch (error) {
    throw new Refusal(
      "bad-request",
      `Cannot read ${path}: ${(error as Error).message}`,
      "Give the file with --config FILE.",
    );
  }
  let values: unknown;
  try {
    values = parse(text);
  } catch (error) {
    throw new Refusal(
      "bad-request",
      `${path} is not TOML: ${(error as Error).message.split("\n")[0]}`,
      "See docs/operations.md.",
    );
  }
  const checked = ConfigFile.safeParse(values);
  if (!checked.success)
    throw new Refusal(
      "bad-request",
      `${path} is not a configuration:\n${z.prettifyError(checked.error)}`,
      "See docs/operations.md.",
    );
  const { data: value } = checked;
  const fronts = value as unknown as Record<string, string | undefined>;
  const switches = value as unknown as Record<string, boolean | undefined>;
  return {
    data: value.data,
    env: value.env,
    lanes: value.lanes,
    memory: value.memory,
    cache: value.cache,
    switches: Object.fromEntries(switchFlags().map((flag) => [flag, switches[flag]])),
    fronts: Object.fromEntries(Object.keys(FRONTS).map((front) => [front, fronts[front]])),
    http: value.http,
    httpTokenFile: value["http-token-file"],
    tlsCert: value["tls-cert"],
    tlsKey: value["tls-key"],
    tlsCa: value["tls-ca"],
    tlsPsk: value["tls-psk"],
    tlsRequire: value["tls-require"],
    trustTheNetwork: value["trust-the-network"],
    capacity: value.capacity,
    softPercent: value["soft-percent"],
    hardPercent: value["hard-percent"],
    logLevel: value["log-level"],
    logFormat: value["log-format"],
    drainSeconds: value["drain-seconds"],
  };
}
