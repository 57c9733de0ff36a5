/** What the engine's scenarios have in common: how setups, workloads and crashes are drawn. */
import { KIB, MIB } from "#base/units";
import type { OpKind } from "#device/device";
import type { Chance } from "../env/chance.ts";
import { drawPowerCut } from "../env/power-cuts.ts";
import type { Action, Trouble } from "../script.ts";
import type { EngineSetup } from "../worlds/engine-world.ts";

/** Weights of what hosts and operators do. Swarm: each world has some kinds only. */
export interface Mix {
  readonly actions: readonly [least: number, most: number];
  readonly io: number;
  readonly control: number;
  readonly crashes: number;
  readonly reopens: number;
  /** Milliseconds between actions, at most; drawn if not given. */
  readonly quiet?: number;
  /** How often an operation is long; drawn if not given. */
  readonly long?: number;
  /** How often a sector that a power cut tears cannot be read until it is written again. */
  readonly unreadable?: number;
}

const IO_KINDS: readonly (readonly [OpKind, number])[] = [
  ["write", 40],
  ["read", 20],
  ["flush", 12],
  ["trim", 6],
  ["zero", 6],
  ["compare-write", 5],
  ["status", 3],
];
const CONTROL_KINDS = [
  "snapshot",
  "snapshot",
  "clone",
  "rollback",
  "resize",
  "remove",
  "create-volume",
  "scrub",
] as const;

export function drawSetup(chance: Chance): EngineSetup {
  return {
    segmentBlocks: chance.pick([64, 64, 64, 128, 256]),
    checkpointBytes: chance.pick([64 * KIB, 256 * KIB, MIB, 64 * MIB]),
    depth: chance.pick([1, 4, 16]),
    areas: drawAreas(chance),
    names: chance.pick(["journal", "loose"]),
    noAllocate: chance.often(0.2),
    noPunch: chance.often(0.2),
    turnMs: chance.pick([0, 0, 0.05, 0.5]),
    clockRate: chance.pick([1, 0.99, 1.01]),
    auditOnOpen: chance.often(0.4),
    slowDisk: chance.pick([1, 1, 1, 20]),
  };
}

function drawAreas(chance: Chance): EngineSetup["areas"] {
  const areas = [{ at: chance.pick([0, 0.5, 1]), blocks: chance.pick([4, 16, 64]) }];
  while (areas.length < 3 && chance.often(0.6))
    areas.push({ at: chance.fraction(), blocks: chance.pick([2, 8, 32, 300]) });
  return areas;
}

export function drawVolume(chance: Chance): Action {
  const blockSize = chance.pick([4096, 4096, 512]);
  const size = chance.pick([64 * KIB, MIB, MIB, 20 * MIB, 1024 * MIB]);
  // A size that is no multiple of the store's block.
  const odd = blockSize === 512 && chance.often(0.3) ? 512 * chance.between(1, 7) : 0;
  return { do: "create-volume", size: size + odd, blockSize };
}

export function drawWorkload(chance: Chance, mix: Mix): Action[] {
  const actions: Action[] = [];
  const volumes = chance.pick([1, 1, 2]);
  for (let i = 0; i < volumes; i++) actions.push(drawVolume(chance));
  // Swarm: kinds that are off in this world leave room for the others.
  const kinds = IO_KINDS.filter(([kind]) => kind === "write" || chance.often(0.7));
  const controls = CONTROL_KINDS.filter(() => chance.often(0.6));
  const quiet = mix.quiet ?? chance.pick([0, 0, 0.05, 1]);
  const long = mix.long ?? chance.pick([0, 0.05, 0.3]);
  const count = chance.between(mix.actions[0], mix.actions[1]);
  const total = mix.io + mix.control + mix.crashes + mix.reopens;
  for (let i = 0; i < count; i++) {
    const drawn = chance.fraction() * total;
    const waitMs = chance.often(0.02) ? chance.between(1, 2000) : chance.fraction() * quiet;
    if (drawn < mix.io) actions.push({ ...drawIo(chance, kinds, long), waitMs });
    else if (drawn < mix.io + mix.control) {
      if (controls.length > 0) actions.push({ ...drawControl(chance, controls), waitMs });
    } else if (drawn < mix.io + mix.control + mix.crashes) actions.push(drawCrash(chance, mix.unreadable));
    else actions.push({ do: "reopen" });
  }
  return actions;
}

function drawIo(chance: Chance, kinds: typeof IO_KINDS, long: number): Action {
  const kind = pickWeighted(chance, kinds);
  const count = chance.often(long) ? chance.between(16, 320) : chance.pick([1, 1, 1, 2, 3, 8, 9, 16]);
  return {
    do: "io",
    on: chance.below(64),
    io: {
      kind,
      area: chance.below(64),
      offset: chance.below(4096),
      count: kind === "compare-write" ? Math.min(count, 8) : count,
      fua: kind !== "read" && kind !== "flush" && kind !== "status" && chance.often(0.1),
      noHole: kind === "zero" && chance.often(0.3),
      fastOnly: kind === "zero" && chance.often(0.1),
      mismatch: kind === "compare-write" && chance.often(0.2),
    },
  };
}

function drawControl(chance: Chance, kinds: readonly (typeof CONTROL_KINDS)[number][]): Action {
  const kind = chance.pick(kinds);
  const on = chance.below(64);
  switch (kind) {
    case "create-volume":
      return drawVolume(chance);
    case "resize":
      return { do: "resize", on, blocks: chance.pick([1, 7, 8, 64, 5000]) };
    case "remove":
      return { do: "remove", on, what: chance.pick(["volume", "snapshot", "snapshot"]), force: chance.often(0.8) };
    case "scrub":
      return { do: "scrub" };
    default:
      return { do: kind, on };
  }
}

export function drawCrash(chance: Chance, unreadable = 0): Action {
  const afterEvents = chance.pick([0, chance.below(8), chance.below(60), chance.below(400)]);
  const downMs = chance.often(0.2) ? chance.below(5000) : chance.fraction();
  if (chance.often(0.4)) return { do: "kill", afterEvents, downMs };
  return { do: "cut-power", afterEvents, downMs, cut: drawPowerCut(chance, unreadable) };
}

/** Puts troubles, and their ends, among the actions: none before the first volumes are made. */
export function withTroubles(chance: Chance, actions: readonly Action[], draw: () => Trouble): Action[] {
  const mixed: Action[] = [];
  let isTroubled = false;
  const often = chance.pick([0.02, 0.05, 0.1]);
  for (const [index, action] of actions.entries()) {
    mixed.push(action);
    if (index < 3 || !chance.often(often)) continue;
    if (isTroubled && chance.often(0.5)) {
      mixed.push({ do: "calm" });
      isTroubled = false;
    } else {
      mixed.push({ do: "trouble", trouble: draw() });
      isTroubled = true;
    }
  }
  return mixed;
}

export function pickWeighted<T>(chance: Chance, from: readonly (readonly [T, number])[]): T {
  let total = 0;
  for (const [, weight] of from) total += weight;
  let drawn = chance.fraction() * total;
  for (const [value, weight] of from) {
    drawn -= weight;
    if (drawn < 0) return value;
  }
  return from[0]![0];
}
