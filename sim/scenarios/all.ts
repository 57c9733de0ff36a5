/** Every scenario there is. To add one: a file beside this one, and a line here; see docs/design/simulation.md. */
import type { Scenario } from "../scenario.ts";
import { badCheckpoints } from "./bad-checkpoints.ts";
import { copies } from "./copies.ts";
import { damage } from "./damage.ts";
import { failingDisk } from "./failing-disk.ts";
import { fairWeather } from "./fair-weather.ts";
import { fullDisk } from "./full-disk.ts";
import { iscsi } from "./iscsi.ts";
import { lyingDisk } from "./lying-disk.ts";
import { nbdNetwork } from "./nbd-network.ts";
import { nbdSlow } from "./nbd-slow.ts";
import { overwriting } from "./overwriting.ts";
import { pauses } from "./pauses.ts";
import { powerCuts } from "./power-cuts.ts";
import { scp } from "./scp.ts";
import { scpShared } from "./scp-shared.ts";
import { tornSectors } from "./torn-sectors.ts";
import { versionTrees } from "./version-trees.ts";

// biome-ignore lint/suspicious/noExplicitAny: each scenario has a setup of its own, which only itself reads
export const SCENARIOS: readonly Scenario<any>[] = [
  powerCuts,
  versionTrees,
  copies,
  overwriting,
  fullDisk,
  failingDisk,
  damage,
  badCheckpoints,
  lyingDisk,
  nbdNetwork,
  fairWeather,
  scp,
  iscsi,
  tornSectors,
  pauses,
  nbdSlow,
  scpShared,
];
