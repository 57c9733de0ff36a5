/**
 * Up to three hosts share up to three volumes over iSCSI, with reservations, task management and ORDERED commands, over a network
 * that fails and a server that dies; and somebody comes by over NBD.
 */
import { KIB, MIB } from "#base/units";
import type { Chance } from "../env/chance.ts";
import { PR_TYPES } from "../oracle/pr-model.ts";
import type { Scenario } from "../scenario.ts";
import type { Action, DrawnIo, NetTrouble } from "../script.ts";
import { type IscsiSetup, playIscsi } from "../worlds/iscsi-world.ts";
import { drawCrash, pickWeighted } from "./engine-draw.ts";

export const iscsi: Scenario<IscsiSetup> = {
  name: "iscsi",
  about: "hosts that share volumes over iSCSI, and one over NBD: reservations, task management, order",
  budget: "any network fault; sessions that end and come again; kills, pauses and power cuts of the server",
  weight: 2,
  draw: (chance) => {
    const hosts = chance.pick([1, 2, 2, 3]);
    const blockSize = chance.pick([512, 4096]);
    return {
      setup: {
        segmentBlocks: 64,
        checkpointBytes: chance.pick([64 * KIB, MIB]),
        size: chance.pick([MIB, 64 * MIB]),
        blockSize,
        units: chance.pick([1, 1, 2, 3]),
        blocks: chance.pick([8, 32, 100]),
        depth: chance.pick([1, 4, 16]),
        names: chance.pick(["journal", "loose"]),
        turnMs: chance.pick([0, 0.05, 0.5]),
        chunkMax: chance.pick([1024, 8192, 65536, 65536]),
        bufferBytes: chance.pick([4 * KIB, 64 * KIB, 256 * KIB]),
        latencyMs: chance.pick([0.05, 0.5, 5]),
        slowDisk: chance.pick([1, 1, 20, 200]),
        hosts: Array.from({ length: hosts }, () => ({
          connections: chance.pick([1, 1, 2]),
          immediateData: chance.often(0.7),
          initialR2t: chance.often(0.5),
          errorRecoveryLevel: chance.pick([0, 0, 1]),
          burst: chance.pick([4096, 16384, 65536]),
          patienceMs: chance.pick([300, 3000]),
        })),
      },
      actions: drawActions(chance),
    };
  },
  play: playIscsi,
};

const RESERVE_KINDS = [
  "register",
  "register",
  "register-ignore",
  "unregister",
  "reserve",
  "reserve",
  "reserve",
  "release",
  "clear",
  "preempt",
  "preempt",
  "preempt-abort",
  "move",
] as const;
const MANAGE_KINDS = [
  "abort-task",
  "abort-task",
  "abort-task-set",
  "clear-task-set",
  "lun-reset",
  "target-reset",
] as const;
const IO_KINDS = [
  ["write", 40],
  ["read", 25],
  ["flush", 8],
  ["trim", 4],
  ["zero", 4],
  ["compare-write", 5],
] as const;

function drawActions(chance: Chance): Action[] {
  const actions: Action[] = [];
  const count = chance.between(30, 120);
  // Swarm: each world has some of it only.
  const some = (often: number, weight: number): number => (chance.often(often) ? weight : 0);
  const weights = {
    reserve: some(0.6, chance.pick([5, 20])),
    manage: some(0.5, chance.pick([2, 8])),
    again: some(0.4, 3),
    resend: some(0.4, 8),
    nbd: some(0.5, 6),
    net: some(0.5, chance.pick([2, 6])),
    crash: some(0.5, 3),
    pause: some(0.2, 2),
  };
  const kinds = (Object.entries(weights) as [keyof typeof weights, number][]).filter(([, weight]) => weight > 0);
  const ordered = chance.pick([0, 0.1, 0.4]);
  const reserveKinds = RESERVE_KINDS.filter((kind) => kind === "register" || kind === "reserve" || chance.often(0.7));
  const aptpl = chance.pick([0, 0.5, 1]);
  const quiet = chance.pick([0, 0, 0.5, 5]);
  while (actions.length < count) {
    const host = chance.below(6);
    const unit = chance.below(6);
    const waitMs = chance.often(0.02) ? chance.between(1, 2000) : chance.fraction() * quiet;
    const kind = pickWeighted(chance, [["io", 60] as const, ...kinds]);
    switch (kind) {
      case "io": {
        const attribute = chance.often(ordered)
          ? chance.pick(["ordered", "ordered", "head-of-queue"] as const)
          : "simple";
        actions.push({ do: "scsi", host, unit, attribute, io: drawIo(chance), waitMs });
        break;
      }
      case "reserve":
        if (chance.often(0.15)) actions.push({ do: "look", host, unit, waitMs });
        else
          actions.push({
            do: "reserve",
            host,
            unit,
            what: chance.pick(reserveKinds),
            type: chance.pick(PR_TYPES),
            pick: chance.below(12),
            aptpl: chance.often(aptpl),
            wrong: chance.often(0.1),
            waitMs,
          });
        break;
      case "manage":
        actions.push({
          do: "manage",
          host,
          unit,
          function: chance.pick(MANAGE_KINDS),
          immediate: chance.often(0.8),
          waitMs,
        });
        break;
      case "again":
        actions.push({ do: "log-in-again", host, politely: host > 3, waitMs });
        break;
      case "resend":
        actions.push({ do: "resend", host, waitMs });
        break;
      case "nbd":
        actions.push({
          do: "nbd-io",
          unit,
          io: { ...drawIo(chance), kind: chance.pick(["read", "write"]), fua: true },
          waitMs,
        });
        break;
      case "net":
        actions.push({ do: "net", trouble: drawTrouble(chance), waitMs });
        break;
      case "crash":
        actions.push(drawCrash(chance));
        break;
      case "pause":
        actions.push({ do: "pause", ms: chance.pick([1, 50, 5000]), waitMs });
        break;
    }
  }
  return actions;
}

function drawIo(chance: Chance): DrawnIo {
  const kind = pickWeighted(chance, IO_KINDS);
  const count = chance.often(0.1) ? chance.between(8, 64) : chance.pick([1, 1, 2, 3, 8]);
  return {
    kind,
    area: 0,
    offset: chance.below(4096),
    count: kind === "compare-write" ? Math.min(count, 8) : count,
    fua: (kind === "write" || kind === "compare-write") && chance.often(0.15),
    noHole: kind === "zero" && chance.often(0.3),
    fastOnly: false,
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
      };
    default:
      return { kind: "reset-all" };
  }
}
