/**
 * Power cuts that leave sectors unreadable: a disk that was writing one when the power went answers EIO for it, until it is
 * written again. At the end of the log that cannot be told from a flushed sector that has gone bad since: the set then
 * opens for reading only and says so. Nothing wrong is returned, and nothing is lost in silence.
 */
import type { Scenario } from "../scenario.ts";
import { type EngineSetup, playEngine } from "../worlds/engine-world.ts";
import { drawSetup, drawWorkload } from "./engine-draw.ts";

export const tornSectors: Scenario<EngineSetup> = {
  name: "torn-sectors",
  about: "power cuts that leave the sectors being written unreadable",
  budget:
    "kills and power cuts; sectors that a power cut tears cannot be read until they are written; reported, not silent",
  weight: 1,
  draw: (chance) => ({
    setup: drawSetup(chance),
    actions: drawWorkload(chance, {
      actions: [30, 120],
      io: 100,
      control: 8,
      crashes: 6,
      reopens: 1,
      unreadable: chance.pick([0.1, 0.5, 1]),
    }),
  }),
  play: playEngine,
};
