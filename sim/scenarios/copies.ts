/**
 * Ranges of volumes become what snapshots have, without being moved, in trees that grow and are cut back: a block of the
 * log is then mapped by versions that are no neighbours, and must live until the last of them has given it up.
 */
import type { Scenario } from "../scenario.ts";
import { type EngineSetup, playEngine } from "../worlds/engine-world.ts";
import { drawSetup, drawWorkload } from "./engine-draw.ts";

export const copies: Scenario<EngineSetup> = {
  name: "copies",
  about: "copies that share, in trees of snapshots and clones",
  budget: "kills and power cuts; the disk is otherwise honest",
  weight: 2,
  draw: (chance) => ({
    setup: { ...drawSetup(chance), copies: true },
    actions: drawWorkload(chance, { actions: [40, 160], io: 75, control: 25, crashes: 2, reopens: 1 }),
  }),
  play: playEngine,
};
