/**
 * The storage engine in a world of its own: a version set on a simulated disk, hosts that use its volumes directly, and
 * everything that may happen to the process and the machine below it.
 */
import { Refusal } from "#base/refusal";
import type { Status } from "#base/status";
import { start, type Task } from "#base/task";
import { BLOCK_BYTES } from "#base/units";
import { DirectoryStore } from "#store/segment-store";

import { type SetSpace, VersionSet } from "#store/version-set";
import type { SimNode } from "../env/sim-node.ts";
import type { SimProcess } from "../env/sim-process.ts";
import type { World } from "../env/world.ts";
import { Ticks } from "../oracle/history.ts";
import { type Action, type DrawnIo, describeAction, type Trouble } from "../script.ts";
import { Violation } from "../violation.ts";
import { Host, type Io, type Meaning, runsOf, type Target } from "./host.ts";
import { type OpenChange, SetModel, type VersionModel, type VolumeModel } from "./set-model.ts";
import { applyTrouble, calm, type Excuses } from "./trouble.ts";

/** How an engine world is made; plain data, drawn with the script. */
export interface EngineSetup {
  readonly segmentBlocks: number;
  readonly checkpointBytes: number;
  /** Operations that hosts have in flight at most. */
  readonly depth: number;
  /** Places where hosts work: each this many logical blocks, at this fraction of the volume. */
  readonly areas: readonly { readonly at: number; readonly blocks: number }[];
  readonly names: "loose" | "journal";
  readonly noAllocate: boolean;
  readonly noPunch: boolean;
  readonly turnMs: number;
  readonly clockRate: number;
  /** Reads all versions after each start. */
  readonly auditOnOpen: boolean;
  readonly slowDisk: number;
  /** Some writes make a range what a snapshot has there, by sharing. */
  readonly copies?: boolean;
}
/** Of the writes, where there is something to copy. */
const COPIES_ONE_IN = 2;

const DIRECTORY = "/data/set";
/** Everything asked must be answered within this time once nothing goes wrong any more. Virtual milliseconds. */
const ANSWER_MS_MAX = 120_000;
const OPEN_ATTEMPTS_MAX = 20;
/** What the engine keeps per lane, for parts of blocks and for heads of groups; it outlives each set. */
const LANE_BUFFERS = new Set([64 * 1024, 17 * 4096]);

export class EngineWorld {
  readonly #world: World;
  readonly #node: SimNode;
  readonly #setup: EngineSetup;
  readonly #actions: readonly Action[];
  readonly model: SetModel;
  readonly #excuses: Excuses = { damage: false, failure: false, full: false };
  readonly #stamps = { next: 1 };
  #process!: SimProcess;
  #host!: Host;
  #set: VersionSet | undefined;
  #state: "opening" | "open" | "busy" | "closing" | "down" | "refused" = "down";
  #cursor = 0;
  /** The control operation in progress, as the model sees it. */
  #changing: { readonly what: OpenChange; asked: number } | undefined;
  #controlBusy = false;
  #attempts = 0;
  #crash: Extract<Action, { do: "kill" } | { do: "cut-power" }> | undefined;
  /** Since the last start a sync has failed: what was not durable then may be gone, as in a power cut. */
  #hasSyncFailed = false;
  /** The engine has answered "failed": it wants to be opened again. */
  #wantsReopen = false;
  /** Told why the engine refused to open; the world ends there, when damage explains it. */
  refusal: string | undefined;

  constructor(world: World, setup: EngineSetup, actions: readonly Action[]) {
    this.#world = world;
    this.#setup = setup;
    this.#actions = actions;
    this.#node = world.node("server");
    this.#node.files.names = setup.names;
    this.#node.diskFaults.noAllocate = setup.noAllocate;
    this.#node.diskFaults.noPunch = setup.noPunch;
    this.#node.diskFaults.syncMs *= setup.slowDisk;
    this.#node.diskFaults.readMs *= setup.slowDisk;
    this.#node.clockRate = setup.clockRate;
    this.#node.diskFaults.onSyncError = () => {
      this.#hasSyncFailed = true;
    };
    world.turnMs = setup.turnMs;
    this.model = new SetModel(new Ticks());
  }

  /** Plays the whole script, and then sees to it that everything comes to a good end. Throws what it finds. */
  play(): void {
    this.#create();
    this.#plan(0, () => this.#next());
    this.#runUntil(() => this.#cursor >= this.#actions.length && this.#isQuiet, "the script");
    this.#finish();
  }

  /* ---------------------------------------------------------------- life */

  #create(): void {
    this.#start();
    const { disk } = this.#process;
    const store = new DirectoryStore(this.#process, DIRECTORY);
    this.#world.finish(
      (function* (): Task<void> {
        yield (resume: (value: unknown) => void) => disk.makeDirectory("/data")(resume);
        yield (resume: (value: unknown) => void) => disk.syncDirectory("/")(resume);
        const fault = yield* store.make();
        if (fault !== undefined) throw new Error(`the directory cannot be made: ${fault}`);
      })(),
    );
    this.#set = this.#world.finish(VersionSet.create(this.#process, store, this.#options));
    this.#state = "open";
    const { volumes } = this.#draftVolumes();
    for (const { size, blockSize } of volumes) {
      const name = this.model.newName("v");
      this.#world.finish(this.#set.createVolume({ name, size, blockSize }));
      this.model.add(this.model.volume(name, size, blockSize));
    }
  }

  /** The first actions of a script make its first volumes, before anything goes wrong. */
  #draftVolumes(): { volumes: { size: number; blockSize: number }[] } {
    const volumes: { size: number; blockSize: number }[] = [];
    for (const action of this.#actions) {
      if (action.do !== "create-volume") break;
      volumes.push(action);
      this.#cursor++;
    }
    return { volumes };
  }

  get #options() {
    return {
      segmentBlocks: this.#setup.segmentBlocks,
      // Whatever the simulated disk has free: cleaning is to happen often.
      deadRatio: 0.15,
      checkpointBytes: this.#setup.checkpointBytes,
      probe: (state: string, on: boolean) => {
        this.#process.probe(state, on);
        if (on) this.#world.onState?.(state);
      },
    };
  }

  #start(): void {
    this.#process = this.#node.start("engine");
    this.#host = new Host(this.#process, this.model.ticks, this.#stamps, (status, io, target) =>
      this.#explain(status, io, target),
    );
    this.#controlBusy = false;
    this.#wantsReopen = false;
  }

  #open(): void {
    this.#start();
    this.#state = "opening";
    const store = new DirectoryStore(this.#process, DIRECTORY);
    start(
      VersionSet.open(this.#process, store, this.#options),
      (set) => {
        this.#set = set;
        this.#attempts = 0;
        this.#world.say(this.#process, `is open: ${[...set.versions.keys()].join(" ")}`);
        // A set whose log could not be read whole opens for reading only, and may show an older state.
        const { damage, failure, full } = this.#excuses;
        this.#host.isLenient = set.readOnly !== undefined && (damage || failure || full);
        if (!this.#host.isLenient) this.#readOnlyStarts = 0;
        if (!this.#host.isLenient) this.#recognise(set);
        else if (damage && !this.#node.diskFaults.failsSometimes) this.#adopt(set);
        else this.#tryAgain(set.readOnly!);
        this.#state = "open";
        if (this.#setup.auditOnOpen) this.#audit();
      },
      (error) => this.#onRefused(error),
    );
  }

  /** What kept the log from being read whole may pass: as an operator would, see to the disk and open again. */
  #tryAgain(why: string): void {
    this.#wantsReopen = true;
    this.#readOnlyStarts++;
    if (this.#readOnlyStarts > 3) calm(this.#node);
    if (this.#readOnlyStarts > 6) throw new Violation(`the set stays read-only although nothing goes wrong: ${why}`);
  }
  #readOnlyStarts = 0;

  #onRefused(error: unknown): void {
    if (!(error instanceof Refusal)) throw error;
    this.#world.say(this.#process, `does not open: ${error.message}`);
    const { damage, failure, full } = this.#excuses;
    const isTransient = failure || full || (damage && error.code !== "damaged");
    this.#process.crash();
    this.#forget(false);
    this.#state = "down";
    if (this.#attempts++ < OPEN_ATTEMPTS_MAX && isTransient) {
      // As an operator would: see to the disk, try again.
      if (this.#attempts > 3) calm(this.#node);
      this.#plan(100, () => this.#open());
      return;
    }
    if (!damage) throw new Violation(`the set does not open (${error.code}): ${error.message}`);
    this.#state = "refused";
    this.refusal = error.message;
    this.#cursor = this.#actions.length;
  }

  #die(action: Extract<Action, { do: "kill" } | { do: "cut-power" }>): void {
    this.#crash = undefined;
    this.#world.stopAtStep = Number.POSITIVE_INFINITY;
    if (this.#state === "refused" || this.#state === "down") return;
    // What a snapshot in progress may contain has to be noted before the histories forget it.
    const changing = this.#changing;
    if (changing?.what.kind === "appears" && changing.what.version.kind === "snapshot") this.#refreeze();
    this.#world.fault(action.do === "kill" ? "kill" : "power cut", this.#node);
    if (action.do === "kill") this.#process.crash();
    else {
      this.#node.losePower(action.cut);
      // At the end of the log, a sector that a power cut has torn cannot be told from one that has gone bad later.
      if (action.cut.unreadable > 0) this.#excuses.damage = true;
    }
    this.#forget(action.do === "cut-power");
    this.#host.abandon();
    this.#set = undefined;
    this.#state = "down";
    this.#plan(action.downMs, () => this.#open());
  }

  /** The process has ended; what its volumes may contain from now on. */
  #forget(hasLostPower: boolean): void {
    if (hasLostPower || this.#hasSyncFailed) this.model.powerCut();
    else this.model.killed();
    this.#hasSyncFailed = false;
  }

  /** The engine has said that a part of its log is damaged: what is there now is what there is. */
  #adopt(set: VersionSet): void {
    this.#changing = undefined;
    for (const [name, model] of this.model.versions) {
      const version = set.versions.get(name);
      if (version === undefined) this.model.versions.delete(name);
      else if (model.kind === "volume") model.size = version.size;
    }
  }

  /** After a start: what is there must be what was acknowledged, and of what was in progress all or nothing. */
  #recognise(set: VersionSet): void {
    const changing = this.#changing;
    this.#changing = undefined;
    if (changing !== undefined) this.#recogniseChange(set, changing.what);
    for (const model of this.model.versions.values()) {
      const version = set.versions.get(model.name);
      if (version === undefined) throw new Violation(`${model.name} is not there any more`);
      if (version.size !== model.size)
        throw new Violation(`${model.name} has ${version.size} bytes, not ${model.size}`);
      if (version.blockSize !== model.blockSize) throw new Violation(`${model.name} has another block size`);
    }
    for (const name of set.versions.keys())
      if (!this.model.versions.has(name)) throw new Violation(`${name} is there, and should not be`);
  }

  #recogniseChange(set: VersionSet, change: OpenChange): void {
    switch (change.kind) {
      case "appears":
        if (set.versions.has(change.version.name)) this.model.settle(change);
        return;
      case "disappears": {
        const left = change.names.filter((name) => set.versions.has(name));
        if (left.length !== 0 && left.length !== change.names.length)
          throw new Violation(`of ${change.names.join(", ")} only a part is gone`);
        if (left.length === 0) this.model.settle(change);
        return;
      }
      case "resizes":
        if (set.versions.get(change.volume.name)?.size === change.size) this.model.settle(change);
        return;
      case "rolls-back":
        this.#rollbackInDoubt = change;
        this.#lookedUpTo = -1;
        return;
    }
  }
  #rollbackInDoubt: Extract<OpenChange, { kind: "rolls-back" }> | undefined;

  /* -------------------------------------------------------------- script */

  #plan(delay: number, what: () => void): void {
    this.#world.plan(delay, what);
  }

  get #isQuiet(): boolean {
    if (this.#state === "refused") return true;
    return this.#state === "open" && this.#host.inFlight === 0 && !this.#controlBusy && this.#crash === undefined;
  }

  #next(): void {
    if (this.#cursor >= this.#actions.length) return;
    const action = this.#actions[this.#cursor]!;
    if (!this.#canGo(action)) {
      if (this.#canSettleRollback) this.#settleRollback();
      this.#world.look(
        0.2,
        () => this.#canGo(action) || this.#canSettleRollback,
        () => this.#next(),
      );
      return;
    }
    if (this.#wantsReopen && action.do === "io" && !this.#controlBusy) {
      this.#reopen();
      this.#plan(0.2, () => this.#next());
      return;
    }
    this.#cursor++;
    if (this.#world.onLine !== undefined && action.do !== "io") this.#world.say(this.#node, describeAction(action));
    this.#act(action);
    this.#plan(action.waitMs ?? 0, () => this.#next());
  }

  #canGo(action: Action): boolean {
    if (action.do === "kill" || action.do === "cut-power" || action.do === "trouble" || action.do === "calm")
      return this.#crash === undefined;
    return this.#state === "open" && this.#rollbackInDoubt === undefined && this.#host.inFlight < this.#setup.depth;
  }

  get #canSettleRollback(): boolean {
    return this.#rollbackInDoubt !== undefined && this.#state === "open" && !this.#controlBusy;
  }

  #act(action: Action): void {
    switch (action.do) {
      case "io":
        this.#actIo(action.on, action.io);
        return;
      case "audit":
        this.#audit();
        return;
      case "kill":
      case "cut-power":
        this.#crash = action;
        this.#world.stopAtStep = this.#world.steps + action.afterEvents;
        return;
      case "trouble":
        this.#trouble(action.trouble);
        return;
      case "calm":
        calm(this.#node);
        return;
      case "pause":
        this.#pause(action.ms);
        return;
      case "reopen":
        this.#reopen();
        return;
      default:
        if (!this.#controlBusy && this.#changing === undefined) this.#control(action);
    }
  }

  #trouble(trouble: Trouble): void {
    const apply = (): void => applyTrouble(this.#node, DIRECTORY, trouble, this.#excuses);
    if (!("of" in trouble)) {
      apply();
      return;
    }
    // Damage to the end of the log cannot be told from writes that were never flushed: it befalls what lies before.
    if (this.#state !== "open" || this.#controlBusy || this.#host.isLenient) return;
    this.#run(this.#set!.checkpoint(), apply);
  }

  #pause(ms: number): void {
    const process = this.#process;
    this.#world.fault("pause", this.#node);
    process.pause();
    this.#plan(ms, () => {
      if (!process.dead) process.resume();
    });
  }

  #runUntil(isDone: () => boolean, what: string): void {
    const world = this.#world;
    let deadline = Number.POSITIVE_INFINITY;
    for (;;) {
      if (isDone()) return;
      if (this.#crash !== undefined && world.steps >= world.stopAtStep) {
        // Where little happens, a crash that is due after so many events comes late: what follows it has its time, too.
        if (deadline !== Number.POSITIVE_INFINITY) deadline = world.now + this.#crash.downMs + ANSWER_MS_MAX;
        this.#die(this.#crash);
      }
      if (!world.step()) break;
      if (this.#cursor < this.#actions.length) deadline = Number.POSITIVE_INFINITY;
      else if (deadline === Number.POSITIVE_INFINITY) {
        this.#calmDown();
        deadline = world.now + ANSWER_MS_MAX;
      } else if (world.now > deadline) break;
    }
    if (this.#crash !== undefined) {
      // Nothing happens any more: then now is as good a time as any.
      this.#die(this.#crash);
      return this.#runUntil(isDone, what);
    }
    if (isDone()) return;
    throw new Violation(
      `${what} does not end: ${this.#state}, in flight: ${this.#host.waitingFor || "nothing"}${this.#controlBusy ? ", and a control operation" : ""}`,
    );
  }

  #calmDown(): void {
    calm(this.#node);
  }

  /* ----------------------------------------------------------------- I/O */

  #actIo(on: number, drawn: DrawnIo): void {
    const versions =
      drawn.kind === "read" || drawn.kind === "status" ? [...this.model.versions.values()] : this.model.volumes();
    const model = versions[on % Math.max(1, versions.length)];
    if (model === undefined) return;
    if (this.#changing?.what.kind === "rolls-back" && this.#changing.what.volume === model) return;
    if (this.#rollbackInDoubt?.volume === model) return;
    const blocks = model.size / model.blockSize;
    const area = this.#setup.areas[drawn.area % this.#setup.areas.length]!;
    const base = Math.floor(area.at * Math.max(0, blocks - area.blocks));
    const block = Math.min(base + (drawn.offset % area.blocks), blocks - 1);
    const count = Math.max(1, Math.min(drawn.count, blocks - block));
    const { area: _, offset: __, ...rest } = drawn;
    if (this.#setup.copies === true && drawn.kind === "write" && drawn.offset % COPIES_ONE_IN === 0) {
      const copy = this.#drawnCopy(model, on + drawn.offset, { ...rest, block, count });
      if (copy !== undefined) return this.#submit(model, copy);
    }
    this.#submit(model, { ...rest, block, count });
  }

  /** The write as a copy of what a snapshot has at the same place, in whole blocks of the engine. */
  #drawnCopy(model: VersionModel, pick: number, io: Io): Io | undefined {
    const fits = [...this.model.versions.values()].filter(
      ({ kind, blockSize }) => kind === "snapshot" && blockSize === model.blockSize,
    );
    const snapshot = fits[pick % Math.max(1, fits.length)];
    const source = snapshot === undefined ? undefined : this.#target(snapshot);
    if (snapshot === undefined || source === undefined) return undefined;
    const per = BLOCK_BYTES / model.blockSize;
    const end = Math.floor(Math.min(model.size, snapshot.size) / BLOCK_BYTES) * per;
    const block = Math.floor(io.block / per) * per;
    const count = Math.min(Math.ceil(io.count / per) * per, end - block);
    return count <= 0 ? undefined : { ...io, block, count, source };
  }

  #submit(model: VersionModel, io: Io, onDone?: (status: Status) => void): void {
    const target = this.#target(model);
    if (target !== undefined) this.#host.submit(target, io, onDone);
  }

  #target(model: VersionModel): Target | undefined {
    const device = this.#set?.versions.get(model.name);
    if (device === undefined) return undefined;
    return {
      name: model.name,
      device,
      history: model.kind === "volume" ? model.history : undefined,
      frozen: model.kind === "snapshot" ? model.frozen : undefined,
    };
  }

  #explain(status: Status, io: Io, target: Target): Meaning {
    const { damage, failure, full } = this.#excuses;
    const changes = io.kind !== "read" && io.kind !== "status" && io.kind !== "cache";
    const isRemoved = !this.model.versions.has(target.name) || this.#changing?.what.kind === "disappears";
    if (this.#host.isLenient) return changes ? "unknown" : "refused";
    if (status === "gone" && io.source !== undefined && !this.model.versions.has(io.source.name)) return "unknown";
    if (status === "gone" && (isRemoved || this.#state === "closing")) return "unknown";
    if (status === "unsupported" && io.fastOnly) return "refused";
    // After a failed sync the page cache may have forgotten what it had: then that is what is missing.
    if (status === "medium" && (damage || failure)) return changes ? "unknown" : "refused";
    if (status === "failed" && (failure || damage) && changes) {
      this.#wantsReopen = true;
      return "lingers";
    }
    if (status === "full" && full && changes) return touchesOneBlock(io, target) ? "refused" : "unknown";
    if (status === "denied" && (damage || failure) && changes) return "refused";
    throw new Violation(
      `${io.kind} of ${target.name} ${io.block} + ${io.count} is answered with "${status}" for no reason`,
    );
  }

  /** Reads everything that was ever touched, of all versions. */
  #audit(): void {
    for (const model of this.model.versions.values())
      if (model !== this.#rollbackInDoubt?.volume) this.#auditVersion(model);
  }

  #auditVersion(model: VersionModel): void {
    const touched = model.kind === "volume" ? model.history.touched() : model.frozen.touched();
    const blocks = [...touched].filter((block) => (block + 1) * model.blockSize <= model.size);
    for (const run of runsOf(blocks)) this.#submit(model, { kind: "read", ...run });
  }

  /* ------------------------------------------------------------- control */

  #control(action: Action): void {
    const { model } = this;
    const set = this.#set!;
    const volumes = model.volumes();
    const snapshots = model.snapshots();
    const pick = <T>(from: readonly T[], on: number): T | undefined => from[on % Math.max(1, from.length)];
    switch (action.do) {
      case "create-volume": {
        const { size, blockSize } = action;
        const version = model.volume(model.newName("v"), size, blockSize);
        this.#change({ kind: "appears", version }, set.createVolume({ name: version.name, size, blockSize }));
        return;
      }
      case "snapshot": {
        const volume = pick(volumes, action.on);
        if (volume === undefined) return;
        this.#freezing = volume;
        const asked = volume.history.ask();
        const name = `${volume.name}@${model.newName("s")}`;
        const version = this.#frozen(volume, name, asked);
        this.#change({ kind: "appears", version }, set.snapshot(name), asked);
        return;
      }
      case "clone": {
        const snapshot = pick(snapshots, action.on);
        if (snapshot === undefined) return;
        const version = model.volume(model.newName("v"), snapshot.size, snapshot.blockSize, snapshot.frozen);
        this.#change({ kind: "appears", version }, set.clone(snapshot.name, version.name));
        return;
      }
      case "rollback": {
        const snapshot = pick(snapshots, action.on);
        const volume = volumes.find(({ name }) => snapshot?.name.startsWith(`${name}@`));
        if (snapshot === undefined || volume === undefined || this.#host.inFlightOf(volume.name) > 0) return;
        this.#change({ kind: "rolls-back", volume, to: snapshot }, set.rollback(snapshot.name));
        return;
      }
      case "resize": {
        const volume = pick(volumes, action.on);
        if (volume === undefined) return;
        const size = volume.size + action.blocks * volume.blockSize;
        this.#change({ kind: "resizes", volume, size }, set.resize(volume.name, size));
        return;
      }
      case "remove": {
        const version = action.what === "volume" ? pick(volumes, action.on) : pick(snapshots, action.on);
        if (version === undefined || (version.kind === "volume" && volumes.length === 1)) return;
        const names = [version.name];
        if (version.kind === "volume") for (const { name } of model.snapshotsOf(version)) names.push(name);
        if (names.length > 1 && !action.force) return this.#expectRefusal(set.remove(version.name), "in-use");
        this.#change({ kind: "disappears", names }, set.remove(version.name, { force: action.force }));
        return;
      }
      case "scrub":
        this.#run(set.scrub(undefined), (report) => {
          if (report.damaged.length > 0 && !this.#excuses.damage && !this.#excuses.failure)
            throw new Violation(`a scrub finds ${report.damaged.length} damaged blocks, and nothing was damaged`);
        });
        return;
      default:
        return;
    }
  }

  #freezing: VolumeModel | undefined;
  #frozen(volume: VolumeModel, name: string, asked: number): VersionModel {
    const { blockSize, size } = volume;
    return { kind: "snapshot", name, blockSize, size, frozen: volume.history.freeze(asked) };
  }

  /** A snapshot in progress contains what its volume had at some moment until now. */
  #refreeze(): void {
    const changing = this.#changing;
    const volume = this.#freezing;
    if (changing?.what.kind !== "appears" || volume === undefined) return;
    const version = this.#frozen(volume, changing.what.version.name, changing.asked);
    this.#changing = { what: { kind: "appears", version }, asked: changing.asked };
  }

  #change(what: OpenChange, task: Task<unknown>, asked = 0): void {
    this.#changing = { what, asked };
    this.#run(
      task,
      () => {
        const freezing = what.kind === "appears" && what.version.kind === "snapshot";
        if (freezing) {
          this.#refreeze();
          this.#freezing?.history.answer(asked);
        }
        this.model.settle(this.#changing!.what);
        this.#changing = undefined;
      },
      (refusal) => {
        this.#freezing?.history.answer(asked);
        // "full" has changed nothing; after "storage-failed" the record may be in the log all the same.
        if (refusal.code === "full") this.#changing = undefined;
        else if (refusal.code !== "storage-failed") this.#changing = undefined;
      },
    );
  }

  #run<T>(task: Task<T>, done: (value: T) => void, refused?: (refusal: Refusal) => void): void {
    this.#controlBusy = true;
    start(
      task,
      (value) => {
        this.#controlBusy = false;
        done(value);
      },
      (error) => {
        this.#controlBusy = false;
        if (!(error instanceof Refusal)) throw error;
        this.#world.say(this.#process, `refuses: ${error.message}`);
        const { damage, failure, full } = this.#excuses;
        if (error.code === "storage-failed") this.#wantsReopen = true;
        const isExplained = (error.code === "full" && full) || (error.code === "storage-failed" && (failure || damage));
        if (!isExplained)
          throw new Violation(`a control operation is refused for no reason: ${error.code}, ${error.message}`);
        refused?.(error);
      },
    );
  }

  #expectRefusal(task: Task<unknown>, code: string): void {
    this.#controlBusy = true;
    start(
      task,
      () => {
        throw new Violation(`a control operation was done that should have been refused as "${code}"`);
      },
      (error) => {
        this.#controlBusy = false;
        if (!(error instanceof Refusal)) throw error;
      },
    );
  }

  #reopen(): void {
    if (this.#controlBusy || this.#state !== "open") return;
    this.#state = "busy";
    const wait = (): void => {
      if (this.#state !== "busy") return;
      if (this.#host.inFlight > 0) {
        this.#plan(0.2, wait);
        return;
      }
      this.#state = "closing";
      start(
        this.#set!.close(),
        () => {
          if (this.#process.dead) return;
          this.#checkMemory();
          this.#set = undefined;
          this.#process.crash();
          this.#forget(false);
          this.#open();
        },
        (error) => {
          throw error;
        },
      );
    };
    wait();
  }

  /** A closed set has given back all memory. */
  #checkMemory(): void {
    // The lane's bounce buffers outlive each of its sets.
    const left = this.#process.memory.liveLengths.filter((length) => !LANE_BUFFERS.has(length));
    if (left.length > 0) throw new Violation(`after closing, buffers are still allocated: ${left.join(", ")} bytes`);
  }

  /** A rollback was cut short: the volume is as before or as the snapshot, as a whole. */
  #settleRollback(): void {
    const { volume, to } = this.#rollbackInDoubt!;
    const before = volume.history;
    const touched = [...new Set([...before.touched(), ...to.frozen.touched()])].sort((a, b) => a - b);
    // Look at a block where the two may differ; if there is none (more), they are equal as far as anybody can tell.
    const asked = before.ask();
    const telling = touched.find(
      (block) =>
        block > this.#lookedUpTo &&
        block * volume.blockSize < volume.size &&
        !before.allows(block, to.frozen.block(block).likely, asked),
    );
    before.answer(asked);
    if (telling === undefined) {
      this.#lookedUpTo = -1;
      before.mayBe(to.frozen);
      this.#rollbackInDoubt = undefined;
      return;
    }
    const device = this.#set!.versions.get(volume.name)!;
    this.#controlBusy = true;
    const probe: Target = { name: volume.name, device, history: undefined, frozen: undefined };
    this.#host.look(probe, telling, (status, stamp) => {
      this.#controlBusy = false;
      if (this.#rollbackInDoubt === undefined) return;
      // What is damaged tells nothing, however often it is asked.
      if (status === "medium" && this.#excuses.damage) this.#lookedUpTo = telling;
      if (status !== "ok") return;
      const now = before.ask();
      const isBefore = before.allows(telling, stamp, now);
      before.answer(now);
      const isAfter = to.frozen.block(telling).allows(stamp);
      // What both allow tells nothing: then another block may.
      this.#lookedUpTo = isBefore && isAfter ? telling : -1;
      if (isBefore && isAfter) return;
      if (isAfter) this.model.settle(this.#rollbackInDoubt);
      this.#rollbackInDoubt = undefined;
    });
  }
  #lookedUpTo = -1;

  /* ----------------------------------------------------------------- end */

  /** Faults have stopped: everything must be there, answer, add up, and go away when it is removed. */
  #finish(): void {
    const settle = (what: string): void => this.#runUntil(() => this.#isQuiet, what);
    if (this.#state === "refused") return;
    while (this.#rollbackInDoubt !== undefined) {
      this.#settleRollback();
      settle("a look");
    }
    const { failure, damage, full } = this.#excuses;
    if (failure || damage || full) {
      do {
        this.#reopen();
        settle("opening the set again");
        if (this.#state !== "open") return;
      } while (this.#wantsReopen);
      // From here on nothing explains an error, but for what is damaged.
      if (!damage) Object.assign(this.#excuses, { failure: false, full: false });
    }
    this.#audit();
    settle("the last audit");
    for (const volume of this.model.volumes()) this.#submit(volume, { kind: "flush", block: 0, count: 0 });
    settle("the last flush");
    if (!damage) this.#checkSpace();
    this.#reopen();
    settle("the last start");
    if (this.#state !== "open") return;
    this.#audit();
    settle("the audit after the last start");
    if (damage) return;
    this.#checkSpace();
    this.#removeAll();
  }

  #checkSpace(): void {
    const set = this.#set!;
    const wrong = set.checkCounts();
    if (wrong.length > 0) throw new Violation(`space does not add up: ${wrong.join("; ")}`);
    const space = this.#spaceAtRest(set);
    let exclusive = 0;
    for (const name of set.versions.keys()) {
      const accounting = this.#world.finish(set.accounting(name));
      exclusive += accounting.exclusive;
      if (accounting.exclusive + accounting.shared !== accounting.mapped)
        throw new Violation(`the space of ${name} does not add up: ${JSON.stringify(accounting)}`);
    }
    if (exclusive > space.live)
      throw new Violation(`versions have ${exclusive} bytes of their own, and ${space.live} live`);
  }

  /** What the set says of its space, at a moment when nothing changed while it looked. */
  #spaceAtRest(set: VersionSet): SetSpace {
    const { files } = this.#node;
    for (let attempt = 0; ; attempt++) {
      const before = files.used;
      const space = this.#world.finish(set.space());
      if (space.disk === files.used) return space;
      if (before === files.used && attempt > 2)
        throw new Violation(`the set takes ${files.used} bytes on the disk, and says ${space.disk}`);
      if (attempt > 100) throw new Violation("the files of an idle set keep changing");
      this.#world.run(1000);
    }
  }

  #removeAll(): void {
    const set = this.#set!;
    for (const volume of this.model.volumes()) {
      this.#world.finish(set.remove(volume.name, { force: true }));
    }
    for (const name of [...set.versions.keys()]) this.#world.finish(set.remove(name, { force: true }));
    this.#world.run(5000);
    const space = this.#world.finish(set.space());
    if (space.live !== 0) throw new Violation(`everything is removed, and ${space.live} bytes live`);
    this.#world.finish(set.close());
    this.#checkMemory();
  }
}

/** True when the operation lies within one block of the store: then it happens as a whole or not at all. */
function touchesOneBlock(io: Io, target: Target): boolean {
  const { blockSize } = target.device;
  const last = (io.block + io.count) * blockSize - 1;
  return Math.floor((io.block * blockSize) / BLOCK_BYTES) === Math.floor(last / BLOCK_BYTES);
}

/** Plays a drawn engine world. */
export function playEngine(
  world: World,
  script: { readonly setup: EngineSetup; readonly actions: readonly Action[] },
): string {
  const engine = new EngineWorld(world, script.setup, script.actions);
  engine.play();
  return engine.refusal === undefined ? "good" : "refused to open";
}
