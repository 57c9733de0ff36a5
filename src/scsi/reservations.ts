/**
 * Who has reserved a volume: one state for all protocols. Persistent reservations after SPC-4 §5.13, and the old
 * RESERVE of SPC-2, keyed by the I_T nexus (initiator name, ISID, target, portal group). The SCSI device server changes
 * it, every front obeys it, an operator can clear it.
 *
 * Each service action is one synchronous change that either happens whole or not at all; what it did to others comes
 * back as news (`Effects`). What must outlive the process is `record()`.
 */
import { canary } from "#base/canary";
import { Asc, PrType } from "#wire/scsi/codes";

/** The most registrations that one volume keeps. */
export const REGISTRANTS_MAX = 256;

export interface Registrant {
  /** `nexusName` of the initiator port and the target port. */
  readonly nexus: string;
  readonly initiatorPort: string;
  readonly targetPort: string;
  readonly relativePort: number;
  /** 16 hex digits. */
  readonly key: string;
}

/** What of a volume's reservations is kept on stable storage. */
export interface ReservationRecord {
  readonly format: 1;
  readonly uuid: string;
  readonly aptpl: boolean;
  readonly generation: number;
  readonly registrants: readonly Registrant[];
  readonly reservation: { readonly holder: string; readonly type: number } | undefined;
}

/** All of a volume's reservations, what ends with the process included: what the lanes of a server tell each other. */
export interface SharedReservations {
  readonly record: ReservationRecord;
  /** The nexus that holds the unit by the old RESERVE. */
  readonly legacy: string | undefined;
}

/** How a service action ended. "full": no room for another registration. */
export type Outcome = "ok" | "conflict" | "invalid-parameter" | "invalid-type" | "invalid-release" | "full";

export interface Effects {
  readonly outcome: Outcome;
  /** Unit attentions for other nexuses, by name. */
  readonly attentions: readonly (readonly [nexus: string, asc: number])[];
  /** Nexuses whose commands are to be aborted (PREEMPT AND ABORT). */
  readonly abort: readonly string[];
}
const plain = (outcome: Outcome): Effects => ({ outcome, attentions: [], abort: [] });

export const KEY_NONE = "0000000000000000";

const isAllRegistrants = (type: number): boolean =>
  type === PrType.WRITE_EXCLUSIVE_ALL_REGISTRANTS || type === PrType.EXCLUSIVE_ACCESS_ALL_REGISTRANTS;
const isForRegistrants = (type: number): boolean => type >= PrType.WRITE_EXCLUSIVE_REGISTRANTS_ONLY;
const isExclusiveAccess = (type: number): boolean =>
  type === PrType.EXCLUSIVE_ACCESS ||
  type === PrType.EXCLUSIVE_ACCESS_REGISTRANTS_ONLY ||
  type === PrType.EXCLUSIVE_ACCESS_ALL_REGISTRANTS;
const TYPES: ReadonlySet<number> = new Set(Object.values(PrType));
export const isReservationType = (type: number): boolean => TYPES.has(type);

export class Reservations {
  readonly uuid: string;
  generation = 0;
  /** Whether registrations and reservation survive a restart: the APTPL of the last REGISTER. */
  aptpl = false;
  readonly #registrants = new Map<string, Registrant>();
  #holder: Registrant | undefined;
  #type = 0;
  /** The nexus that has the unit by the old RESERVE. */
  #legacy: string | undefined;
  /** Called when a reset or the loss of a nexus has ended an old RESERVE: nobody waits for that to be told. */
  onDropped: (() => void) | undefined;

  constructor(uuid: string, record?: ReservationRecord) {
    this.uuid = uuid;
    if (record === undefined) return;
    this.aptpl = record.aptpl;
    this.generation = record.generation;
    for (const registrant of record.registrants) this.#registrants.set(registrant.nexus, registrant);
    if (record.reservation !== undefined) {
      this.#holder = this.#registrants.get(record.reservation.holder);
      this.#type = this.#holder === undefined ? 0 : record.reservation.type;
    }
  }

  get registrants(): readonly Registrant[] {
    return [...this.#registrants.values()];
  }
  /** The reservation, with key 0 when it is held by all registrants. */
  get reservation(): { readonly holder: Registrant; readonly type: number; readonly key: string } | undefined {
    if (this.#holder === undefined) return undefined;
    return { holder: this.#holder, type: this.#type, key: isAllRegistrants(this.#type) ? KEY_NONE : this.#holder.key };
  }
  get legacyHolder(): string | undefined {
    return this.#legacy;
  }
  /** Nothing is reserved or registered: the common case, in which nobody needs to be asked. */
  get isFree(): boolean {
    return this.#registrants.size === 0 && this.#legacy === undefined;
  }

  isRegistered(nexus: string): boolean {
    return this.#registrants.has(nexus);
  }
  isHolder(nexus: string): boolean {
    if (this.#holder === undefined) return false;
    return isAllRegistrants(this.#type) ? this.#registrants.has(nexus) : this.#holder.nexus === nexus;
  }

  /** Whether a command from `nexus` must be refused. `nexus` undefined: somebody who cannot register (NBD, SCP). */
  refuses(nexus: string | undefined, access: "read" | "write"): boolean {
    if (this.#legacy !== undefined && this.#legacy !== nexus) return true;
    if (this.#holder === undefined || (nexus !== undefined && this.isHolder(nexus))) return false;
    if (isForRegistrants(this.#type) && nexus !== undefined && this.#registrants.has(nexus)) return false;
    return access === "write" || isExclusiveAccess(this.#type);
  }

  /** SPC-4 §5.13.7. `as`: the registrations to make or change, the nexus' own first; with SPEC_I_PT or ALL_TG_PT several. */
  register(
    as: readonly Omit<Registrant, "key">[],
    key: string,
    newKey: string,
    ignoreKey: boolean,
    aptpl: boolean,
  ): Effects {
    const own = this.#registrants.get(as[0]!.nexus);
    if (!ignoreKey && key !== (own?.key ?? KEY_NONE)) return plain("conflict");
    if (own === undefined && newKey === KEY_NONE) return plain("ok");
    if (newKey === KEY_NONE) {
      const attentions: [string, number][] = [];
      for (const one of as) attentions.push(...this.#unregister(one.nexus));
      this.#changed(aptpl);
      return { outcome: "ok", attentions, abort: [] };
    }
    const added = as.filter((one) => !this.#registrants.has(one.nexus)).length;
    if (this.#registrants.size + added > REGISTRANTS_MAX) return plain("full");
    for (const one of as) this.#put({ ...one, key: newKey });
    this.#changed(aptpl);
    return plain("ok");
  }

  /** SPC-4 §5.13.9. */
  reserve(nexus: string, key: string, type: number): Effects {
    if (this.#registrants.get(nexus)?.key !== key) return plain("conflict");
    if (this.#holder !== undefined) return plain(this.isHolder(nexus) && this.#type === type ? "ok" : "conflict");
    this.#holder = this.#registrants.get(nexus);
    this.#type = type;
    return plain("ok");
  }

  /** SPC-4 §5.13.11.2. */
  release(nexus: string, key: string, type: number): Effects {
    if (this.#registrants.get(nexus)?.key !== key) return plain("conflict");
    if (!this.isHolder(nexus)) return plain("ok");
    if (this.#type !== type) return plain("invalid-release");
    return { outcome: "ok", attentions: this.#drop(nexus), abort: [] };
  }

  /** SPC-4 §5.13.11.6. */
  clear(nexus: string, key: string): Effects {
    if (this.#registrants.get(nexus)?.key !== key) return plain("conflict");
    const attentions = this.#others(nexus).map((one) => [one.nexus, Asc.RESERVATIONS_PREEMPTED] as const);
    this.#registrants.clear();
    this.#holder = undefined;
    this.generation++;
    return { outcome: "ok", attentions, abort: [] };
  }

  /** SPC-4 §5.13.11.4 and §5.13.11.5. `type` counts only when a reservation is preempted. */
  preempt(nexus: string, key: string, victimKey: string, type: number, abort: boolean): Effects {
    const own = this.#registrants.get(nexus);
    if (own?.key !== key) return plain("conflict");
    const holder = this.#holder;
    const fromAll = holder !== undefined && isAllRegistrants(this.#type) && victimKey === KEY_NONE;
    const takesOver = fromAll || (holder !== undefined && !isAllRegistrants(this.#type) && holder.key === victimKey);
    if (victimKey === KEY_NONE && !fromAll) return plain("invalid-parameter");
    const victims = this.registrants.filter((one) =>
      fromAll ? one.nexus !== nexus : one.key === victimKey && !(takesOver && one.nexus === nexus),
    );
    if (victims.length === 0 && !takesOver) return plain("conflict");
    if (takesOver && !isReservationType(type)) return plain("invalid-type");

    const attentions: [string, number][] = [];
    const typeBefore = this.#type;
    for (const victim of victims) {
      if (victim.nexus !== nexus) attentions.push([victim.nexus, Asc.REGISTRATIONS_PREEMPTED]);
      // Removal goes around `#unregister`: the news is that of the preemption, not that of a release.
      if (canary.armed !== "pr-preempt-half") this.#registrants.delete(victim.nexus);
    }
    if (takesOver) {
      this.#holder = own;
      this.#type = type;
      if (typeBefore !== type)
        for (const other of this.#others(nexus)) attentions.push([other.nexus, Asc.RESERVATIONS_RELEASED]);
    } else if (this.#registrants.size === 0) {
      this.#holder = undefined;
    } else if (holder !== undefined && isAllRegistrants(this.#type) && !this.#registrants.has(holder.nexus)) {
      this.#holder = this.#registrants.values().next().value;
    }
    this.generation++;
    return { outcome: "ok", attentions, abort: abort ? victims.map((victim) => victim.nexus) : [] };
  }

  /** SPC-4 §5.13.8: gives the reservation to another nexus, registered under `newKey`. */
  move(
    nexus: string,
    key: string,
    to: Omit<Registrant, "key">,
    newKey: string,
    unregister: boolean,
    aptpl: boolean,
  ): Effects {
    const own = this.#registrants.get(nexus);
    if (own?.key !== key) return plain("conflict");
    if (!this.isHolder(nexus) || isAllRegistrants(this.#type)) return plain("conflict");
    if (newKey === KEY_NONE || to.nexus === nexus) return plain("invalid-parameter");
    if (!this.#registrants.has(to.nexus) && this.#registrants.size >= REGISTRANTS_MAX) return plain("full");
    this.#put({ ...to, key: newKey });
    this.#holder = this.#registrants.get(to.nexus);
    if (unregister) this.#registrants.delete(nexus);
    this.#changed(aptpl);
    return plain("ok");
  }

  /** SPC-2 RESERVE, with the exceptions of SPC-4 §5.13.3 for nexuses that use persistent ones. False: conflict. */
  reserveLegacy(nexus: string): boolean {
    if (this.#registrants.size > 0)
      return this.isHolder(nexus) || (this.#holder === undefined && this.isRegistered(nexus));
    if (this.#legacy !== undefined && this.#legacy !== nexus) return false;
    this.#legacy = nexus;
    return true;
  }
  /** SPC-2 RELEASE: of somebody else's reservation it is accepted and does nothing. False: conflict. */
  releaseLegacy(nexus: string): boolean {
    if (this.#registrants.size > 0) return this.isRegistered(nexus);
    if (this.#legacy === nexus) this.#legacy = undefined;
    return true;
  }
  /** A reset, or the loss of the nexus, ends the old kind of reservation, and never the persistent one. */
  dropLegacy(nexus?: string): void {
    if (this.#legacy === undefined || (nexus !== undefined && this.#legacy !== nexus)) return;
    this.#legacy = undefined;
    this.onDropped?.();
  }

  /** An operator's order: everything goes. Returns those who are hurt, by nexus name. */
  clearAll(): string[] {
    const hurt = [...new Set([...this.#registrants.keys(), ...(this.#legacy === undefined ? [] : [this.#legacy])])];
    this.#registrants.clear();
    this.#holder = undefined;
    this.#legacy = undefined;
    this.generation++;
    return hurt;
  }

  record(): ReservationRecord {
    return {
      format: 1,
      uuid: this.uuid,
      aptpl: this.aptpl,
      generation: this.generation,
      registrants: this.registrants,
      reservation: this.#holder === undefined ? undefined : { holder: this.#holder.nexus, type: this.#type },
    };
  }

  get shared(): SharedReservations {
    return { record: this.record(), legacy: this.#legacy };
  }
  /** Becomes what another lane has told. */
  take({ record, legacy }: SharedReservations): void {
    this.restore(record);
    this.#legacy = legacy;
  }

  /** Takes back what could not be made durable. */
  restore(record: ReservationRecord): void {
    this.#registrants.clear();
    for (const registrant of record.registrants) this.#registrants.set(registrant.nexus, registrant);
    this.#holder = record.reservation === undefined ? undefined : this.#registrants.get(record.reservation.holder);
    this.#type = record.reservation?.type ?? 0;
    this.generation = record.generation;
    this.aptpl = record.aptpl;
  }

  #changed(aptpl: boolean): void {
    this.generation++;
    this.aptpl = aptpl;
  }
  #put(registrant: Registrant): void {
    this.#registrants.set(registrant.nexus, registrant);
    if (this.#holder?.nexus === registrant.nexus) this.#holder = registrant;
  }
  #others(nexus: string): Registrant[] {
    return this.registrants.filter((one) => one.nexus !== nexus);
  }
  /** SPC-4 §5.13.11.3: what unregistering does to the reservation. */
  #unregister(nexus: string): [string, number][] {
    if (!this.#registrants.delete(nexus) || this.#holder === undefined) return [];
    if (isAllRegistrants(this.#type)) {
      if (this.#registrants.size === 0) this.#holder = undefined;
      else if (this.#holder.nexus === nexus) this.#holder = this.#registrants.values().next().value;
      return [];
    }
    return this.#holder.nexus === nexus ? this.#drop(nexus) : [];
  }
  /** Ends the reservation; those who shared it as registrants are told. */
  #drop(nexus: string): [string, number][] {
    const told = isForRegistrants(this.#type);
    this.#holder = undefined;
    this.#type = 0;
    return told ? this.#others(nexus).map((one) => [one.nexus, Asc.RESERVATIONS_RELEASED]) : [];
  }
}
