/**
 * Snapshots, clones, clones of snapshots of clones, rollbacks and removals in all orders, with few writes in between and a
 * crash now and then: what is shared must not be freed, and what is not shared must be.
 */
import type { Scenario } from "../scenario.ts";
import { type EngineSetup, playEngine } from "../worlds/engine-world.ts";
import { drawSetup, drawWorkload } from "./engine-draw.ts";

export const versionTrees: Scenario<EngineSetup> = {
  name: "version-trees",
  about: "deep trees of snapshots and clones, removed in all orders",
  budget: "kills and power cuts; the disk is otherwise honest",
  weight: 3,
  draw: (chance) => ({
    setup: drawSetup(chance),
    actions: drawWorkload(chance, { actions: [40, 120], io: 60, control: 40, crashes: 2, reopens: 1 }),
  }),
  play: playEngine,
};
