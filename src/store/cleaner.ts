/**
 * The cleaner: copies what still lives in mostly dead segments to the end of the log, so that their space comes back
 * after the next checkpoints. It works in small steps between the hosts' I/O, and gives up nothing that it could not
 * read: a segment with damage in it stays.
 */
import type { Status } from "#base/status";
import { perform, type Task } from "#base/task";
import { BLOCK_BYTES, type Bytes, MIB, type Millis } from "#base/units";
import { rightBlocks } from "./checksums.ts";
import { COVERED_FROM, decodeGroup, EntryKind, GROUP, HEAD_BLOCKS_MAX } from "./format.ts";
import { LogEntry } from "./log.ts";
import type { Location } from "./map.ts";
import { decodeEntries, type FoundEntry } from "./replay-entries.ts";
import { locationOf, type Segment } from "./segment.ts";
import { transfer } from "./segment-store.ts";
import { during, type VersionSet } from "./version-set.ts";

/** Blocks read and copied in one step: 512 KiB, about a millisecond of the lane. */
const STEP_BLOCKS = 128;
/**
 * Cleaning begins when dead blocks are more than this part of the live ones. That is the bound where space counts: when
 * there is little room, and when the set is at rest. While there is room, three times as much may be dead as alive costs
 * nothing but room, and every block that is overwritten before it is cleaned is a copy saved.
 */
const DEAD_RATIO = 0.2;
const DEAD_RATIO_ROOMY = 3;
/** Where there is next to no room, waiting for more to die would mean to meet the end of the disk first. */
const DEAD_RATIO_TIGHT = 0.05;
/** With this part of what the set has and could take free, or more, there is room; in between, the bound moves evenly. */
const FREE_ROOMY = 0.5;
const FREE_TIGHT = 0.25;
/** However much is free, one set's dead blocks do not take more than this part of it. */
const FREE_PART_MAX = 0.1;
/** Cleaning begins with at least this many segments of dead blocks… */
const DEAD_SEGMENTS_MIN = 3;
/** With less room than for so many segments, there is none to be generous with. */
const TIGHT_SEGMENTS = 8;
/** …and when it falls behind by this much of its bound, or there is room for few segments only, writes wait for it. */
const BEHIND_PART = 0.35;
/**
 * While it keeps up it rests after each step, for so many times what the step took: hosts' flushes wait for whatever else is
 * written. The further behind, the shorter; half of the way to where writes wait, it does not rest any more.
 */
const REST_FACTOR = 3;
const REST_MS_MAX = 20;
const SCARCE_SEGMENTS = 4;
/**
 * How much longer than the cleaner takes to gain a block, with room for 0, 1, … segments, and when it is just behind: below
 * two segments room is gained in the end, whatever hosts do.
 */
const HOLD_FACTORS = [8, 3, 1.25, 0.9, 0.75] as const;
/** What gaining a block takes until that has been measured, and at most (the disk is stuck, not the cleaner). */
const GAIN_MS_GUESS = 0.06;
const GAIN_MS_MAX = 16;
/** A segment that is fuller than this is not worth copying. */
const LIVE_RATIO_MAX = 0.92;
/** Dead segments wait for a checkpoint until they are this part of all, and while hosts write, until they are a burst. */
const WAITING_RATIO = 0.05;
const WAITING_SEGMENTS_MIN = 4;
/**
 * So much is always written between two checkpoints. A burst, which may be more, takes no more than this part of what is
 * free, and the disk is done with it in so long: a start may have to wait for that.
 */
export const BURST_BYTES_MIN = 256 * MIB;
const BURST_BYTES_MAX = 2048 * MIB;
const BURST_PART = 1 / 16;
const BURST_SYNC_MS = 2_000;

interface Run {
  /** Where in the segment. */
  readonly position: number;
  readonly block: number;
  readonly count: number;
}

export class Cleaner {
  readonly #set: VersionSet;
  /** Blocks copied since the set was opened. */
  copied = 0;
  /** What it takes to gain a block, of late, with all that happens in between. */
  #gainMs: Millis = GAIN_MS_GUESS;
  #lastEnd: Millis = 0;
  /** Of the segment that is being cleaned: no part of its price. */
  #restedMs: Millis = 0;
  #liveBlocks = 0;
  #deadBlocks = 0;
  #waiting = 0;
  /** Room for so many segments is left on the disk, or in spares. */
  #free = Number.POSITIVE_INFINITY;
  /** Dead blocks in relation to live ones, beyond which cleaning begins. */
  #allowed = DEAD_RATIO;
  #atRest = false;
  /**
   * What hosts write in one go without a checkpoint: that waits until the disk has all that was written before it, and
   * hosts that write faster than the disk soon wait with it.
   */
  burstBytes: Bytes = 0;
  /** The same as the disk has it, by what checkpoints took. */
  #burstOfDisk: Bytes = BURST_BYTES_MIN;
  /** Somebody waits for what it is at: it does not rest between steps. */
  hurried = false;

  constructor(set: VersionSet) {
    this.#set = set;
  }

  #survey(): void {
    let live = 0;
    let dead = 0;
    let waiting = 0;
    for (const segment of this.#set.log.segments.values()) {
      live += segment.live;
      if (!segment.sealed || segment.damaged) continue;
      if (segment.live === 0) waiting++;
      else dead += segment.used - segment.live;
    }
    this.#liveBlocks = live;
    this.#deadBlocks = dead;
    this.#waiting = waiting;
  }

  /** True when there are segments that checkpoints would retire. */
  get hasDead(): boolean {
    this.#survey();
    return this.#waiting > 0;
  }

  /** Decides how much may be dead: little when the set is at rest, or when the disk is filling up. */
  *aim(atRest: boolean): Task<void> {
    const { options, store, segmentBlocks, log } = this.#set;
    this.#allowed = options.deadRatio ?? DEAD_RATIO;
    this.#atRest = atRest;
    const space = yield* store.space();
    const available = space?.available ?? Number.POSITIVE_INFINITY;
    const segments = available / (segmentBlocks * BLOCK_BYTES);
    if (space?.limited === true && segments < TIGHT_SEGMENTS) yield* store.dropSpares();
    this.#free = segments + store.spareCount;
    this.burstBytes = options.checkpointBytes ?? Math.min(this.#burstOfDisk, available * BURST_PART);
    if (options.deadRatio === undefined && this.#tight) this.#allowed = DEAD_RATIO_TIGHT;
    if (options.deadRatio !== undefined || this.#tight || atRest || log.segments.count < 2 * DEAD_SEGMENTS_MIN) return;
    if (space === undefined) return;
    this.#survey();
    // Whatever else is on the disk does not count: room is what this set could still take, in relation to what it has.
    const live = this.#liveBlocks * BLOCK_BYTES;
    const free = space.available / Math.max(1, Math.min(space.total, space.available + live));
    const roominess = Math.min(1, Math.max(0, (free - FREE_TIGHT) / (FREE_ROOMY - FREE_TIGHT)));
    const most = (space.available * FREE_PART_MAX) / BLOCK_BYTES / Math.max(this.#liveBlocks, segmentBlocks);
    this.#allowed = Math.max(DEAD_RATIO, Math.min(most, DEAD_RATIO + roominess * (DEAD_RATIO_ROOMY - DEAD_RATIO)));
  }

  /** True when there is so much dead data that a segment should be cleaned. */
  get isDue(): boolean {
    this.#survey();
    const least = (this.#tight ? 1 : DEAD_SEGMENTS_MIN) * this.#set.segmentBlocks;
    return this.#deadBlocks > Math.max(this.#liveBlocks * this.#allowed, least);
  }

  /** A checkpoint has waited so long for the disk to have so much. Only what is much tells how fast the disk is. */
  noteSync(bytes: Bytes, ms: Millis): void {
    if (bytes < this.#burstOfDisk / 2) return;
    const most = Math.min(2 * this.#burstOfDisk, (bytes / Math.max(1, ms)) * BURST_SYNC_MS);
    this.#burstOfDisk = Math.min(BURST_BYTES_MAX, Math.max(BURST_BYTES_MIN, most));
  }

  /** True when enough segments are dead that a checkpoint should be taken for them to be retired. */
  waitsForCheckpoint(hostsWrite: boolean): boolean {
    this.#survey();
    if (this.#tight) return this.#waiting > 0;
    const { segmentBlocks, log } = this.#set;
    const burst = hostsWrite ? this.burstBytes / (segmentBlocks * BLOCK_BYTES) : 0;
    return this.#waiting > Math.max(WAITING_SEGMENTS_MIN, burst, log.segments.count * WAITING_RATIO);
  }

  /** So little is free that every dead segment counts. */
  get #tight(): boolean {
    return this.#free < TIGHT_SEGMENTS;
  }

  /**
   * Holds back the hosts' writes as long as dead data is beyond its bound and there is something to clean, or room runs
   * out: then also while no segment is worth cleaning yet, for it is their writes that will make one so.
   */
  throttle(): void {
    const behind = this.deadRatio > this.#allowed * (1 + BEHIND_PART);
    const factor = HOLD_FACTORS[Math.min(SCARCE_SEGMENTS, Math.floor(this.#free))]!;
    const scarce = this.#free < SCARCE_SEGMENTS && this.isDue;
    this.#set.log.holdMs = scarce || (behind && this.#choose() !== undefined) ? factor * this.#gainMs : 0;
  }

  /** Leaves lane and disk to the hosts for a while after a step that took so long. */
  *#rest(stepMs: Millis): Task<void> {
    if (this.hurried || this.#atRest || this.#tight || this.#set.log.holdMs > 0) return;
    const behind = (this.deadRatio / this.#allowed - 1) / (BEHIND_PART / 2);
    const restMs = Math.min(REST_MS_MAX, REST_FACTOR * stepMs * (1 - Math.max(0, behind)));
    if (restMs <= 0) return;
    const began = this.#set.env.clock.now();
    yield* perform(this.#set.breathe(restMs));
    this.#restedMs += this.#set.env.clock.now() - began;
  }

  /** Takes note of what a segment's cleaning gained, so that hosts can be held to that pace. */
  #noteGain(begin: Millis, gained: number): void {
    const now = this.#set.env.clock.now();
    // A checkpoint after the segment before belongs to the price; a pause does not.
    const took = now - Math.max(this.#lastEnd, begin - (now - begin)) - this.#restedMs;
    this.#lastEnd = now;
    this.#restedMs = 0;
    this.#gainMs = Math.min(GAIN_MS_MAX, 0.5 * this.#gainMs + (0.5 * Math.max(0, took)) / Math.max(1, gained));
  }

  /**
   * Dead blocks that have to be cleaned, in relation to live ones: those of segments that are dead altogether come back
   * with the next checkpoints, however fast hosts write.
   */
  get deadRatio(): number {
    this.#survey();
    const dead = this.#deadBlocks;
    return dead <= 2 * DEAD_SEGMENTS_MIN * this.#set.segmentBlocks ? 0 : dead / Math.max(1, this.#liveBlocks);
  }

  /** Cleans the segment with the least that lives. False when there is none worth it, or it could not be done. */
  *cleanOne(): Task<boolean> {
    return yield* this.#set.maintenance.run(this.cleanInTurn());
  }

  /** The same for who has the turn of maintenance already. */
  *cleanInTurn(): Task<boolean> {
    const victim = this.#choose();
    if (victim === undefined) return false;
    const begin = this.#set.env.clock.now();
    const copied = this.copied;
    this.#restedMs = 0;
    const cleaned = yield* during(this.#set.options, "clean", this.#clean(victim));
    if (cleaned) this.#noteGain(begin, victim.used - (this.copied - copied));
    return cleaned;
  }

  #choose(): Segment | undefined {
    let best: Segment | undefined;
    for (const segment of this.#set.log.segments.values()) {
      if (!segment.sealed || segment.damaged || segment.live === 0 || segment.deadSince >= 0) continue;
      if (segment.live > segment.used * LIVE_RATIO_MAX) continue;
      if (best === undefined || segment.live / segment.used < best.live / best.used) best = segment;
    }
    return best;
  }

  *#clean(segment: Segment): Task<boolean> {
    const { env, checksums } = this.#set;
    const { memory, disk } = env;
    if (!(yield* perform<boolean>((resume) => checksums.load(segment, resume)))) return false;
    const at = memory.allocate(STEP_BLOCKS * BLOCK_BYTES);
    const headAt = memory.allocate(HEAD_BLOCKS_MAX * BLOCK_BYTES);
    segment.pins++;
    // What lives within a step from block `from` on, of as many groups as that are: copied one by one, small groups would
    // take as much room for the heads of their copies as cleaning them gains.
    const runs: Run[] = [];
    let from = 0;
    try {
      if (at === 0 || headAt === 0) return false;
      for (let block = 1; block < segment.used && segment.live > 0; ) {
        const length = Math.min(HEAD_BLOCKS_MAX, segment.used - block) * BLOCK_BYTES;
        const fault = yield* transfer(disk, "read", segment.file!, block * BLOCK_BYTES, headAt, length);
        const head =
          fault === undefined
            ? decodeGroup(memory.view, headAt, segment.number, block, segment.used - block)
            : undefined;
        const covered = (head?.headBlocks ?? 0) * BLOCK_BYTES - COVERED_FROM;
        if (
          head === undefined ||
          memory.view.getUint32(headAt + GROUP.checksum) !== memory.hash(headAt + COVERED_FROM, covered)
        ) {
          segment.damaged = true;
          return false;
        }
        const found = { segment: segment.number, block, head };
        const entries: FoundEntry[] = [];
        decodeEntries(memory.view, memory.bytes, headAt, found, (entry) => {
          if (entry.kind === EntryKind.DATA || entry.kind === EntryKind.MOVE) entries.push({ ...entry });
        });
        const first = block + head.headBlocks;
        for (const entry of entries)
          for (let done = 0; done < entry.count; ) {
            const position = first + entry.dataIndex + done;
            if (runs.length === 0) from = position;
            if (position >= from + STEP_BLOCKS) {
              const began = env.clock.now();
              if ((yield* this.#copyRuns(segment, runs.splice(0), at)) !== "ok") return false;
              yield* this.#rest(env.clock.now() - began);
              continue;
            }
            const count = Math.min(entry.count - done, from + STEP_BLOCKS - position);
            this.#liveRuns(runs, position, entry.block + done, count, locationOf(segment, position));
            done += count;
          }
        block = first + head.dataBlocks;
      }
      if (segment.live > 0 && (yield* this.#copyRuns(segment, runs, at)) !== "ok") return false;
      return segment.live === 0;
    } finally {
      segment.pins--;
      if (at !== 0) memory.free(at);
      if (headAt !== 0) memory.free(headAt);
    }
  }

  /** Copies runs that lie within `STEP_BLOCKS`, in their order. */
  *#copyRuns(segment: Segment, runs: readonly Run[], at: number): Task<Status> {
    if (runs.length === 0) return "ok";
    const { env, log } = this.#set;
    const from = runs[0]!.position;
    const final = runs[runs.length - 1]!;
    const length = (final.position + final.count - from) * BLOCK_BYTES;
    const fault = yield* transfer(env.disk, "read", segment.file!, from * BLOCK_BYTES, at, length);
    if (fault !== undefined) {
      segment.damaged = true;
      return "medium";
    }
    for (const run of runs)
      if (
        rightBlocks(env.memory, segment, run.position, run.count, at + (run.position - from) * BLOCK_BYTES) < run.count
      ) {
        // The one who reads it will be told; copying it would make it look right.
        segment.damaged = true;
        return "medium";
      }
    let pending = runs.length;
    let status: Status = "ok";
    yield* perform<void>((resume) => {
      for (const run of runs) {
        const entry = new LogEntry((_, ended) => {
          if (ended !== "ok") status = ended;
          if (--pending === 0) resume();
        });
        entry.kind = EntryKind.MOVE;
        entry.block = run.block;
        entry.count = run.count;
        entry.at = at + (run.position - from) * BLOCK_BYTES;
        entry.from = locationOf(segment, run.position);
        log.submit(entry);
        this.copied += run.count;
      }
    });
    return status;
  }

  /** Adds the runs of [block, block + count) that some version still has at `location` and on. */
  #liveRuns(runs: Run[], position: number, block: number, count: number, location: Location): void {
    const alive = new Uint8Array(count);
    this.#set.tree.markAlive(block, count, location, alive);
    for (let start = 0; start < count; ) {
      let end = start + 1;
      if (alive[start] === 1) {
        while (end < count && alive[end] === 1) end++;
        runs.push({ position: position + start, block: block + start, count: end - start });
      }
      start = end;
    }
  }
}
