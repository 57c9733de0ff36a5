/**
 * Which volume and snapshot there is, in which version set, on which lane. The sets themselves are the truth (their
 * logs hold the names); the registry knows it for the whole server, keeps names unique over all sets, and sees that the
 * changes of one name follow one another.
 */
import { checkName, parseSnapshotName } from "#base/names";
import { Refusal } from "#base/refusal";
import type { Bytes } from "#base/units";
import type { SetChange, SetFacts, VersionFacts } from "#lane/messages";
import type { DataDirectory } from "./data-directory.ts";
import { inWords } from "./data-directory.ts";
import type { Lanes } from "./lanes.ts";

export interface SetEntry {
  readonly uuid: string;
  lane: number;
  /** "read-only": it is open and takes no writes. "failed": it does not open. "closed": it is gone for good. */
  state: "opening" | "online" | "read-only" | "failed" | "closed";
  /** Why it is not online, in words. */
  reason: string | undefined;
  /** As last told by its lane. */
  versions: readonly VersionFacts[];
  space: SetFacts["space"];
  damage: readonly string[];
  checksumErrors: number;
}

const newSet = (uuid: string, lane: number): SetEntry => ({
  uuid,
  lane,
  state: "opening",
  reason: undefined,
  versions: [],
  space: { disk: 0, live: 0, reclaimable: 0, spare: 0, map: 0 },
  damage: [],
  checksumErrors: 0,
});

/** A version together with the set it is in. */
export interface Found {
  readonly set: SetEntry;
  readonly version: VersionFacts;
}

export interface RegistryListener {
  onChanged(type: string, message: string, data: object): void;
  /** Its state or its damage is another one. */
  onSetState(set: SetEntry): void;
  /** Its versions are others, or elsewhere: other lanes are told before whoever waits for the change. */
  onPlaced(set: SetEntry): Promise<void>;
}

export class Registry {
  readonly #directory: DataDirectory;
  readonly #lanes: Lanes;
  readonly #listener: RegistryListener;
  readonly #sets = new Map<string, SetEntry>();
  /** Name of a version to the set it is in. */
  readonly #names = new Map<string, SetEntry>();
  /** Sets that a lane has been told to open, and has not answered. */
  readonly #opening = new Set<SetEntry>();
  /** Names for which a change is under way, with what the next one waits for. */
  readonly #busy = new Map<string, Promise<unknown>>();

  constructor(directory: DataDirectory, lanes: Lanes, listener: RegistryListener) {
    this.#directory = directory;
    this.#lanes = lanes;
    this.#listener = listener;
  }

  /** Opens every set of the data directory. One that cannot be opened is reported, and keeps no other from opening. */
  async openAll(): Promise<void> {
    const opening = this.#directory.sets().map((uuid) => {
      const set = newSet(uuid, this.#leastLoaded());
      this.#sets.set(uuid, set);
      return this.#open(set);
    });
    await Promise.all(opening);
  }

  /** Opens again what was open on a lane that died. */
  async reopen(lane: number): Promise<void> {
    // A volume that was made while the lane was being replaced is opened by whoever makes it: a set is opened once.
    const isLeft = (set: SetEntry): boolean => set.lane === lane && set.state === "opening" && !this.#opening.has(set);
    const sets = [...this.#sets.values()].filter(isLeft);
    await Promise.all(sets.map((set) => this.#open(set)));
  }

  /** A lane has ended: its sets are away until they are reopened, or for good. */
  lost(lane: number, final: boolean): void {
    for (const set of this.#sets.values()) {
      if (set.lane !== lane || (!isOpen(set) && set.state !== "opening")) continue;
      if (final) this.#setState(set, "failed", "its lane died too often; restart the server");
      else set.state = "opening";
    }
  }

  /** A set takes no more writes. */
  setTrouble(uuid: string, reason: string): void {
    const set = this.#sets.get(uuid);
    if (set !== undefined && isOpen(set)) this.#setState(set, "read-only", reason);
  }

  /** Tells every set's place again, to a lane that knows of none. */
  async placeAll(): Promise<void> {
    await Promise.all([...this.#sets.values()].filter(isOpen).map((set) => this.#listener.onPlaced(set)));
  }

  sets(): readonly SetEntry[] {
    return [...this.#sets.values()];
  }

  /** Whether there is a volume or a snapshot of this name. */
  has(name: string): boolean {
    return this.#names.has(name);
  }

  setsOn(lane: number): number {
    let count = 0;
    for (const set of this.#sets.values()) if (set.lane === lane && set.state !== "closed") count++;
    return count;
  }

  count(kind: VersionFacts["kind"]): number {
    let count = 0;
    for (const set of this.#sets.values()) for (const version of set.versions) if (version.kind === kind) count++;
    return count;
  }

  /** All versions of a kind with fresh figures, by name. */
  async list(kind: VersionFacts["kind"]): Promise<Found[]> {
    await Promise.all([...this.#sets.values()].map((set) => this.#refresh(set)));
    const found = [...this.#sets.values()].flatMap((set) =>
      set.versions.filter((version) => version.kind === kind).map((version) => ({ set, version })),
    );
    return found.sort((a, b) => compareText(a.version.name, b.version.name));
  }

  /** @throws Refusal not-found */
  async find(kind: VersionFacts["kind"], name: string): Promise<Found> {
    const set = this.#setOf(kind, name);
    await this.#refresh(set);
    return { set, version: this.#versionOf(kind, set, name) };
  }

  createVolume(name: string, size: Bytes, blockSize: number): Promise<Found> {
    checkName("volume", name);
    return this.#exclusively([name], async () => {
      this.#refuseTaken(name);
      const lane = this.#leastLoaded();
      await this.#lanes.whenFurnished(lane);
      // Made under a name that a restart throws away, so that a set is there whole or not at all.
      const draft = this.#directory.draftPath();
      let uuid: string;
      try {
        const volume = { kind: "volume" as const, name, size, blockSize };
        uuid = await this.#lanes.call(lane, "set.create", { path: draft, volume });
        this.#directory.publishSet(draft, uuid);
      } catch (error) {
        this.#directory.removeDraft(draft);
        throw inWords(error, this.#directory.path);
      }
      const set = newSet(uuid, lane);
      this.#sets.set(uuid, set);
      await this.#open(set);
      if (set.state === "failed")
        throw new Refusal("storage-failed", `The new volume "${name}" does not open: ${set.reason}`);
      if (set.state === "opening")
        throw new Refusal(
          "unreachable",
          `"${name}" was made, and the lane that was to open it died`,
          "It is opened when the lane is back: see `ashlar volume ls`.",
        );
      this.#listener.onChanged("volume-created", `Volume "${name}" made`, { volume: name, size });
      return { set, version: this.#versionOf("volume", set, name) };
    });
  }

  resize(name: string, size: Bytes): Promise<Found> {
    return this.#exclusively([name], async () => {
      const { set, version } = this.#known("volume", name);
      if (size < version.size)
        throw new Refusal(
          "bad-request",
          `"${name}" has ${version.size} bytes; a shrink to ${size} would cut off data`,
          "Make a smaller volume, and copy what you need.",
        );
      await this.#change(set, { kind: "resize", name, size });
      this.#listener.onChanged("volume-resized", `Volume "${name}" now has ${size} bytes`, { volume: name, size });
      return this.#known("volume", name);
    });
  }

  /** Its snapshots go with it: they are named after it. */
  rename(name: string, newName: string): Promise<Found> {
    checkName("volume", newName);
    return this.#exclusively([name, newName], async () => {
      const { set } = this.#known("volume", name);
      this.#refuseTaken(newName);
      await this.#change(set, { kind: "rename", name, newName });
      this.#listener.onChanged("volume-renamed", `Volume "${name}" is now "${newName}"`, { volume: name, newName });
      return this.#known("volume", newName);
    });
  }

  removeVolume(name: string, force: boolean): Promise<void> {
    return this.#exclusively([name], async () => {
      const { set } = this.#known("volume", name);
      await this.#change(set, { kind: "remove", name, force });
      await this.#removeIfEmpty(set);
      this.#listener.onChanged("volume-removed", `Volume "${name}" deleted`, { volume: name });
    });
  }

  snapshot(name: string): Promise<Found> {
    const { volume } = parseSnapshotName(name);
    return this.#exclusively([volume, name], async () => {
      const { set } = this.#known("volume", volume);
      this.#refuseTaken(name);
      await this.#change(set, { kind: "snapshot", name });
      this.#listener.onChanged("snapshot-created", `Snapshot "${name}" made`, { volume, snapshot: name });
      return this.#known("snapshot", name);
    });
  }

  removeSnapshot(name: string): Promise<void> {
    const { volume } = parseSnapshotName(name);
    return this.#exclusively([volume, name], async () => {
      const { set } = this.#known("snapshot", name);
      await this.#change(set, { kind: "remove", name, force: false });
      await this.#removeIfEmpty(set);
      this.#listener.onChanged("snapshot-removed", `Snapshot "${name}" deleted`, { volume, snapshot: name });
    });
  }

  clone(from: string, name: string): Promise<Found> {
    parseSnapshotName(from);
    checkName("volume", name);
    return this.#exclusively([from, name], async () => {
      const { set } = this.#known("snapshot", from);
      this.#refuseTaken(name);
      await this.#change(set, { kind: "clone", from, name });
      this.#listener.onChanged("volume-created", `Volume "${name}" cloned from "${from}"`, { volume: name, from });
      return this.#known("volume", name);
    });
  }

  rollback(to: string): Promise<Found> {
    const { volume } = parseSnapshotName(to);
    return this.#exclusively([volume, to], async () => {
      const { set } = this.#known("snapshot", to);
      await this.#change(set, { kind: "rollback", to });
      this.#listener.onChanged("volume-rolled-back", `Volume "${volume}" rolled back to "${to}"`, {
        volume,
        snapshot: to,
      });
      return this.#known("volume", volume);
    });
  }

  /** @throws Refusal not-found, unreachable, storage-failed */
  #known(kind: VersionFacts["kind"], name: string): Found {
    const set = this.#setOf(kind, name);
    if (set.state === "opening")
      throw new Refusal("unreachable", `"${name}" is being opened`, "Try again in a moment, or see `ashlar status`.");
    if (set.state !== "online" && set.state !== "read-only")
      throw new Refusal("storage-failed", `"${name}" is out of order: ${set.reason}`, "See `ashlar doctor`.");
    return { set, version: this.#versionOf(kind, set, name) };
  }

  #setOf(kind: VersionFacts["kind"], name: string): SetEntry {
    const set = this.#names.get(name);
    if (set === undefined || kind !== kindOf(name)) {
      const list = kind === "volume" ? "ashlar volume ls" : "ashlar snapshot ls";
      throw new Refusal("not-found", `There is no ${kind} "${name}"`, `\`${list}\` shows what there is.`);
    }
    return set;
  }

  #versionOf(kind: VersionFacts["kind"], set: SetEntry, name: string): VersionFacts {
    const version = set.versions.find((one) => one.name === name && one.kind === kind);
    if (version === undefined) throw new Refusal("not-found", `There is no ${kind} "${name}" any more`);
    return version;
  }

  #refuseTaken(name: string): void {
    if (!this.#names.has(name)) return;
    throw new Refusal(
      "exists",
      `There is already a ${kindOf(name)} "${name}"`,
      "Choose another name, or delete it first.",
    );
  }

  async #change(set: SetEntry, change: SetChange): Promise<void> {
    this.#take(set, await this.#lanes.call(set.lane, "set.change", { uuid: set.uuid, change }));
    await this.#listener.onPlaced(set);
  }

  async #refresh(set: SetEntry): Promise<void> {
    if (!isOpen(set)) return;
    try {
      this.#take(set, await this.#lanes.call(set.lane, "set.facts", { uuid: set.uuid }));
    } catch (error) {
      // What was known is still true enough to be shown while its lane is replaced.
      if (!(error instanceof Refusal)) throw error;
    }
  }

  async #open(set: SetEntry): Promise<void> {
    this.#opening.add(set);
    try {
      const facts = await this.#lanes.call(set.lane, "set.open", {
        uuid: set.uuid,
        path: this.#directory.setPath(set.uuid),
      });
      if (await this.#removeLeftover(set, facts)) return;
      const taken = facts.versions.find(({ name }) => (this.#names.get(name) ?? set) !== set);
      if (taken !== undefined) {
        await this.#lanes.call(set.lane, "set.close", { uuid: set.uuid });
        this.#setState(
          set,
          "failed",
          `its "${taken.name}" exists in another version set too; move one of the two away`,
        );
        return;
      }
      this.#setState(set, "online", undefined);
      this.#take(set, facts);
      await this.#listener.onPlaced(set);
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      // The lane died meanwhile: whoever replaces it opens the set again.
      if (error.code === "unreachable") return;
      this.#setState(set, "failed", error.message);
    } finally {
      this.#opening.delete(set);
    }
  }

  /** A set whose last version was deleted just before a crash has nothing any more: its deletion is finished now. */
  async #removeLeftover(set: SetEntry, facts: SetFacts): Promise<boolean> {
    if (facts.versions.length > 0) return false;
    set.versions = [];
    await this.#removeIfEmpty(set);
    return true;
  }

  async #removeIfEmpty(set: SetEntry): Promise<void> {
    if (set.versions.length > 0) return;
    set.state = "closed";
    this.#sets.delete(set.uuid);
    await this.#lanes.call(set.lane, "set.close", { uuid: set.uuid });
    this.#directory.removeSet(set.uuid);
    this.#listener.onSetState(set);
  }

  #take(set: SetEntry, facts: SetFacts): void {
    for (const { name } of set.versions) if (this.#names.get(name) === set) this.#names.delete(name);
    set.versions = facts.versions;
    set.space = facts.space;
    for (const { name } of set.versions) this.#names.set(name, set);
    const damaged = facts.checksumErrors !== set.checksumErrors || facts.damage.length !== set.damage.length;
    set.damage = facts.damage;
    set.checksumErrors = facts.checksumErrors;
    if (facts.trouble !== undefined && set.state === "online") this.#setState(set, "read-only", facts.trouble);
    else if (damaged) this.#listener.onSetState(set);
  }

  #setState(set: SetEntry, state: SetEntry["state"], reason: string | undefined): void {
    set.state = state;
    set.reason = reason;
    this.#listener.onSetState(set);
  }

  #leastLoaded(): number {
    // One that is dead may be so for good; what it has comes back with it, and what is new need not wait.
    const load = (lane: number): number =>
      this.#lanes.handle(lane)?.state === "dead" ? Number.POSITIVE_INFINITY : this.setsOn(lane);
    let best = 0;
    for (let lane = 1; lane < this.#lanes.begun; lane++) if (load(lane) < load(best)) best = lane;
    return best;
  }

  /** Runs `work` when no other change of these names is under way. */
  async #exclusively<T>(names: readonly string[], work: () => Promise<T>): Promise<T> {
    for (let other = this.#otherOf(names); other !== undefined; other = this.#otherOf(names)) await other;
    const mine = work();
    const settled = mine.then(
      () => {},
      () => {},
    );
    for (const name of names) this.#busy.set(name, settled);
    try {
      return await mine;
    } finally {
      for (const name of names) if (this.#busy.get(name) === settled) this.#busy.delete(name);
    }
  }

  #otherOf(names: readonly string[]): Promise<unknown> | undefined {
    for (const name of names) if (this.#busy.has(name)) return this.#busy.get(name);
    return undefined;
  }
}

const isOpen = ({ state }: SetEntry): boolean => state === "online" || state === "read-only";
const kindOf = (name: string): VersionFacts["kind"] => (name.includes("@") ? "snapshot" : "volume");
const compareText = (a: string, b: string): number => (a < b ? -1 : a > b ? 1 : 0);
