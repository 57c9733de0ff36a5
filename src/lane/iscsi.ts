/** The iSCSI front of a lane. */
import { createHash } from "node:crypto";
import { Refusal } from "#base/refusal";
import { Meters } from "#device/meter";
import { type Address, isNetError } from "#env/env";
import { Version } from "#store/version";
import { IscsiFront } from "#target/iscsi-front";
import { portalName } from "#target/iscsi-portals";
import type { Front, FrontContext } from "./front.ts";
import { LISTEN_HINTS, LISTEN_REFUSALS } from "./listen-refusals.ts";
import type { FrontStart, IscsiFacts, PoolFacts } from "./messages.ts";
import { RemoteDevice } from "./remote-device.ts";

interface IscsiOptions {
  /** 32 hex digits, perhaps with dashes. */
  readonly serverUuid?: string;
}
/** RFC 7143 §4.2.7.2; the rest of the name is the server's UUID, which makes it unique and lasting. */
const NAME_PREFIX = "iqn.2024-01.org.ashlar";

export function makeIscsiFront({ env, table, directory, book }: FrontContext, start: FrontStart): Front {
  const { serverUuid = "" } = start.options as IscsiOptions;
  // Of the disk that all volumes share; nothing is known before it was looked at for the first time.
  let space: PoolFacts = { available: 0, used: 0, soft: 0 };
  const meters = new Meters();
  const provisioning = { available: () => space.available, used: () => space.used, soft: () => space.soft };
  const front = new IscsiFront(env, table, directory, book, {
    targetName: `${NAME_PREFIX}:${serverUuid.replaceAll("-", "").toLowerCase()}`,
    meterOf: (device) => meters.of(device),
    hash: (algorithm, bytes) => createHash(algorithm).update(bytes).digest(),
    // Volumes and snapshots of the log engine are thin; partitions lie in place, and keep what is unmapped. What other
    // lanes have is of the engine.
    unitOptions: (name) => {
      const device = directory.find(name);
      return device instanceof Version || device instanceof RemoteDevice ? { provisioning } : { thin: false };
    },
  });
  return {
    *listen(address: Address) {
      if (!("host" in address))
        throw new Refusal("bad-request", "iSCSI listens on TCP only", "Give --iscsi ADDR:PORT.");
      const at = yield* front.listen(address);
      if (isNetError(at))
        throw new Refusal(LISTEN_REFUSALS[at.fault], `iSCSI cannot listen: ${at.detail}`, LISTEN_HINTS[at.fault]);
      return at;
    },
    resume: (line) => line.close(),
    connections: () =>
      front.sessions.flatMap((session) =>
        [...session.connections.values()].flatMap(({ peer }) =>
          (session.units?.list() ?? []).map(({ lun }) => ({
            peer: `${session.host} at ${peer}`,
            export: table.grant(session.host, lun)?.device ?? `unit ${lun}`,
            since: session.startedAt,
            requests: session.commands,
          })),
        ),
      ),
    meters: () => meters.byName,
    facts: () => describe(front),
    space: (now) => {
      const before = space.available;
      space = now;
      front.spaceChanged(before, now.available);
    },
    endSession: (session) => front.endSession(session),
    drain: () => front.drain(),
  };
}

function describe(front: IscsiFront): IscsiFacts {
  return {
    iqn: front.targetName,
    portals: front.portals.map((portal) => ({ address: portalName(portal.address), groupTag: front.groupOf(portal) })),
    sessions: front.sessions.map((session) => {
      const connections = [...session.connections.values()];
      return {
        session: session.tsih,
        host: session.host,
        initiator: session.initiatorName,
        isid: session.isid,
        kind: session.isDiscovery ? "discovery" : "normal",
        since: session.startedAt,
        connections: connections.map(({ peer }) => peer),
        units: session.units?.list().map(({ lun }) => lun) ?? [],
        commands: session.commands,
        headerDigest: connections.some(({ parameters }) => parameters.headerDigest),
        dataDigest: connections.some(({ parameters }) => parameters.dataDigest),
        errorRecoveryLevel: session.parameters.errorRecoveryLevel,
      };
    }),
    refusals: front.refusals,
  };
}
