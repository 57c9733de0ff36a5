/** A host on a bad network: sockets, the network, the server and the host itself come and go; a write is never repeated late. */
import type { Scenario } from "../scenario.ts";
import { playScp, type ScpSetup } from "../worlds/scp-world.ts";

export const scp: Scenario<ScpSetup> = {
  name: "scp",
  about: "an SCP server and host with a bad network and a slow device between them",
  budget: "resets, dead and clogged connections, partitions, pauses, crashes of the server; no operation may fail",
  weight: 1,
  draw: (chance) => {
    const some = (often: number, what: () => number): number => (chance.often(often) ? what() : 0);
    return {
      setup: {
        serverVersions: chance.pick([3, 3, 3, 1]),
        hostVersions: chance.pick([3, 3, 3, 1]),
        sockets: chance.between(1, 5),
        applications: chance.between(1, 4),
        operations: chance.between(5, 25),
        deviceMs: chance.pick([0.1, 1, 5]),
        deviceSlowMs: chance.pick([20, 200, 1500]),
        reset: some(0.5, () => chance.fraction() * 0.03),
        vanish: some(0.3, () => chance.fraction() * 0.01),
        clog: some(0.3, () => chance.fraction() * 0.05),
        refuse: some(0.3, () => chance.fraction() * 0.3),
        chunkMax: chance.pick([65536, 65536, 5000, 700]),
        latencyMs: chance.pick([0.1, 1, 10]),
        crashes: some(0.3, () => chance.between(1, 3)),
        partitions: some(0.3, () => chance.between(1, 3)),
        pauses: some(0.2, () => chance.between(1, 3)),
        rightsChanges: some(0.3, () => chance.between(1, 4)),
        spanMs: chance.pick([200, 1000, 5000]),
      },
      actions: [],
    };
  },
  play: playScp,
};
