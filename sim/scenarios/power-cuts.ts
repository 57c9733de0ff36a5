/**
 * Hosts work, the machine loses its power again and again: also while the engine opens, takes a checkpoint or cleans.
 * Nothing else goes wrong. Everything flushed is there, everything else wholly there or wholly absent per block.
 */
import type { Scenario } from "../scenario.ts";
import { type EngineSetup, playEngine } from "../worlds/engine-world.ts";
import { drawSetup, drawWorkload } from "./engine-draw.ts";

export const powerCuts: Scenario<EngineSetup> = {
  name: "power-cuts",
  about: "kills and power cuts at any event, also during recovery",
  budget: "any number of kills and power cuts; the disk is otherwise honest",
  weight: 5,
  draw: (chance) => ({
    setup: drawSetup(chance),
    actions: drawWorkload(chance, { actions: [20, 120], io: 100, control: 6, crashes: 5, reopens: 1 }),
  }),
  play: playEngine,
};
