/**
 * The settings of a server: what flags and `ashlar.toml` say, in one shape, checked before anything is started.
 * (What changes while it runs, volumes, hosts and grants, is state and not a setting.)
 */
import { readFileSync, statSync } from "node:fs";
import { MEMORY_BYTES_DEFAULT } from "#base/memory";
import { Refusal } from "#base/refusal";
import { parseSize } from "#base/size";
import { type Bytes, MIB } from "#base/units";
import type { Address, Tls } from "#env/env";
import { formatAddress, isPrivate, parseAddress } from "./address.ts";
import { FRONTS } from "./fronts.ts";
import type { LogLevel } from "./log.ts";

const MEMORY_BYTES_MIN = 32 * MIB;
export const LANES_MAX = 64;

export interface Settings {
  readonly data: string;
  readonly env: "auto" | "node" | "uring";
  readonly lanes: number | "auto";
  /** Of the data plane, over all lanes. */
  readonly memory: Bytes;
  /** For blocks that were read lately, over all lanes; what "auto" is, the machine decides. */
  readonly cache: Bytes | "auto";
  /** Where each front listens; a front that is not here is off. */
  readonly fronts: Readonly<Record<string, FrontSettings>>;
  readonly http: { readonly host: string; readonly port: number } | undefined;
  /** A file with one token per line; whoever speaks HTTP over TCP shows one of them. */
  readonly httpTokenFile: string | undefined;
  readonly tls: TlsFiles;
  /** Addresses beyond this machine may be listened on without TLS that proves who the host is. */
  readonly trustTheNetwork: boolean;
  /** What may be used of the file system; all of it when undefined. */
  readonly capacity: Bytes | undefined;
  readonly softPercent: number;
  readonly hardPercent: number;
  readonly logLevel: LogLevel;
  readonly logFormat: "auto" | "json" | "text";
  /** How long a drain may take before what is left is cut off. */
  readonly drainSeconds: number;
}

export interface FrontSettings {
  readonly address: Address;
  /** Where it listens besides, if it can. */
  readonly more: readonly Address[];
  readonly requireTls: boolean;
  /** Settings of the front's own, as plain data. */
  readonly options: Readonly<Record<string, unknown>>;
}

/** What flags or a file say of a server: text as it is written there. What is not said is undefined. */
export interface SettingsText {
  readonly data?: string | undefined;
  readonly env?: string | undefined;
  readonly lanes?: string | undefined;
  readonly memory?: string | undefined;
  readonly cache?: string | undefined;
  /** Address by front. */
  readonly fronts?: Readonly<Record<string, string | undefined>>;
  /** Switches of fronts, by their flags. */
  readonly switches?: Readonly<Record<string, boolean | undefined>>;
  readonly http?: string | undefined;
  readonly httpTokenFile?: string | undefined;
  readonly tlsCert?: string | undefined;
  readonly tlsKey?: string | undefined;
  readonly tlsCa?: string | undefined;
  readonly tlsPsk?: string | undefined;
  readonly tlsRequire?: boolean | undefined;
  readonly trustTheNetwork?: boolean | undefined;
  readonly capacity?: string | undefined;
  readonly softPercent?: number | undefined;
  readonly hardPercent?: number | undefined;
  readonly logLevel?: string | undefined;
  readonly logFormat?: string | undefined;
  readonly drainSeconds?: number | undefined;
}

/** The settings that texts make; an earlier text goes before a later one, and all go before the defaults. @throws Refusal */
export function settingsOf(data: string, ...texts: readonly SettingsText[]): Settings {
  const said = <Key extends keyof SettingsText>(key: Key): SettingsText[Key] | undefined =>
    texts.find((text) => text[key] !== undefined)?.[key];
  const requireTls = said("tlsRequire") ?? false;
  const fronts: Record<string, FrontSettings> = {};
  for (const [name, kind] of Object.entries(FRONTS)) {
    const text = texts.map((one) => one.fronts?.[name]).find((one) => one !== undefined) ?? kind.addressDefault;
    const [address, ...more] = (kind.several === true ? text.split(",") : [text]).map((one) =>
      parseAddress(one, kind.port),
    );
    if (address === undefined) continue;
    const options = Object.fromEntries(
      Object.keys(kind.switches ?? {}).map((flag) => [
        camelCase(flag),
        texts.map((one) => one.switches?.[flag]).find((one) => one !== undefined) ?? false,
      ]),
    );
    const others = more.filter((one) => one !== undefined);
    fronts[name] = { address, more: others, requireTls: requireTls && kind.tls, options };
  }
  const settings: Settings = {
    data,
    env: oneOf("env", said("env") ?? SETTINGS_DEFAULT.env, ["auto", "node", "uring"]),
    lanes: parseLanes(said("lanes") ?? "auto"),
    memory: parseSize(said("memory") ?? String(SETTINGS_DEFAULT.memory)),
    cache: parseCache(said("cache") ?? "auto"),
    fronts,
    http: parseHttp(said("http") ?? "off"),
    httpTokenFile: said("httpTokenFile"),
    tls: { cert: said("tlsCert"), key: said("tlsKey"), ca: said("tlsCa"), psk: said("tlsPsk") },
    trustTheNetwork: said("trustTheNetwork") ?? false,
    capacity: said("capacity") === undefined ? undefined : parseSize(said("capacity")!),
    softPercent: said("softPercent") ?? SETTINGS_DEFAULT.softPercent,
    hardPercent: said("hardPercent") ?? SETTINGS_DEFAULT.hardPercent,
    logLevel: oneOf("log level", said("logLevel") ?? SETTINGS_DEFAULT.logLevel, ["debug", "info", "warn", "error"]),
    logFormat: oneOf("log format", said("logFormat") ?? SETTINGS_DEFAULT.logFormat, ["auto", "json", "text"]),
    drainSeconds: said("drainSeconds") ?? SETTINGS_DEFAULT.drainSeconds,
  };
  checkSettings(settings);
  return settings;
}

/** "scp-any-source-port" as "scpAnySourcePort". */
export const camelCase = (flag: string): string => flag.replace(/-(.)/g, (_, letter: string) => letter.toUpperCase());

function parseLanes(text: string): number | "auto" {
  if (text === "auto") return "auto";
  if (/^\d+$/.test(text)) return Number(text);
  throw new Refusal("bad-request", `"${text}" is not a number of lanes`, `Give 1 to ${LANES_MAX}, or auto.`);
}

const parseCache = (text: string): Bytes | "auto" => (text === "auto" ? text : parseSize(text));

function parseHttp(text: string): { host: string; port: number } | undefined {
  const address = parseAddress(text);
  if (address === undefined || "host" in address) return address;
  throw new Refusal(
    "bad-request",
    `--http takes ADDR:PORT, not "${text}"`,
    "The Unix socket is always there: DIR/ashlar.sock.",
  );
}

function oneOf<const Words extends readonly string[]>(what: string, text: string, words: Words): Words[number] {
  if (words.includes(text)) return text;
  throw new Refusal("bad-request", `"${text}" is no ${what}`, `It is one of: ${words.join(", ")}.`);
}

/** Paths of PEM files, and of a file with `identity:hex` lines as GnuTLS writes them. */
export interface TlsFiles {
  readonly cert: string | undefined;
  readonly key: string | undefined;
  readonly ca: string | undefined;
  readonly psk: string | undefined;
}

export const SETTINGS_DEFAULT: Omit<Settings, "data"> = {
  env: "auto",
  lanes: "auto",
  memory: MEMORY_BYTES_DEFAULT,
  cache: "auto",
  fronts: {},
  http: undefined,
  httpTokenFile: undefined,
  tls: { cert: undefined, key: undefined, ca: undefined, psk: undefined },
  trustTheNetwork: false,
  capacity: undefined,
  softPercent: 80,
  hardPercent: 95,
  logLevel: "info",
  logFormat: "auto",
  drainSeconds: 30,
};

/** Checks what no single value can say. @throws Refusal */
export function checkSettings(settings: Settings): void {
  const bad = (message: string, hint: string) => new Refusal("bad-request", message, hint);
  if (settings.memory < MEMORY_BYTES_MIN)
    throw bad(`Memory of ${settings.memory} bytes is too little`, "Give at least --memory 32M.");
  if (settings.lanes !== "auto" && (settings.lanes < 1 || settings.lanes > LANES_MAX))
    throw bad(`${settings.lanes} lanes make no sense`, `Give 1 to ${LANES_MAX}, or auto.`);
  const { softPercent: soft, hardPercent: hard } = settings;
  if (!(soft > 0 && soft <= hard && hard <= 100))
    throw bad(
      `Space thresholds of ${soft} % and ${hard} % make no sense`,
      "The soft one lies below the hard one, both in 1 … 100.",
    );
  const { cert, key } = settings.tls;
  if ((cert === undefined) !== (key === undefined))
    throw bad("A certificate and its key belong together", "Give both --tls-cert and --tls-key.");
  const encrypted = cert !== undefined || settings.tls.psk !== undefined;
  const proven = settings.tls.ca !== undefined || settings.tls.psk !== undefined;
  for (const [front, { address, requireTls }] of Object.entries(settings.fronts)) {
    if (FRONTS[front]?.hasSecrets === true) continue;
    if (requireTls && !encrypted)
      throw bad(`TLS is required for ${front}, but there is none`, "Give --tls-cert and --tls-key, or --tls-psk FILE.");
    if (isPrivate(address) || settings.trustTheNetwork || FRONTS[front]?.tls !== true) continue;
    if (!(encrypted && proven && requireTls))
      throw new Refusal(
        "not-allowed",
        `${front} on ${formatAddress(address)} could be used by anyone who can reach it`,
        "Require TLS that proves who a host is (--tls-psk FILE, or --tls-cert, --tls-key and --tls-ca, with --tls-require), " +
          "listen on 127.0.0.1, or say --trust-the-network if everyone on that network may read and write every volume.",
      );
  }
  if (settings.http !== undefined && !isPrivate(settings.http) && settings.httpTokenFile === undefined)
    throw new Refusal(
      "not-allowed",
      `The admin API on ${formatAddress(settings.http)} could be used by anyone who can reach it`,
      "Give --http-token-file FILE with a token per line, or listen on 127.0.0.1.",
    );
  if (settings.http !== undefined && !isPrivate(settings.http) && !settings.trustTheNetwork)
    throw new Refusal(
      "not-allowed",
      `The admin API on ${formatAddress(settings.http)} sends tokens in the clear`,
      "Put a TLS proxy in front of 127.0.0.1, or say --trust-the-network if nobody listens on that network.",
    );
}

/** What the front's TLS files hold, read and checked; undefined when none are given. @throws Refusal */
export function loadTls(files: TlsFiles): Tls | undefined {
  const { cert, key, ca, psk } = files;
  if (cert === undefined && psk === undefined) return undefined;
  return {
    role: "server",
    ...(cert === undefined ? {} : { cert: readSecret(cert, false) }),
    ...(key === undefined ? {} : { key: readSecret(key, true) }),
    ...(ca === undefined ? {} : { ca: readSecret(ca, false) }),
    ...(psk === undefined ? {} : { psk: parsePsk(readSecret(psk, true), psk) }),
  };
}

/** A file that only its owner should read. @throws Refusal */
export function readSecret(path: string, secret: boolean): string {
  try {
    if (secret && (statSync(path).mode & 0o077) !== 0)
      throw new Refusal("not-allowed", `${path} holds a secret, and others can read it`, `Run: chmod 600 ${path}`);
    return readFileSync(path, "utf8");
  } catch (error) {
    if (error instanceof Refusal) throw error;
    throw new Refusal(
      "bad-request",
      `Cannot read ${path}: ${(error as Error).message}`,
      "Check the path and its permissions.",
    );
  }
}

/** Lines of `identity:hex`, as `psktool` writes them. @throws Refusal */
export function parsePsk(text: string, path: string): Map<string, Uint8Array> {
  const keys = new Map<string, Uint8Array>();
  for (const [index, line] of text.split("\n").entries()) {
    if (line.trim() === "" || line.startsWith("#")) continue;
    const match = /^([^:]+):((?:[0-9a-f]{2})+)\s*$/i.exec(line);
    if (match === null)
      throw new Refusal(
        "bad-request",
        `${path}:${index + 1} is not a pre-shared key`,
        "Write identity:hex, as `psktool` does.",
      );
    keys.set(match[1]!, Uint8Array.from(Buffer.from(match[2]!, "hex")));
  }
  if (keys.size === 0)
    throw new Refusal("bad-request", `${path} holds no key`, "Make one with `psktool -u NAME -p FILE`.");
  return keys;
}

/** The settings as the API shows them: addresses as text, and paths of secrets but no secrets. */
export function settingsShown(settings: Settings): Record<string, unknown> {
  const fronts = Object.entries(settings.fronts).map(([name, { address, requireTls }]) => [
    name,
    { address: formatAddress(address), requireTls },
  ]);
  return {
    ...settings,
    fronts: Object.fromEntries(fronts),
    http: settings.http === undefined ? "off" : formatAddress(settings.http),
  };
}
