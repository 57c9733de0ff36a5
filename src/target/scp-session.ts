/**
 * A host's session on the server: what one configuration socket stands for. It owns the data sockets that were opened
 * with its nonce, and the guards of its units. Ending it is the fence: its sockets are closed, and it is `quiet` once
 * nothing of it is at the devices any more.
 */
import { canary } from "#base/canary";
import type { Status } from "#base/status";
import type { Millis } from "#base/units";
import type { Guard } from "#device/guard";
import type { Meter } from "#device/meter";
import { isNotOpened, type NotOpened, type ProtectionTable } from "./protection.ts";
import type { DataEnd, ScpDataConnection } from "./scp-data.ts";
import type { ScpSlot } from "./scp-slot.ts";

/** Serials of data sockets that a session remembers, so that a recorded hello cannot be played again. */
const SERIALS_MAX = 65536;

export interface SessionFacts {
  readonly id: number;
  readonly host: string;
  readonly version: number;
  readonly capabilities: number;
  readonly random: number;
  readonly key: Uint8Array | undefined;
  /** Hex, "" in version 1: what tells two attachments of one host apart. */
  readonly instance: string;
  readonly depth: number;
  readonly dataMax: number;
  /** Its data sockets speak TLS as its configuration socket does. */
  readonly tls: boolean;
  /** Milliseconds since 1970. */
  readonly since: number;
}

const NOT_OPENED: Record<NotOpened, Status> = { unknown: "gone", denied: "denied", away: "away" };

export class ScpSession {
  readonly facts: SessionFacts;
  readonly id: number;
  readonly host: string;
  readonly version: number;
  readonly capabilities: number;
  readonly depth: number;
  readonly dataMax: number;
  readonly connections = new Set<ScpDataConnection>();
  ended = false;
  readonly #table: ProtectionTable;
  readonly #meterOf: (device: string) => Meter | undefined;
  readonly #guards = new Map<number, Guard>();
  readonly #meters = new Map<number, Meter | undefined>();
  readonly #serials = new Set<number>();
  readonly #waiting: (() => void)[] = [];
  readonly #fenced = new Map<ScpDataConnection, () => void>();
  /** The last unit looked up: most hosts use one for a long time. */
  #lastUnit = -1;
  #lastGuard: Guard | undefined;

  constructor(facts: SessionFacts, table: ProtectionTable, meterOf: (device: string) => Meter | undefined) {
    this.facts = facts;
    this.id = facts.id;
    this.host = facts.host;
    this.version = facts.version;
    this.capabilities = facts.capabilities;
    this.depth = facts.depth;
    this.dataMax = facts.dataMax;
    this.#table = table;
    this.#meterOf = meterOf;
  }

  /** The device of a unit as this host may use it, or why it may not. */
  device(unit: number): Guard | Status {
    if (unit === this.#lastUnit && this.#lastGuard?.ended === undefined && this.#lastGuard !== undefined)
      return this.#lastGuard;
    return this.#find(unit);
  }

  /** Uses up the serial of a hello. False: it was used before. */
  takeSerial(serial: number): boolean {
    if (this.#serials.has(serial) || this.#serials.size >= SERIALS_MAX) return false;
    this.#serials.add(serial);
    return true;
  }

  note(slot: ScpSlot, took: Millis): void {
    this.#meters.get(slot.unit)?.note(slot.op.kind, slot.length, took, slot.op.status);
  }

  /** Closes every data socket. The guards stay until all is quiet: commands may still be at the devices. */
  end(why: DataEnd): void {
    this.ended = true;
    for (const connection of [...this.connections]) connection.close(why);
    this.onQuiet();
  }

  /** Whether nothing of this session can reach a device any more. */
  get quiet(): boolean {
    if (!this.ended) return false;
    for (const connection of this.connections) if (!connection.closed || connection.atDevices > 0) return false;
    return true;
  }

  /** Calls once the session has ended and is quiet; at once if it is. */
  whenQuiet(call: () => void): void {
    if (this.quiet) call();
    else this.#waiting.push(call);
  }

  /** Closes one socket; calls once nothing of it can reach a device any more. False: there is no such socket. */
  fence(serial: number, call: () => void): boolean {
    for (const connection of this.connections) {
      if (connection.serial !== serial) continue;
      if (canary.armed === "scp-fence-early") call();
      else this.#fenced.set(connection, call);
      connection.close("fenced");
      return true;
    }
    return false;
  }

  /** A closed connection has nothing at the devices any more. */
  onQuiet(): void {
    for (const connection of [...this.connections]) {
      if (!connection.closed || connection.atDevices > 0) continue;
      this.connections.delete(connection);
      const call = this.#fenced.get(connection);
      this.#fenced.delete(connection);
      call?.();
    }
    if (!this.quiet) return;
    for (const guard of this.#guards.values()) this.#table.close(this.host, guard);
    this.#guards.clear();
    this.#lastGuard = undefined;
    for (const meter of this.#meters.values()) if (meter !== undefined) meter.connections--;
    this.#meters.clear();
    for (const call of this.#waiting.splice(0)) call();
  }

  #find(unit: number): Guard | Status {
    let guard = this.#guards.get(unit);
    if (guard !== undefined && guard.ended !== undefined) {
      this.#table.close(this.host, guard);
      this.#guards.delete(unit);
      guard = undefined;
    }
    if (guard === undefined) {
      const opened = this.#table.open(this.host, unit);
      if (isNotOpened(opened)) return NOT_OPENED[opened];
      guard = opened;
      this.#guards.set(unit, guard);
      if (!this.#meters.has(unit)) {
        const device = this.#table.grant(this.host, unit)?.device;
        const meter = device === undefined ? undefined : this.#meterOf(device);
        if (meter !== undefined) meter.connections++;
        this.#meters.set(unit, meter);
      }
    }
    this.#lastUnit = unit;
    this.#lastGuard = guard;
    return guard;
  }
}
