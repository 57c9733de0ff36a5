/**
 * Persistent reservations as SPC-4 §5.13 tells of them, for one unit and a handful of I_T nexuses: what a service action
 * answers, what state it leaves, and whom it tells what. Written from the specification and not from the product, so that
 * the two can disagree.
 */
export type PrType = 1 | 3 | 5 | 6 | 7 | 8;
export const PR_TYPES: readonly PrType[] = [1, 3, 5, 6, 7, 8];

export type PrRequest =
  | { readonly action: "register"; readonly key: string; readonly newKey: string; readonly aptpl: boolean }
  | { readonly action: "register-ignore"; readonly newKey: string; readonly aptpl: boolean }
  | { readonly action: "reserve" | "release"; readonly key: string; readonly type: PrType }
  | { readonly action: "clear"; readonly key: string }
  | {
      readonly action: "preempt" | "preempt-abort";
      readonly key: string;
      readonly victim: string;
      readonly type: PrType;
    }
  | {
      readonly action: "move";
      readonly key: string;
      readonly newKey: string;
      readonly to: number;
      readonly unregister: boolean;
      readonly aptpl: boolean;
    };

export interface PrState {
  /** Keys by nexus. */
  readonly keys: ReadonlyMap<number, string>;
  /** "all": every registrant holds it. */
  readonly holder: number | "all" | undefined;
  readonly type: PrType;
  readonly aptpl: boolean;
}

export interface PrOutcome {
  readonly outcome: "good" | "conflict" | "check";
  readonly next: PrState;
  /** Unit attentions for others: nexus and additional sense code. */
  readonly told: readonly (readonly [nexus: number, asc: number])[];
}

export const NO_KEY = "0000000000000000";
export const PR_NOTHING: PrState = { keys: new Map(), holder: undefined, type: 1, aptpl: false };

const RESERVATIONS_PREEMPTED = 0x2a03;
const RESERVATIONS_RELEASED = 0x2a04;
const REGISTRATIONS_PREEMPTED = 0x2a05;

const isAll = (type: PrType): boolean => type === 7 || type === 8;

/** Two states are the same state when this is the same text. */
export function describeState(state: PrState): string {
  const keys = [...state.keys].sort(([a], [b]) => a - b).map(([nexus, key]) => `${nexus}:${key.slice(-4)}`);
  const held = state.holder === undefined ? "unreserved" : `type ${state.type} held by ${state.holder}`;
  return `[${keys.join(" ")}] ${held}${state.aptpl ? ", aptpl" : ""}`;
}

/** Whether a command of `nexus` (undefined: of somebody who cannot register) meets a conflict. SPC-4 table 66. */
export function conflicts(state: PrState, nexus: number | undefined, access: "read" | "write"): boolean {
  const { holder, keys, type } = state;
  if (holder === undefined) return false;
  const isRegistered = nexus !== undefined && keys.has(nexus);
  switch (type) {
    case 1:
      return access === "write" && nexus !== holder;
    case 3:
      return nexus !== holder;
    case 5:
    case 7:
      return access === "write" && !isRegistered;
    default:
      return !isRegistered;
  }
}

/** What is there after a restart. */
export const restarted = (state: PrState): PrState => (state.aptpl && state.keys.size > 0 ? state : PR_NOTHING);

export function perform(state: PrState, nexus: number, request: PrRequest): PrOutcome {
  const own = state.keys.get(nexus);
  const bad = (outcome: "conflict" | "check"): PrOutcome => ({ outcome, next: state, told: [] });
  const good = (next: PrState, told: PrOutcome["told"] = []): PrOutcome => ({ outcome: "good", next, told });
  const isHolder = state.holder === "all" ? own !== undefined : state.holder === nexus;
  if (request.action !== "register-ignore" && request.key !== (own ?? NO_KEY)) return bad("conflict");
  switch (request.action) {
    case "register":
    case "register-ignore":
      return register(state, nexus, request.newKey, request.aptpl);
    case "reserve":
      if (own === undefined) return bad("conflict");
      if (state.holder !== undefined) return isHolder && state.type === request.type ? good(state) : bad("conflict");
      return good({ ...state, holder: isAll(request.type) ? "all" : nexus, type: request.type });
    case "release":
      if (own === undefined) return bad("conflict");
      if (state.holder === undefined || !isHolder) return good(state);
      if (state.type !== request.type) return bad("check");
      return good({ ...state, holder: undefined }, released(state, nexus));
    case "clear": {
      if (own === undefined) return bad("conflict");
      const told = others(state, nexus).map((other) => [other, RESERVATIONS_PREEMPTED] as const);
      return good({ ...state, keys: new Map(), holder: undefined }, told);
    }
    case "move":
      return move(state, nexus, request);
    default:
      return preempt(state, nexus, request.victim, request.type);
  }
}

const others = (state: PrState, nexus: number): number[] => [...state.keys.keys()].filter((other) => other !== nexus);

/** SPC-4 §5.13.11.2.2: the others are told when the reservation was for registrants. */
function released(state: PrState, nexus: number): PrOutcome["told"] {
  return state.type < 5 ? [] : others(state, nexus).map((other) => [other, RESERVATIONS_RELEASED] as const);
}

function register(state: PrState, nexus: number, newKey: string, aptpl: boolean): PrOutcome {
  const keys = new Map(state.keys);
  if (newKey !== NO_KEY) {
    keys.set(nexus, newKey);
    return { outcome: "good", next: { ...state, keys, aptpl }, told: [] };
  }
  if (!keys.delete(nexus)) return { outcome: "good", next: state, told: [] };
  if (state.holder === nexus)
    return { outcome: "good", next: { ...state, keys, aptpl, holder: undefined }, told: released(state, nexus) };
  const holder = state.holder === "all" && keys.size === 0 ? undefined : state.holder;
  return { outcome: "good", next: { ...state, keys, aptpl, holder }, told: [] };
}

/** SPC-4 §5.13.11.4 and §5.13.11.5. */
function preempt(state: PrState, nexus: number, victim: string, type: PrType): PrOutcome {
  if (!state.keys.has(nexus)) return { outcome: "conflict", next: state, told: [] };
  const fromAll = state.holder === "all" && victim === NO_KEY;
  const fromHolder = typeof state.holder === "number" && state.keys.get(state.holder) === victim;
  if (victim === NO_KEY && !fromAll) return { outcome: "check", next: state, told: [] };
  const takesOver = fromAll || fromHolder;
  const victims = [...state.keys]
    .filter(([other, key]) => (fromAll ? other !== nexus : key === victim && !(takesOver && other === nexus)))
    .map(([other]) => other);
  if (victims.length === 0 && !takesOver) return { outcome: "conflict", next: state, told: [] };
  const keys = new Map(state.keys);
  for (const one of victims) keys.delete(one);
  const told: [number, number][] = victims.filter((one) => one !== nexus).map((one) => [one, REGISTRATIONS_PREEMPTED]);
  let holder = state.holder;
  if (takesOver) {
    holder = isAll(type) ? "all" : nexus;
    if (type !== state.type)
      for (const other of keys.keys()) if (other !== nexus) told.push([other, RESERVATIONS_RELEASED]);
  } else if (keys.size === 0) holder = undefined;
  return { outcome: "good", next: { ...state, keys, holder, type: takesOver ? type : state.type }, told };
}

/** SPC-4 §5.13.8. */
function move(state: PrState, nexus: number, request: Extract<PrRequest, { action: "move" }>): PrOutcome {
  if (!state.keys.has(nexus) || state.holder !== nexus) return { outcome: "conflict", next: state, told: [] };
  if (request.newKey === NO_KEY || request.to === nexus) return { outcome: "check", next: state, told: [] };
  const keys = new Map(state.keys);
  keys.set(request.to, request.newKey);
  if (request.unregister) keys.delete(nexus);
  return { outcome: "good", next: { ...state, keys, holder: request.to, aptpl: request.aptpl }, told: [] };
}

/** What the state may be now, while an answer is awaited or was lost. */
export class PrModel {
  #possible: PrState[] = [PR_NOTHING];
  #open: { readonly before: readonly PrState[]; readonly nexus: number; readonly request: PrRequest } | undefined;

  /** All that may be the state now: before and after what is in progress. */
  get possible(): readonly PrState[] {
    return this.#possible;
  }
  get isOpen(): boolean {
    return this.#open !== undefined;
  }

  /** A service action is asked: one at a time. Returns what others may be told because of it. */
  ask(nexus: number, request: PrRequest): PrOutcome["told"] {
    const before = this.#possible;
    this.#open = { before, nexus, request };
    const outcomes = before.map((state) => perform(state, nexus, request));
    this.#possible = unique([...before, ...outcomes.map(({ next }) => next)]);
    return outcomes.flatMap(({ told }) => told);
  }

  /** It is answered. False when no state explains that. Otherwise whom it has certainly told what. */
  answer(outcome: PrOutcome["outcome"]): PrOutcome["told"] | undefined {
    const { before, nexus, request } = this.#open!;
    this.#open = undefined;
    const explained = before.map((state) => perform(state, nexus, request)).filter((one) => one.outcome === outcome);
    if (explained.length === 0) return undefined;
    this.#possible = unique(explained.map(({ next }) => next));
    return explained.length === 1 ? explained[0]!.told : [];
  }

  /** It will never be answered: it has happened or not. */
  lose(): void {
    this.#open = undefined;
  }

  /** The state is seen. False when it cannot be this one; `holder` as READ FULL STATUS tells it. */
  see(matches: (state: PrState) => boolean): boolean {
    this.#possible = this.#possible.filter(matches);
    return this.#possible.length > 0;
  }

  /** The server has restarted. */
  restart(): void {
    this.#open = undefined;
    this.#possible = unique(this.#possible.map(restarted));
  }

  describe(): string {
    return this.#possible.map(describeState).join(" or ");
  }
}

function unique(states: readonly PrState[]): PrState[] {
  return [...new Map(states.map((state) => [describeState(state), state])).values()];
}
