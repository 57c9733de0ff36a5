/**
 * Where reservations outlive the process. The book holds those of all volumes of a lane; the store behind it is a
 * directory here, and can be a replicated one.
 */
import { canary } from "#base/canary";
import type { Memory } from "#base/memory";
import { Refusal } from "#base/refusal";
import { type Effect, perform, type Task, TaskQueue } from "#base/task";
import type { BlockOp } from "#device/device";
import { CHANGES, type Gate } from "#device/guard";
import { type Disk, type DiskFault, DiskOp, type File, isDiskFault } from "#env/env";
import { type Registrant, type ReservationRecord, Reservations, type SharedReservations } from "./reservations.ts";

export interface ReservationStore {
  /** All records there are. Throws `Refusal` "damaged" when one cannot be read: nothing is dropped silently. */
  load(): Task<ReservationRecord[]>;
  /** Replaces the record of a volume, at once and durably; undefined removes it. */
  save(uuid: string, record: ReservationRecord | undefined): Task<DiskFault | undefined>;
}

/** Keeps nothing: for tests, and for servers without a data directory. */
export class VolatileReservationStore implements ReservationStore {
  // biome-ignore lint/correctness/useYield: there is nothing to wait for
  *load(): Task<ReservationRecord[]> {
    return [];
  }
  // biome-ignore lint/correctness/useYield: there is nothing to wait for
  *save(): Task<undefined> {
    return undefined;
  }
}

/**
 * The reservations of a server's volumes, in memory; what was made to persist is there again after a restart. Every lane
 * has a book with all of them: a change is answered when it is durable and in the books of all lanes.
 */
export class ReservationBook {
  /** Tells the other lanes; resumes when each of them goes by it. `cleared`: by an operator, so that holders are told. */
  share: ((shared: SharedReservations, cleared: boolean) => Effect<void>) | undefined;
  /** What was told by other lanes before the store was loaded: it is newer. */
  readonly #told = new Set<string>();
  #store: ReservationStore = new VolatileReservationStore();
  readonly #byUuid = new Map<string, Reservations>();
  readonly #saved = new Set<string>();
  readonly #queue = new TaskQueue();
  readonly #watchers = new Set<(uuid: string) => void>();

  /** Takes a store, and loads what it has. To be done before anything is served; until then nothing persists. */
  *open(store: ReservationStore): Task<void> {
    this.#store = store;
    for (const record of yield* store.load()) {
      this.#saved.add(record.uuid);
      if (!this.#told.has(record.uuid)) this.of(record.uuid).restore(record);
    }
  }

  of(uuid: string): Reservations {
    const found = canary.armed === "pr-other-unit" ? [...this.#byUuid.values()][0] : this.#byUuid.get(uuid);
    if (found !== undefined) return found;
    const made = new Reservations(uuid);
    made.onDropped = () => this.share?.(made.shared, false)(() => {});
    this.#byUuid.set(uuid, made);
    return made;
  }

  /** Another lane has changed the reservations of a volume, and made that durable. */
  take(shared: SharedReservations, cleared: boolean): void {
    const { record } = shared;
    this.#told.add(record.uuid);
    this.of(record.uuid).take(shared);
    if (record.aptpl && record.registrants.length > 0) this.#saved.add(record.uuid);
    else this.#saved.delete(record.uuid);
    if (cleared) this.tell(record.uuid);
  }

  /** Those of volumes on which something is reserved or registered. */
  *taken(): Iterable<Reservations> {
    for (const one of this.#byUuid.values()) if (!one.isFree) yield one;
  }

  /**
   * Makes the present state durable, if it is to persist or did before, and tells the other lanes. The fault means that
   * it is not durable: the caller takes its change back. `cleared`: by an operator.
   */
  save(reservations: Reservations, cleared = false): Task<DiskFault | undefined> {
    return this.#queue.run(this.#save(reservations, cleared));
  }

  /** A volume was deleted: its reservations go with it. */
  *forget(uuid: string): Task<void> {
    this.#byUuid.delete(uuid);
    if (this.#saved.delete(uuid)) yield* this.#queue.run(this.#store.save(uuid, undefined));
  }

  /** What stands before a device that is opened by a front whose hosts cannot register. */
  gate(uuid: string): Gate {
    return new ReservationGate(this.of(uuid));
  }

  /** Calls with the UUID of a volume after each change of its reservations by an operator. Returns how to stop. */
  watch(watcher: (uuid: string) => void): () => void {
    this.#watchers.add(watcher);
    return () => this.#watchers.delete(watcher);
  }
  tell(uuid: string): void {
    for (const watcher of this.#watchers) watcher(uuid);
  }

  *#save(reservations: Reservations, cleared: boolean): Task<DiskFault | undefined> {
    const fault = yield* this.#keep(reservations);
    if (fault === undefined && this.share !== undefined) yield* perform<void>(this.share(reservations.shared, cleared));
    return fault;
  }

  *#keep(reservations: Reservations): Task<DiskFault | undefined> {
    const { uuid } = reservations;
    const keep = reservations.aptpl && reservations.registrants.length > 0;
    if ((!keep && !this.#saved.has(uuid)) || canary.armed === "pr-not-kept") return undefined;
    const fault = yield* this.#store.save(uuid, keep ? reservations.record() : undefined);
    if (fault === undefined) {
      if (keep) this.#saved.add(uuid);
      else this.#saved.delete(uuid);
    }
    return fault;
  }
}

class ReservationGate implements Gate {
  readonly #reservations: Reservations;
  constructor(reservations: Reservations) {
    this.#reservations = reservations;
  }
  judge(op: BlockOp): "conflict" | undefined {
    if (this.#reservations.isFree || op.kind === "flush" || canary.armed === "nbd-not-judged") return undefined;
    return this.#reservations.refuses(undefined, CHANGES[op.kind] ? "write" : "read") ? "conflict" : undefined;
  }
}

/** The largest record that is read: `REGISTRANTS_MAX` registrations of names of 223 bytes, with room. */
const RECORD_BYTES_MAX = 512 * 1024;
const SUFFIX = ".json";
const TEMPORARY = ".new";

/** One file per volume, `<uuid>.json`, replaced by a synced new file and a rename. */
export class DirectoryReservationStore implements ReservationStore {
  readonly #disk: Disk;
  readonly #memory: Memory;
  readonly #directory: string;

  constructor(disk: Disk, memory: Memory, directory: string) {
    this.#disk = disk;
    this.#memory = memory;
    this.#directory = directory;
  }

  *load(): Task<ReservationRecord[]> {
    const names = yield* perform(this.#disk.list(this.#directory));
    if (names === "missing") return [];
    if (isDiskFault(names)) throw this.#refuse(names, this.#directory);
    const records: ReservationRecord[] = [];
    for (const name of [...names].sort())
      if (name.endsWith(SUFFIX)) records.push(yield* this.#read(`${this.#directory}/${name}`));
    return records;
  }

  *save(uuid: string, record: ReservationRecord | undefined): Task<DiskFault | undefined> {
    const path = `${this.#directory}/${uuid}${SUFFIX}`;
    if (record === undefined) {
      const fault = yield* perform(this.#disk.unlink(path));
      if (fault !== undefined && fault !== "missing") return fault;
      return yield* perform(this.#disk.syncDirectory(this.#directory));
    }
    const made = yield* perform(this.#disk.makeDirectory(this.#directory));
    if (made !== undefined && made !== "exists") return made;
    const fault = yield* this.#write(path + TEMPORARY, `${JSON.stringify(record, undefined, 2)}\n`);
    if (fault !== undefined) return fault;
    return (
      (yield* perform(this.#disk.rename(path + TEMPORARY, path))) ??
      (yield* perform(this.#disk.syncDirectory(this.#directory)))
    );
  }

  *#write(path: string, text: string): Task<DiskFault | undefined> {
    // What a crash left of an earlier attempt is in the way of "create".
    const old = yield* perform(this.#disk.unlink(path));
    if (old !== undefined && old !== "missing") return old;
    const file = yield* perform(this.#disk.open(path, "create"));
    if (isDiskFault(file)) return file;
    const at = this.#memory.allocate(text.length);
    let fault: DiskFault | undefined = "io";
    if (at !== 0) {
      for (let index = 0; index < text.length; index++) this.#memory.bytes[at + index] = text.charCodeAt(index);
      fault = (yield* this.#run("write", file, at, text.length)).fault;
      fault ??= (yield* this.#run("sync", file, 0, 0)).fault;
      this.#memory.free(at);
    }
    yield* perform(this.#disk.close(file));
    return fault;
  }

  *#read(path: string): Task<ReservationRecord> {
    const file = yield* perform(this.#disk.open(path, "read"));
    if (isDiskFault(file)) throw this.#refuse(file, path);
    const at = this.#memory.allocate(RECORD_BYTES_MAX);
    if (at === 0) throw new Refusal("storage-failed", `No memory to read ${path}`);
    const op = yield* this.#run("read", file, at, RECORD_BYTES_MAX);
    const { fault } = op;
    let text = "";
    for (let index = 0; fault === undefined && index < op.count; index++)
      text += String.fromCharCode(this.#memory.bytes[at + index]!);
    this.#memory.free(at);
    yield* perform(this.#disk.close(file));
    if (fault !== undefined) throw this.#refuse(fault, path);
    const record = parseRecord(text);
    if (record === undefined) throw this.#refuse("io", path);
    return record;
  }

  *#run(kind: DiskOp["kind"], file: File, at: number, length: number): Task<DiskOp> {
    return yield* perform<DiskOp>((resume) => {
      const op = new DiskOp(resume);
      op.kind = kind;
      op.file = file;
      op.at = at;
      op.length = length;
      this.#disk.submit(op);
    });
  }

  #refuse(fault: DiskFault, path: string): Refusal {
    return new Refusal(
      "damaged",
      `Cannot read the reservations in ${path} (${fault})`,
      "Repair the file, or move it away: the hosts' clusters must then register again",
    );
  }
}

/** A record as it was written, or undefined when the text is not one. */
export function parseRecord(text: string): ReservationRecord | undefined {
  let value: Partial<ReservationRecord>;
  try {
    value = JSON.parse(text) as Partial<ReservationRecord>;
  } catch {
    return undefined;
  }
  if (value?.format !== 1 || typeof value.uuid !== "string" || typeof value.generation !== "number") return undefined;
  if (typeof value.aptpl !== "boolean" || !Array.isArray(value.registrants)) return undefined;
  if (!value.registrants.every(isRegistrant)) return undefined;
  const { reservation } = value;
  if (reservation !== undefined && (typeof reservation.holder !== "string" || typeof reservation.type !== "number"))
    return undefined;
  return value as ReservationRecord;
}
const isRegistrant = (one: Partial<Registrant> | undefined): boolean =>
  typeof one?.nexus === "string" &&
  typeof one.initiatorPort === "string" &&
  typeof one.targetPort === "string" &&
  typeof one.relativePort === "number" &&
  typeof one.key === "string" &&
  /^[0-9a-f]{16}$/.test(one.key);
