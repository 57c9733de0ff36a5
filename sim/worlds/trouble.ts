/** What goes wrong with a node's disk while a world runs. */

import { decodeGroup, type GroupHead } from "#store/format";
import { Chance } from "../env/chance.ts";
import { type Inode, SECTOR_BYTES, type SimFileSystem } from "../env/file-system.ts";
import type { SimNode } from "../env/sim-node.ts";
import type { Trouble } from "../script.ts";

/** What a product may do because of a trouble that it may not do otherwise. */
export interface Excuses {
  /** Answer "medium" for data, or refuse to open. */
  damage: boolean;
  /** Stop writing until it is opened again. */
  failure: boolean;
  /** Refuse writes because the disk is full. */
  full: boolean;
}

export function applyTrouble(node: SimNode, directory: string, trouble: Trouble, excuses: Excuses): void {
  const { diskFaults: faults, files, world } = node;
  switch (trouble.kind) {
    case "read-errors":
      faults.readError = trouble.often;
      excuses.failure = true;
      return;
    case "write-errors":
      faults.writeError = trouble.often;
      excuses.failure = true;
      return;
    case "sync-errors":
      faults.syncError = trouble.often;
      faults.syncErrorEvicts = trouble.evicts;
      excuses.failure = true;
      return;
    case "control-errors":
      faults.controlError = trouble.often;
      excuses.failure = true;
      return;
    case "stalls":
      faults.stall = trouble.often;
      return;
    case "dropped-writes":
      // Of segments: one lost checkpoint is made good from the last, two things lost at once are beyond any promise.
      faults.befalls = (path) => path.includes("segment-");
      faults.dropWrite = trouble.often;
      excuses.damage = true;
      return;
    case "misdirected-writes":
      faults.befalls = (path) => path.includes("segment-");
      faults.misdirectWrite = trouble.often;
      excuses.damage = true;
      return;
    case "bad-checkpoint":
      damageCheckpoint(node, directory, trouble.seed);
      return;
    case "full":
      files.capacity = files.used + trouble.bytes;
      excuses.full = true;
      world.say(node, `the disk has room for ${trouble.bytes} more bytes`);
      return;
    default:
      damageFiles(node, directory, trouble, excuses);
  }
}

type Damage = Extract<Trouble, { readonly of: string }>;

function damageFiles(node: SimNode, directory: string, trouble: Damage, excuses: Excuses): void {
  const { files, world } = node;
  const chance = new Chance(trouble.seed);
  const found = files
    .files(directory)
    .filter(({ path, inode }) => path.includes(trouble.of) && inode.size > 0)
    .sort((a, b) => (a.path < b.path ? -1 : 1));
  for (const end of endOfLog(files, found)) found.splice(found.indexOf(end), 1);
  if (found.length === 0) return;
  excuses.damage = true;
  const { path, inode } = chance.pick(found);
  switch (trouble.kind) {
    case "rot":
      world.fault("bit rot", node);
      for (let i = 0; i < trouble.bits; i++) {
        const position = chance.below(inode.size);
        world.say(node, `a bit of ${path} flips at ${position}`);
        files.flipBit(inode, position, chance.below(8));
      }
      return;
    case "bad-sectors":
      world.fault("bad sector", node);
      for (let i = 0; i < trouble.count; i++) {
        const sector = chance.below(Math.ceil(inode.size / SECTOR_BYTES));
        world.say(node, `sector ${sector} of ${path} goes bad`);
        inode.badSectors.add(sector);
      }
      return;
    case "missing-file":
      world.fault("missing file", node);
      world.say(node, `${path} is gone`);
      files.remove(path, "file");
      return;
    case "short-file":
      world.fault("short file", node);
      world.say(node, `${path} loses its end`);
      files.truncate(inode, chance.below(inode.size));
      return;
  }
}

interface Found {
  readonly path: string;
  readonly inode: Inode;
}

/**
 * The segments in which damage cannot be told from a write that was never flushed: the one being written, the one before
 * it, the one that has been made ahead, and all with a group that no group on the disk says to have been synced.
 */
function endOfLog(files: SimFileSystem, found: readonly Found[]): Found[] {
  const log = found.filter(({ path }) => path.includes("segment-"));
  const heads = ({ path, inode }: Found, of: "processes" | "disk"): GroupHead[] => {
    const number = Number.parseInt(path.slice(path.lastIndexOf("-") + 1), 16);
    return [...files.pagesOf(inode, of)].flatMap(({ index, bytes }) => {
      const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
      const head = decodeGroup(view, 0, number, index, Number.POSITIVE_INFINITY);
      return head !== undefined && head.synced < head.group ? [head] : [];
    });
  };
  const synced = Math.max(0, ...log.flatMap((one) => heads(one, "disk").map((head) => head.synced)));
  const newest = log.map((one) => Math.max(0, ...heads(one, "processes").map(({ group }) => group)));
  return log.filter((_, index) => index >= log.length - 3 || newest[index]! > synced);
}

const damagedCheckpoints = new WeakMap<SimNode, string>();

/** Damages one checkpoint, unless there is only one good one. */
function damageCheckpoint(node: SimNode, directory: string, seed: number): void {
  const { files, world } = node;
  const chance = new Chance(seed);
  const found = files.files(directory).filter(({ path }) => /checkpoint-[0-9a-f]+$/.test(path));
  const damaged = damagedCheckpoints.get(node);
  // The one before a damaged one is needed until two later ones are there.
  if (found.length < 2 || found.some(({ path }) => damaged !== undefined && path <= damaged)) return;
  const { path, inode } = found.sort((a, b) => (a.path < b.path ? -1 : 1))[found.length - chance.between(1, 2)]!;
  damagedCheckpoints.set(node, path);
  world.fault("bad checkpoint", node);
  world.say(node, `${path} is damaged`);
  const ways = [
    () => files.flipBit(inode, chance.below(inode.size), chance.below(8)),
    () => inode.badSectors.add(chance.below(Math.ceil(inode.size / SECTOR_BYTES))),
    () => files.truncate(inode, chance.below(inode.size)),
    () => files.remove(path, "file"),
  ];
  chance.pick(ways)();
}

/** Nothing goes wrong any more; what has gone wrong stays, but for the full disk. */
export function calm(node: SimNode): void {
  node.diskFaults.stop();
  node.files.capacity = Number.POSITIVE_INFINITY;
}
