/**
 * What is stored goes bad: bits flip, sectors cannot be read, files are gone or short. The engine reports exactly what it
 * cannot vouch for, and never returns it. (Damage to the end of the log is left out, the newest three segments and those
 * with a group that no later one knows to be synced: what was flushed last and is torn cannot be told from what was never
 * flushed.)
 */
import type { Scenario } from "../scenario.ts";
import { type EngineSetup, playEngine } from "../worlds/engine-world.ts";
import { drawSetup, drawWorkload, withTroubles } from "./engine-draw.ts";

export const damage: Scenario<EngineSetup> = {
  name: "damage",
  about: "bit rot, bad sectors, missing and short files, read errors",
  budget: "damage to anything but the end of the log; kills and power cuts; data may be lost, but not silently",
  weight: 2,
  draw: (chance) => {
    const actions = drawWorkload(chance, { actions: [40, 150], io: 100, control: 10, crashes: 2, reopens: 2 });
    const kinds = (["rot", "rot", "bad-sectors", "missing-file", "short-file", "read-errors"] as const).filter(() =>
      chance.often(0.4),
    );
    return {
      setup: { ...drawSetup(chance), checkpointBytes: 65536 },
      actions: withTroubles(chance, actions, () => {
        const kind = kinds.length === 0 ? "rot" : chance.pick(kinds);
        if (kind === "read-errors") return { kind, often: chance.pick([0.01, 0.1]) };
        const of = chance.pick(["segment-", "segment-", "checkpoint-", ""]);
        const seed = chance.next();
        if (kind === "rot") return { kind, of, seed, bits: chance.pick([1, 4, 64]) };
        if (kind === "bad-sectors") return { kind, of, seed, count: chance.pick([1, 8]) };
        return { kind, of, seed };
      }),
    };
  },
  play: playEngine,
};
