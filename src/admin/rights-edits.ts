/**
 * Edits of hosts and grants: pure functions from one state to the next, which refuse what makes no sense and say what
 * to do instead. `Rights.change` makes the result durable and hands it to the lanes.
 */
import { isIP } from "node:net";
import { checkName } from "#base/names";
import { Refusal } from "#base/refusal";
import {
  type Access,
  type ChapRecord,
  type DataPortRecord,
  type GrantRecord,
  type HostRecord,
  newHostRecord,
  type RangeRecord,
  type RightsState,
  UNIT_MAX,
} from "#base/rights";

/** Of a CHAP secret, in bytes (RFC 7143 §9.2.1 asks for 96 bits where there is no IPsec). */
const CHAP_SECRET_MIN = 12;

export interface HostGiven {
  readonly addresses?: readonly string[] | undefined;
  readonly iqns?: readonly string[] | undefined;
  readonly tlsNames?: readonly string[] | undefined;
  readonly chap?: ChapRecord | undefined;
  readonly mutualChap?: ChapRecord | undefined;
  readonly requireSecret?: boolean | undefined;
  readonly requireTls?: boolean | undefined;
  readonly dataSocketsMax?: number | undefined;
  readonly dataPorts?: readonly DataPortRecord[] | undefined;
}

export function hostOf(state: RightsState, name: string): HostRecord {
  const host = state.hosts.find((one) => one.name === name);
  if (host === undefined) throw new Refusal("not-found", `There is no host "${name}"`, "`ashlar host ls` shows them.");
  return host;
}

export function addHost(state: RightsState, name: string, given: HostGiven): RightsState {
  checkName("host", name);
  if (state.hosts.some((one) => one.name === name))
    throw new Refusal("exists", `There is already a host "${name}"`, "Choose another name, or remove it first.");
  const host = withGiven(newHostRecord(name), given);
  checkHost(state, host);
  return { ...state, hosts: [...state.hosts, host] };
}

export function changeHost(state: RightsState, name: string, given: HostGiven): RightsState {
  const host = withGiven(hostOf(state, name), given);
  checkHost(state, host);
  return replaceHost(state, host);
}

export function setSecret(state: RightsState, name: string, secret: string): RightsState {
  return replaceHost(state, { ...hostOf(state, name), secret });
}

/** A host with grants goes with them: whoever removes it means that. */
export function removeHost(state: RightsState, name: string): RightsState {
  hostOf(state, name);
  return {
    ...state,
    hosts: state.hosts.filter((one) => one.name !== name),
    grants: state.grants.filter((grant) => grant.host !== name),
    target: { ...state.target, redirects: state.target.redirects.filter((one) => one.host !== name) },
  };
}

export interface GrantGiven {
  readonly device: string;
  readonly host: string;
  readonly access: Access;
  readonly unit: number | undefined;
  readonly range?: RangeRecord | undefined;
}

/** Gives a host a device, or changes what it may do with it. Without a number, it gets the one that it had before. */
export function grant(state: RightsState, given: GrantGiven): RightsState {
  const { device, range } = given;
  const host = hostOf(state, given.host);
  const mine = state.grants.filter((one) => one.host === host.name && one.device !== device);
  if (mine.length >= state.limits.unitsPerHostMax)
    throw new Refusal(
      "not-allowed",
      `Host "${host.name}" has ${mine.length} units, which is the limit`,
      "Revoke one, or raise it: `ashlar limits --units-per-host N`.",
    );
  const unit = given.unit ?? host.units[device] ?? lowestUnused(host);
  if (!Number.isInteger(unit) || unit < 0 || unit > UNIT_MAX)
    throw new Refusal("bad-request", `${unit} cannot be a unit number`, `It is a whole number from 0 to ${UNIT_MAX}.`);
  const other = mine.find((one) => one.unit === unit);
  if (other !== undefined)
    throw new Refusal("exists", `Unit ${unit} of "${host.name}" is "${other.device}"`, "Choose another --unit.");
  // A number that another device had is given away only because somebody asked for exactly that.
  const units = Object.fromEntries(
    Object.entries(host.units).filter(([name, number]) => name === device || number !== unit),
  );
  const record: GrantRecord = { host: host.name, device, unit, access: given.access, range };
  const grants = state.grants.filter((one) => one.host !== host.name || one.device !== device);
  return replaceHost({ ...state, grants: [...grants, record] }, { ...host, units: { ...units, [device]: unit } });
}

export function revoke(state: RightsState, device: string, host: string): RightsState {
  const grants = state.grants.filter((one) => one.host !== host || one.device !== device);
  if (grants.length === state.grants.length) {
    hostOf(state, host);
    throw new Refusal(
      "not-found",
      `"${device}" is not granted to "${host}"`,
      `\`ashlar host show ${host}\` shows what is.`,
    );
  }
  return { ...state, grants };
}

/**
 * A device is gone for good: nobody keeps a grant of it. Its numbers stay taken, under a name that no device can have:
 * a host that still believes in the old unit must not find another one there.
 */
export function forgetDevice(state: RightsState, device: string): RightsState {
  return {
    ...state,
    grants: state.grants.filter((one) => one.device !== device),
    hosts: state.hosts.map((host) => {
      const { [device]: unit, ...units } = host.units;
      return unit === undefined ? host : { ...host, units: { ...units, [`(deleted) ${unit}`]: unit } };
    }),
  };
}

function lowestUnused(host: HostRecord): number {
  const used = new Set(Object.values(host.units));
  let unit = 0;
  while (used.has(unit)) unit++;
  return unit;
}

function withGiven(host: HostRecord, given: HostGiven): HostRecord {
  const next = { ...host };
  for (const [key, value] of Object.entries(given)) if (value !== undefined) Object.assign(next, { [key]: value });
  return next;
}

function replaceHost(state: RightsState, host: HostRecord): RightsState {
  return { ...state, hosts: state.hosts.map((one) => (one.name === host.name ? host : one)) };
}

/** Credentials are whose they are: two hosts cannot share one. */
function checkHost(state: RightsState, host: HostRecord): void {
  const bad = (message: string, hint: string) => new Refusal("bad-request", message, hint);
  for (const address of host.addresses)
    if (isIP(address) === 0) throw bad(`"${address}" is no IP address`, "Give a numeric IPv4 or IPv6 address.");
  for (const iqn of host.iqns)
    if (!/^(iqn\.\d{4}-\d{2}\.|eui\.|naa\.)[\x21-\x7e]+$/.test(iqn) || iqn.length > 223)
      throw bad(`"${iqn}" is no iSCSI name`, "It begins with iqn.YYYY-MM., eui. or naa., see RFC 7143 §4.2.7.");
  for (const chap of [host.chap, host.mutualChap])
    if (chap !== undefined && Buffer.byteLength(chap.secret) < CHAP_SECRET_MIN)
      throw bad(`The CHAP secret of "${chap.user}" is too short`, `Give at least ${CHAP_SECRET_MIN} bytes.`);
  if (host.mutualChap !== undefined && host.chap === undefined)
    throw bad("Mutual CHAP without CHAP makes no sense", "Give --chap-user and --chap-secret-file, too.");
  if (host.chap !== undefined && host.chap.secret === host.mutualChap?.secret)
    throw bad("Both directions of CHAP have the same secret", "They must differ (RFC 7143 §9.2.1).");
  if (host.dataSocketsMax !== undefined && (host.dataSocketsMax < 1 || host.dataSocketsMax > 1024))
    throw bad(`${host.dataSocketsMax} data sockets make no sense`, "Give 1 to 1024.");
  for (const other of state.hosts) {
    if (other.name === host.name) continue;
    const shared = [
      ...host.addresses.filter((one) => other.addresses.includes(one)),
      ...host.iqns.filter((one) => other.iqns.includes(one)),
      ...host.tlsNames.filter((one) => other.tlsNames.includes(one)),
    ][0];
    if (shared !== undefined)
      throw new Refusal("exists", `${shared} belongs to host "${other.name}"`, "One credential stands for one host.");
  }
}
