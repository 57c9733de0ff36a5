/**
 * The drives of a lane: it opens what the control plane says there is, and keeps the partitions on them. A drive that
 * is missing or too short takes only its own partitions away. `load` answers when the new state is in force: nothing
 * of a deleted partition is at a disk any more, so that its space can be given to another one.
 */
import { type DriveRecord, type DrivesState, type PartitionRecord, rangeSectors, SECTOR_BYTES } from "#base/drives";
import { perform, type Task } from "#base/task";
import { DiskOp, type Env, type File, isDiskFault } from "#env/env";
import { Partition, type Slice } from "./drive-partition.ts";
import { ZERO_CHUNK_BYTES, ZeroMap } from "./drive-zero.ts";

export interface DriveFacts {
  readonly name: string;
  /** Why it cannot be used, in words; undefined when it can. */
  readonly fault: string | undefined;
}
export interface PartitionFacts {
  readonly name: string;
  readonly online: boolean;
  /** Bytes that are still to be zeroed before they can be accessed. */
  readonly zeroLeft: number;
}
export interface DriveSetFacts {
  readonly drives: readonly DriveFacts[];
  readonly partitions: readonly PartitionFacts[];
}

interface OpenPartition {
  readonly record: PartitionRecord;
  readonly device: Partition;
  readonly zero: ZeroMap | undefined;
}

export class DriveSet {
  readonly #env: Env;
  readonly #files = new Map<string, { record: DriveRecord; file: File }>();
  readonly #faults = new Map<string, string>();
  /** Files of drives of which a sync has failed since they were opened. */
  readonly #failed = new Set<File>();
  readonly #partitions = new Map<string, OpenPartition>();
  #state: DrivesState | undefined;

  constructor(env: Env) {
    this.#env = env;
  }

  /** By name: what the lane's directory shows. */
  get devices(): ReadonlyMap<string, Partition> {
    return new Map([...this.#partitions].map(([name, { device }]) => [name, device]));
  }

  facts(): DriveSetFacts {
    const { drives = [], partitions = [] } = this.#state ?? {};
    return {
      drives: drives.map(({ name }) => ({ name, fault: this.#faults.get(name) })),
      partitions: partitions.map(({ name }) => {
        const open = this.#partitions.get(name);
        return { name, online: open !== undefined, zeroLeft: open?.zero?.left ?? 0 };
      }),
    };
  }

  /** @param mapsPath the directory in which maps of zeroed parts are kept; it exists */
  *load(state: DrivesState, mapsPath: string): Task<DriveSetFacts> {
    this.#state = state;
    const kept = new Set(state.partitions.map(({ uuid }) => uuid));
    for (const [name, open] of [...this.#partitions]) {
      const record = state.partitions.find((one) => one.name === name);
      if (record?.uuid === open.record.uuid) continue;
      yield* this.#retire(name, open);
      if (open.zero !== undefined && !kept.has(open.record.uuid))
        yield* perform(this.#env.disk.unlink(open.zero.file.path));
    }
    for (const [name, { file }] of [...this.#files]) {
      if (state.drives.some((drive) => drive.name === name)) continue;
      this.#files.delete(name);
      this.#failed.delete(file);
      yield* perform(this.#env.disk.close(file));
    }
    for (const drive of state.drives) if (!this.#files.has(drive.name)) yield* this.#openDrive(drive);
    for (const record of state.partitions) yield* this.#openPartition(record, mapsPath);
    return this.facts();
  }

  /** Ends every partition and closes every drive, after their last flush. */
  *close(): Task<void> {
    for (const [name, open] of [...this.#partitions]) yield* this.#retire(name, open);
    for (const { file } of this.#files.values()) {
      yield* this.#sync(file);
      yield* perform(this.#env.disk.close(file));
    }
    this.#files.clear();
  }

  *#retire(name: string, { device, zero }: OpenPartition): Task<void> {
    this.#partitions.delete(name);
    zero?.stop();
    yield* perform<void>((resume) => device.retire(() => resume()));
    if (zero === undefined) return;
    yield* perform<void>((resume) => zero.whenIdle(() => resume()));
    yield* perform(this.#env.disk.close(zero.file));
  }

  *#openDrive(record: DriveRecord): Task<void> {
    const { disk } = this.#env;
    const facts = yield* perform(disk.facts(record.path));
    if (isDiskFault(facts)) {
      this.#faults.set(record.name, `${record.path} cannot be opened (${facts})`);
      return;
    }
    if (facts.size < record.sectors * SECTOR_BYTES) {
      this.#faults.set(record.name, `${record.path} has only ${facts.size} of ${record.sectors * SECTOR_BYTES} bytes`);
      return;
    }
    const file = yield* perform(disk.open(record.path, "write"));
    if (isDiskFault(file)) {
      this.#faults.set(record.name, `${record.path} cannot be opened for writing (${file})`);
      return;
    }
    this.#faults.delete(record.name);
    this.#files.set(record.name, { record, file });
  }

  *#openPartition(record: PartitionRecord, mapsPath: string): Task<void> {
    const open = this.#partitions.get(record.name);
    const slices: Slice[] = [];
    for (const range of record.ranges) {
      const drive = this.#files.get(range.drive);
      if (drive === undefined) return;
      const length = rangeSectors(range) * SECTOR_BYTES;
      slices.push({ file: drive.file, position: range.first * SECTOR_BYTES, length });
    }
    if (open !== undefined) {
      if (sameSlices(open.device.slices, slices)) return;
      open.device.grow(slices);
      open.zero?.grow();
      this.#partitions.set(record.name, { ...open, record });
      return;
    }
    yield* this.#reserve(slices);
    const zero = record.zero ? yield* this.#openMap(record, slices, mapsPath) : undefined;
    if (record.zero && zero === undefined) return;
    const device: Partition = new Partition(this.#env, record.name, record.uuid, slices, zero?.map, this.#failed);
    zero?.bind(device);
    this.#partitions.set(record.name, { record, device, zero: zero?.map });
  }

  /** Thick: the space is taken from the file system now. A file system that cannot, takes it at the first write. */
  *#reserve(slices: readonly Slice[]): Task<void> {
    for (const { file, position, length } of slices) yield* perform(this.#env.disk.allocate(file, position, length));
  }

  *#openMap(
    record: PartitionRecord,
    slices: readonly Slice[],
    mapsPath: string,
  ): Task<{ map: ZeroMap; bind: (device: Partition) => void } | undefined> {
    const { disk, memory } = this.#env;
    const path = `${mapsPath}/${record.uuid}`;
    let file = yield* perform(disk.open(path, "write"));
    if (file === "missing") {
      file = yield* perform(disk.open(path, "create"));
      yield* perform(disk.syncDirectory(mapsPath));
    }
    if (isDiskFault(file)) {
      this.#env.log.error({ partition: record.name, path, fault: file }, "The map of zeroed parts cannot be opened");
      return undefined;
    }
    const size = slices.reduce((sum, slice) => sum + slice.length, 0);
    const marks = new Uint8Array(Math.ceil(size / ZERO_CHUNK_BYTES));
    const at = memory.allocate(marks.length);
    if (at === 0) return undefined;
    const op = yield* perform<DiskOp>((resume) => {
      const read = new DiskOp(resume);
      read.kind = "read";
      read.file = file as File;
      read.at = at;
      read.length = marks.length;
      disk.submit(read);
    });
    const fault = op.fault;
    marks.set(memory.bytes.subarray(at, at + (fault === undefined ? op.count : 0)));
    memory.free(at);
    if (fault !== undefined) {
      this.#env.log.error({ partition: record.name, path, fault }, "The map of zeroed parts cannot be read");
      return undefined;
    }
    let device: Partition | undefined;
    const map = new ZeroMap(
      this.#env,
      file,
      marks,
      () => device?.size ?? size,
      () => device?.slices ?? slices,
      (failed) => this.#failed.add(failed),
    );
    return {
      map,
      bind: (made) => {
        device = made;
      },
    };
  }

  *#sync(file: File): Task<void> {
    yield* perform<DiskOp>((resume) => {
      const op = new DiskOp(resume);
      op.kind = "sync";
      op.file = file;
      this.#env.disk.submit(op);
    });
  }
}

function sameSlices(a: readonly Slice[], b: readonly Slice[]): boolean {
  return (
    a.length === b.length &&
    a.every(({ file, position, length }, i) => {
      const other = b[i]!;
      return other.file === file && other.position === position && other.length === length;
    })
  );
}
