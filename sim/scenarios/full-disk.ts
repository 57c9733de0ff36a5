/**
 * The disk gets full, is given room, gets full again, with crashes: "full" is an answer that changes nothing, reads and
 * removals go on, and with room again everything does.
 */
import type { Scenario } from "../scenario.ts";
import { type EngineSetup, playEngine } from "../worlds/engine-world.ts";
import { drawSetup, drawWorkload, withTroubles } from "./engine-draw.ts";

export const fullDisk: Scenario<EngineSetup> = {
  name: "full-disk",
  about: "a disk that gets full, also during replay and checkpoints",
  budget: "a disk without space; kills and power cuts",
  weight: 2,
  draw: (chance) => {
    const actions = drawWorkload(chance, { actions: [40, 150], io: 100, control: 10, crashes: 3, reopens: 1 });
    return {
      setup: drawSetup(chance),
      actions: withTroubles(chance, actions, () => ({
        kind: "full",
        bytes: chance.pick([0, 4096, 65536, 300_000, 1_000_000]),
      })),
    };
  },
  play: playEngine,
};
