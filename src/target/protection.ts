/**
 * The protection table: the only way from a front to a device. It knows the hosts and their credentials, the grants,
 * and the devices of its lane; it says who somebody is, lists what a host may see, opens a unit or an export as a
 * guarded device, and tells each host's listeners what changed for that host, and for no other.
 *
 * The rights come as snapshots from the control plane (`load`). A right that a new snapshot no longer has is closed
 * before `load` returns: whatever is submitted from then on is "denied".
 */
import {
  type Access,
  type GrantRecord,
  type HostRecord,
  RIGHTS_EMPTY,
  type RightsLimits,
  type RightsState,
  type TargetRecord,
} from "#base/rights";
import type { BlockDevice } from "#device/device";
import { type Gate, Guard } from "#device/guard";

export type Front = "nbd" | "scp" | "iscsi";

/** The devices of this lane by name: volumes, snapshots `volume@snapshot`, partitions. */
export interface DeviceDirectory {
  find(name: string): BlockDevice | undefined;
  names(): Iterable<string>;
  /** Tells the name of a device that appeared, disappeared, or was replaced by another one. Returns how to stop. */
  watch(changed: (name: string) => void): () => void;
}

/** What a connection has shown of itself. What is not proven is left out. */
export interface Credentials {
  /** Numeric address of the peer, "" on a Unix socket. */
  readonly address?: string;
  /** Proven by TLS. */
  readonly tlsName?: string;
  readonly iqn?: string;
}

/** One thing that a host may open. */
export interface Listed {
  readonly device: string;
  readonly unit: number;
  readonly access: Access;
  /** The device behind it, guarded for nobody: for its size, block size and uuid only. Undefined while it is away. */
  readonly shape: Pick<BlockDevice, "size" | "blockSize" | "preferredBlockSize" | "readOnly" | "uuid"> | undefined;
}

export type HostChange =
  | { readonly kind: "unit-added" | "unit-removed" | "unit-resized" | "unit-access"; readonly unit: number }
  /** The secret, the addresses or another credential changed: sessions must prove themselves again. */
  | { readonly kind: "credentials" }
  | { readonly kind: "removed" };
export type HostWatcher = (change: HostChange) => void;

/** Why nothing was opened. "away": the host has the right, but the device is not here. */
export type NotOpened = "unknown" | "denied" | "away";
export const isNotOpened = (value: Guard | NotOpened): value is NotOpened => typeof value === "string";

interface Opened {
  readonly guard: Guard;
  readonly grant: GrantRecord | undefined;
  readonly device: string;
}

/** The name under which local NBD clients without credentials appear. It is no host's name (hosts have no spaces). */
export const LOCAL = "(local)";

export class ProtectionTable {
  readonly #directory: DeviceDirectory;
  readonly #gateOf: ((device: BlockDevice) => Gate | undefined) | undefined;
  #state: RightsState = RIGHTS_EMPTY;
  readonly #hosts = new Map<string, HostRecord>();
  readonly #byAddress = new Map<string, HostRecord>();
  readonly #byTlsName = new Map<string, HostRecord>();
  readonly #byIqn = new Map<string, HostRecord>();
  /** Grants per host, by unit. */
  readonly #grants = new Map<string, Map<number, GrantRecord>>();
  readonly #watchers = new Map<string, Set<HostWatcher>>();
  readonly #opened = new Map<string, Set<Opened>>();
  /** What has been told about each granted device, to tell changes from repetitions. */
  readonly #sizes = new Map<string, { size: number; stop: () => void }>();

  /** @param gateOf what else stands before a device, asked when it is opened: reservations. */
  constructor(directory: DeviceDirectory, gateOf?: (device: BlockDevice) => Gate | undefined) {
    this.#directory = directory;
    this.#gateOf = gateOf;
    directory.watch((name) => this.#deviceChanged(name));
  }

  get limits(): RightsLimits {
    return this.#state.limits;
  }
  get generation(): number {
    return this.#state.generation;
  }
  /** Settings of the iSCSI target. */
  get target(): TargetRecord {
    return this.#state.target;
  }
  get hosts(): readonly HostRecord[] {
    return this.#state.hosts;
  }

  /** Takes a new snapshot: closes what is no longer granted, then tells each host what changed for it. */
  load(state: RightsState): void {
    const before = this.#state;
    this.#state = state;
    const grantsBefore = new Map(this.#grants);
    this.#index(state);
    const hosts = new Set([...before.hosts, ...state.hosts].map((host) => host.name));
    const told: [string, HostChange][] = [];
    for (const name of hosts) {
      const changes = this.#compareUnits(grantsBefore.get(name), this.#grants.get(name));
      for (const change of changes) told.push([name, change]);
      const old = before.hosts.find((host) => host.name === name);
      const now = this.#hosts.get(name);
      if (now === undefined) told.push([name, { kind: "removed" }]);
      else if (old !== undefined && !sameCredentials(old, now)) told.push([name, { kind: "credentials" }]);
    }
    for (const [name, opened] of this.#opened) for (const one of [...opened]) this.#recheck(name, one);
    for (const name of this.#sizes.keys()) if (!this.#isGranted(name)) this.#forgetSize(name);
    for (const grant of state.grants) this.#watchSize(grant.device);
    for (const [name, change] of told) this.#tell(name, change);
  }

  host(name: string): HostRecord | undefined {
    return this.#hosts.get(name);
  }

  /** The host that these credentials prove. The strongest one given decides: TLS name, then IQN, then address. */
  identify(given: Credentials): HostRecord | undefined {
    if (given.tlsName !== undefined && given.tlsName !== "") return this.#byTlsName.get(given.tlsName);
    if (given.iqn !== undefined) return this.#byIqn.get(given.iqn.toLowerCase());
    return given.address === undefined ? undefined : this.#byAddress.get(canonicalAddress(given.address));
  }

  /** What `host` may open, by unit number. For LOCAL: what the local rule lets it open, without units (-1). */
  list(host: string): Listed[] {
    if (host === LOCAL) {
      const listed: Listed[] = [];
      for (const device of this.#directory.names())
        if (this.#isLocal(device))
          listed.push({ device, unit: -1, access: "read-write", shape: this.#directory.find(device) });
      return listed;
    }
    const grants = [...(this.#grants.get(host)?.values() ?? [])].sort((a, b) => a.unit - b.unit);
    return grants.map((grant) => ({
      device: grant.device,
      unit: grant.unit,
      access: grant.access,
      shape: this.#shapeOf(grant),
    }));
  }

  /** The grant of unit `unit`, as it stands now. */
  grant(host: string, unit: number): GrantRecord | undefined {
    return this.#grants.get(host)?.get(unit);
  }

  /**
   * Opens a unit (by number) or an export (by device name) for a host. The guard is closed by the table when the right
   * ends; whoever opened it gives it back with `close`.
   */
  open(host: string, what: number | string): Guard | NotOpened {
    const grant = typeof what === "number" ? this.#grants.get(host)?.get(what) : this.#grantByName(host, what);
    if (grant === undefined) {
      if (typeof what === "number") return "unknown";
      const device = this.#directory.find(what);
      if (host !== LOCAL || !this.#isLocal(what)) return device === undefined ? "unknown" : "denied";
      return device === undefined ? "unknown" : this.#keep(host, what, new Guard(device, "read-write"), undefined);
    }
    const device = this.#directory.find(grant.device);
    if (device === undefined) return "away";
    return this.#keep(host, grant.device, new Guard(device, grant.access, grant.range), grant);
  }

  close(host: string, guard: Guard): void {
    const opened = this.#opened.get(host);
    for (const one of opened ?? []) if (one.guard === guard) opened?.delete(one);
    if (opened?.size === 0) this.#opened.delete(host);
    guard.close();
  }

  /** Tells of changes that concern `host`. Returns how to stop. */
  watch(host: string, watcher: HostWatcher): () => void {
    let watchers = this.#watchers.get(host);
    if (watchers === undefined) this.#watchers.set(host, (watchers = new Set()));
    watchers.add(watcher);
    return () => {
      watchers.delete(watcher);
      if (watchers.size === 0 && this.#watchers.get(host) === watchers) this.#watchers.delete(host);
    };
  }

  #index(state: RightsState): void {
    for (const map of [this.#hosts, this.#byAddress, this.#byTlsName, this.#byIqn, this.#grants]) map.clear();
    for (const host of state.hosts) {
      this.#hosts.set(host.name, host);
      for (const address of host.addresses) this.#byAddress.set(canonicalAddress(address), host);
      for (const name of host.tlsNames) this.#byTlsName.set(name, host);
      for (const iqn of host.iqns) this.#byIqn.set(iqn.toLowerCase(), host);
      this.#grants.set(host.name, new Map());
    }
    for (const grant of state.grants) this.#grants.get(grant.host)?.set(grant.unit, grant);
  }

  #compareUnits(
    before: ReadonlyMap<number, GrantRecord> | undefined,
    now: ReadonlyMap<number, GrantRecord> | undefined,
  ): HostChange[] {
    const changes: HostChange[] = [];
    for (const [unit, old] of before ?? []) {
      const grant = now?.get(unit);
      if (grant === undefined || grant.device !== old.device) changes.push({ kind: "unit-removed", unit });
      else if (grant.range?.offset !== old.range?.offset) changes.push({ kind: "unit-removed", unit });
      else if (grant.range?.length !== old.range?.length) changes.push({ kind: "unit-resized", unit });
      else if (grant.access !== old.access) changes.push({ kind: "unit-access", unit });
    }
    for (const [unit, grant] of now ?? []) {
      const old = before?.get(unit);
      if (old === undefined || old.device !== grant.device || old.range?.offset !== grant.range?.offset)
        changes.push({ kind: "unit-added", unit });
    }
    return changes;
  }

  #recheck(host: string, opened: Opened): void {
    if (opened.grant === undefined) {
      if (!this.#isLocal(opened.device)) this.close(host, opened.guard);
      return;
    }
    const { unit, device, range } = opened.grant;
    const now = this.#grants.get(host)?.get(unit);
    const same = now?.device === device && now.range?.offset === range?.offset && now.range?.length === range?.length;
    if (same) opened.guard.setAccess(now.access);
    else this.close(host, opened.guard);
  }

  #keep(host: string, device: string, guard: Guard, grant: GrantRecord | undefined): Guard {
    guard.gate = this.#gateOf?.(guard);
    let opened = this.#opened.get(host);
    if (opened === undefined) this.#opened.set(host, (opened = new Set()));
    opened.add({ guard, grant, device });
    return guard;
  }

  #grantByName(host: string, device: string): GrantRecord | undefined {
    for (const grant of this.#grants.get(host)?.values() ?? []) if (grant.device === device) return grant;
    return undefined;
  }

  #isGranted(device: string): boolean {
    return this.#state.grants.some((grant) => grant.device === device);
  }

  #isLocal(device: string): boolean {
    if (this.#state.localNbd === "all") return true;
    return this.#state.localNbd === "ungranted" && !this.#isGranted(device);
  }

  #shapeOf(grant: GrantRecord): Listed["shape"] {
    const device = this.#directory.find(grant.device);
    if (device === undefined) return undefined;
    const { range } = grant;
    return {
      size: range === undefined ? device.size : Math.max(0, Math.min(range.length, device.size - range.offset)),
      blockSize: device.blockSize,
      preferredBlockSize: device.preferredBlockSize,
      readOnly: device.readOnly || grant.access === "read-only",
      uuid: device.uuid,
    };
  }

  #watchSize(name: string): void {
    if (this.#sizes.has(name)) return;
    const device = this.#directory.find(name);
    if (device === undefined) return;
    const stop = device.watch((change) => {
      if (change === "resized") this.#tellGranted(name, "unit-resized");
    });
    this.#sizes.set(name, { size: device.size, stop });
  }

  #forgetSize(name: string): void {
    this.#sizes.get(name)?.stop();
    this.#sizes.delete(name);
  }

  #deviceChanged(name: string): void {
    const before = this.#sizes.has(name);
    this.#forgetSize(name);
    if (!this.#isGranted(name)) return;
    const now = this.#directory.find(name) !== undefined;
    this.#watchSize(name);
    if (before) this.#tellGranted(name, "unit-removed");
    if (now) this.#tellGranted(name, "unit-added");
  }

  #tellGranted(device: string, kind: "unit-added" | "unit-removed" | "unit-resized"): void {
    for (const grant of this.#state.grants)
      if (grant.device === device) this.#tell(grant.host, { kind, unit: grant.unit });
  }

  #tell(host: string, change: HostChange): void {
    for (const watcher of [...(this.#watchers.get(host) ?? [])]) watcher(change);
  }
}

/** IPv4 in IPv6 notation (`::ffff:10.0.0.1`, what a dual-stack socket tells) is the IPv4 address; zones are dropped. */
export function canonicalAddress(address: string): string {
  const plain = address.toLowerCase().replace(/%.*$/, "");
  return plain.startsWith("::ffff:") && plain.includes(".") ? plain.slice(7) : plain;
}

/** Whether an address can only be this machine: "" stands for a Unix socket. */
export function isLocalAddress(address: string): boolean {
  const plain = canonicalAddress(address);
  return plain === "" || plain === "::1" || /^127(\.\d{1,3}){3}$/.test(plain);
}

function sameCredentials(a: HostRecord, b: HostRecord): boolean {
  const of = (host: HostRecord) =>
    JSON.stringify([
      host.addresses,
      host.secret,
      host.requireSecret,
      host.requireTls,
      host.tlsNames,
      host.iqns,
      host.chap,
      host.mutualChap,
      host.dataSocketsMax,
      host.dataPorts,
    ]);
  return of(a) === of(b);
}
