/**
 * Which portals an initiator is told of (SendTargets, RFC 7143 §13.8, Appendix C): those that it can reach from where it
 * has come, as far as that can be known, and those that the operator has said are for its network.
 */
import { addressBytes, isInNetwork, parseNetwork } from "#base/network";
import type { PortalRecord } from "#base/rights";
import type { Address } from "#env/env";
import { ISCSI_PORT } from "#wire/iscsi/codes";

/** Where the target listens. */
export interface Portal {
  readonly address: Address;
}

/** From where a connection comes, and by which portal. */
export interface Arrival {
  readonly portal: Portal;
  readonly host: string;
  readonly localHost: string;
}

/** `10.0.0.5:3260`, `[fd00::5]:3260`: how portals are named by operators and to initiators. */
export function portalName(address: Address): string {
  return "host" in address ? `${bracket(address.host)}:${address.port}` : "";
}

/** What the operator has said about a portal; group 1 for everybody when nothing was said. */
export function portalSettings(portal: Portal, records: readonly PortalRecord[]): PortalRecord {
  const address = portalName(portal.address);
  return records.find((one) => one.address === address) ?? { address, groupTag: 1, networks: [], advertise: undefined };
}

/** TargetAddress values for an initiator, the group tag with each: every address once. */
export function portalsFor(
  arrival: Arrival,
  portals: readonly Portal[],
  records: readonly PortalRecord[],
): readonly string[] {
  const told = portals.flatMap((portal) => {
    const settings = portalSettings(portal, records);
    const isMeant =
      settings.networks.length > 0
        ? settings.networks.some((network) => isInNetwork(arrival.host, parseNetwork(network)!))
        : portal === arrival.portal || settings.advertise !== undefined || isReachable(portal, arrival);
    return isMeant ? [`${settings.advertise ?? reachedAt(portal, arrival)},${settings.groupTag}`] : [];
  });
  // Whoever has come by a portal knows it already.
  if (told.length === 0)
    told.push(`${reachedAt(arrival.portal, arrival)},${portalSettings(arrival.portal, records).groupTag}`);
  return [...new Set(told)];
}

/** Addresses of this machine alone are told to those on it; what listens everywhere, by the family that they came by. */
function isReachable({ address }: Portal, { localHost }: Arrival): boolean {
  if (!("host" in address)) return true;
  if (isWildcard(address.host)) return address.host === "::" || isIpv4(localHost);
  return isLoopback(address.host) === isLoopback(localHost) && isLinkLocal(address.host) === isLinkLocal(localHost);
}

function reachedAt({ address }: Portal, { localHost }: Arrival): string {
  if (!("host" in address)) return `${bracket(localHost)}:${ISCSI_PORT}`;
  return `${bracket(isWildcard(address.host) ? localHost : address.host)}:${address.port}`;
}

const bracket = (host: string): string => (host.includes(":") ? `[${host.replace(/%.*$/, "")}]` : host);
const isWildcard = (host: string): boolean => host === "" || host === "0.0.0.0" || host === "::";
const isIpv4 = (host: string): boolean => addressBytes(host)?.length === 4;
const isLoopback = (host: string): boolean => inOneOf(host, LOOPBACK);
const isLinkLocal = (host: string): boolean => inOneOf(host, LINK_LOCAL);
const LOOPBACK = ["127.0.0.0/8", "::1"].map((text) => parseNetwork(text)!);
const LINK_LOCAL = ["169.254.0.0/16", "fe80::/10"].map((text) => parseNetwork(text)!);
const inOneOf = (host: string, networks: typeof LOOPBACK): boolean => networks.some((one) => isInNetwork(host, one));
