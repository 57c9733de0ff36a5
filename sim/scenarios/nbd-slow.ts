/**
 * As `nbd-network`, and besides the server's process stands still for a while, or the host's, which then reads nothing of
 * what it is sent; and their clocks do not agree on how long a second is.
 */
import type { Chance } from "../env/chance.ts";
import type { Scenario } from "../scenario.ts";
import type { Action } from "../script.ts";
import { type NbdSetup, playNbd } from "../worlds/nbd-world.ts";
import { nbdNetwork } from "./nbd-network.ts";

const CLOCK_RATES = [1, 0.99, 1.01, 0.5, 2];

export const nbdSlow: Scenario<NbdSetup> = {
  name: "nbd-slow",
  about: "a host over NBD, with processes that stand still and clocks that drift",
  budget: "any network fault; kills, power cuts and pauses of the server; pauses of the client; drifting clocks",
  weight: 1,
  draw: (chance) => {
    const { setup, actions } = nbdNetwork.draw(chance);
    return {
      setup: { ...setup, clockRates: [chance.pick(CLOCK_RATES), chance.pick(CLOCK_RATES)] },
      actions: withPauses(chance, actions, [1, 50, 2000, 40_000]),
    };
  },
  play: playNbd,
};

/** Puts pauses among the actions, each of one of these spans. */
export function withPauses(chance: Chance, actions: readonly Action[], spansMs: readonly number[]): Action[] {
  const often = chance.pick([0.02, 0.1]);
  const hosts = chance.pick([0, 0.5, 1]);
  return actions.flatMap((action): Action[] =>
    action.do === "create-volume" || !chance.often(often)
      ? [action]
      : [action, { do: "pause", ms: chance.pick(spansMs), host: chance.often(hosts) }],
  );
}
