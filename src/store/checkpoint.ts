/**
 * A checkpoint: the tree, the maps and the table of segments as they were after a certain group, in one file. Replay
 * starts behind that group. The last two are kept, with all segments that they need, so that a damaged one costs time
 * and nothing else.
 *
 * The file is a sequence of chunks, each with its length, its place and a checksum. Their content is a stream: a JSON
 * record (length, UTF-8), then the maps. A map is a count of leaves, then per leaf its index and its ordinal; the first
 * time an ordinal appears, the leaf's runs follow: a count, then `start << 13 | length` and location for each.
 */
import { layout, readU64, writeU64 } from "#base/layout";
import type { Task } from "#base/task";
import { type DiskFault, type Env, type File, isDiskFault } from "#env/env";
import { CHECKPOINT_MAGIC, CHUNK_MAGIC, COVERED_FROM, STORE_FORMAT } from "./format.ts";
import { type Directory, type LeafArena, VersionMap } from "./map.ts";
import type { NodeFacts } from "./node.ts";
import { performOp, type SegmentStore, transfer } from "./segment-store.ts";

const CHUNK = layout({ magic: 4, checksum: 4, index: 4, length: 4, checkpoint: 8, final: 4, format: 4 });
const CHUNK_BYTES = 256 * 1024;

export interface SegmentFacts {
  readonly slot: number;
  readonly number: number;
  readonly used: number;
  readonly firstGroup: number;
  readonly sealed: boolean;
  readonly summarised: boolean;
  readonly damaged: boolean;
  /** No map of this checkpoint refers to it: its file may be gone. */
  readonly dead: boolean;
  /** Blocks of it were copied without being moved. */
  readonly shared?: boolean;
}

/** A version, or a ghost with how far its blocks have been given back. */
export interface NodeRecord extends NodeFacts {
  readonly parent: number;
  readonly mapped: number;
  readonly ghost: boolean;
  readonly released: number;
}

/** The JSON record. Unknown fields of the same format are kept out of the way of older programs by the format number. */
export interface CheckpointRecord {
  readonly magic: number;
  readonly format: number;
  readonly uuid: string;
  readonly segmentBlocks: number;
  readonly createdAt: number;
  /** Replay starts in this segment at this block, with this group. */
  readonly segment: number;
  readonly block: number;
  readonly group: number;
  readonly lastSegment: number;
  readonly nextNode: number;
  /** Written on closing: nothing was appended behind it. */
  readonly clean: boolean;
  readonly segments: readonly SegmentFacts[];
  /** Parents stand before their children. */
  readonly nodes: readonly NodeRecord[];
}

/** Writes a checkpoint from frozen directories, one per node of the record and in its order. */
export function* writeCheckpoint(
  env: Env,
  store: SegmentStore,
  number: number,
  record: CheckpointRecord,
  arena: LeafArena,
  directories: readonly Directory[],
): Task<{ readonly fault: DiskFault | undefined; readonly bytes: number; readonly file: File | undefined }> {
  const file = yield* store.createCheckpoint(number);
  if (isDiskFault(file)) return { fault: file, bytes: 0, file: undefined };
  const writer = new ChunkWriter(env, file, number);
  if (writer.at === 0) return { fault: "full", bytes: 0, file };
  const text = new TextEncoder().encode(JSON.stringify(record));
  yield* writer.u32(text.length);
  yield* writer.raw(text);
  const ordinals = new Map<number, number>();
  for (const directory of directories) {
    const { leaves } = directory;
    let count = 0;
    for (const leaf of leaves) if (leaf !== 0) count++;
    yield* writer.u32(count);
    for (let index = 0; index < leaves.length; index++) {
      const leaf = leaves[index]!;
      if (leaf === 0) continue;
      const known = ordinals.get(leaf);
      const ordinal = known ?? ordinals.size;
      if (writer.room < 12) yield* writer.turnPage(false);
      writer.put(index);
      writer.put(ordinal);
      if (known !== undefined) continue;
      ordinals.set(leaf, ordinal);
      runs.length = 0;
      arena.forEach(leaf, collectRun);
      writer.put(runs.length / 2);
      for (let each = 0; each < runs.length; each++) {
        if (writer.room < 4) yield* writer.turnPage(false);
        writer.put(runs[each]!);
      }
    }
    if (writer.fault !== undefined) break;
  }
  yield* writer.turnPage(true);
  env.memory.free(writer.at);
  return { fault: writer.fault, bytes: writer.position, file };
}

const runs: number[] = [];
const collectRun = (start: number, length: number, location: number): void => {
  runs.push(start * 8192 + length, location);
};

class ChunkWriter {
  readonly #env: Env;
  readonly #file: File;
  readonly #checkpoint: number;
  readonly at: number;
  #used = CHUNK.byteLength;
  #index = 0;
  position = 0;
  fault: DiskFault | undefined;

  constructor(env: Env, file: File, checkpoint: number) {
    this.#env = env;
    this.#file = file;
    this.#checkpoint = checkpoint;
    this.at = env.memory.allocate(CHUNK_BYTES);
  }

  get room(): number {
    return CHUNK_BYTES - this.#used;
  }

  put(value: number): void {
    this.#env.memory.view.setUint32(this.at + this.#used, value);
    this.#used += 4;
  }

  *u32(value: number): Task<void> {
    if (this.room < 4) yield* this.turnPage(false);
    this.put(value);
  }

  *raw(bytes: Uint8Array): Task<void> {
    for (let from = 0; from < bytes.length; ) {
      if (this.room === 0) yield* this.turnPage(false);
      const part = Math.min(this.room, bytes.length - from);
      this.#env.memory.bytes.set(bytes.subarray(from, from + part), this.at + this.#used);
      this.#used += part;
      from += part;
    }
  }

  *turnPage(final: boolean): Task<void> {
    const { memory, disk } = this.#env;
    const { view } = memory;
    view.setUint32(this.at + CHUNK.magic, CHUNK_MAGIC);
    view.setUint32(this.at + CHUNK.index, this.#index++);
    view.setUint32(this.at + CHUNK.length, this.#used);
    writeU64(view, this.at + CHUNK.checkpoint, this.#checkpoint);
    view.setUint32(this.at + CHUNK.final, final ? 1 : 0);
    view.setUint32(this.at + CHUNK.format, STORE_FORMAT);
    view.setUint32(this.at + CHUNK.checksum, memory.hash(this.at + COVERED_FROM, this.#used - COVERED_FROM));
    if (this.fault === undefined)
      this.fault = yield* transfer(disk, "write", this.#file, this.position, this.at, this.#used);
    this.position += this.#used;
    this.#used = CHUNK.byteLength;
  }
}

export interface LoadedCheckpoint {
  readonly record: CheckpointRecord;
  /** One per node, in the record's order. */
  readonly maps: readonly VersionMap[];
}

/** Reads a checkpoint; a text says what is wrong with it. */
export function* readCheckpoint(
  env: Env,
  file: File,
  number: number,
  arena: LeafArena,
): Task<LoadedCheckpoint | string | { readonly tooNew: number }> {
  const reader = new ChunkReader(env, file, number);
  if (reader.at === 0) return "there is no memory to read it";
  try {
    const length = yield* reader.u32();
    if (length === undefined || length > 64 * 1024 * 1024) return reader.problem ?? "its record has no sensible length";
    const text = new Uint8Array(length);
    if (!(yield* reader.raw(text))) return reader.problem ?? "it ends early";
    const record = JSON.parse(new TextDecoder().decode(text)) as CheckpointRecord;
    if (record.magic !== CHECKPOINT_MAGIC) return "its record is not one of a checkpoint";
    if (record.format > STORE_FORMAT) return { tooNew: record.format };
    const leaves: number[] = [];
    const maps: VersionMap[] = [];
    for (const node of record.nodes) {
      const map = new VersionMap(arena, Math.ceil(node.size / 4096));
      const count = (yield* reader.u32()) ?? 0;
      for (let each = 0; each < count; each++) {
        const index = yield* reader.u32();
        const ordinal = yield* reader.u32();
        if (index === undefined || ordinal === undefined || index >= map.directory.leaves.length) break;
        if (ordinal < leaves.length) {
          arena.retain(leaves[ordinal]!);
        } else {
          const leaf = arena.make();
          leaves.push(leaf);
          const pairs = (yield* reader.u32()) ?? 0;
          for (let pair = 0; pair < pairs; pair++) {
            // A chunk can end anywhere; within one, numbers are read without a step of the task.
            const run = reader.room >= 4 ? reader.take() : yield* reader.u32();
            const location = reader.room >= 4 ? reader.take() : yield* reader.u32();
            if (run === undefined || location === undefined) break;
            arena.replace(leaf, run >>> 13, run & 8191, location, ignore);
          }
        }
        map.directory.leaves[index] = leaves[ordinal]!;
      }
      map.mapped = node.mapped;
      maps.push(map);
      if (reader.problem !== undefined) break;
    }
    if (reader.problem !== undefined) {
      for (const map of maps) map.release();
      return reader.problem;
    }
    return { record, maps };
  } catch (error) {
    return `its record cannot be read: ${String(error)}`;
  } finally {
    env.memory.free(reader.at);
  }
}

const ignore = (): void => {};

class ChunkReader {
  readonly #env: Env;
  readonly #file: File;
  readonly #checkpoint: number;
  readonly at: number;
  #used = 0;
  #length = 0;
  #index = 0;
  #position = 0;
  #final = false;
  problem: string | undefined;

  constructor(env: Env, file: File, checkpoint: number) {
    this.#env = env;
    this.#file = file;
    this.#checkpoint = checkpoint;
    this.at = env.memory.allocate(CHUNK_BYTES);
  }

  get room(): number {
    return this.#length - this.#used;
  }

  take(): number {
    const value = this.#env.memory.view.getUint32(this.at + this.#used);
    this.#used += 4;
    return value;
  }

  *u32(): Task<number | undefined> {
    if (this.room < 4 && !(yield* this.#nextChunk())) return undefined;
    return this.take();
  }

  *raw(to: Uint8Array): Task<boolean> {
    for (let at = 0; at < to.length; ) {
      if (this.room === 0 && !(yield* this.#nextChunk())) return false;
      const part = Math.min(this.room, to.length - at);
      to.set(this.#env.memory.bytes.subarray(this.at + this.#used, this.at + this.#used + part), at);
      this.#used += part;
      at += part;
    }
    return true;
  }

  *#nextChunk(): Task<boolean> {
    const { memory, disk } = this.#env;
    const { view } = memory;
    const fail = (problem: string): false => {
      this.problem ??= problem;
      this.#used = this.#length;
      return false;
    };
    if (this.#final || this.problem !== undefined) return fail("it ends early");
    const op = yield* performOp(disk, "read", this.#file, this.#position, this.at, CHUNK_BYTES);
    if (op.fault !== undefined) return fail(`chunk ${this.#index} cannot be read: ${op.fault}`);
    if (op.count < CHUNK.byteLength) return fail(`chunk ${this.#index} is missing`);
    const length = view.getUint32(this.at + CHUNK.length);
    if (view.getUint32(this.at + CHUNK.magic) !== CHUNK_MAGIC || length > op.count || length < CHUNK.byteLength)
      return fail(`chunk ${this.#index} is damaged`);
    if (view.getUint32(this.at + CHUNK.checksum) !== memory.hash(this.at + COVERED_FROM, length - COVERED_FROM))
      return fail(`chunk ${this.#index} does not match its checksum`);
    if (
      view.getUint32(this.at + CHUNK.index) !== this.#index ||
      readU64(view, this.at + CHUNK.checkpoint) !== this.#checkpoint
    )
      return fail(`chunk ${this.#index} belongs elsewhere`);
    this.#final = view.getUint32(this.at + CHUNK.final) === 1;
    this.#position += length;
    this.#index++;
    this.#used = CHUNK.byteLength;
    this.#length = length;
    return true;
  }
}
