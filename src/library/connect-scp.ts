/** The host side of SCP for programs: `connectScp({ servers: ["10.0.0.1"], host: "web", secret })`. */
import { Refusal } from "#base/refusal";
import { type Bytes, MIB } from "#base/units";
import type { Env, Log, Tls } from "#env/env";
import { NodeEnv } from "#env/node/node-env";
import { type HostFacts, SCP_SETTINGS_DEFAULT, ScpHost, type ScpSettings } from "#initiator/scp-host";
import type { LinkAddress } from "#initiator/scp-link";
import type { ScpUnit } from "#initiator/scp-unit";
import { parseSecret } from "#proto/scp/proofs";
import { CONFIG_PORT, Version } from "#wire/scp/codes";
import { DeviceHandle } from "./handle.ts";

export interface ScpConnectOptions {
  /** Addresses of one server, one per network: "ADDRESS", "ADDRESS:PORT", "[IPV6]:PORT". */
  readonly servers: readonly string[];
  /** The name by which the server knows this host. */
  readonly host: string;
  /** 64 hex digits, from `ashlar host secret`. Without it only version 1 can be spoken. */
  readonly secret?: string;
  /** With a secret, fall back to version 1 where the server has nothing else. Default: no. */
  readonly allowVersion1?: boolean;
  /**
   * Speak TLS, or nothing. "secret": the secret is also the key of TLS, and proves both sides. Otherwise certificates:
   * `ca` says who may vouch for the server (without it, the authorities that Node knows), `cert` and `key` are the
   * host's own where the server wants them.
   */
  readonly tls?: "secret" | Pick<Tls, "ca" | "cert" | "key" | "serverName">;
  /** Checksums over data as well as headers. Default: yes. */
  readonly dataCrc?: boolean;
  readonly settings?: Partial<ScpSettings>;
  readonly memoryBytes?: Bytes;
  readonly log?: Log;
  /** An Env that is shared with others. */
  readonly env?: Env;
  /** How long to wait for the first configuration, in milliseconds. Default 10 000. */
  readonly timeoutMs?: number;
}

const MEMORY_BYTES_DEFAULT = 128 * MIB;
const TIMEOUT_MS_DEFAULT = 10_000;
const SILENT: Log = { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} };

/** A server's units as devices. It stays connected until it is closed, whatever happens to sockets and networks. */
export class ScpConnection {
  readonly env: Env;
  readonly host: ScpHost;
  readonly #done: () => void;

  constructor(env: Env, host: ScpHost, done: () => void) {
    this.env = env;
    this.host = host;
    this.#done = done;
  }

  /** What the server has assigned to this host now. */
  get units(): readonly ScpUnit[] {
    return this.host.units();
  }

  /** A unit by number or name, as promises and byte offsets. @throws Refusal not-found */
  open(unit: number | string): DeviceHandle {
    return new DeviceHandle(this.find(unit), this.env.memory, async () => {});
  }

  /** @throws Refusal not-found */
  find(unit: number | string): ScpUnit {
    const found = this.units.find((one) => (typeof unit === "number" ? one.number === unit : one.name === unit));
    if (found !== undefined) return found;
    const have = this.units.map((one) => `${one.number} (${one.name})`).join(", ");
    throw new Refusal(
      "not-found",
      `The server has no unit ${unit} for this host`,
      have === "" ? "It has none at all: `ashlar grant VOLUME HOST` gives it one." : `It has: ${have}.`,
    );
  }

  /** Networks, agents, retries: what `ashlar paths` shows. */
  get paths(): HostFacts {
    return this.host.facts();
  }

  addNetwork(server: string): void {
    this.host.addNetwork(parseServer(server));
  }
  removeNetwork(server: string): void {
    this.host.removeNetwork(parseServer(server).host);
  }

  /** Gives everything up; what is in flight fails. */
  async close(): Promise<void> {
    this.host.stop();
    await new Promise((resolve) => setTimeout(resolve, 0));
    this.#done();
  }
}

/** @throws Refusal bad-request, unreachable, not-allowed, timeout */
export async function connectScp(options: ScpConnectOptions): Promise<ScpConnection> {
  const secret = options.secret === undefined ? undefined : parseSecret(options.secret);
  if (options.secret !== undefined && secret === undefined)
    throw new Refusal("bad-request", "The secret is not 64 hex digits", "`ashlar host secret NAME` prints it.");
  if (options.tls !== undefined && (secret === undefined || options.allowVersion1 === true))
    throw new Refusal(
      "bad-request",
      "TLS belongs to SCP version 2",
      "Give the host's secret, and do not allow version 1.",
    );
  const addresses = options.servers.map(parseServer);
  if (addresses.length === 0) throw new Refusal("bad-request", "No server was given");
  const { log = SILENT, memoryBytes = MEMORY_BYTES_DEFAULT } = options;
  const own = options.env === undefined ? new NodeEnv({ memoryBytes, log }) : undefined;
  const env: Env = options.env ?? own!;
  const instance = new Uint8Array(16);
  env.random.fill(instance);
  const host = new ScpHost(env, {
    addresses,
    hostName: options.host,
    secret,
    requireSecret: secret !== undefined && options.allowVersion1 !== true,
    tls: options.tls === "secret" ? { psk: new Map([[options.host, secret!]]) } : options.tls,
    instance,
    versions: Version.ONE | Version.TWO,
    dataCrc: options.dataCrc ?? true,
    privilegedPort: process.getuid?.() === 0,
    settings: { ...SCP_SETTINGS_DEFAULT, ...options.settings },
  });
  host.start();
  try {
    await configured(host, options.timeoutMs ?? TIMEOUT_MS_DEFAULT);
  } catch (error) {
    host.stop();
    own?.close();
    throw error;
  }
  return new ScpConnection(env, host, () => own?.close());
}

/** The first configuration, or a refusal that says what stood in its way. */
function configured(host: ScpHost, timeoutMs: number): Promise<void> {
  return new Promise((resolve, reject) => {
    const timer = setInterval(() => {
      const { lastDown } = host.facts();
      const word = lastDown.split(":")[0] ?? "";
      if (host.up) finish();
      else if (FINAL[word] !== undefined) {
        const detail = lastDown.slice(word.length);
        finish(new Refusal("not-allowed", `${FINAL[word]}${detail}`, HINTS[word]));
      } else if (Date.now() > deadline)
        finish(
          new Refusal(
            lastDown === "" ? "timeout" : "unreachable",
            `The server does not answer: ${lastDown || "silence"}`,
          ),
        );
    }, 5);
    const deadline = Date.now() + timeoutMs;
    const finish = (error?: Refusal): void => {
      clearInterval(timer);
      if (error === undefined) resolve();
      else reject(error);
    };
  });
}

/** Ends of a first attempt that another attempt would not change. */
const FINAL: Readonly<Record<string, string>> = {
  refused: "The server refused this host",
  "version-mismatch": "The server and this host have no version in common",
  downgraded: "The server, or somebody on the way, offers less than was demanded",
  "tls-failed": "The server and this host do not come together under TLS",
  "server-not-proven": "The server does not know this host's secret: it is not the one it claims to be",
};
const HINTS: Readonly<Record<string, string>> = {
  refused: "Is the name right, and the secret (`ashlar host secret NAME`)? The server's log says why.",
  "version-mismatch": "Give the host's secret: version 2 needs one.",
  "tls-failed":
    "Does the server have this host's secret, or a certificate for this address from an authority in the CA file?",
  downgraded: "Does the server know this host's secret? Allow version 1 only if you trust the network.",
};

/** @throws Refusal bad-request */
export function parseServer(text: string): LinkAddress {
  const match = /^(?:\[([0-9a-f:.%]+)\]|([^:[\]\s]+)|([0-9a-f]*:[0-9a-f:.%]+))(?::(\d{1,5}))?$/i.exec(text);
  const port = match?.[4] === undefined ? CONFIG_PORT : Number(match[4]);
  const name = match?.[1] ?? match?.[2] ?? match?.[3];
  if (name === undefined || port < 1 || port > 65535)
    throw new Refusal("bad-request", `"${text}" is not a server`, "Write ADDRESS, ADDRESS:PORT, or [IPV6]:PORT.");
  return { host: name, port };
}
