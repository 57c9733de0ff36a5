/**
 * One of the two checkpoints that are kept goes bad, again and again, with crashes in between: the other one and the log
 * behind it bring everything back. It costs time and nothing else, so nothing explains a loss here.
 */
import type { Scenario } from "../scenario.ts";
import { type EngineSetup, playEngine } from "../worlds/engine-world.ts";
import { drawSetup, drawWorkload, withTroubles } from "./engine-draw.ts";

export const badCheckpoints: Scenario<EngineSetup> = {
  name: "bad-checkpoints",
  about: "one of the two checkpoints goes bad, with crashes",
  budget: "one damaged checkpoint at a time; kills and power cuts; nothing may be lost",
  weight: 2,
  draw: (chance) => {
    const mix = { actions: [60, 200], io: 100, control: 8, crashes: 4, reopens: 1, quiet: 20, long: 0.3 } as const;
    return {
      setup: { ...drawSetup(chance), segmentBlocks: 64, checkpointBytes: 65536 },
      actions: withTroubles(chance, drawWorkload(chance, mix), () => ({ kind: "bad-checkpoint", seed: chance.next() })),
    };
  },
  play: playEngine,
};
