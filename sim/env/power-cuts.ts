import type { Chance } from "./chance.ts";
import type { PowerCut } from "./file-system.ts";

/** Power cuts of one kind, for tests; worlds draw theirs. */
export const POWER_CUTS = {
  /** Everything that was not synced is lost. */
  allLost: { keep: 0, grain: "page", keepNames: 0, unreadable: 0 },
  /** Everything survives, synced or not. */
  allKept: { keep: 1, grain: "page", keepNames: 1, unreadable: 0 },
  /** Each page and each name by itself. */
  pages: { keep: 0.5, grain: "page", keepNames: 0.5, unreadable: 0 },
  /** Half of everything, sector by sector: the usual one for a test. */
  random: { keep: 0.5, grain: "sector", keepNames: 0.5, unreadable: 0 },
} as const satisfies Record<string, PowerCut>;

export function drawPowerCut(chance: Chance, unreadable = 0): PowerCut {
  return {
    keep: chance.pick([0, 0, 0.1, 0.5, 0.9, 0.98, 1]),
    grain: chance.pick(["file", "page", "sector"]),
    keepNames: chance.pick([0, 0.5, 0.9, 1]),
    unreadable,
  };
}
