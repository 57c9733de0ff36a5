/**
 * One to three SCP hosts, of version 1 or 2, share volumes and partitions with rights of their own, which change; over one
 * network or two, which fail one at a time or both; and server and hosts die, stand still, and have clocks of their own.
 */
import { KIB, MIB } from "#base/units";
import type { Chance } from "../env/chance.ts";
import type { Scenario } from "../scenario.ts";
import type { Action, DrawnIo, NetTrouble } from "../script.ts";
import type { DeviceSetup, Right } from "../worlds/scp-shared-server.ts";
import { playScpShared, type ScpSharedSetup } from "../worlds/scp-shared-world.ts";
import { drawCrash, pickWeighted } from "./engine-draw.ts";

const CLOCK_RATES = [1, 1, 0.99, 1.01, 0.5, 2];
const VERSION_ONE = 1;
const BOTH_VERSIONS = 3;

export const scpShared: Scenario<ScpSharedSetup> = {
  name: "scp-shared",
  about: "SCP hosts that share volumes and partitions, with rights that change, over two networks",
  budget: "any network fault; kills, pauses and power cuts of the server; kills and pauses of hosts; drifting clocks",
  weight: 2,
  draw: (chance) => {
    const hosts = chance.pick([1, 1, 2, 3]);
    const versions = chance.pick([BOTH_VERSIONS, BOTH_VERSIONS, BOTH_VERSIONS, VERSION_ONE]);
    const hostVersions = Array.from({ length: hosts }, () =>
      chance.pick([BOTH_VERSIONS, BOTH_VERSIONS, BOTH_VERSIONS, VERSION_ONE]),
    );
    const hasVersionOne = versions === VERSION_ONE || hostVersions.includes(VERSION_ONE);
    const devices = Array.from({ length: chance.pick([1, 2, 3]) }, () => drawDevice(chance, hasVersionOne));
    return {
      setup: {
        segmentBlocks: 64,
        checkpointBytes: chance.pick([64 * KIB, MIB]),
        names: chance.pick(["journal", "loose"]),
        turnMs: chance.pick([0, 0.05, 0.5]),
        chunkMax: chance.pick([1024, 8192, 65536, 65536]),
        bufferBytes: chance.pick([4 * KIB, 64 * KIB, 256 * KIB]),
        latencyMs: chance.pick([0.05, 0.5, 5]),
        slowDisk: chance.pick([1, 1, 20, 200]),
        networks: chance.pick([1, 2]),
        versions,
        clockRates: Array.from({ length: hosts + 1 }, () => chance.pick(CLOCK_RATES)),
        devices,
        hosts: hostVersions.map((each) => ({
          versions: each,
          sockets: chance.between(1, 4),
          depth: chance.pick([1, 4, 16]),
          rights: devices.map(
            (): Right => chance.pick(["read-write", "read-write", "read-write", "read-only", "none"]),
          ),
        })),
        blocks: chance.pick([8, 40, 200]),
      },
      actions: drawActions(chance),
    };
  },
  play: playScpShared,
};

function drawDevice(chance: Chance, hasVersionOne: boolean): DeviceSetup {
  if (chance.often(0.5))
    return {
      kind: "volume",
      size: chance.pick([256 * KIB, MIB, 64 * MIB]),
      blockSize: hasVersionOne ? 512 : chance.pick([512, 4096]),
    };
  const isZeroed = chance.often(0.6);
  return {
    kind: "partition",
    size: isZeroed ? chance.pick([MIB, 2 * MIB]) : chance.pick([64 * KIB, MIB]),
    isZeroed,
    isSplit: !isZeroed && chance.often(0.4),
  };
}

const IO_KINDS = [
  ["write", 40],
  ["read", 25],
  ["flush", 10],
  ["trim", 4],
  ["zero", 5],
  ["compare-write", 5],
  ["status", 2],
] as const;

function drawActions(chance: Chance): Action[] {
  const actions: Action[] = [];
  const count = chance.between(30, 120);
  // Swarm: each world has some of it only.
  const some = (often: number, weight: number): number => (chance.often(often) ? weight : 0);
  const weights = {
    grant: some(0.4, chance.pick([1, 5])),
    grow: some(0.3, 2),
    replace: some(0.2, 2),
    way: some(0.2, 3),
    net: some(0.6, chance.pick([2, 6])),
    crash: some(0.5, 3),
    pause: some(0.3, 2),
    "kill-host": some(0.2, 1),
  };
  const kinds = (Object.entries(weights) as [keyof typeof weights, number][]).filter(([, weight]) => weight > 0);
  const long = chance.pick([0, 0.1, 0.4]);
  const quiet = chance.pick([0, 0, 0.5, 5]);
  // The hosts need a moment to find the server, or nothing happens to them.
  actions.push({ do: "calm", waitMs: 100 });
  while (actions.length < count) {
    const [host, unit] = [chance.below(6), chance.below(6)];
    const waitMs = chance.often(0.02) ? chance.between(1, 2000) : chance.fraction() * quiet;
    const kind = pickWeighted(chance, [["io", 60] as const, ...kinds]);
    switch (kind) {
      case "io":
        actions.push({ do: "unit-io", host, unit, io: drawIo(chance, long), waitMs });
        break;
      case "grant":
        actions.push({
          do: "grant",
          host,
          unit,
          right: chance.pick(["read-write", "read-write", "read-only", "none"]),
          waitMs,
        });
        break;
      case "grow":
        actions.push({ do: "grow", unit, blocks: chance.pick([1, 8, 64]), waitMs });
        break;
      case "replace":
        actions.push({ do: "replace", unit, waitMs });
        break;
      case "way":
        actions.push({ do: "way", host, net: chance.below(2), isThere: chance.often(0.5), waitMs });
        break;
      case "net":
        actions.push({ do: "net", trouble: drawTrouble(chance), waitMs });
        break;
      case "crash":
        actions.push(crashOf(drawCrash(chance), weights["kill-host"] > 0 || weights.grant > 0));
        break;
      case "pause":
        actions.push({ do: "pause", ms: chance.pick([1, 50, 5001]), host: chance.often(0.5), waitMs });
        break;
      case "kill-host":
        actions.push({ do: "kill-host", host, downMs: chance.pick([0, 10, 1000]), waitMs });
        break;
    }
  }
  return actions;
}

function drawIo(chance: Chance, long: number): DrawnIo {
  const kind = pickWeighted(chance, IO_KINDS);
  const count = chance.often(long) ? chance.between(16, 160) : chance.pick([1, 1, 2, 3, 8]);
  const changes = kind === "write" || kind === "zero" || kind === "trim" || kind === "compare-write";
  return {
    kind,
    area: chance.below(8),
    offset: chance.below(4096),
    count: kind === "compare-write" ? Math.min(count, 8) : count,
    fua: changes && chance.often(0.15),
    noHole: kind === "zero" && chance.often(0.3),
    fastOnly: kind === "zero" && chance.often(0.1),
    mismatch: kind === "compare-write" && chance.often(0.2),
  };
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
        ms: chance.pick([5, 501, 3002, 30_000]),
        ...(chance.often(0.6) ? { net: chance.below(2) } : {}),
      };
    default:
      return { kind: "reset-all" };
  }
}

/** What a host keeps for a server that loses its power dies with the host, or with its right to write: one of both in a world. */
function crashOf(crash: Action, isKeptLost: boolean): Action {
  if (!isKeptLost || crash.do !== "cut-power") return crash;
  const { afterEvents, downMs } = crash;
  return { do: "kill", afterEvents, downMs };
}
