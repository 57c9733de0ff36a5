/**
 * A host over NBD: connections are reset, go half-open, stand still, the network is cut one way or both, and the server
 * is killed or loses its power. The client's device never loses what it has acknowledged, and answers everything in the
 * end.
 */
import { KIB, MIB } from "#base/units";
import type { Chance } from "../env/chance.ts";
import type { Scenario } from "../scenario.ts";
import type { Action, NetTrouble } from "../script.ts";
import { type NbdSetup, playNbd } from "../worlds/nbd-world.ts";
import { drawCrash, drawWorkload } from "./engine-draw.ts";

export const nbdNetwork: Scenario<NbdSetup> = {
  name: "nbd-network",
  about: "a host over NBD, with a network and a server that fail",
  budget: "any network fault; kills and power cuts of the server; the client lives",
  weight: 2,
  draw: (chance) => ({
    setup: {
      segmentBlocks: 64,
      checkpointBytes: chance.pick([64 * KIB, MIB]),
      size: chance.pick([MIB, 64 * MIB]),
      blockSize: chance.pick([512, 4096]),
      blocks: chance.pick([8, 64, 200]),
      depth: chance.pick([1, 4, 32]),
      connections: chance.pick([1, 1, 2, 4]),
      names: chance.pick(["journal", "loose"]),
      turnMs: chance.pick([0, 0.05, 0.5]),
      chunkMax: chance.pick([1024, 8192, 65536, 65536]),
      bufferBytes: chance.pick([4 * KIB, 64 * KIB, 256 * KIB]),
      latencyMs: chance.pick([0.05, 0.5, 5]),
    },
    actions: mixTroubles(
      chance,
      drawWorkload(chance, { actions: [20, 70], io: 100, control: 0, crashes: 0, reopens: 0 }),
    ),
  }),
  play: playNbd,
};

function mixTroubles(chance: Chance, actions: readonly Action[]): Action[] {
  const mixed: Action[] = [];
  const often = chance.pick([0.02, 0.06, 0.12]);
  const kills = chance.often(0.6);
  for (const action of actions) {
    if (action.do !== "create-volume") mixed.push(action);
    if (!chance.often(often)) continue;
    if (kills && chance.often(0.4)) mixed.push(drawCrash(chance));
    else mixed.push({ do: "net", trouble: drawTrouble(chance), waitMs: chance.fraction() * 5 });
  }
  return mixed;
}

function drawTrouble(chance: Chance): NetTrouble {
  const rate = (): number => chance.pick([0, 0, 0.002, 0.02]);
  switch (chance.below(3)) {
    case 0:
      return { kind: "faults", reset: rate(), vanish: rate(), clog: rate() };
    case 1:
      return {
        kind: "partition",
        fromServer: chance.often(0.5),
        bothWays: chance.often(0.5),
        ms: chance.pick([5, 500, 30_000, 120_000]),
      };
    default:
      return { kind: "reset-all" };
  }
}
