/** A version set that is open on a lane: the engine's set, and what the control plane is told of it. */
import { Refusal } from "#base/refusal";
import { type Task, TaskQueue } from "#base/task";
import { BLOCK_BYTES, type Bytes, type Millis } from "#base/units";
import type { Env } from "#env/env";
import { DirectoryStore, type RoomLimit } from "#store/segment-store";
import type { Version } from "#store/version";
import { VersionSet } from "#store/version-set";
import type { ScrubFacts, SetChange, SetFacts, SetSpaceFacts, SpaceFacts, VersionFacts } from "./messages.ts";

/** Maps are walked for figures of space for at most this part of the time. */
const SPACE_TIME_PART = 1 / 50;
/** Damage is told in so many words at most; its count is exact. */
const DAMAGE_TOLD_MAX = 20;

export class OpenSet {
  readonly engine: VersionSet;
  readonly #env: Env;
  readonly #store: DirectoryStore;
  /** One change at a time, each with its figures. */
  readonly #queue = new TaskQueue();
  /** The versions that the directory knows of, to tell what a change changed. */
  published: ReadonlyMap<string, Version> = new Map();
  readonly #spaces = new Map<string, SpaceFacts>();
  #setSpace: SetSpaceFacts = { disk: 0, live: 0, reclaimable: 0, spare: 0, map: 0 };
  #measuredAt: Millis = Number.NEGATIVE_INFINITY;
  #measureMs: Millis = 0;

  private constructor(env: Env, store: DirectoryStore, engine: VersionSet) {
    this.#env = env;
    this.#store = store;
    this.engine = engine;
  }

  /** Makes a set with one volume in an empty directory that is there, and closes it. Answers its uuid. @throws Refusal */
  static *create(env: Env, path: string, volume: SetChange & { kind: "volume" }): Task<string> {
    const store = new DirectoryStore(env, path);
    const fault = yield* store.make();
    if (fault === "too-many-files")
      throw new Refusal(
        "full",
        "The server has as many files open as it may: each volume and connection takes some",
        "Raise the limit (LimitNOFILE= in the unit file, or `ulimit -n`), and restart it.",
      );
    if (fault !== undefined)
      throw new Refusal(fault === "full" ? "full" : "storage-failed", `Cannot make ${path}: ${fault}`);
    const engine = yield* VersionSet.create(env, store);
    try {
      yield* engine.createVolume(volume);
    } finally {
      yield* engine.close();
    }
    return engine.uuid;
  }

  /** @throws Refusal not-found, damaged, too-new, storage-failed */
  static *open(env: Env, path: string, limit: RoomLimit): Task<OpenSet> {
    const store = new DirectoryStore(env, path, limit);
    return new OpenSet(env, store, yield* VersionSet.open(env, store));
  }

  /** Bytes that it takes on the disk, as `lookAtUsage` has found and as has been taken and given back since. */
  get used(): Bytes {
    return this.#store.used;
  }

  *lookAtUsage(): Task<void> {
    yield* this.#store.lookAtUsage();
  }

  get uuid(): string {
    return this.engine.uuid;
  }

  /** @throws Refusal as the engine says */
  *change(change: SetChange): Task<void> {
    yield* this.#queue.run(this.#apply(change));
  }

  *#apply(change: SetChange): Task<void> {
    const { engine } = this;
    switch (change.kind) {
      case "volume":
        yield* engine.createVolume(change);
        break;
      case "snapshot":
        yield* engine.snapshot(change.name);
        break;
      case "clone":
        yield* engine.clone(change.from, change.name);
        break;
      case "rollback":
        yield* engine.rollback(change.to);
        break;
      case "resize":
        yield* engine.resize(change.name, change.size);
        break;
      case "rename":
        yield* engine.rename(change.name, change.newName);
        break;
      case "remove":
        yield* engine.remove(change.name, { force: change.force });
        break;
    }
  }

  /** Walks the maps for fresh figures, unless that was just done, or takes too much of the lane's time. */
  *measure(): Task<void> {
    yield* this.#queue.run(this.#measureNow());
  }

  *#measureNow(): Task<void> {
    const { clock } = this.#env;
    const began = clock.now();
    if (began - this.#measuredAt < this.#measureMs / SPACE_TIME_PART) return;
    const { disk, live, reclaimable, spare, map } = yield* this.engine.space();
    this.#setSpace = { disk, live, reclaimable, spare, map };
    for (const name of [...this.engine.versions.keys()])
      if (this.engine.versions.has(name)) this.#spaces.set(name, yield* this.engine.accounting(name));
    for (const name of [...this.#spaces.keys()]) if (!this.engine.versions.has(name)) this.#spaces.delete(name);
    this.#measuredAt = clock.now();
    this.#measureMs = this.#measuredAt - began;
  }

  *scrub(versions: readonly string[] | undefined, progress: (facts: ScrubFacts) => void): Task<ScrubFacts> {
    const report = yield* this.engine.scrub(versions, ({ bytesDone, bytesTotal }) =>
      progress({ doneBytes: bytesDone, totalBytes: bytesTotal, damage: [] }),
    );
    const damage = report.damaged.map((one) => ({ ...one, reason: "the data does not match its checksum" }));
    return { doneBytes: report.bytes, totalBytes: report.bytes, damage };
  }

  *close(): Task<void> {
    yield* this.#queue.run(this.engine.close());
  }

  facts(connections: (name: string) => number): SetFacts {
    const { engine } = this;
    return {
      uuid: engine.uuid,
      versions: [...engine.versions.values()].map((version) => this.#describe(version, connections(version.name))),
      trouble: engine.trouble,
      damage: engine.damage.slice(-DAMAGE_TOLD_MAX),
      checksumErrors: engine.errors.checksum,
      space: this.#setSpace,
    };
  }

  #describe(version: Version, connections: number): VersionFacts {
    const { name, uuid, kind, size, blockSize, preferredBlockSize, atomicWriteBytes } = version;
    // A version that was not measured yet is new: all that it has is inherited.
    const mapped = version.node.map.mapped * BLOCK_BYTES;
    const exclusive = Math.min(this.#spaces.get(name)?.exclusive ?? 0, mapped);
    return {
      name,
      uuid,
      kind,
      size,
      blockSize,
      preferredBlockSize,
      atomicWriteBytes,
      created: version.createdAt,
      parent: this.engine.parentOf(name),
      space: { provisioned: size, mapped, exclusive, shared: mapped - exclusive },
      connections,
    };
  }
}
