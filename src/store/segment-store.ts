/**
 * Where the segments of one version set live: the narrow waist under the engine. A segment has a number that is never
 * used twice; it is created only if absent, and that is the fence: of two writers, one fails to extend the log.
 *
 * `DirectoryStore` keeps them as files of one directory. Files whose content is dead are kept for a while and become new
 * segments: writing over blocks that exist costs the file system no allocation, and `fdatasync` no journal commit.
 */

import { type Effect, perform, type Task } from "#base/task";
import { BLOCK_BYTES, type Bytes, MIB, type Millis } from "#base/units";
import { type Clock, type Disk, type DiskFault, DiskOp, type Env, type File, isDiskFault } from "#env/env";

export interface Space {
  readonly total: Bytes;
  readonly available: Bytes;
  /** This is what a server may take for all its sets, and not what the disk has. */
  readonly limited: boolean;
}

export interface NewSegment {
  readonly file: File;
  /** It was another segment before: all of its blocks have been written once. */
  readonly rewritten: boolean;
}

export interface SegmentStore {
  /** Creates segment `number`; "exists" if there is one, whoever made it. Its name is durable when this is done. */
  create(number: number): Task<NewSegment | DiskFault>;
  open(number: number): Task<File | DiskFault>;
  /** Sees to it that a new segment of `length` bytes has its space, so that a full disk is met here. */
  reserve(segment: NewSegment, length: Bytes): Task<DiskFault | undefined>;
  /** Numbers of all segments, ascending. */
  list(): Task<number[] | DiskFault>;
  /** The content of a segment of `length` bytes is dead: its space may be used again. */
  retire(number: number, file: File | undefined, length: Bytes): Task<DiskFault | undefined>;
  /**
   * Takes a segment away for good: one that could not be given its space, or that a former run left behind. Its file may
   * have another name, as another segment, and so must not be used again.
   */
  discard(number: number, file: File | undefined): Task<DiskFault | undefined>;
  close(file: File): Effect<DiskFault | undefined>;
  /** What the file of a segment is called, for messages. */
  describe(number: number): string;

  /** Checkpoints are numbered too; a new one appears whole or not at all. */
  createCheckpoint(number: number): Task<File | DiskFault>;
  commitCheckpoint(number: number, file: File): Task<DiskFault | undefined>;
  openCheckpoint(number: number): Task<File | DiskFault>;
  describeCheckpoint(number: number): string;
  /** Ascending. */
  listCheckpoints(): Task<number[] | DiskFault>;
  removeCheckpoint(number: number): Task<DiskFault | undefined>;
  /** Makes what was created, renamed and removed last. */
  syncNames(): Task<DiskFault | undefined>;
  /** Space kept so that checkpoints, and changes that free space, can be written when the disk is full. False: no room for it. */
  keepReserve(use: ReserveUse, bytes: number): Task<boolean>;
  giveReserve(use: ReserveUse): Task<boolean>;
  /** Segments that can be created without taking space. */
  readonly spareCount: number;
  /** Gives files that wait to be used again back to the file system, all but so many; false when there were none. */
  dropSpares(keep?: number): Task<boolean>;
  /** Gives back those that are more than there is room for, and `atRest` all but a few. False when no more than those are left. */
  trimSpares(atRest: boolean): Task<boolean>;

  /** Of the disk, or of what may be taken of it, in bytes; undefined when it cannot be told. */
  space(): Task<Space | undefined>;

  /** Bytes taken on the disk by everything of this set, as `du` counts; `spare` of them wait to be used again. */
  usage(): Task<{ readonly total: number; readonly spare: number }>;
  /** Removes the set with all its files. */
  destroy(): Task<DiskFault | undefined>;
}

/**
 * Retired files kept for use as new segments while hosts write, and some time longer: as much as a burst writes. Their pages
 * are in memory, and a virtual machine that is given its memory page by page waits for new ones. What is beyond goes back to
 * the file system, and in the end all but `SPARES_AT_REST`.
 */
const SPARES_MAX = 64;
const SPARES_AT_REST = 8;
/** Spares of a set take no more than this part of what is left. */
const SPARES_PART = 1 / 8;
/**
 * Hosts who fill a segment in less than this wait for the next one's name, which the file system may write with much else.
 * So the names of so many more are written with it, while there are spares.
 */
const HASTE_MS = 100;
const AHEAD_SEGMENTS = 8;
/**
 * With room for so many more segments, a new one is not given its space ahead of its use: the file system may take a second
 * for that while it writes what a checkpoint syncs, and hosts who write quickly would wait for it.
 */
const AMPLE_SEGMENTS = 64;
/** A reserve that has become too small is made larger than it has to be by this part of it: it will grow again. */
const RESERVE_GROWTH = 1 / 2;
/**
 * The first segment of a set grows without being given space: what small sets take is looked at, until it is full for sure,
 * which is when there are three.
 */
const LOOK_BELOW_BYTES = 96 * MIB;
/** Checkpoints are not counted as they come and go, so that files are looked at again after so many others did. */
const LOOK_AFTER_CHANGES = 64;

const SEGMENT_NAME = /^segment-([0-9a-f]{12})$/;
const CHECKPOINT_NAME = /^checkpoint-([0-9a-f]{12})$/;
const hex = (number: number): string => number.toString(16).padStart(12, "0");

/** Space is kept for checkpoints and changes that free space, and for copies of what lives in the way of the cleaner. */
export type ReserveUse = "changes" | "cleaning";

/**
 * What the sets of a server may take, where that is less than the disk has: told anew now and then, and in between the
 * stores of a lane take off and add what their own files take and give back. Beyond it the disk counts as full.
 */
export class RoomLimit {
  #total: Bytes = Number.POSITIVE_INFINITY;
  #available: Bytes = Number.POSITIVE_INFINITY;
  #takenSinceAsked: Bytes = 0;

  get total(): Bytes {
    return this.#total;
  }
  get available(): Bytes {
    return this.#available;
  }

  /** The lane is asked for what it takes: what is told next knows of all up to now. */
  onAsked(): void {
    this.#takenSinceAsked = 0;
  }

  tell(total: Bytes, available: Bytes): void {
    this.#total = total;
    this.#available = available - this.#takenSinceAsked;
  }

  /** False, and nothing is taken, when there is not so much left. */
  take(bytes: Bytes): boolean {
    if (bytes > this.#available) return false;
    this.give(-bytes);
    return true;
  }

  give(bytes: Bytes): void {
    this.#available += bytes;
    this.#takenSinceAsked -= bytes;
  }
}

export class DirectoryStore implements SegmentStore {
  readonly #disk: Disk;
  readonly #clock: Clock;
  readonly #limit: RoomLimit;
  /** What a segment takes; known when one was given its space, or retired. */
  #segmentBytes: Bytes = 0;
  readonly #reserved = new Map<ReserveUse, Bytes>();
  /** What all files took when they were last looked at, and what was taken and given back since. */
  #usage: Bytes | undefined;
  #lookedAt: Bytes = 0;
  #changesSinceUsage = 0;
  readonly directory: string;
  /** Files to be used again, and segments that were made of such ones ahead of their need, in order. */
  readonly #spares: string[] = [];
  readonly #ahead: number[] = [];
  #createdAt: Millis = Number.NEGATIVE_INFINITY;
  #nextSpare = 0;
  #scanned = false;

  constructor(env: Env, directory: string, limit = new RoomLimit()) {
    this.#disk = env.disk;
    this.#clock = env.clock;
    this.directory = directory;
    this.#limit = limit;
  }

  /** Makes the directory of a new set; its parent must exist. */
  *make(): Task<DiskFault | undefined> {
    const fault = yield* perform(this.#disk.makeDirectory(this.directory));
    if (fault !== undefined) return fault;
    return yield* perform(this.#disk.syncDirectory(parentOf(this.directory)));
  }

  describe(number: number): string {
    return `${this.directory}/segment-${hex(number)}`;
  }

  describeCheckpoint(number: number): string {
    return `${this.directory}/checkpoint-${hex(number)}`;
  }

  *create(number: number): Task<NewSegment | DiskFault> {
    yield* this.#scan();
    const now = this.#clock.now();
    const inHaste = now - this.#createdAt < HASTE_MS;
    this.#createdAt = now;
    if (this.#ahead[0] !== number) {
      const fault = yield* this.#makeAhead(number, inHaste ? 1 + AHEAD_SEGMENTS : 1);
      if (fault !== undefined) return fault;
    }
    const rewritten = this.#ahead[0] === number;
    const file = yield* perform(this.#disk.open(this.describe(number), rewritten ? "write" : "create"));
    if (isDiskFault(file)) return file;
    if (rewritten) this.#ahead.shift();
    else {
      const fault = yield* perform(this.#disk.syncDirectory(this.directory));
      if (fault !== undefined) return fault;
    }
    return { file, rewritten };
  }

  /** Makes spares, as far as there are some, segments `number` and those after it, at most `count`. */
  *#makeAhead(number: number, count: number): Task<DiskFault | undefined> {
    const made: number[] = [];
    while (made.length < count) {
      // The one that was retired last: of its pages, most are in memory.
      const spare = this.#spares.pop();
      if (spare === undefined) break;
      // A link is created only if absent; a rename would replace what another writer made.
      const fault = yield* perform(this.#disk.link(spare, this.describe(number + made.length)));
      if (fault !== undefined) {
        this.#spares.push(spare);
        if (fault === "exists" && made.length === 0) return fault;
        break;
      }
      yield* perform(this.#disk.unlink(spare));
      made.push(number + made.length);
    }
    if (made.length === 0) return undefined;
    // The name that a file had before must be gone for good, too, before anything is written to it: a segment that is dead
    // under that name would be used again after a power cut that gave it back.
    const fault = yield* perform(this.#disk.syncDirectory(this.directory));
    if (fault === undefined) this.#ahead.unshift(...made);
    return fault;
  }

  *open(number: number): Task<File | DiskFault> {
    return yield* perform(this.#disk.open(this.describe(number), "write"));
  }

  *reserve({ file, rewritten }: NewSegment, length: Bytes): Task<DiskFault | undefined> {
    this.#segmentBytes = length;
    if (!rewritten && !this.#take(length)) return "full";
    if (yield* this.#isAmple(length)) return undefined;
    const fault = yield* perform(this.#disk.allocate(file, 0, length));
    return fault === "unsupported" ? undefined : fault;
  }

  *#isAmple(segmentBytes: Bytes): Task<boolean> {
    const space = yield* this.space();
    return space !== undefined && space.available >= AMPLE_SEGMENTS * segmentBytes;
  }

  close(file: File): Effect<DiskFault | undefined> {
    return this.#disk.close(file);
  }

  *list(): Task<number[] | DiskFault> {
    return yield* this.#numbers(SEGMENT_NAME);
  }

  *listCheckpoints(): Task<number[] | DiskFault> {
    return yield* this.#numbers(CHECKPOINT_NAME);
  }

  *#numbers(pattern: RegExp): Task<number[] | DiskFault> {
    const names = yield* perform(this.#disk.list(this.directory));
    if (isDiskFault(names)) return names;
    const numbers: number[] = [];
    for (const name of names) {
      const match = pattern.exec(name);
      if (match !== null) numbers.push(Number.parseInt(match[1]!, 16));
    }
    return numbers.sort((a, b) => a - b);
  }

  *discard(number: number, file: File | undefined): Task<DiskFault | undefined> {
    if (file !== undefined) yield* perform(this.#disk.close(file));
    return yield* perform(this.#disk.unlink(this.describe(number)));
  }

  *retire(number: number, file: File | undefined, length: Bytes): Task<DiskFault | undefined> {
    this.#segmentBytes = length;
    yield* this.#scan();
    if (file !== undefined) yield* perform(this.#disk.close(file));
    const path = this.describe(number);
    // What is kept for this set counts against what all may take: other sets, or checkpoints, may need it more.
    if (!(yield* this.#mayKeepSpare(length))) {
      this.#give(length);
      return yield* perform(this.#disk.unlink(path));
    }
    const spare = `${this.directory}/spare-${hex(this.#nextSpare++)}`;
    const fault = yield* perform(this.#disk.rename(path, spare));
    if (fault !== undefined) return yield* perform(this.#disk.unlink(path));
    this.#spares.push(spare);
    return undefined;
  }

  *#mayKeepSpare(bytes: Bytes): Task<boolean> {
    const count = this.spareCount;
    if (count >= SPARES_MAX || this.#limit.available < SPARES_AT_REST * bytes) return false;
    if (count < SPARES_AT_REST) return true;
    const space = yield* this.space();
    return space !== undefined && (count + 1) * bytes <= space.available * SPARES_PART;
  }

  *dropSpares(keep = 0): Task<boolean> {
    yield* this.#scan();
    // Of those that were made ahead, the last goes first: the numbers of the others follow on.
    const ahead = this.#ahead.splice(keep).reverse();
    const spares = this.#spares.splice(0, Math.max(0, this.spareCount - keep));
    for (const spare of [...ahead.map((number) => this.describe(number)), ...spares])
      yield* perform(this.#disk.unlink(spare));
    const count = ahead.length + spares.length;
    this.#give(count * this.#segmentBytes);
    return count > 0;
  }

  *trimSpares(atRest: boolean): Task<boolean> {
    if (this.spareCount <= SPARES_AT_REST) return false;
    const space = atRest ? undefined : yield* this.space();
    const room = ((space?.available ?? 0) * SPARES_PART) / this.#segmentBytes;
    const keep = Math.max(SPARES_AT_REST, Math.ceil(room));
    if (this.spareCount > keep) yield* this.dropSpares(keep);
    return this.spareCount > SPARES_AT_REST;
  }

  get spareCount(): number {
    return this.#spares.length + this.#ahead.length;
  }

  *createCheckpoint(number: number): Task<File | DiskFault> {
    const path = `${this.describeCheckpoint(number)}.new`;
    yield* perform(this.#disk.unlink(path)); // of an attempt that was cut short
    return yield* perform(this.#disk.open(path, "create"));
  }

  *commitCheckpoint(number: number, file: File): Task<DiskFault | undefined> {
    let fault = yield* syncFile(this.#disk, file);
    yield* perform(this.#disk.close(file));
    const path = this.describeCheckpoint(number);
    if (fault === undefined) fault = yield* perform(this.#disk.rename(`${path}.new`, path));
    if (fault === undefined) fault = yield* perform(this.#disk.syncDirectory(this.directory));
    else yield* perform(this.#disk.unlink(`${path}.new`));
    return fault;
  }

  *openCheckpoint(number: number): Task<File | DiskFault> {
    return yield* perform(this.#disk.open(this.describeCheckpoint(number), "read"));
  }

  *removeCheckpoint(number: number): Task<DiskFault | undefined> {
    return yield* perform(this.#disk.unlink(this.describeCheckpoint(number)));
  }

  *syncNames(): Task<DiskFault | undefined> {
    return yield* perform(this.#disk.syncDirectory(this.directory));
  }

  *keepReserve(use: ReserveUse, bytes: number): Task<boolean> {
    const path = `${this.directory}/reserve-${use}`;
    const facts = yield* perform(this.#disk.facts(path));
    if (!isDiskFault(facts) && facts.size >= bytes) return true;
    const isGrowing = !isDiskFault(facts) && facts.size > 0;
    if (isGrowing && (yield* this.#makeReserve(use, bytes + bytes * RESERVE_GROWTH))) return true;
    return yield* this.#makeReserve(use, bytes);
  }

  *#makeReserve(use: ReserveUse, bytes: Bytes): Task<boolean> {
    const path = `${this.directory}/reserve-${use}`;
    yield* this.giveReserve(use);
    if (!this.#take(bytes)) return false;
    this.#reserved.set(use, bytes);
    const file = yield* perform(this.#disk.open(path, "create"));
    if (isDiskFault(file)) return file !== "full";
    const fault = yield* perform(this.#disk.allocate(file, 0, bytes));
    yield* perform(this.#disk.close(file));
    if (fault !== undefined) yield* this.giveReserve(use);
    // Where space cannot be reserved for another reason than that there is none, there is nothing to wait for.
    return fault !== "full";
  }

  *giveReserve(use: ReserveUse): Task<boolean> {
    this.#give(this.#reserved.get(use) ?? 0);
    this.#reserved.delete(use);
    return (yield* perform(this.#disk.unlink(`${this.directory}/reserve-${use}`))) === undefined;
  }

  *space(): Task<Space | undefined> {
    const space = yield* perform(this.#disk.space(this.directory));
    if (isDiskFault(space) || space.total === 0) return undefined;
    const { total, available } = this.#limit;
    if (total >= space.total) return { ...space, limited: false };
    return { total, available: Math.min(available, space.available), limited: true };
  }

  #take(bytes: Bytes): boolean {
    if (!this.#limit.take(bytes)) return false;
    this.#noteUsage(bytes);
    return true;
  }

  #give(bytes: Bytes): void {
    this.#limit.give(bytes);
    this.#noteUsage(-bytes);
  }

  #noteUsage(bytes: Bytes): void {
    this.#changesSinceUsage++;
    if (this.#usage !== undefined) this.#usage += bytes;
  }

  /** Bytes taken on the disk, as far as is known without looking at it. */
  get used(): Bytes {
    return this.#usage ?? 0;
  }

  /** Looks at all files, if that is not known well enough any more. */
  *lookAtUsage(): Task<void> {
    if (this.#lookedAt < LOOK_BELOW_BYTES || this.#changesSinceUsage > LOOK_AFTER_CHANGES) yield* this.usage();
  }

  *usage(): Task<{ readonly total: number; readonly spare: number }> {
    // A second name that a former run could not take away would be counted twice.
    yield* this.#scan();
    const names = yield* perform(this.#disk.list(this.directory));
    let total = 0;
    let spare = 0;
    const ahead = new Set(this.#ahead.map((number) => `segment-${hex(number)}`));
    const changes = this.#changesSinceUsage;
    if (!isDiskFault(names))
      for (const name of names) {
        const facts = yield* perform(this.#disk.facts(`${this.directory}/${name}`));
        if (isDiskFault(facts)) continue;
        total += facts.allocated;
        if (name.startsWith("spare-") || name.startsWith("reserve-") || ahead.has(name)) spare += facts.allocated;
      }
    // What was taken or given back meanwhile may or may not be in it.
    if (this.#changesSinceUsage === changes || this.#usage === undefined) {
      this.#usage = total;
      this.#lookedAt = total;
      this.#changesSinceUsage = 0;
    }
    return { total, spare };
  }

  *destroy(): Task<DiskFault | undefined> {
    // Checkpoints go first: without one, the rest is recognised as the remains of a set that was being removed.
    const names = yield* perform(this.#disk.list(this.directory));
    if (isDiskFault(names)) return names;
    const order = (name: string): number => (name.startsWith("checkpoint") ? 0 : 1);
    for (const name of names.sort((a, b) => order(a) - order(b)))
      yield* perform(this.#disk.unlink(`${this.directory}/${name}`));
    const fault = yield* perform(this.#disk.removeDirectory(this.directory));
    if (fault !== undefined) return fault;
    return yield* perform(this.#disk.syncDirectory(parentOf(this.directory)));
  }

  /**
   * Clears away what was being made when a former run ended, and its spares: a run that was cut short while it made a
   * segment of a spare may have left both names, and what is written to that segment must not become another one.
   */
  *#scan(): Task<void> {
    if (this.#scanned) return;
    this.#scanned = true;
    const names = yield* perform(this.#disk.list(this.directory));
    if (isDiskFault(names)) return;
    for (const name of names) {
      if (name.endsWith(".new") || name.startsWith("spare-"))
        yield* perform(this.#disk.unlink(`${this.directory}/${name}`));
    }
  }
}

/** Reads or writes `length` bytes as a step of a task. A read beyond the end of the file leaves zeroes. */
export function* transfer(
  disk: Disk,
  kind: "read" | "write",
  file: File,
  position: number,
  at: number,
  length: number,
): Task<DiskFault | undefined> {
  const op = yield* performOp(disk, kind, file, position, at, length);
  return op.fault;
}

/** The same; the operation that was done tells how much there was to read. */
export function* performOp(
  disk: Disk,
  kind: "read" | "write" | "sync",
  file: File,
  position: number,
  at: number,
  length: number,
): Task<DiskOp> {
  return yield* perform<DiskOp>((resume) => {
    const op = new DiskOp(resume);
    op.kind = kind;
    op.file = file;
    op.position = position;
    op.at = at;
    op.length = length;
    disk.submit(op);
  });
}

export function* syncFile(disk: Disk, file: File): Task<DiskFault | undefined> {
  return (yield* performOp(disk, "sync", file, 0, 0, 0)).fault;
}

const parentOf = (path: string): string => path.slice(0, path.lastIndexOf("/")) || "/";

/** Segments of this many blocks unless a set was made with other ones (the simulator makes small ones). */
export const SEGMENT_BLOCKS_DEFAULT = (32 * MIB) / BLOCK_BYTES;
