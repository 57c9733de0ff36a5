/**
 * The disk reports errors: of writes, of syncs (after which the data is gone), of names; and it stalls. The engine stops
 * writing, is opened again, and has lost nothing that was flushed.
 */
import type { Scenario } from "../scenario.ts";
import { type EngineSetup, playEngine } from "../worlds/engine-world.ts";
import { drawSetup, drawWorkload, withTroubles } from "./engine-draw.ts";

export const failingDisk: Scenario<EngineSetup> = {
  name: "failing-disk",
  about: "errors of writes, syncs and names; stalls",
  budget: "write, sync and control errors that end by themselves; kills and power cuts",
  weight: 2,
  draw: (chance) => {
    const actions = drawWorkload(chance, { actions: [40, 150], io: 100, control: 10, crashes: 3, reopens: 1 });
    const often = chance.pick([0.01, 0.1, 0.5]);
    const kinds = (["write-errors", "sync-errors", "control-errors", "stalls"] as const).filter(() =>
      chance.often(0.6),
    );
    return {
      setup: drawSetup(chance),
      actions: withTroubles(chance, actions, () => {
        const kind = kinds.length === 0 ? "sync-errors" : chance.pick(kinds);
        return kind === "sync-errors" ? { kind, often, evicts: chance.often(0.5) } : { kind, often };
      }),
    };
  },
  play: playEngine,
};
