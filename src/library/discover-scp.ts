/** Which SCP servers there are on the networks of this machine: `discover()`. */
import { networkInterfaces } from "node:os";
import { Refusal } from "#base/refusal";
import { promiseOf } from "#base/task";
import { MIB } from "#base/units";
import { NodeEnv } from "#env/node/node-env";
import { discoverScp, type FoundServer } from "#initiator/scp-discover";
import { DISCOVERY_PORT } from "#wire/scp/codes";

export interface DiscoverOptions {
  /** Where to ask instead of the broadcast addresses of all networks: "ADDRESS" or "ADDRESS:PORT". */
  readonly to?: readonly string[];
  /** Milliseconds. Default 1000. */
  readonly waitMs?: number;
}

const WAIT_MS_DEFAULT = 1000;

/** @throws Refusal bad-request, unsupported */
export async function discover(options: DiscoverOptions = {}): Promise<readonly FoundServer[]> {
  const given = options.to?.map(parseTarget);
  const to = () => given ?? broadcastAddresses().map(parseTarget);
  const env = new NodeEnv({ memoryBytes: 2 * MIB, log: { debug() {}, info() {}, warn() {}, error() {} } });
  try {
    const found = await promiseOf(discoverScp(env, to, options.waitMs ?? WAIT_MS_DEFAULT));
    if (found === undefined) throw new Refusal("unsupported", "This machine lets nobody send datagrams");
    return found;
  } finally {
    env.close();
  }
}

/** Of every IPv4 network that this machine is on; loopback's, too. */
function broadcastAddresses(): string[] {
  const all = Object.values(networkInterfaces()).flatMap((addresses) => addresses ?? []);
  const found = all
    .filter(({ family }) => family === "IPv4")
    .map(({ address, netmask }) => {
      const mask = netmask.split(".").map(Number);
      return address
        .split(".")
        .map((byte, i) => Number(byte) | (~mask[i]! & 255))
        .join(".");
    });
  return [...new Set(found), "127.0.0.1"];
}

function parseTarget(text: string): { host: string; port: number } {
  const match = /^(\d+\.\d+\.\d+\.\d+|\[[0-9a-f:]+\])(?::(\d{1,5}))?$/i.exec(text);
  if (match === null || Number(match[2] ?? 1) > 65535)
    throw new Refusal("bad-request", `"${text}" is not an address to ask at`, "Write ADDRESS or ADDRESS:PORT.");
  return { host: match[1]!.replace(/[[\]]/g, ""), port: match[2] === undefined ? DISCOVERY_PORT : Number(match[2]) };
}
