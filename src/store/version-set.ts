/**
 * A version set: a volume, its snapshots and clones, with their log. This file holds the tree and what changes it; the
 * log, the map, reading and writing, cleaning and checkpoints have files of their own.
 *
 * Every change of the tree is a control record in the log, applied in the log's order like a write, so that a snapshot
 * stands exactly between two writes, also after a crash.
 */
import { canary } from "#base/canary";
import { checkName, parseSnapshotName } from "#base/names";
import { Refusal } from "#base/refusal";
import type { Status } from "#base/status";
import { type Effect, perform, start, type Task, TaskQueue } from "#base/task";
import { BLOCK_BYTES, type Bytes, MIB, type Millis } from "#base/units";
import { type Alarm, type DiskFault, type Env, type File, isDiskFault } from "#env/env";
import { BufferPool } from "./buffer-pool.ts";
import { type CheckpointRecord, readCheckpoint, writeCheckpoint } from "./checkpoint.ts";
import { Checksums } from "./checksums.ts";
import { BURST_BYTES_MIN, Cleaner } from "./cleaner.ts";
import { CHECKPOINT_MAGIC, EntryKind, STORE_FORMAT } from "./format.ts";
import { Log, LogEntry, type LogStop, type LogUser, RESERVE_TO_CLEAN_FROM_SEGMENTS } from "./log.ts";
import { LeafArena, type Location, type VersionMap } from "./map.ts";
import type { Node, NodeFacts } from "./node.ts";
import { Reads } from "./reads.ts";
import { findGroups } from "./replay.ts";
import { type FoundEntry, readEntries } from "./replay-entries.ts";
import { type ScrubProgress, type ScrubReport, scrub } from "./scrub.ts";
import { locationOf, type Segment } from "./segment.ts";
import { SEGMENT_BLOCKS_DEFAULT, type SegmentStore } from "./segment-store.ts";
import { Sharing } from "./sharing.ts";
import { type Control, VersionTree } from "./tree.ts";
import { BOUNCE_BYTES, Version } from "./version.ts";

export interface SetOptions {
  /** Blocks of a segment; a multiple of 64, at most 8192. Fixed when the set is made. */
  readonly segmentBlocks?: number;
  /** A checkpoint is due after this many bytes of log (undefined: as there is room), and more if the maps are large. */
  readonly checkpointBytes?: Bytes;
  /** Dead blocks in relation to live ones beyond which cleaning begins; unset, it depends on the room on the disk. */
  readonly deadRatio?: number;
  /** False: cleaning and checkpoints happen only when asked for (tests). */
  readonly background?: boolean;
  /** Told what the engine begins and ends to do, for the simulator's table of which fault met which state. */
  readonly probe?: (state: EngineState, on: boolean) => void;
}

export type EngineState = "open" | "replay" | "snapshot" | "release" | "clean" | "checkpoint" | "scrub" | "close";

export interface VolumeOptions {
  readonly name: string;
  readonly size: Bytes;
  /** The host's sector: 512 bytes unless 4096 is asked for. */
  readonly blockSize?: number;
}

/** Space of one version, in bytes. */
export interface Accounting {
  readonly provisioned: Bytes;
  readonly mapped: Bytes;
  /** What comes back when this version is removed. */
  readonly exclusive: Bytes;
  readonly shared: Bytes;
}

/** Space of a set, in bytes. `disk` is what `du` says of its directory. */
export interface SetSpace {
  readonly disk: Bytes;
  readonly live: Bytes;
  /** Dead data in segments: what cleaning gives back. */
  readonly reclaimable: Bytes;
  /** Files kept for new segments, and the reserve for checkpoints. */
  readonly spare: Bytes;
  readonly segments: number;
  /** Memory that says where each block is: leaves, and the directories of versions. */
  readonly map: Bytes;
}

/** Space that a set with data keeps for a full disk: this part of a segment, at least so many bytes, and two checkpoints. */
const RESERVE_PART = 1 / 64;
const RESERVE_BYTES_MIN = 32 * 1024;
const RECLAIM_SEGMENTS_MAX = 16;
const RECLAIM_ROUNDS_MAX = 16;
/** What the file system itself may need to give a segment its space. */
const CLEANING_MARGIN_BYTES = 256 * 1024;
/** More than these are not left for a replay to do, however few bytes they are. */
const CHECKPOINT_ENTRIES = 65_536;
/** Checkpoints kept; segments are retired only when none of them needs them. */
const CHECKPOINTS_KEPT = 2;
/** Between looks at whether there is something to clean or to checkpoint, in milliseconds. */
const MAINTENANCE_MS = 200;
const MAINTENANCE_MS_RESTING = 2000;
/** While hosts are held back. */
const MAINTENANCE_MS_HELD = 25;
/** A set that has not been written to for so long is at rest: then it is cleaned more thoroughly. */
const REST_MS = 10_000;
/** For so long it keeps files that it used to write to: who wrote much may do so again. */
const SPARES_MS = 300_000;
export const VOLUME_BYTES_MAX = 16 * 1024 * 1024 * MIB;

export class VersionSet implements LogUser {
  readonly env: Env;
  readonly store: SegmentStore;
  readonly uuid: string;
  readonly segmentBlocks: number;
  readonly log: Log;
  readonly arena: LeafArena;
  readonly checksums: Checksums;
  readonly bounce: BufferPool;
  readonly cleaner: Cleaner;
  readonly options: SetOptions;
  readonly tree: VersionTree;

  /** Why nothing may be written, beyond what the log knows: damage was found when the set was opened. */
  readOnly: string | undefined;
  /** The reserve was used: until there is one again, data waits, so that what frees space still can be written. */
  #reserveGone = false;
  /** What was found damaged, in words, newest last. */
  readonly damage: string[] = [];
  readonly errors = { checksum: 0 };
  #stopDetail = "";

  /** One at a time: checkpoint, cleaning step, release of a ghost. */
  readonly maintenance = new TaskQueue();
  readonly #control = new TaskQueue();
  #checkpoint = 0;
  #checkpoints: number[] = [];
  #checkpointAtBlocks = 0;
  #blocksSinceCheckpoint = 0;
  #entriesSinceCheckpoint = 0;
  #checkpointBytes = 0;
  readonly #alarm: Alarm;
  #maintaining = false;
  /** No look at what is to be done is planned. */
  #asleep = true;
  #closing = false;
  #closeWaiters: (() => void)[] = [];

  private constructor(
    env: Env,
    store: SegmentStore,
    options: SetOptions,
    uuid: string,
    segmentBlocks: number,
    arena: LeafArena,
  ) {
    this.env = env;
    this.store = store;
    this.options = options;
    this.uuid = uuid;
    this.segmentBlocks = segmentBlocks;
    this.arena = arena;
    this.log = new Log(env, store, this, uuidBytes(uuid), segmentBlocks);
    this.tree = new VersionTree(this.log.segments, arena, Reads.of(env).cache, (node) => new Version(this, node));
    this.checksums = new Checksums(env, store, this.log);
    this.bounce = BufferPool.of(env, BOUNCE_BYTES);
    this.cleaner = new Cleaner(this);
    this.#alarm = env.clock.alarm(() => this.#maintain());
  }

  /* --------------------------------------------------------- make and open */

  /** Makes an empty set in a store that has none. Throws a Refusal. */
  static *create(env: Env, store: SegmentStore, options: SetOptions = {}): Task<VersionSet> {
    const segmentBlocks = options.segmentBlocks ?? SEGMENT_BLOCKS_DEFAULT;
    const set = new VersionSet(env, store, options, newUuid(env), segmentBlocks, new LeafArena());
    set.log.resume(0, 1, undefined, true);
    const fault = yield* set.#writeCheckpoint(false);
    if (fault !== undefined) throw diskRefusal(fault, `make ${store.describeCheckpoint(1)}`);
    set.#wake();
    return set;
  }

  /** Opens a set: the newest good checkpoint, and the log behind it. Throws a Refusal when there is none. */
  static *open(env: Env, store: SegmentStore, options: SetOptions = {}): Task<VersionSet> {
    return yield* during(options, "open", VersionSet.#open(env, store, options));
  }

  static *#open(env: Env, store: SegmentStore, options: SetOptions): Task<VersionSet> {
    const numbers = yield* store.listCheckpoints();
    if (isDiskFault(numbers)) throw diskRefusal(numbers, `read ${store.describeCheckpoint(0)}`);
    const problems: string[] = [];
    for (const number of [...numbers].reverse()) {
      const file = yield* store.openCheckpoint(number);
      if (isDiskFault(file)) {
        problems.push(`${store.describeCheckpoint(number)} cannot be opened: ${file}`);
        continue;
      }
      const arena = new LeafArena();
      const loaded = yield* readCheckpoint(env, file, number, arena);
      yield* perform(store.close(file));
      if (typeof loaded === "string") {
        problems.push(`${store.describeCheckpoint(number)}: ${loaded}`);
        continue;
      }
      if ("tooNew" in loaded)
        throw new Refusal(
          "too-new",
          `${store.describeCheckpoint(number)} has format ${loaded.tooNew}; this program knows up to ${STORE_FORMAT}`,
          "use the version of Ashlar that wrote it, or a newer one",
        );
      const { record, maps } = loaded;
      const set = new VersionSet(env, store, options, record.uuid, record.segmentBlocks, arena);
      for (const problem of problems) set.#noteDamage(problem);
      set.#checkpoint = number;
      set.#checkpoints = numbers.filter((other) => other <= number);
      yield* set.#restore(record, maps);
      yield* set.#dropNewer(numbers.filter((other) => other > number));
      set.#wake();
      return set;
    }
    if (problems.length === 0)
      throw new Refusal("not-found", `there is no volume in ${store.describeCheckpoint(0).replace(/\/[^/]*$/, "")}`);
    throw new Refusal(
      "damaged",
      problems.join("; "),
      "restore this directory from a backup; its other files are unchanged",
    );
  }

  /**
   * Checkpoints that could not be used must not be used later, when the disk gives them back: they know nothing of what is
   * appended from now on, and its segments would be garbage to them.
   */
  *#dropNewer(numbers: readonly number[]): Task<void> {
    if (numbers.length === 0 || this.readOnly !== undefined) return;
    let fault: DiskFault | undefined;
    for (const number of numbers) {
      const removed = yield* this.store.removeCheckpoint(number);
      if (removed !== "missing") fault ??= removed;
    }
    fault ??= yield* this.store.syncNames();
    if (fault !== undefined)
      this.#noteGap(`${this.store.describeCheckpoint(numbers[0]!)} cannot be used, nor removed: ${fault}`);
  }

  *#restore(record: CheckpointRecord, maps: readonly VersionMap[]): Task<void> {
    const { segments } = this.log;
    // Slots are part of the locations in the maps: each segment gets the one it had.
    const bySlot = [...record.segments].sort((a, b) => a.slot - b.slot);
    segments.restore(bySlot);
    for (const facts of bySlot) {
      const segment = segments.byNumber(facts.number)!;
      segment.used = facts.used;
      segment.firstGroup = facts.firstGroup;
      segment.sealed = facts.sealed;
      segment.summarised = facts.summarised;
      segment.damaged = facts.damaged;
      if (facts.dead) segment.deadSince = this.#checkpoint;
      if (facts.shared === true) segment.sharing = new Sharing();
    }
    this.tree.restore(record.nextNode, record.nodes, maps);
    this.tree.findPlaces();

    const numbers = yield* this.store.list();
    if (isDiskFault(numbers)) throw diskRefusal(numbers, "list the segments");
    const present = new Set(numbers);
    for (const segment of [...segments.values()]) {
      if (present.has(segment.number)) continue;
      if (segment.deadSince >= 0) segments.remove(segment);
      else {
        segment.damaged = true;
        this.#noteDamage(`${this.store.describe(segment.number)} is missing`);
      }
    }
    const clean = record.clean;
    const { segment: first, block, group } = record;
    const replay = yield* during(
      this.options,
      "replay",
      findGroups(this.env, this.store, numbers, this.segmentBlocks, first, block, group),
    );
    for (const problem of replay.damage) this.#noteDamage(problem);
    if (replay.damage.length > 0) this.readOnly = replay.damage[0]!;

    this.tree.replaying = true;
    let lastGroup = record.group - 1;
    for (const found of replay.groups) {
      let segment = segments.byNumber(found.segment);
      if (segment === undefined) {
        segment = segments.add(found.segment);
        segment.firstGroup = found.head.group;
        segment.used = 1;
      }
      const file = replay.files.get(found.segment)!;
      const dataBlock = found.block + found.head.headBlocks;
      const base = locationOf(segment, dataBlock);
      if (!(yield* readEntries(this.env, file, found, (entry) => this.#replayEntry(entry, base))))
        this.#noteGap(`${this.store.describe(found.segment)} cannot be read at block ${found.block}`);
      segment.used = dataBlock + found.head.dataBlocks;
      lastGroup = found.head.group;
    }
    this.tree.replaying = false;

    // Files stay open where their segment is part of the log; the rest is garbage of runs that were cut short.
    for (const [number, file] of replay.files) {
      const segment = segments.byNumber(number);
      if (segment !== undefined) segment.file ??= file;
      else yield* perform(this.store.close(file));
    }
    let discarded = false;
    if (this.damage.length === 0)
      for (const number of numbers)
        if (segments.byNumber(number) === undefined) {
          yield* this.store.discard(number, undefined);
          discarded = true;
        }

    this.tree.countLive();
    const last = Math.max(record.lastSegment, ...numbers, 0);
    // A tail that nobody tore can be filled up; behind any other one, a new segment begins. So it does where a later segment
    // was thrown away: a power cut may give it back, and if it begins with the group that comes next, it would hide that in
    // this one.
    let current: Segment | undefined;
    for (const segment of segments.values())
      if (!segment.sealed && segment.number === record.segment) current = segment;
    if (
      !(clean && replay.groups.length === 0 && replay.dropped === 0 && !discarded) ||
      current === undefined ||
      current.damaged
    ) {
      for (const segment of segments.values()) segment.sealed = true;
      current = undefined;
    } else {
      const ready = yield* perform<boolean>((resume) => this.checksums.load(current!, resume));
      // Without all of its checksums nothing may be added: its summary would make the gaps last.
      if (!ready || current.damaged) {
        current.sealed = true;
        current = undefined;
      }
    }
    this.log.resume(last, lastGroup + 1, current, replay.isSynced);
    this.#blocksSinceCheckpoint = this.#entriesSinceCheckpoint * 2;
    if (replay.dropped > 0)
      this.env.log.info({ dropped: replay.dropped }, "groups that had not been flushed when the server ended are gone");
  }

  #replayEntry(found: FoundEntry, base: Location): void {
    const entry = new LogEntry(ignore);
    entry.kind = found.kind;
    entry.version = found.version;
    entry.block = found.block;
    entry.count = found.count;
    entry.control = found.control;
    if (found.control !== undefined && !this.tree.isPossible(found.control)) {
      // Only a log with a gap has such a record; the set is opened for reading what there is.
      this.#noteGap("a change of the versions refers to one that is not there: a part of the log is missing");
      return;
    }
    if (found.kind === EntryKind.MOVE) {
      const from = this.log.segments.byNumber(found.fromSegment);
      if (from === undefined) return;
      entry.from = locationOf(from, found.fromBlock);
    }
    if (found.kind === EntryKind.COPY) {
      entry.fromVersion = found.fromBlock;
      entry.fromBlock = found.fromSegment;
    }
    this.apply(entry, entry.count, base + found.dataIndex);
  }

  /** A part of the log is not known: the set is opened for reading what there is. */
  #noteGap(problem: string): void {
    this.#noteDamage(problem);
    this.readOnly ??= problem;
  }

  /* ------------------------------------------------------------- log's user */

  apply(entry: LogEntry, count: number, location: Location): void {
    this.#entriesSinceCheckpoint++;
    if (this.#asleep && !this.tree.replaying) this.#wake();
    this.tree.apply(entry, count, location);
  }

  onStopped(why: LogStop, detail: string): void {
    if (why === "closed") return;
    this.#stopDetail = detail;
    this.env.log.error({ set: this.uuid, why, detail }, "the volumes of this set take no more writes");
    for (const version of this.tree.versions.values()) version.changed("read-only");
  }

  readonly onBug = (error: unknown): never => {
    throw error;
  };

  onDamage(node: Node, block: number, segment: Segment, inSegment: number, why: string): void {
    this.errors.checksum++;
    segment.damaged = true;
    this.#noteDamage(
      `${node.name}: block at ${block * BLOCK_BYTES} (${this.store.describe(segment.number)}, block ${inSegment}) ${why}`,
    );
  }

  #noteDamage(what: string): void {
    if (this.damage.includes(what)) return;
    if (this.damage.length >= 1000) this.damage.shift();
    this.damage.push(what);
    this.env.log.error({ set: this.uuid }, `damage: ${what}`);
  }

  /** Why the set does not take writes now, in words; undefined when it does. */
  get trouble(): string | undefined {
    if (this.log.stopped === "failed" || this.log.stopped === "fenced") return this.#stopDetail;
    return this.readOnly;
  }

  /** The status of a change that cannot be done now. What frees space is possible as long as anything is. */
  refusesWrites(): Status | undefined {
    const { stopped } = this.log;
    if (stopped !== undefined) return stopped === "closed" ? "gone" : stopped;
    if (this.readOnly !== undefined) return "failed";
    return undefined;
  }

  get lacksReserve(): boolean {
    return this.#reserveGone;
  }

  reclaim(metadata: boolean, done: (gained: boolean) => void): void {
    this.cleaner.hurried = true;
    const end = (gained: boolean): void => {
      this.cleaner.hurried = this.#closing;
      done(gained);
    };
    start(this.maintenance.run(this.#reclaim(metadata)), end, this.onBug);
  }

  *#reclaim(metadata: boolean): Task<boolean> {
    yield* this.store.dropSpares();
    if (yield* this.#hasRoom()) {
      if (metadata) return true;
      if ((yield* this.keepReserve()) && (yield* this.#hasRoom())) return true;
    }
    if (metadata) {
      yield* this.#retireDead();
      if (yield* this.#hasRoom()) return true;
      const gave = (yield* this.store.giveReserve("changes")) || (yield* this.store.giveReserve("cleaning"));
      this.#reserveGone ||= gave;
      return gave;
    }
    // The reserve is room enough to clean with, and for the checkpoints that it takes; without one, what is left on the
    // disk may do. Where most of each segment lives, it takes several rounds until there is a segment more than before.
    yield* this.store.giveReserve("cleaning");
    yield* this.#retireDead();
    for (let round = 0; round < RECLAIM_ROUNDS_MAX; round++) {
      yield* this.store.giveReserve("cleaning");
      let cleaned = 0;
      while (cleaned < RECLAIM_SEGMENTS_MAX && (yield* this.cleaner.cleanInTurn())) cleaned++;
      if (cleaned > 0) yield* this.#retireDead();
      if ((yield* this.keepReserve()) && (yield* this.#hasRoom())) return true;
      if (cleaned === 0) break;
    }
    return false;
  }

  /** What died before the first of two checkpoints is retired after the second; here, not to be used again. */
  *#retireDead(): Task<void> {
    if (!this.cleaner.hasDead) return;
    yield* this.#checkpointNow(false);
    yield* this.#checkpointNow(false);
    yield* this.store.dropSpares();
  }

  /** There is space for another segment on the disk; or it cannot be told. */
  *#hasRoom(): Task<boolean> {
    const space = yield* this.store.space();
    return space === undefined || space.available >= this.segmentBlocks * BLOCK_BYTES + CLEANING_MARGIN_BYTES;
  }

  /* ------------------------------------------------------------------- tree */

  /** By name: `db`, `db@monday`. */
  get versions(): ReadonlyMap<string, Version> {
    return this.tree.versions;
  }

  version(name: string): Version {
    const version = this.tree.versions.get(name);
    if (version === undefined) throw new Refusal("not-found", `there is no volume or snapshot "${name}"`);
    return version;
  }

  /** The name of the version that this one descends from directly. */
  parentOf(name: string): string | undefined {
    return this.version(name).node.ancestor?.name;
  }

  get isEmpty(): boolean {
    return this.tree.versions.size === 0;
  }

  *createVolume(options: VolumeOptions): Task<Version> {
    checkName("volume", options.name);
    const blockSize = options.blockSize ?? 512;
    if (blockSize !== 512 && blockSize !== BLOCK_BYTES)
      throw new Refusal("bad-request", `a block size of ${blockSize} is not possible; it is 512 or 4096`);
    checkSize(options.size, blockSize);
    return yield* this.#control.run(
      this.#change(() => {
        this.#mustBeFree(options.name);
        return { op: "create", node: this.#facts(options.name, "volume", options.size, blockSize) };
      }, options.name),
    );
  }

  /** Freezes what has been written to a volume until now, under the name `volume@snapshot`. */
  *snapshot(name: string): Task<Version> {
    const { volume: volumeName } = parseSnapshotName(name);
    const change = this.#change(() => {
      const { node } = this.#volume(volumeName);
      this.#mustBeFree(name);
      return { op: "snapshot", volume: node.id, node: this.#facts(name, "snapshot", node.size, node.blockSize) };
    }, name);
    return yield* this.#control.run(during(this.options, "snapshot", change));
  }

  /** A new volume that starts as a copy of a snapshot and shares its data. */
  *clone(snapshotName: string, name: string): Task<Version> {
    checkName("volume", name);
    return yield* this.#control.run(
      this.#change(() => {
        const { node } = this.version(snapshotName);
        if (node.kind !== "snapshot")
          throw new Refusal(
            "bad-request",
            `"${snapshotName}" is a volume; a clone is made from a snapshot`,
            `ashlar snapshot create ${snapshotName}@NAME`,
          );
        this.#mustBeFree(name);
        return { op: "clone", of: node.id, node: this.#facts(name, "volume", node.size, node.blockSize) };
      }, name),
    );
  }

  /**
   * Makes a volume what it was at one of its snapshots. The volume keeps its size if that has grown since; snapshots
   * taken in between stay as they are.
   */
  *rollback(snapshotName: string): Task<Version> {
    const { volume: volumeName } = parseSnapshotName(snapshotName);
    return yield* this.#control.run(
      this.#change(() => {
        const { node } = this.#volume(volumeName);
        const to = this.version(snapshotName).node;
        return { op: "rollback", volume: node.id, to: to.id };
      }, volumeName),
    );
  }

  /** Grows a volume; shrinks it only where nothing is mapped. */
  *resize(name: string, size: Bytes): Task<Version> {
    return yield* this.#control.run(
      this.#change(() => {
        const { node } = this.#volume(name);
        checkSize(size, node.blockSize);
        if (size < node.size) {
          const from = Math.floor(size / BLOCK_BYTES);
          const blocks = Math.ceil(node.size / BLOCK_BYTES) - from;
          node.map.find(from, blocks);
          if (node.map.location !== 0 || node.map.length < blocks || this.log.touches(node.id, from, blocks))
            throw new Refusal(
              "not-allowed",
              `"${name}" has data beyond ${size} bytes; a smaller size would cut it off`,
              "trim the end of the volume first (fstrim, blkdiscard), or copy it to a smaller one",
            );
        }
        return { op: "resize", volume: node.id, size };
      }, name),
    );
  }

  *rename(name: string, newName: string): Task<Version> {
    return yield* this.#control.run(
      this.#change(() => {
        const { node } = this.#volume(name);
        checkName("volume", newName);
        this.#mustBeFree(newName);
        for (const other of this.tree.versions.keys())
          if (other.startsWith(`${name}@`)) this.#mustBeFree(newName + other.slice(name.length));
        return { op: "rename", node: node.id, name: newName };
      }, newName),
    );
  }

  /** Removes a snapshot, or a volume; with `force`, a volume together with its snapshots. Clones go on. */
  *remove(name: string, options: { readonly force?: boolean } = {}): Task<void> {
    yield* this.#control.run(
      this.#change(() => {
        const { node } = this.version(name);
        const nodes = [node.id];
        if (node.kind === "volume") {
          const snapshots = [...this.tree.versions.values()].filter((other) => other.name.startsWith(`${name}@`));
          if (snapshots.length > 0 && options.force !== true)
            throw new Refusal(
              "in-use",
              `"${name}" has ${snapshots.length} snapshot${snapshots.length > 1 ? "s" : ""}: ${snapshots.map((each) => each.name).join(", ")}`,
              "remove them first, or give --force to remove them with it",
            );
          for (const snapshot of snapshots) nodes.push(snapshot.node.id);
        }
        return { op: "remove", nodes };
      }, undefined),
    );
  }

  #volume(name: string): Version {
    const version = this.version(name);
    if (version.kind !== "volume") throw new Refusal("bad-request", `"${name}" is a snapshot, not a volume`);
    return version;
  }

  #mustBeFree(name: string): void {
    if (this.tree.versions.has(name)) throw new Refusal("exists", `there is already a "${name}"`);
  }

  #facts(name: string, kind: "volume" | "snapshot", size: Bytes, blockSize: number): NodeFacts {
    return {
      id: this.tree.nextNode,
      name,
      kind,
      uuid: newUuid(this.env),
      size,
      blockSize,
      createdAt: this.env.clock.date(),
    };
  }

  /** Logs a control record, waits until it is on stable storage, and gives the version that `name` then means. */
  #change(plan: () => Control, name: string): Task<Version>;
  #change(plan: () => Control, name: undefined): Task<undefined>;
  *#change(plan: () => Control, name: string | undefined): Task<Version | undefined> {
    if (this.#closing) throw new Refusal("in-use", "the server is shutting down");
    const refused = this.refusesWrites();
    if (refused !== undefined)
      throw new Refusal(
        "storage-failed",
        `the set takes no changes: ${this.trouble ?? refused}`,
        "see `ashlar doctor`",
      );
    const control = plan();
    const record = new TextEncoder().encode(JSON.stringify(control));
    let status = yield* perform<Status>((resume) => {
      const entry = new LogEntry((_, ended) => resume(ended));
      entry.kind = EntryKind.CONTROL;
      entry.control = record;
      this.log.submit(entry);
    });
    if (status === "ok") status = yield* perform<Status>((resume) => this.log.sync(resume));
    if (status === "full")
      throw new Refusal(
        "full",
        "no space is left, not even for this change",
        "remove snapshots or volumes, or give the server more space",
      );
    if (status !== "ok")
      throw new Refusal("storage-failed", `the change could not be written: ${this.trouble ?? status}`);
    return name === undefined ? undefined : this.version(name);
  }

  /** As a step of a task: lets the lane do something else, for a while. */
  breathe(restMs: Millis = 0): Effect<void> {
    return (resume) => {
      this.env.clock.alarm(() => resume()).at = this.env.clock.now() + restMs;
    };
  }

  /* ------------------------------------------------------------ maintenance */

  #wake(): void {
    if (!this.#asleep || this.options.background === false || this.#closing) return;
    this.#asleep = false;
    const now = this.env.clock.now();
    const resting = now - this.#restSince > MAINTENANCE_MS_RESTING;
    this.#alarm.at =
      now + (resting ? MAINTENANCE_MS_RESTING : this.log.holdMs > 0 ? MAINTENANCE_MS_HELD : MAINTENANCE_MS);
  }

  #maintain(): void {
    this.#asleep = true;
    if (this.#maintaining || this.#closing) return;
    this.#maintaining = true;
    start(
      this.#maintainOnce(),
      (again) => {
        this.#maintaining = false;
        for (const waiter of this.#closeWaiters.splice(0)) waiter();
        if (again) this.#wake();
      },
      this.onBug,
    );
  }

  *#maintainOnce(): Task<boolean> {
    if (this.log.stopped !== undefined || this.readOnly !== undefined) return false;
    for (let ghost = this.tree.restless(); ghost !== undefined && !this.#closing; ghost = this.tree.restless())
      yield* this.maintenance.run(
        during(
          this.options,
          "release",
          this.tree.release(ghost, () => this.breathe()),
        ),
      );
    yield* this.maintenance.run(this.#renewReserve());
    const active = this.#lastActivity !== this.log.appliedGroup;
    const now = this.env.clock.now();
    if (active) this.#restSince = now;
    this.#hostsWrite = active;
    const rested = now - this.#restSince >= REST_MS;
    yield* this.cleaner.aim(rested);
    while (!this.#closing && this.cleaner.isDue && this.log.stopped === undefined) {
      this.cleaner.throttle();
      const gained = yield* this.cleaner.cleanOne();
      if (!gained) break;
      if (this.#checkpointIsDue) yield* this.checkpoint();
      yield* this.cleaner.aim(rested);
    }
    this.cleaner.throttle();
    if (!this.#closing && this.#checkpointIsDue && this.log.stopped === undefined) yield* this.checkpoint();
    // What the cleaner itself wrote is no activity. A set that has rested, and been cleaned, sleeps.
    this.#lastActivity = this.log.appliedGroup;
    if (rested) this.log.holdMs = 0;
    const hasSpares = yield* this.store.trimSpares(now - this.#restSince >= SPARES_MS);
    return !rested || hasSpares;
  }
  /** They did between the last two looks. */
  #hostsWrite = false;
  #lastActivity = 0;
  #restSince: Millis = 0;
  /** For how many segments the reserve was last seen to. */
  #reservedFor = 0;

  get #checkpointIsDue(): boolean {
    const { counters } = this.log;
    const blocks = counters.dataBlocks + counters.headBlocks - this.#checkpointAtBlocks + this.#blocksSinceCheckpoint;
    const bytes = this.options.checkpointBytes ?? Math.max(BURST_BYTES_MIN, this.cleaner.burstBytes);
    const entries = this.#entriesSinceCheckpoint;
    // Writing maps of N extents pays for itself if replay would have to do a good part of N.
    const pays = entries * 16 > this.#checkpointBytes / 2;
    if (pays && (blocks * BLOCK_BYTES > bytes || entries > CHECKPOINT_ENTRIES)) return true;
    return this.cleaner.waitsForCheckpoint(this.#hostsWrite);
  }

  /** Writes a checkpoint, and retires the segments that no kept one needs. */
  *checkpoint(): Task<void> {
    yield* this.maintenance.run(this.#checkpointNow(false));
  }

  *#checkpointNow(clean: boolean): Task<void> {
    let fault = yield* this.#writeCheckpoint(clean);
    if (fault === "full" && (yield* this.store.giveReserve("changes"))) fault = yield* this.#writeCheckpoint(clean);
    if (fault !== undefined) {
      this.env.log.warn({ set: this.uuid, fault }, "a checkpoint could not be written; the last one is still good");
      return;
    }
    yield* this.#retire();
    // Without a reserve no data is taken: what frees space must always find some.
    if (!clean) yield* this.keepReserve();
  }

  /** As segments come and go, and as soon as there is room again. */
  *#renewReserve(): Task<void> {
    const { count } = this.log.segments;
    if (!this.#reserveGone && count === this.#reservedFor) return;
    this.#reservedFor = count;
    this.#reserveGone = !(yield* this.#keepReserve()) && this.#reserveGone;
  }

  *keepReserve(): Task<boolean> {
    this.#reserveGone = !(yield* this.#keepReserve());
    return !this.#reserveGone;
  }

  /** A set that has data keeps space for what must be written on a full disk. False when there is none to keep. */
  *#keepReserve(): Task<boolean> {
    if (this.log.segments.count === 0) return true;
    const segmentBytes = this.segmentBlocks * BLOCK_BYTES;
    // The next checkpoint is as large as the maps are by then, not as the last one was.
    const checkpointBytes = Math.max(this.#checkpointBytes, this.arena.bytes);
    const forChanges = Math.max(RESERVE_BYTES_MIN, segmentBytes * RESERVE_PART) + checkpointBytes * 2;
    if (!(yield* this.store.keepReserve("changes", forChanges))) return false;
    if (this.log.segments.count < RESERVE_TO_CLEAN_FROM_SEGMENTS) return true;
    return yield* this.store.keepReserve("cleaning", segmentBytes + CLEANING_MARGIN_BYTES);
  }

  *#writeCheckpoint(clean: boolean): Task<DiskFault | undefined> {
    return yield* during(this.options, "checkpoint", this.#checkpointOnce(clean));
  }

  *#checkpointOnce(clean: boolean): Task<DiskFault | undefined> {
    const number = this.#checkpoint + 1;
    const { log } = this;
    // Everything from here to the first step of the task happens at one point of the log.
    const group = log.appliedGroup;
    const nodes = this.tree.inOrder();
    const directories = nodes.map((node) => {
      node.map.directory.refs++;
      return node.map.directory;
    });
    for (const segment of log.segments.values())
      if (segment.sealed && segment.live === 0 && !segment.damaged && segment.deadSince < 0) segment.deadSince = number;
    const { segment, block } = log.head;
    const record: CheckpointRecord = {
      magic: CHECKPOINT_MAGIC,
      format: STORE_FORMAT,
      uuid: this.uuid,
      segmentBlocks: this.segmentBlocks,
      createdAt: this.env.clock.date(),
      segment,
      block,
      group: group + 1,
      lastSegment: log.lastSegment,
      nextNode: this.tree.nextNode,
      clean,
      segments: [...log.segments.values()]
        .filter(({ used }) => used > 0)
        .map(({ slot, number, used, firstGroup, sealed, summarised, damaged, deadSince, sharing }) => ({
          slot,
          number,
          used,
          firstGroup,
          sealed,
          summarised,
          damaged,
          dead: deadSince >= 0,
          ...(sharing === undefined ? {} : { shared: true }),
        })),
      nodes: nodes.map((node) => this.tree.recordOf(node)),
    };
    const entries = this.#entriesSinceCheckpoint;
    const blocks = log.counters.dataBlocks + log.counters.headBlocks;
    const written = yield* writeCheckpoint(this.env, this.store, number, record, this.arena, directories);
    for (const directory of directories) nodes[0]!.map.letGo(directory);
    let { fault } = written;
    if (fault === undefined && canary.armed !== "checkpoint-without-log") {
      // It may not come into force before all that it counts on is on stable storage.
      const began = this.env.clock.now();
      const status = yield* perform<Status>((resume) => log.sync(resume));
      if (status !== "ok" && log.syncer.synced < group) fault = "io";
      else this.cleaner.noteSync((blocks - this.#checkpointAtBlocks) * BLOCK_BYTES, this.env.clock.now() - began);
    }
    if (fault !== undefined) {
      if (written.file !== undefined) yield* perform(this.store.close(written.file));
      return fault;
    }
    fault = yield* this.store.commitCheckpoint(number, written.file!);
    if (fault !== undefined) return fault;
    this.#checkpoint = number;
    this.#checkpoints.push(number);
    this.#checkpointBytes = written.bytes;
    this.#entriesSinceCheckpoint -= entries;
    this.#checkpointAtBlocks = blocks;
    this.#blocksSinceCheckpoint = 0;
    while (this.#checkpoints.length > CHECKPOINTS_KEPT) yield* this.store.removeCheckpoint(this.#checkpoints.shift()!);
    return undefined;
  }

  /** Segments whose content was dead when the oldest kept checkpoint was taken are needed by nobody. */
  *#retire(): Task<void> {
    const oldest = canary.armed === "retire-early" ? this.#checkpoint + 1 : this.#checkpoints[0]!;
    for (const segment of [...this.log.segments.values()]) {
      if (segment.deadSince < 0 || segment.deadSince > oldest || segment.pins > 0 || this.log.isBusy(segment)) continue;
      this.log.segments.remove(segment);
      yield* this.store.retire(segment.number, segment.file, this.segmentBlocks * BLOCK_BYTES);
    }
  }

  /* -------------------------------------------------------------- questions */

  /** Space of a version. Takes a walk over the leaves that it does not share whole. */
  *accounting(name: string): Task<Accounting> {
    const { node } = this.version(name);
    const exclusive = yield* this.tree.countExclusive(node, () => this.breathe());
    return {
      provisioned: node.size,
      mapped: node.map.mapped * BLOCK_BYTES,
      exclusive: exclusive * BLOCK_BYTES,
      shared: Math.max(0, node.map.mapped - exclusive) * BLOCK_BYTES,
    };
  }

  *space(): Task<SetSpace> {
    const usage = yield* this.store.usage();
    let live = 0;
    let used = 0;
    for (const segment of this.log.segments.values()) {
      live += segment.live;
      used += segment.used;
    }
    return {
      disk: usage.total,
      live: live * BLOCK_BYTES,
      reclaimable: (used - live) * BLOCK_BYTES,
      spare: usage.spare,
      segments: this.log.segments.count,
      map: this.arena.bytes + this.#directoryBytes(),
    };
  }

  #directoryBytes(): number {
    const directories = new Set([...this.tree.versions.values()].map(({ node }) => node.map.directory));
    let bytes = 0;
    for (const { leaves } of directories) bytes += leaves.byteLength;
    return bytes;
  }

  /** Reads everything that is mapped (of the named versions, or of all) against its checksum. */
  *scrub(names: readonly string[] | undefined, progress?: (state: ScrubProgress) => void): Task<ScrubReport> {
    const versions = names === undefined ? [...this.tree.versions.values()] : names.map((name) => this.version(name));
    return yield* during(this.options, "scrub", scrub(this, versions, progress ?? ignore));
  }

  /** Recounts what lives in each segment, for tests: a text for each count that was wrong. */
  checkCounts(): string[] {
    return this.tree.checkCounts();
  }

  /* ------------------------------------------------------------------ close */

  /** Ends all work on the set; with a checkpoint that makes the next start quick. Nobody may submit any more. */
  *close(): Task<void> {
    yield* during(this.options, "close", this.#close());
  }

  *#close(): Task<void> {
    this.#closing = this.cleaner.hurried = true;
    this.#alarm.at = Number.POSITIVE_INFINITY;
    yield* perform<void>((resume) => {
      if (this.#maintaining) this.#closeWaiters.push(resume);
      else resume();
    });
    yield* perform(this.log.rest());
    if (this.log.stopped === undefined && this.readOnly === undefined) {
      const status = yield* this.log.flush();
      if (status === "ok") yield* this.maintenance.run(this.#checkpointNow(true));
    }
    for (const version of this.tree.versions.values()) version.changed("gone");
    yield* this.log.close();
    const files: File[] = [];
    for (const segment of this.log.segments.values())
      if (segment.file !== undefined) {
        files.push(segment.file);
        segment.file = undefined;
      }
    for (const file of files) yield* perform(this.store.close(file));
  }

  /** Closes an empty set and removes its directory. */
  *destroy(): Task<void> {
    yield* this.close();
    const fault = yield* this.store.destroy();
    if (fault !== undefined) throw diskRefusal(fault, "remove the set's directory");
  }
}

const ignore = (): void => {};

/** Runs a task with the probe told of its beginning and its end. */
export function* during<T>(options: SetOptions, state: EngineState, task: Task<T>): Task<T> {
  options.probe?.(state, true);
  try {
    return yield* task;
  } finally {
    options.probe?.(state, false);
  }
}

function checkSize(size: Bytes, blockSize: number): void {
  if (!Number.isSafeInteger(size) || size <= 0 || size % blockSize !== 0)
    throw new Refusal("bad-request", `a size of ${size} bytes is not possible: it must be a multiple of ${blockSize}`);
  if (size > VOLUME_BYTES_MAX)
    throw new Refusal("bad-request", `a size of ${size} bytes is more than the 16 TiB that a volume can have`);
}

function diskRefusal(fault: DiskFault, what: string): Refusal {
  const code =
    fault === "full" ? "full" : fault === "denied" || fault === "read-only" ? "not-allowed" : "storage-failed";
  return new Refusal(code, `cannot ${what}: ${fault}`, "check the data directory with `ashlar doctor`");
}

/** A random UUID (RFC 9562 version 4) as 32 hex digits. */
export function newUuid(env: Env): string {
  const bytes = new Uint8Array(16);
  env.random.fill(bytes);
  bytes[6] = (bytes[6]! & 0x0f) | 0x40;
  bytes[8] = (bytes[8]! & 0x3f) | 0x80;
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
}

function uuidBytes(uuid: string): Uint8Array {
  const bytes = new Uint8Array(16);
  for (let index = 0; index < 16; index++) bytes[index] = Number.parseInt(uuid.slice(index * 2, index * 2 + 2), 16);
  return bytes;
}
