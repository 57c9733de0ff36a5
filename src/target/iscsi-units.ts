/**
 * Which units a host sees, and the units themselves. A unit is one volume, whoever looks at it: its task set and its
 * reservations are shared by all hosts; each host reaches it through a guard of its own, with its own rights.
 */
import { canary } from "#base/canary";
import type { BlockDevice } from "#device/device";
import { Guard } from "#device/guard";
import type { Meter } from "#device/meter";
import type { Nexus, UnitMap, UnitView } from "#scsi/nexus";
import type { ReservationBook } from "#scsi/reservation-store";
import { LogicalUnit, type UnitOptions } from "#scsi/unit";
import { Asc } from "#wire/scsi/codes";
import { type DeviceDirectory, type HostChange, isNotOpened, type ProtectionTable } from "./protection.ts";

interface Shared {
  readonly unit: LogicalUnit;
  readonly device: BlockDevice;
  users: number;
}

export class UnitRegistry {
  readonly table: ProtectionTable;
  readonly #directory: DeviceDirectory;
  readonly #book: ReservationBook;
  readonly #optionsOf: (device: string) => UnitOptions;
  readonly meterOf: (device: string) => Meter | undefined;
  readonly #units = new Map<string, Shared>();
  readonly #hosts = new Map<string, HostUnits>();

  constructor(
    table: ProtectionTable,
    directory: DeviceDirectory,
    book: ReservationBook,
    optionsOf: (device: string) => UnitOptions = () => ({}),
    meterOf: (device: string) => Meter | undefined = () => undefined,
  ) {
    this.table = table;
    this.#directory = directory;
    this.#book = book;
    this.#optionsOf = optionsOf;
    this.meterOf = meterOf;
  }

  get units(): LogicalUnit[] {
    return [...this.#units.values()].map((shared) => shared.unit);
  }

  /** The units of a host, for one more session. To be given back with `leave`. */
  join(host: string, nexus: Nexus | undefined): HostUnits {
    let units = this.#hosts.get(host);
    if (units === undefined) this.#hosts.set(host, (units = new HostUnits(this, host)));
    if (nexus !== undefined) units.add(nexus);
    return units;
  }
  of(host: string): HostUnits {
    return this.join(host, undefined);
  }
  leave(host: string, nexus: Nexus): void {
    const units = this.#hosts.get(host);
    if (units === undefined || !units.remove(nexus)) return;
    this.#hosts.delete(host);
    units.close();
  }

  /** The shared unit of a grant. */
  acquire(host: string, number: number): { readonly key: string; readonly unit: LogicalUnit } | undefined {
    const grant = this.table.grant(host, canary.armed === "iscsi-wrong-unit" ? 0 : number);
    const device = grant === undefined ? undefined : this.#directory.find(grant.device);
    if (grant === undefined || device === undefined) return undefined;
    const { range } = grant;
    const key = range === undefined ? device.uuid : `${device.uuid} ${range.offset} ${range.length}`;
    let shared = this.#units.get(key);
    if (shared === undefined || shared.device !== device) {
      const shape = range === undefined ? device : new Guard(device, "read-write", range);
      shared = {
        unit: new LogicalUnit(shape, this.#book.of(key), this.#optionsOf(grant.device)),
        device,
        users: 0,
      };
      this.#units.set(key, shared);
    }
    shared.users++;
    return { key, unit: shared.unit };
  }
  release(key: string, unit: LogicalUnit): void {
    const shared = this.#units.get(key);
    if (shared === undefined || shared.unit !== unit || --shared.users > 0) return;
    // A sanitize goes on whether anybody looks or not; mode parameters stay while somebody is logged in.
    if (unit.sanitize !== undefined || unit.sanitizeFailed !== undefined) return;
    this.#units.delete(key);
    unit.close();
  }
}

interface Opened extends UnitView {
  readonly key: string;
  readonly guard: Guard;
}

/** Sessions that have the unit. */
function count({ meter }: UnitView, change: number): void {
  if (meter !== undefined) meter.connections += change;
}

export class HostUnits implements UnitMap {
  readonly #registry: UnitRegistry;
  readonly #host: string;
  readonly #views = new Map<number, Opened>();
  /** The same by unit number, for the data path. */
  readonly #byLun: (Opened | undefined)[] = [];
  #list: readonly UnitView[] = [];
  readonly #nexuses = new Set<Nexus>();
  readonly #unwatch: () => void;
  /** Told when the host or its credentials are gone. */
  onRightsChanged: (() => void) | undefined;

  constructor(registry: UnitRegistry, host: string) {
    this.#registry = registry;
    this.#host = host;
    for (const listed of registry.table.list(host)) this.#open(listed.unit);
    this.#relist();
    this.#unwatch = registry.table.watch(host, (change) => this.#changed(change));
  }

  find(lun: number): UnitView | undefined {
    return this.#byLun[lun];
  }
  list(): readonly UnitView[] {
    return this.#list;
  }

  add(nexus: Nexus): void {
    this.#nexuses.add(nexus);
    for (const view of this.#views.values()) {
      view.unit.join(nexus);
      count(view, 1);
    }
  }
  /** True when that was the last session of the host. */
  remove(nexus: Nexus): boolean {
    const wasIn = this.#nexuses.delete(nexus);
    for (const view of this.#views.values()) {
      view.unit.leave(nexus);
      if (wasIn) count(view, -1);
    }
    return this.#nexuses.size === 0;
  }

  close(): void {
    this.#unwatch();
    for (const number of [...this.#views.keys()]) this.#close(number);
  }

  #changed(change: HostChange): void {
    switch (change.kind) {
      case "unit-added":
        this.#close(change.unit);
        this.#open(change.unit);
        return this.#inventoryChanged();
      case "unit-removed":
        this.#close(change.unit);
        return this.#inventoryChanged();
      case "unit-access": {
        const unit = this.#views.get(change.unit)?.unit;
        for (const nexus of this.#nexuses) if (unit !== undefined) nexus.addAttention(unit, Asc.INQUIRY_DATA_CHANGED);
        return;
      }
      case "unit-resized": {
        // A resized device tells its unit itself; a resized range of it is another unit.
        const view = this.#views.get(change.unit);
        if (view?.key.includes(" ")) {
          this.#close(change.unit);
          this.#open(change.unit);
          this.#relist();
        }
        return;
      }
      default:
        this.onRightsChanged?.();
    }
  }

  /** SPC-4 §6.33: every unit of the host tells that there are others now. */
  #inventoryChanged(): void {
    this.#relist();
    for (const nexus of this.#nexuses)
      for (const view of this.#list) nexus.addAttention(view.unit, Asc.REPORTED_LUNS_CHANGED);
  }

  #open(number: number): void {
    const acquired = this.#registry.acquire(this.#host, number);
    if (acquired === undefined) return;
    const guard = this.#registry.table.open(this.#host, number);
    if (isNotOpened(guard)) return this.#registry.release(acquired.key, acquired.unit);
    // The device server judges reservations by the nexus, which a gate does not know.
    guard.gate = undefined;
    const meter = this.#registry.meterOf(this.#registry.table.grant(this.#host, number)!.device);
    const view = { lun: number, unit: acquired.unit, device: guard, key: acquired.key, guard, meter };
    this.#views.set(number, view);
    // Without holes, which would make it a table to search.
    while (this.#byLun.length < number) this.#byLun.push(undefined);
    this.#byLun[number] = view;
    for (const nexus of this.#nexuses) acquired.unit.join(nexus);
    count(view, this.#nexuses.size);
  }

  #close(number: number): void {
    const view = this.#views.get(number);
    if (view === undefined) return;
    this.#views.delete(number);
    this.#byLun[number] = undefined;
    for (const nexus of this.#nexuses) view.unit.leave(nexus);
    count(view, -this.#nexuses.size);
    this.#registry.table.close(this.#host, view.guard);
    this.#registry.release(view.key, view.unit);
  }

  #relist(): void {
    this.#list = [...this.#views.values()].sort((a, b) => a.lun - b.lun);
  }
}
