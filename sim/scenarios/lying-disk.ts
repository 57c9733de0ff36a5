/**
 * The disk says that it has written, and has not, or has written elsewhere. What is read afterwards does not match its
 * checksum and is reported. Without crashes: a lie about the end of the log, and a crash right after it, cannot be told
 * from a write that was never flushed.
 */
import type { Scenario } from "../scenario.ts";
import { type EngineSetup, playEngine } from "../worlds/engine-world.ts";
import { drawSetup, drawWorkload, withTroubles } from "./engine-draw.ts";

export const lyingDisk: Scenario<EngineSetup> = {
  name: "lying-disk",
  about: "dropped and misdirected writes",
  budget: "writes that never happen or happen elsewhere; data may be lost, but not silently",
  weight: 1,
  draw: (chance) => {
    const actions = drawWorkload(chance, { actions: [40, 150], io: 100, control: 10, crashes: 0, reopens: 1 });
    const often = chance.pick([0.01, 0.1]);
    return {
      setup: drawSetup(chance),
      actions: withTroubles(chance, actions, () => ({
        kind: chance.pick(["dropped-writes", "misdirected-writes"]),
        often,
      })),
    };
  },
  play: playEngine,
};
