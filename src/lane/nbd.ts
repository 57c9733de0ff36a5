/** The NBD front of a lane. */
import { Refusal } from "#base/refusal";
import { type Address, isNetError, type Line } from "#env/env";
import type { Agreement } from "#proto/nbd/negotiation";
import { CONNECTIONS_MAX, NbdFront, type NbdFrontFigures } from "#target/nbd-front";
import { LaneExports } from "./exports.ts";
import type { Front, FrontContext } from "./front.ts";
import { LISTEN_HINTS, LISTEN_REFUSALS } from "./listen-refusals.ts";
import type { ConnectionFacts, FrontStart } from "./messages.ts";

/** What the front is told of its own; as many connections as the process may have files, if that is less than usual. */
interface NbdOptions {
  readonly connectionsMax?: number | undefined;
}

/** What a lane needs to go on with a connection that another one has negotiated. */
interface Resumed {
  readonly agreement: Agreement;
  readonly secure: boolean;
  readonly unread: Uint8Array;
}

export function makeNbdFront({ env, table, directory, handOver }: FrontContext, start: FrontStart): Front {
  const { tls, tlsRequired, trusted, ownOnly } = start;
  const handsOver = handOver !== undefined && !ownOnly;
  const exports = new LaneExports(table, directory, { trusted, ownOnly, tlsOffered: tls !== undefined, handsOver });
  const { connectionsMax } = start.options as NbdOptions;
  const front = new NbdFront(env, exports, {
    ...(connectionsMax === undefined ? {} : { connectionsMax: Math.min(connectionsMax, CONNECTIONS_MAX) }),
    tls: tls === undefined ? "off" : tlsRequired ? "require" : "allow",
    ...(tls === undefined ? {} : { identity: tls }),
    ...(handsOver ? { handOver: ({ line, lane, ...state }) => handOver(line, lane, state satisfies Resumed) } : {}),
  });
  const connections = (): ConnectionFacts[] => {
    const now = env.clock.now();
    return [...front.connections].map((connection) => ({
      peer: connection.peer,
      export: connection.agreement.name,
      since: env.clock.date() - (now - connection.since),
      requests: connection.requests,
    }));
  };
  return {
    *listen(address: Address) {
      const at = yield* front.listen(address);
      if (isNetError(at))
        throw new Refusal(LISTEN_REFUSALS[at.fault], `NBD cannot listen: ${at.detail}`, LISTEN_HINTS[at.fault]);
      return at;
    },
    resume(line: Line, state: unknown) {
      const { agreement, secure, unread } = state as Resumed;
      front.resume(line, agreement, secure, unread);
    },
    connections,
    facts: (): NbdFrontFigures => front.figures,
    meters: () => front.meters,
    drain: () => front.drain(),
  };
}
