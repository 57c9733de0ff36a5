/** The SCP front of a lane. */
import { Refusal } from "#base/refusal";
import { Meters } from "#device/meter";
import { type Address, isNetError } from "#env/env";
import { SCP_FRONT_DEFAULTS, ScpFront } from "#target/scp-front";
import type { Front, FrontContext } from "./front.ts";
import { LISTEN_HINTS, LISTEN_REFUSALS } from "./listen-refusals.ts";
import type { FrontStart } from "./messages.ts";

interface ScpOptions {
  readonly scpAnySourcePort?: boolean;
  readonly networks?: readonly string[];
  /** 32 hex digits. */
  readonly serverUuid?: string;
  readonly run?: number;
}

export function makeScpFront({ env, table }: FrontContext, start: FrontStart): Front {
  const { scpAnySourcePort = false, networks = [], serverUuid = "", run } = start.options as ScpOptions;
  const meters = new Meters();
  const hex = serverUuid.replaceAll("-", "").padEnd(32, "0");
  const front = new ScpFront(env, table, {
    ...SCP_FRONT_DEFAULTS,
    anySourcePort: scpAnySourcePort,
    networks,
    run: run ?? 1 + env.random.below(0xffff_ffff),
    serverId: Uint8Array.from({ length: 16 }, (_, i) => Number.parseInt(hex.slice(2 * i, 2 * i + 2), 16)),
    meterOf: (device) => meters.of(device),
    certificate: start.tls ?? {},
    tlsRequired: start.tlsRequired,
  });
  return {
    *listen(address: Address) {
      if (!("host" in address)) throw new Refusal("bad-request", "SCP listens on TCP only", "Give --scp ADDR:PORT.");
      const at = yield* front.listen(address);
      if (isNetError(at))
        throw new Refusal(LISTEN_REFUSALS[at.fault], `SCP cannot listen: ${at.detail}`, LISTEN_HINTS[at.fault]);
      return at;
    },
    resume: (line) => line.close(),
    connections: () =>
      front.connections().map(({ host, peer, kind, version, tls, since, requests }) => ({
        peer: host === "" ? peer : `${host} at ${peer}`,
        export: `${kind} socket, version ${version}${tls ? ", TLS" : ""}`,
        since,
        requests,
      })),
    meters: () => meters.byName,
    drain: () => front.drain(),
  };
}
