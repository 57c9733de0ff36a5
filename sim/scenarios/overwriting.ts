/**
 * A small volume is overwritten many times in a log of small segments with checkpoints all the time: the cleaner has
 * work, segments are used again, and all of that is cut short.
 */
import type { Scenario } from "../scenario.ts";
import { type EngineSetup, playEngine } from "../worlds/engine-world.ts";
import { drawSetup, drawWorkload } from "./engine-draw.ts";

export const overwriting: Scenario<EngineSetup> = {
  name: "overwriting",
  about: "cleaning and reuse of segments under constant overwriting",
  budget: "kills and power cuts; the disk is otherwise honest",
  weight: 3,
  draw: (chance) => ({
    setup: { ...drawSetup(chance), segmentBlocks: 64, checkpointBytes: chance.pick([64, 256]) * 1024 },
    actions: drawWorkload(chance, {
      actions: [80, 250],
      io: 100,
      control: 3,
      crashes: 2,
      reopens: 0.5,
      quiet: chance.pick([0.05, 20, 60]),
      long: 0.3,
    }),
  }),
  play: playEngine,
};
