/**
 * Drives and partitions as the control plane keeps them: one file, changed as a whole. A change is durable before the
 * lane is told, and answered when the lane has done it: the space of a deleted partition is given to nobody else before
 * its last operation has ended.
 */
import { randomUUID } from "node:crypto";
import { closeSync, constants, fstatSync, mkdirSync, openSync, readFileSync, realpathSync, statSync } from "node:fs";
import { basename } from "node:path";
import {
  DRIVES_EMPTY,
  type DriveRecord,
  type DrivesState,
  PARTITION_SIZE_MULTIPLE,
  type PartitionRecord,
  partitionBytes,
  rangeSectors,
  SECTOR_BYTES,
  type SectorRange,
  ZERO_SIZE_MULTIPLE,
} from "#base/drives";
import { checkName } from "#base/names";
import { Refusal } from "#base/refusal";
import type { RightsLimits } from "#base/rights";
import { formatSize } from "#base/size";
import type { Bytes } from "#base/units";
import type { DriveSetFacts } from "#store/drive-set";
import { allocate, freeRanges, joined, overlap } from "#store/drive-space";
import { readIfThere, writeDurably } from "./durable-file.ts";

export class Drives {
  state: DrivesState;
  readonly #path: string;
  readonly #mapsPath: string;
  readonly #publish: (given: { state: DrivesState; mapsPath: string }) => Promise<DriveSetFacts>;
  #last: Promise<unknown> = Promise.resolve();

  /** @throws Refusal damaged, too-new */
  constructor(
    path: string,
    mapsPath: string,
    publish: (given: { state: DrivesState; mapsPath: string }) => Promise<DriveSetFacts>,
  ) {
    this.#path = path;
    this.#mapsPath = mapsPath;
    this.#publish = publish;
    this.state = read(path);
  }

  drive(name: string): DriveRecord | undefined {
    return this.state.drives.find((one) => one.name === name);
  }
  partition(name: string): PartitionRecord | undefined {
    return this.state.partitions.find((one) => one.name === name);
  }

  /** One change after another: durable, then in force. A refusal of `edit` changes nothing. */
  change(edit: (state: DrivesState) => DrivesState): Promise<DriveSetFacts> {
    const mine = this.#last.then(async () => {
      const next = { ...edit(this.state), generation: this.state.generation + 1 };
      writeDurably(this.#path, `${JSON.stringify(next, undefined, 2)}\n`);
      this.state = next;
      return this.publish();
    });
    this.#last = mine.catch(() => {});
    return mine;
  }

  publish(): Promise<DriveSetFacts> {
    if (this.state.partitions.some(({ zero }) => zero)) mkdirSync(this.#mapsPath, { recursive: true, mode: 0o700 });
    return this.#publish({ state: this.state, mapsPath: this.#mapsPath });
  }
}

/** Looks at a file or a block device that is to be a drive. @throws Refusal */
export function inspectDrive(state: DrivesState, name: string, path: string): DriveRecord {
  checkName("drive", name);
  if (state.drives.some((one) => one.name === name))
    throw new Refusal("exists", `There is already a drive "${name}"`, "Choose another name.");
  let real: string;
  try {
    real = realpathSync(path);
  } catch {
    throw new Refusal(
      "not-found",
      `${path} does not exist`,
      "Give a file (`truncate -s 10G FILE` makes one) or a block device.",
    );
  }
  for (const drive of state.drives)
    if (sameFile(drive.path, real)) throw new Refusal("exists", `${path} is drive "${drive.name}" already`);
  const { isBlock, size } = sizeOf(real);
  const sectors = Math.floor(size / PARTITION_SIZE_MULTIPLE) * (PARTITION_SIZE_MULTIPLE / SECTOR_BYTES);
  if (sectors === 0)
    throw new Refusal(
      "bad-request",
      `${path} is empty`,
      isBlock ? "Is there a medium in it?" : "`truncate -s 10G FILE` gives it a size.",
    );
  return { name, path: real, sectors };
}

function sizeOf(path: string): { isBlock: boolean; size: Bytes } {
  const facts = statSync(path);
  if (!facts.isFile() && !facts.isBlockDevice())
    throw new Refusal("bad-request", `${path} is neither a file nor a block device`);
  let file: number;
  try {
    // For a block device, O_EXCL fails when it is mounted or otherwise in use.
    file = openSync(path, constants.O_RDWR | (facts.isBlockDevice() ? constants.O_EXCL : 0));
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === "EBUSY")
      throw new Refusal("in-use", `${path} is mounted, or in use by something else`, "Unmount it first.");
    throw new Refusal("not-allowed", `Cannot open ${path} for writing: ${(error as Error).message}`);
  }
  try {
    if (facts.isFile()) return { isBlock: false, size: fstatSync(file).size };
    const sectors = readFileSync(`/sys/class/block/${basename(path)}/size`, "utf8");
    return { isBlock: true, size: Number(sectors) * SECTOR_BYTES };
  } finally {
    closeSync(file);
  }
}

function sameFile(a: string, b: string): boolean {
  try {
    const [one, other] = [statSync(a), statSync(b)];
    return one.isBlockDevice()
      ? other.isBlockDevice() && one.rdev === other.rdev
      : one.dev === other.dev && one.ino === other.ino;
  } catch {
    return a === b;
  }
}

export function removeDrive(state: DrivesState, name: string): DrivesState {
  driveOf(state, name);
  const user = state.partitions.find(({ ranges }) => ranges.some((range) => range.drive === name));
  if (user !== undefined)
    throw new Refusal(
      "in-use",
      `Partition "${user.name}" lies on drive "${name}"`,
      `\`ashlar partition rm ${user.name}\` first.`,
    );
  return { ...state, drives: state.drives.filter((one) => one.name !== name) };
}

export interface PartitionGiven {
  readonly name: string;
  readonly size: Bytes;
  readonly drive: string | undefined;
  readonly zero: boolean;
}

export function createPartition(state: DrivesState, limits: RightsLimits, given: PartitionGiven): DrivesState {
  const { name, size, drive, zero } = given;
  checkPartitionName(state, limits, name);
  checkSize(size, zero);
  if (drive !== undefined) driveOf(state, drive);
  const ranges = allocate(state, size / SECTOR_BYTES, { drive });
  if (ranges === undefined) throw noSpace(state, size, drive);
  return { ...state, partitions: [...state.partitions, newPartition(name, ranges, zero)] };
}

/** A partition at exactly these places, as `nsu.conf` says. @throws Refusal */
export function placePartition(
  state: DrivesState,
  limits: RightsLimits,
  name: string,
  ranges: readonly SectorRange[],
  zero: boolean,
): DrivesState {
  checkPartitionName(state, limits, name);
  for (const range of ranges) checkPlace(state, range);
  if (zero) checkSize(partitionBytes({ ranges }), zero);
  const twice = overlap(ranges);
  if (twice !== undefined)
    throw new Refusal(
      "bad-request",
      `The ranges of "${name}" overlap at sector ${twice[1].first} of ${twice[1].drive}`,
    );
  return { ...state, partitions: [...state.partitions, newPartition(name, ranges, zero)] };
}

/** That a range lies on its drive, and on nothing else. @throws Refusal */
export function checkPlace(state: DrivesState, { drive, first, last }: SectorRange): void {
  const { sectors } = driveOf(state, drive);
  if (last < first || last >= sectors)
    throw new Refusal(
      "bad-request",
      `${drive}(${first},${last}) does not lie on drive "${drive}", which has sectors 0 to ${sectors - 1}`,
    );
  const other = state.partitions.find((one) => overlap([...one.ranges, { drive, first, last }]) !== undefined);
  if (other !== undefined)
    throw new Refusal(
      "exists",
      `${drive}(${first},${last}) overlaps partition "${other.name}"`,
      "Ranges are inclusive.",
    );
}

export function resizePartition(state: DrivesState, name: string, size: Bytes): DrivesState {
  const partition = partitionOf(state, name);
  checkSize(size, partition.zero);
  const before = partitionBytes(partition);
  if (size < before)
    throw new Refusal(
      "bad-request",
      `"${name}" has ${before} bytes; a shrink to ${size} would cut off data`,
      "Make a smaller partition, and copy what you need.",
    );
  if (size === before) return state;
  const more = allocate(state, (size - before) / SECTOR_BYTES, { after: partition.ranges.at(-1) });
  if (more === undefined) throw noSpace(state, size - before, undefined);
  const grown = { ...partition, ranges: joined([...partition.ranges, ...more]) };
  return { ...state, partitions: state.partitions.map((one) => (one.name === name ? grown : one)) };
}

export function removePartition(state: DrivesState, name: string): DrivesState {
  partitionOf(state, name);
  return { ...state, partitions: state.partitions.filter((one) => one.name !== name) };
}

/** Free bytes, of a drive or of all: partition 0. */
export function freeBytes(state: DrivesState, drive?: string): Bytes {
  return freeRanges(state, drive).reduce((sum, range) => sum + rangeSectors(range), 0) * SECTOR_BYTES;
}

export function driveOf(state: DrivesState, name: string): DriveRecord {
  const drive = state.drives.find((one) => one.name === name);
  if (drive === undefined)
    throw new Refusal("not-found", `There is no drive "${name}"`, "`ashlar drive ls` shows them.");
  return drive;
}

export function partitionOf(state: DrivesState, name: string): PartitionRecord {
  const partition = state.partitions.find((one) => one.name === name);
  if (partition === undefined)
    throw new Refusal("not-found", `There is no partition "${name}"`, "`ashlar partition ls` shows them.");
  return partition;
}

function checkPartitionName(state: DrivesState, limits: RightsLimits, name: string): void {
  checkName("partition", name);
  if (state.partitions.some((one) => one.name === name))
    throw new Refusal("exists", `There is already a partition "${name}"`, "Choose another name.");
  if (state.partitions.length >= limits.partitionsMax)
    throw new Refusal(
      "not-allowed",
      `There are ${state.partitions.length} partitions, which is the limit`,
      "Delete one, or raise it: `ashlar limits --partitions N`.",
    );
}

function checkSize(size: Bytes, zero: boolean): void {
  const multiple = zero ? ZERO_SIZE_MULTIPLE : PARTITION_SIZE_MULTIPLE;
  if (size <= 0 || size % multiple !== 0)
    throw new Refusal(
      "bad-request",
      `${size} bytes cannot be the size of ${zero ? "a zeroed" : "a"} partition`,
      `It is a multiple of ${multiple}.`,
    );
}

function noSpace(state: DrivesState, size: Bytes, drive: string | undefined): Refusal {
  const free = freeBytes(state, drive);
  const where = drive === undefined ? "the drives" : `drive "${drive}"`;
  if (state.drives.length === 0)
    return new Refusal("full", "There are no drives", "Add one: `ashlar drive add NAME FILE_OR_DEVICE`.");
  return new Refusal(
    "full",
    `${formatSize(size)} do not fit on ${where}: ${formatSize(free)} are free`,
    "Delete a partition, or add a drive.",
  );
}

const newPartition = (name: string, ranges: readonly SectorRange[], zero: boolean): PartitionRecord => ({
  name,
  uuid: randomUUID().replaceAll("-", ""),
  ranges,
  zero,
  created: Date.now(),
});

function read(path: string): DrivesState {
  const text = readIfThere(path);
  if (text === undefined) return DRIVES_EMPTY;
  let state: DrivesState;
  try {
    state = JSON.parse(text) as DrivesState;
  } catch {
    throw new Refusal(
      "damaged",
      `${path} is damaged: it is not JSON`,
      "Restore it from a backup: without it nobody knows where partitions lie.",
    );
  }
  if ((state.format as number) > 1)
    throw new Refusal(
      "too-new",
      `${path} has format ${state.format}`,
      "Start the newer version of Ashlar that wrote it.",
    );
  return state;
}
