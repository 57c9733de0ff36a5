/** The engine's process stands still at any event and goes on, with kills, power cuts and a disk that stalls. */
import type { Scenario } from "../scenario.ts";
import { type EngineSetup, playEngine } from "../worlds/engine-world.ts";
import { drawSetup, drawWorkload, withTroubles } from "./engine-draw.ts";
import { withPauses } from "./nbd-slow.ts";

export const pauses: Scenario<EngineSetup> = {
  name: "pauses",
  about: "the process stands still, the disk stalls",
  budget: "pauses, kills and power cuts; operations of the disk that take a hundred times as long",
  weight: 1,
  draw: (chance) => {
    const actions = drawWorkload(chance, { actions: [30, 120], io: 100, control: 8, crashes: 3, reopens: 1 });
    const often = chance.pick([0.01, 0.1]);
    return {
      setup: drawSetup(chance),
      actions: withPauses(
        chance,
        withTroubles(chance, actions, () => ({ kind: "stalls", often })),
        [1, 50, 2000],
      ),
    };
  },
  play: playEngine,
};
