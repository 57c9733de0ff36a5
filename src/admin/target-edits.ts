/** Edits of what the iSCSI target tells initiators: portals and redirections. Pure, as the edits of hosts and grants. */
import { addressBytes, parseNetwork } from "#base/network";
import { Refusal } from "#base/refusal";
import type { PortalRecord, RedirectRecord, RightsState, TargetRecord } from "#base/rights";
import { formatAddress, parseAddress } from "./address.ts";
import { FRONTS } from "./fronts.ts";
import { hostOf } from "./rights-edits.ts";

const GROUP_TAG_MAX = 0xffff;

export interface PortalGiven {
  readonly groupTag?: number | undefined;
  readonly networks?: readonly string[] | undefined;
  readonly advertise?: string | undefined;
}

/** Says of a portal which group it is in, for whom it is, and what is told of it; what is not given stays. @throws Refusal */
export function setPortal(state: RightsState, portal: string, given: PortalGiven): RightsState {
  const address = portalAddress(portal);
  const before = state.target.portals.find((one) => one.address === address);
  const record: PortalRecord = {
    address,
    groupTag: given.groupTag ?? before?.groupTag ?? 1,
    networks: given.networks ?? before?.networks ?? [],
    advertise: given.advertise === undefined ? before?.advertise : reachable(given.advertise),
  };
  const { groupTag, networks } = record;
  if (!Number.isInteger(groupTag) || groupTag < 1 || groupTag > GROUP_TAG_MAX)
    throw new Refusal(
      "bad-request",
      `${groupTag} is no portal group tag`,
      `It is a number from 1 to ${GROUP_TAG_MAX}.`,
    );
  for (const network of networks)
    if (parseNetwork(network) === undefined)
      throw new Refusal("bad-request", `"${network}" is no network`, "Write 10.1.0.0/16 or fd00::/64.");
  const others = state.target.portals.filter((one) => one.address !== address);
  return withTarget(state, { portals: [...others, record] });
}

/** Forgets what was said of a portal. @throws Refusal not-found */
export function resetPortal(state: RightsState, portal: string): RightsState {
  const address = portalAddress(portal);
  const portals = state.target.portals.filter((one) => one.address !== address);
  if (portals.length === state.target.portals.length)
    throw new Refusal("not-found", `Nothing was said of portal ${address}`, "`ashlar target show` lists the portals.");
  return withTarget(state, { portals });
}

/** Sends a host elsewhere from its next login on: RFC 7143 §11.13.5. @throws Refusal */
export function setRedirect(state: RightsState, given: RedirectRecord): RightsState {
  hostOf(state, given.host);
  const record = { ...given, address: reachable(given.address) };
  const others = state.target.redirects.filter((one) => one.host !== given.host);
  return withTarget(state, { redirects: [...others, record] });
}

/** @throws Refusal not-found */
export function removeRedirect(state: RightsState, host: string): RightsState {
  const redirects = state.target.redirects.filter((one) => one.host !== host);
  if (redirects.length === state.target.redirects.length)
    throw new Refusal("not-found", `"${host}" is not sent elsewhere`, "`ashlar target redirect ls` shows who is.");
  return withTarget(state, { redirects });
}

const withTarget = (state: RightsState, change: Partial<TargetRecord>): RightsState => ({
  ...state,
  target: { ...state.target, ...change },
});

/** As a portal is called when it listens. */
function portalAddress(text: string): string {
  const address = parseAddress(text, FRONTS["iscsi"]!.port);
  if (address !== undefined && "host" in address) return formatAddress(address);
  throw new Refusal("bad-request", `"${text}" is no portal`, "Write ADDR:PORT or [IPv6]:PORT, as `target show` does.");
}

/** §13.8: `address[:port]` without a group tag; names are allowed. */
function reachable(text: string): string {
  const match = /^(\[[^\]]+\]|[^:,\s]+)(?::(\d{1,5}))?$/.exec(text);
  const isName = match !== null && !match[1]!.startsWith("[");
  const isSix = match !== null && !isName && addressBytes(match[1]!.slice(1, -1))?.length === 16;
  const port = Number(match?.[2] ?? FRONTS["iscsi"]!.port);
  if (!(isName || isSix) || port < 1 || port > 0xffff)
    throw new Refusal(
      "bad-request",
      `"${text}" is nowhere to send an initiator`,
      "Write ADDR[:PORT] or [IPv6][:PORT].",
    );
  return `${match![1]!}:${port}`;
}
