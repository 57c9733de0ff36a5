/**
 * Deliberate mistakes, one at a time: what the simulator does not find when it is put there on purpose, it does not find
 * when it happens. Each has to be caught within its number of worlds. A new piece of the product brings its own.
 */
import { canary } from "#base/canary";
import { makeResources, runSeed } from "./runner.ts";

export interface Canary {
  /** As the product asks for it: `canary.armed === name`. */
  readonly name: string;
  readonly what: string;
  /** Where it must be caught. */
  readonly scenario: string;
  /** Worlds it may take; about ten times what it took when this was written. */
  readonly worldsMax: number;
}

export const CANARIES: readonly Canary[] = [
  { name: "ack-before-sync", what: "a flush is answered before the sync", scenario: "power-cuts", worldsMax: 100 },
  { name: "trust-torn-group", what: "replay takes torn groups for whole", scenario: "power-cuts", worldsMax: 300 },
  { name: "forget-last-group", what: "replay forgets the last group", scenario: "power-cuts", worldsMax: 100 },
  {
    name: "trust-page-cache",
    what: "a start trusts what is in the page cache",
    scenario: "failing-disk",
    worldsMax: 600,
  },
  {
    name: "checkpoint-without-log",
    what: "a checkpoint is older than its log",
    scenario: "power-cuts",
    worldsMax: 600,
  },
  { name: "reuse-segment-name", what: "a segment's number is used twice", scenario: "overwriting", worldsMax: 100 },
  {
    name: "cache-number-shared",
    what: "what the cache has of a segment is taken for another one's",
    scenario: "overwriting",
    worldsMax: 100,
  },
  {
    name: "cache-carries-other",
    what: "the cache takes a block that was moved for another one",
    scenario: "overwriting",
    worldsMax: 2000,
  },
  {
    name: "retire-early",
    what: "a segment is freed while a checkpoint needs it",
    scenario: "bad-checkpoints",
    worldsMax: 600,
  },
  { name: "free-shared", what: "a block is freed that another version has", scenario: "version-trees", worldsMax: 100 },
  { name: "free-copied", what: "a block is freed that was copied elsewhere", scenario: "copies", worldsMax: 100 },
  { name: "forget-trim", what: "trimmed blocks keep their data", scenario: "fair-weather", worldsMax: 100 },
  { name: "hole-is-data", what: "block status lies about holes", scenario: "fair-weather", worldsMax: 300 },
  { name: "retry-failed-sync", what: "a failed sync is tried again", scenario: "failing-disk", worldsMax: 300 },
  { name: "skip-checksum", what: "data is returned without its checksum", scenario: "damage", worldsMax: 300 },
  { name: "scp-no-fence", what: "a write is repeated before it is fenced", scenario: "scp", worldsMax: 300 },
  { name: "scp-welcome-early", what: "a session begins before the old one has ended", scenario: "scp", worldsMax: 600 },
  { name: "scp-fence-early", what: "a fence is answered before it stands", scenario: "scp", worldsMax: 600 },
  { name: "scp-half-done", what: "an operation is done with its first piece", scenario: "scp", worldsMax: 50 },
  { name: "scp-wrong-parent", what: "a piece counts for another operation", scenario: "scp", worldsMax: 100 },
  {
    name: "scp-wrong-answer",
    what: "an answer is taken for that to another command",
    scenario: "scp",
    worldsMax: 300,
  },
  { name: "scp-counted-twice", what: "a piece completes twice", scenario: "scp", worldsMax: 100 },
  {
    name: "scp-wrong-socket",
    what: "an answer is taken for one over another socket",
    scenario: "scp-shared",
    worldsMax: 300,
  },
  {
    name: "scp-forget-unflushed",
    what: "what a server has forgotten is not repeated",
    scenario: "scp-shared",
    worldsMax: 300,
  },
  {
    name: "scp-number-reused",
    what: "a unit's number is another's, and the session goes on",
    scenario: "scp-shared",
    worldsMax: 2000,
  },
  { name: "grant-widens", what: "a right that was taken away stays", scenario: "scp-shared", worldsMax: 300 },
  {
    name: "drive-forget-marks",
    what: "a flush does not say which parts are zeroed",
    scenario: "scp-shared",
    worldsMax: 600,
  },
  { name: "drive-show-old", what: "a partition shows what was there before", scenario: "scp-shared", worldsMax: 100 },
  { name: "scp-piece-twice", what: "a piece is sent twice", scenario: "scp", worldsMax: 100 },
  { name: "scsi-write-not-judged", what: "a write passes a reservation", scenario: "iscsi", worldsMax: 100 },
  { name: "nbd-not-judged", what: "NBD passes a reservation", scenario: "iscsi", worldsMax: 300 },
  { name: "pr-not-kept", what: "reservations with APTPL are not kept", scenario: "iscsi", worldsMax: 300 },
  { name: "pr-preempt-half", what: "PREEMPT leaves the registration", scenario: "iscsi", worldsMax: 1000 },
  { name: "scsi-attention-lost", what: "a unit attention is not raised", scenario: "iscsi", worldsMax: 300 },
  { name: "scsi-abort-early", what: "an abort is answered while the write runs", scenario: "iscsi", worldsMax: 300 },
  { name: "iscsi-done-twice", what: "a command that comes twice is done twice", scenario: "iscsi", worldsMax: 100 },
  { name: "iscsi-any-order", what: "commands are not put in the order of CmdSN", scenario: "iscsi", worldsMax: 600 },
  { name: "iscsi-wrong-tag", what: "a status goes to another task", scenario: "iscsi", worldsMax: 50 },
  {
    name: "iscsi-welcome-early",
    what: "a session begins before the one it replaces has ended",
    scenario: "iscsi",
    worldsMax: 600,
  },
  { name: "iscsi-wrong-unit", what: "every LUN is the same unit", scenario: "iscsi", worldsMax: 50 },
  { name: "iscsi-reset-all", what: "a reset of a unit is one of all units", scenario: "iscsi", worldsMax: 300 },
  { name: "iscsi-reset-some", what: "a target reset leaves a unit out", scenario: "iscsi", worldsMax: 300 },
  { name: "pr-other-unit", what: "another unit's reservations are looked at", scenario: "iscsi", worldsMax: 300 },
  {
    name: "scsi-attention-elsewhere",
    what: "a unit attention is raised for another unit",
    scenario: "iscsi",
    worldsMax: 300,
  },
  { name: "nbd-wrong-cookie", what: "a reply carries another cookie", scenario: "nbd-network", worldsMax: 50 },
  { name: "nbd-flush-early", what: "a flush is answered before it is done", scenario: "nbd-network", worldsMax: 300 },
  { name: "nbd-forget-unflushed", what: "unflushed writes are not repeated", scenario: "nbd-network", worldsMax: 300 },
  { name: "nbd-hole-over-data", what: "a hole is told where there is data", scenario: "nbd-network", worldsMax: 100 },
  { name: "nbd-ignore-fua", what: "FUA is ignored", scenario: "iscsi", worldsMax: 600 },
  { name: "nbd-swallow-error", what: "an error is answered as success", scenario: "iscsi", worldsMax: 300 },
];

export interface Catch {
  readonly canary: Canary;
  /** The worlds that it took, or undefined when it was not caught. */
  readonly worlds: number | undefined;
  readonly failure: string | undefined;
}

/** Arms one canary and runs worlds until one of them fails. */
export function hunt(bird: Canary, firstSeed = 1): Catch {
  const resources = makeResources();
  canary.armed = bird.name;
  try {
    for (let worlds = 1; worlds <= bird.worldsMax; worlds++) {
      const { failure } = runSeed(firstSeed + worlds - 1, resources, { scenario: bird.scenario });
      if (failure !== undefined) return { canary: bird, worlds, failure };
    }
    return { canary: bird, worlds: undefined, failure: undefined };
  } finally {
    canary.armed = "";
  }
}

/** Hunts all of them, and prints the score. True when each was caught. */
export function runCanaries(print: (line: string) => void, firstSeed = 1): boolean {
  let caught = 0;
  for (const bird of CANARIES) {
    const { worlds, failure } = hunt(bird, firstSeed);
    if (worlds !== undefined) caught++;
    const outcome = worlds === undefined ? `NOT CAUGHT in ${bird.worldsMax} worlds` : `world ${worlds}: ${failure}`;
    print(`${bird.name.padEnd(24)} ${bird.scenario.padEnd(14)} ${outcome.slice(0, 140)}`);
  }
  print(`${caught} of ${CANARIES.length} canaries caught`);
  return caught === CANARIES.length;
}
