/**
 * Who speaks to a unit: an I_T nexus (SAM-5 §4.7) is one initiator port together with one target port. For iSCSI that
 * is one session. Unit attentions wait per nexus and unit until the next command hears them (SAM-5 §5.14).
 */

import { canary } from "#base/canary";
import type { BlockDevice } from "#device/device";
import type { Meter } from "#device/meter";
import { Asc } from "#wire/scsi/codes";
import type { PortIdentity } from "#wire/scsi/inquiry";
import type { LogicalUnit } from "./unit.ts";

/** The most attentions that wait for one nexus at one unit; beyond that, the oldest ones are forgotten. */
const ATTENTIONS_MAX = 8;

/** A target port, with the group that it belongs to (asymmetric logical unit access). */
export interface TargetPort extends PortIdentity {
  readonly portal: PortGroup;
}
export class PortGroup {
  readonly id: number;
  readonly ports: TargetPort[] = [];
  /** All groups of the target, this one among them. */
  readonly siblings: PortGroup[];
  constructor(id: number, siblings: PortGroup[]) {
    this.id = id;
    this.siblings = siblings;
    siblings.push(this);
  }
}

/** One unit as one host sees it: behind a guard with that host's rights. */
export interface UnitView {
  readonly lun: number;
  readonly unit: LogicalUnit;
  readonly device: BlockDevice;
  /** Of the device, whoever uses it by this transport. */
  readonly meter?: Meter | undefined;
}
/** What one host may see. */
export interface UnitMap {
  find(lun: number): UnitView | undefined;
  /** In ascending order of LUN. */
  list(): readonly UnitView[];
}

/** What an initiator port is called in reservations: it stays the same over sessions, servers and restarts. */
export const nexusName = (initiatorPort: string, targetPort: string): string => `${initiatorPort}|${targetPort}`;

/** Nothing waits: one for all. */
const NONE: readonly number[] = [];

export class Nexus {
  /** `<initiator name>,i,0x<ISID>`. */
  readonly initiatorPort: string;
  readonly port: TargetPort;
  /** The host of the protection table. */
  readonly host: string;
  readonly units: UnitMap;
  readonly name: string;
  /** Additional sense codes that wait, by unit. No entry: the unit has not heard of this nexus. */
  readonly #attentions = new Map<object, readonly number[]>();
  readonly #greeting: number;

  /** @param greeting what the first command to each unit is told: `Asc.POWER_ON_OR_RESET` or `Asc.NEXUS_LOSS`. */
  constructor(
    initiatorPort: string,
    port: TargetPort,
    host: string,
    units: UnitMap,
    greeting: number = Asc.POWER_ON_OR_RESET,
  ) {
    this.initiatorPort = initiatorPort;
    this.port = port;
    this.host = host;
    this.units = units;
    this.name = nexusName(initiatorPort, port.name);
    this.#greeting = greeting;
  }

  /** True when a command to `unit` has to look at `takeAttention` first. */
  hasAttention(unit: object): boolean {
    return this.#waiting(unit).length > 0;
  }

  addAttention(unit: object, asc: number): void {
    if (canary.armed === "scsi-attention-lost") return;
    if (canary.armed === "scsi-attention-elsewhere") {
      const other = [...this.#attentions.keys()].find((one) => one !== unit);
      if (other !== undefined) unit = other;
    }
    const waiting = [...this.#waiting(unit)];
    // A reset makes whatever happened before it moot; the same news twice is one piece of news.
    if (asc >> 8 === Asc.POWER_ON_OR_RESET >> 8) waiting.length = 0;
    if (!waiting.includes(asc)) waiting.push(asc);
    if (waiting.length > ATTENTIONS_MAX) waiting.shift();
    this.#attentions.set(unit, waiting);
  }

  /** The oldest attention, which is thereby told; 0 when there is none. */
  takeAttention(unit: object): number {
    const [oldest = 0, ...rest] = this.#waiting(unit);
    this.#attentions.set(unit, rest.length === 0 ? NONE : rest);
    return oldest;
  }

  /** REPORT LUNS tells the news itself: SPC-4 §6.33. */
  dropAttention(unit: object, asc: number): void {
    const waiting = this.#attentions.get(unit)?.filter((one) => one !== asc);
    if (waiting !== undefined) this.#attentions.set(unit, waiting.length === 0 ? NONE : waiting);
  }

  forget(unit: object): void {
    this.#attentions.delete(unit);
  }

  #waiting(unit: object): readonly number[] {
    const waiting = this.#attentions.get(unit);
    if (waiting !== undefined) return waiting;
    const greeting = [this.#greeting];
    this.#attentions.set(unit, greeting);
    return greeting;
  }
}
