/**
 * Replay: which groups behind a checkpoint are whole, and in which order. What is torn or missing at the end of the log
 * was never flushed, and is dropped; what is missing although a later group says that it had been synced is damage, and
 * is named.
 */

import { canary } from "#base/canary";
import { readU64 } from "#base/layout";
import { Refusal } from "#base/refusal";
import type { Task } from "#base/task";
import { BLOCK_BYTES } from "#base/units";
import { type Env, type File, isDiskFault } from "#env/env";
import {
  COVERED_FROM,
  decodeGroup,
  ENTRY,
  GROUP,
  GROUP_BLOCKS_MAX,
  type GroupHead,
  HEAD_BLOCKS_MAX,
  SEGMENT_HEADER,
  SEGMENT_MAGIC,
  summaryBlocks,
} from "./format.ts";
import { performOp, type SegmentStore, syncFile, transfer } from "./segment-store.ts";

/** Where a whole group lies. */
export interface FoundGroup {
  readonly segment: number;
  readonly block: number;
  readonly head: GroupHead;
}

/** A segment of the log, with the number of its first group. */
interface ChainedSegment {
  readonly number: number;
  readonly firstGroup: number;
}

export interface Replay {
  readonly groups: readonly FoundGroup[];
  /** Segments of the log behind the checkpoint's, in order, with the number of their first group. */
  readonly segments: readonly ChainedSegment[];
  readonly files: ReadonlyMap<number, File>;
  readonly damage: readonly string[];
  /** Groups that reached the disk only in part, or without those before them. */
  readonly dropped: number;
  /** All groups are on stable storage. Where there is damage nothing is written, and the last ones may be in the page cache only. */
  readonly isSynced: boolean;
}

/** Finds all groups from `group` on, which is expected in `segment` at `block`. */
export function* findGroups(
  env: Env,
  store: SegmentStore,
  numbers: readonly number[],
  segmentBlocks: number,
  segment: number,
  block: number,
  group: number,
): Task<Replay> {
  const scan = new Scan(env, store, segmentBlocks);
  try {
    return yield* scan.run(
      numbers.filter((number) => number >= segment),
      segment,
      block,
      group,
    );
  } finally {
    scan.free();
  }
}

class Scan {
  readonly #env: Env;
  readonly #store: SegmentStore;
  readonly #usableBlocks: number;
  readonly #at: number;
  /** What of which segment lies at `#at`: heads of small groups follow each other closely. */
  #haveNumber = -1;
  #haveBlock = 0;
  #haveBlocks = 0;
  readonly #files = new Map<number, File>();
  readonly #damage: string[] = [];
  readonly #writtenAgain = new Set<number>();
  /** The highest group that `#wasSynced` has found said to be synced. */
  #knownSynced = -1;

  constructor(env: Env, store: SegmentStore, segmentBlocks: number) {
    this.#env = env;
    this.#store = store;
    this.#usableBlocks = segmentBlocks - summaryBlocks(segmentBlocks);
    this.#at = env.memory.allocate((GROUP_BLOCKS_MAX + HEAD_BLOCKS_MAX) * BLOCK_BYTES);
    if (this.#at === 0) throw new Error("no memory to replay a log");
  }

  free(): void {
    this.#env.memory.free(this.#at);
  }

  *run(numbers: readonly number[], segment: number, block: number, group: number): Task<Replay> {
    const firsts = yield* this.#firstGroups(numbers, segment);
    // A segment that a later one starts before (or at) was written by a run whose end is not part of the log.
    const chain: ChainedSegment[] = [];
    let least = Number.POSITIVE_INFINITY;
    for (const each of firsts.reverse())
      if (each.number === segment || each.firstGroup < least) {
        chain.unshift(each);
        least = each.firstGroup;
      }
    if (chain[0]?.number !== segment) chain.unshift({ number: segment, firstGroup: group });

    let groups: FoundGroup[] = [];
    let expected = group;
    let synced = group - 1;
    let dropped = 0;
    for (let index = 0; index < chain.length; index++) {
      const number = chain[index]!.number;
      const bound = chain[index + 1]?.firstGroup ?? Number.POSITIVE_INFINITY;
      let at = index === 0 ? block : 1;
      if (index > 0 && chain[index]!.firstGroup !== expected) {
        // Groups are missing between two segments. The later ones count only if the missing ones had been synced.
        const { firstGroup } = chain[index]!;
        if (firstGroup < expected || !(yield* this.#wasSynced(expected, chain, index, 1))) {
          dropped++;
          break;
        }
        this.#damage.push(`groups ${expected} to ${firstGroup - 1} are missing before ${this.#store.describe(number)}`);
        expected = firstGroup;
      }
      while (expected < bound && at < this.#usableBlocks) {
        const head = yield* this.#headAt(number, at);
        if (head?.group === expected) {
          groups.push({ segment: number, block: at, head });
          synced = Math.max(synced, head.synced);
          at += head.headBlocks + head.dataBlocks;
          expected++;
          continue;
        }
        // Not what should be here: the end, or damage with the log going on behind it.
        const later = yield* this.#nextHead(number, at + 1, expected, bound);
        if (later === undefined) break;
        if (!(yield* this.#wasSynced(expected, chain, index, later.block))) {
          dropped++;
          break;
        }
        this.#damage.push(
          `${this.#store.describe(number)}: groups ${expected} to ${later.head.group - 1} (blocks ${at} to ${later.block - 1}) are damaged`,
        );
        expected = later.head.group;
        at = later.block;
      }
    }

    let isSynced = true;
    // Groups behind the last one known to be synced may have reached the disk in part.
    for (let index = 0; index < groups.length; index++) {
      const found = groups[index]!;
      if (found.head.group <= synced || canary.armed === "trust-torn-group") continue;
      if (!(yield* this.#isWhole(found))) {
        dropped += groups.length - index;
        groups = groups.slice(0, index);
        break;
      }
      if (this.#damage.length > 0) isSynced = false;
      else yield* this.#writeAgain(found);
    }
    yield* this.#syncWrittenAgain();
    if (canary.armed === "forget-last-group") groups.pop();
    const final = groups[groups.length - 1];
    const upTo = final?.segment ?? segment;
    const segments = chain.filter(({ number }) => number <= upTo || number === segment);
    return { groups, segments, files: this.#files, damage: this.#damage, dropped, isSynced };
  }

  *#file(number: number): Task<File | undefined> {
    const known = this.#files.get(number);
    if (known !== undefined) return known;
    const file = yield* this.#store.open(number);
    if (isDiskFault(file)) {
      if (file !== "missing") this.#damage.push(`${this.#store.describe(number)} cannot be opened: ${file}`);
      return undefined;
    }
    this.#files.set(number, file);
    return file;
  }

  /** What group each segment starts with; those that were never used are left out. */
  *#firstGroups(numbers: readonly number[], first: number): Task<{ number: number; firstGroup: number }[]> {
    const { memory, disk } = this.#env;
    const { view } = memory;
    const found: { number: number; firstGroup: number }[] = [];
    for (const number of numbers) {
      if (number === first) continue;
      const file = yield* this.#file(number);
      if (file === undefined) continue;
      this.#haveNumber = -1;
      const op = yield* performOp(disk, "read", file, 0, this.#at, BLOCK_BYTES);
      if (op.fault !== undefined) this.#noteUnreadable(number, 0, op.fault);
      if (op.count < BLOCK_BYTES) continue;
      const right =
        view.getUint32(this.#at + SEGMENT_HEADER.magic) === SEGMENT_MAGIC &&
        readU64(view, this.#at + SEGMENT_HEADER.segment) === number &&
        view.getUint32(this.#at + SEGMENT_HEADER.checksum) ===
          memory.hash(this.#at + COVERED_FROM, BLOCK_BYTES - COVERED_FROM);
      if (right) {
        found.push({ number, firstGroup: readU64(view, this.#at + SEGMENT_HEADER.firstGroup) });
        continue;
      }
      // Its header may be damaged: the first group knows as much.
      const head = yield* this.#headAt(number, 1);
      if (head !== undefined) found.push({ number, firstGroup: head.group });
    }
    return found;
  }

  /** The head of a group at a block, when it is whole. Leaves it at `#at + (block - #haveBlock) * BLOCK_BYTES`. */
  *#headAt(number: number, block: number): Task<GroupHead | undefined> {
    const { memory } = this.#env;
    if (!(yield* this.#have(number, block, 1))) return undefined;
    const from = (): number => this.#at + (block - this.#haveBlock) * BLOCK_BYTES;
    const head = decodeGroup(memory.view, from(), number, block, this.#usableBlocks - block);
    if (head === undefined) return undefined;
    if (!(yield* this.#have(number, block, head.headBlocks))) return undefined;
    const covered = head.headBlocks * BLOCK_BYTES - COVERED_FROM;
    const right = memory.view.getUint32(from() + GROUP.checksum) === memory.hash(from() + COVERED_FROM, covered);
    return right ? head : undefined;
  }

  /** Makes blocks of a segment available in memory; false when they cannot be read. */
  *#have(number: number, block: number, count: number): Task<boolean> {
    if (this.#haveNumber === number && block >= this.#haveBlock && block + count <= this.#haveBlock + this.#haveBlocks)
      return true;
    const file = yield* this.#file(number);
    if (file === undefined) return false;
    const { disk } = this.#env;
    this.#haveNumber = -1;
    const wanted = Math.max(count, HEAD_BLOCKS_MAX);
    const op = yield* performOp(disk, "read", file, block * BLOCK_BYTES, this.#at, wanted * BLOCK_BYTES);
    if (op.fault !== undefined) {
      this.#noteUnreadable(number, block, op.fault);
      return false;
    }
    this.#haveNumber = number;
    this.#haveBlock = block;
    this.#haveBlocks = Math.floor(op.count / BLOCK_BYTES);
    return count <= this.#haveBlocks;
  }

  /** The next whole head of this life of the segment, with a group that could follow. */
  *#nextHead(
    number: number,
    block: number,
    above: number,
    below: number,
  ): Task<{ readonly block: number; readonly head: GroupHead } | undefined> {
    for (let at = block; at < this.#usableBlocks; at++) {
      if (!(yield* this.#have(number, at, 1))) return undefined;
      const head = yield* this.#headAt(number, at);
      if (head !== undefined && head.group > above && head.group < below) return { block: at, head };
    }
    return undefined;
  }

  /**
   * Whether a missing group had been synced. Any group behind it may say so, not only the next one: those appended while
   * the sync was under way do not know of it yet, and they may fill a segment. `block` is where to begin in the segment
   * `chain[index]`.
   */
  *#wasSynced(group: number, chain: readonly ChainedSegment[], index: number, block: number): Task<boolean> {
    let above = group - 1;
    for (let each = index; each < chain.length && this.#knownSynced < group; each++) {
      const bound = chain[each + 1]?.firstGroup ?? Number.POSITIVE_INFINITY;
      let at = each === index ? block : 1;
      while (this.#knownSynced < group) {
        const later = yield* this.#nextHead(chain[each]!.number, at, above, bound);
        if (later === undefined) break;
        this.#knownSynced = Math.max(this.#knownSynced, later.head.synced);
        above = later.head.group;
        at = later.block + later.head.headBlocks + later.head.dataBlocks;
      }
    }
    return this.#knownSynced >= group;
  }

  *#isWhole(found: FoundGroup): Task<boolean> {
    const { memory, disk } = this.#env;
    const { head } = found;
    const file = yield* this.#file(found.segment);
    if (file === undefined) return false;
    this.#haveNumber = -1;
    const blocks = head.headBlocks + head.dataBlocks;
    const position = found.block * BLOCK_BYTES;
    const op = yield* performOp(disk, "read", file, position, this.#at, blocks * BLOCK_BYTES);
    if (op.fault !== undefined) this.#noteUnreadable(found.segment, found.block, op.fault);
    if (op.count < blocks * BLOCK_BYTES) return false;
    const sumsAt = this.#at + GROUP.byteLength + head.entries * ENTRY.byteLength;
    const dataAt = this.#at + head.headBlocks * BLOCK_BYTES;
    for (let each = 0; each < head.dataBlocks; each++)
      if (memory.hash(dataAt + each * BLOCK_BYTES, BLOCK_BYTES) !== memory.view.getUint32(sumsAt + each * 4))
        return false;
    return true;
  }

  /**
   * Writes a group again that `#isWhole` has just read, since what was read may be in the page cache only: after a kill,
   * or after a failed fdatasync, which leaves pages that look written and are written to the disk by no later sync.
   */
  *#writeAgain(found: FoundGroup): Task<void> {
    if (canary.armed === "trust-page-cache") return;
    const file = this.#files.get(found.segment)!;
    const length = (found.head.headBlocks + found.head.dataBlocks) * BLOCK_BYTES;
    let fault = yield* transfer(this.#env.disk, "write", file, found.block * BLOCK_BYTES, this.#at, length);
    if (fault === undefined && found.block === 1) {
      // With its first group, a segment's header was written.
      fault = yield* transfer(this.#env.disk, "read", file, 0, this.#at, BLOCK_BYTES);
      fault ??= yield* transfer(this.#env.disk, "write", file, 0, this.#at, BLOCK_BYTES);
    }
    if (fault !== undefined) throw this.#cannotWrite(found.segment, fault);
    this.#writtenAgain.add(found.segment);
  }

  *#syncWrittenAgain(): Task<void> {
    for (const number of this.#writtenAgain) {
      const fault = yield* syncFile(this.#env.disk, this.#files.get(number)!);
      if (fault !== undefined) throw this.#cannotWrite(number, fault);
    }
  }

  #cannotWrite(number: number, fault: string): Refusal {
    return new Refusal(
      "storage-failed",
      `cannot write the end of the log again, ${this.#store.describe(number)}: ${fault}`,
      "nothing is lost; see to the disk, and start again",
    );
  }

  /** What cannot be read may have been flushed: the set is not to be continued as if it had not. */
  #noteUnreadable(number: number, block: number, fault: string): void {
    const problem = `${this.#store.describe(number)} cannot be read at block ${block}: ${fault}`;
    if (!this.#damage.includes(problem)) this.#damage.push(problem);
  }
}
