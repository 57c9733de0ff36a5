/**
 * A lane: version sets, the fronts' connections to them, and the calls of the control plane, all on one Env. It knows
 * nothing of threads; `bin/lane.ts` connects it to a message port, and tests call it directly.
 */
import { Refusal } from "#base/refusal";
import { perform, start, type Task, TaskQueue } from "#base/task";
import { type BlockDevice, BlockOp } from "#device/device";
import type { Address, Env, Line } from "#env/env";
import { DirectoryReservationStore, ReservationBook } from "#scsi/reservation-store";
import { DriveSet, type DriveSetFacts } from "#store/drive-set";
import { Reads } from "#store/reads";
import { RoomLimit } from "#store/segment-store";
import { ProtectionTable } from "#target/protection";
import { LaneDirectory } from "./directory.ts";
import type { Front, FrontMaker } from "./front.ts";
import {
  type FromLane,
  type FrontStart,
  type LaneCall,
  type LaneCalls,
  type LaneFacts,
  type MeterFacts,
  type PoolFacts,
  refusalFacts,
  type SetChange,
  type SetFacts,
  type ToLane,
} from "./messages.ts";
import { OpenSet } from "./open-set.ts";
import { RemoteDevice } from "./remote-device.ts";
import { clearReservations, describeReservations } from "./reservations.ts";
import { Wishes } from "./wishes.ts";

type Handlers = { [Call in LaneCall]: (given: LaneCalls[Call]["given"]) => Task<LaneCalls[Call]["reply"]> };
type Given<Call extends LaneCall> = LaneCalls[Call]["given"];

interface RunningFront {
  readonly kind: string;
  readonly front: Front;
}

/** Version sets that a lane opens at a time. */
const OPENING_MAX = 16;
/** How long a change that no host may see waits for those that are leaving, and how often it looks. */
const LEAVING_MS = 1000;
const LOOK_MS = 10;

export class Lane {
  readonly #env: Env;
  readonly #makers: Readonly<Record<string, FrontMaker>>;
  readonly #tell: (message: FromLane) => void;
  readonly #sets = new Map<string, OpenSet>();
  /** Sets that are being opened, and those that wait for one of them to be. */
  #opening = 0;
  readonly #waitingToOpen: (() => void)[] = [];
  readonly #fronts = new Map<string, RunningFront>();
  /** What was last told about the space. */
  #pool: PoolFacts | undefined;
  readonly #directory = new LaneDirectory();
  readonly #book = new ReservationBook();
  readonly #table = new ProtectionTable(this.#directory, (device) => this.#book.gate(device.uuid));
  readonly #wishes: Wishes;
  /** What other lanes have, by set. */
  readonly #placed = new Map<string, ReadonlyMap<string, RemoteDevice>>();
  readonly #drives: DriveSet;
  readonly #driveChanges = new TaskQueue();
  #partitions: ReadonlyMap<string, BlockDevice> = new Map();
  readonly #stoppedJobs = new Set<string>();
  /** What all sets may take, where the server was told to leave some of the disk. */
  readonly #limit = new RoomLimit();

  constructor(env: Env, makers: Readonly<Record<string, FrontMaker>>, tell: (message: FromLane) => void) {
    this.#env = env;
    this.#drives = new DriveSet(env);
    this.#makers = makers;
    this.#tell = tell;
    this.#wishes = new Wishes(tell);
    this.#book.share = (shared, cleared) => this.#wishes.ask("reservations", { shared, cleared });
  }

  /** Does a call and tells its one answer. What is thrown and is no refusal is a mistake, and goes on up. */
  handle({ id, call, given }: ToLane): void {
    const handler = this.#handlers[call] as (given: unknown) => Task<unknown>;
    start(
      (function* () {
        return yield* handler(given);
      })(),
      (reply) => this.#tell({ type: "reply", id, reply }),
      (error) => {
        if (!(error instanceof Refusal)) throw error;
        this.#tell({ type: "refused", id, refusal: refusalFacts(error) });
      },
    );
  }

  readonly #handlers: Handlers = {
    "set.create": ({ path, volume }) => OpenSet.create(this.#env, path, volume),
    "set.open": (given) => this.#openSet(given),
    "set.change": ({ uuid, change }) => this.#changeSet(this.#set(uuid), change),
    "set.facts": ({ uuid }) => this.#measure(this.#set(uuid)),
    "set.close": ({ uuid }) => this.#closeSet(this.#set(uuid)),
    "set.scrub": (given) => this.#scrub(given),
    "set.scrub-stop": ({ job }) => now(() => this.#stoppedJobs.add(job)),
    "space.used": () => this.#used(),
    placed: (given) => now(() => this.#place(given)),
    "drives.load": (given) => this.#loadDrives(given),
    "drives.facts": () => answer(() => this.#drives.facts()),
    "rights.load": ({ rights }) => now(() => this.#table.load(rights)),
    "front.start": (given) => now(() => this.#startFront(given)),
    "front.listen": ({ name, address }) => this.#listen(name, address),
    "front.resume": (given) => now(() => this.#resume(given)),
    "space.now": (given) =>
      now(() => {
        this.#pool = given;
        if (given.limit !== undefined) this.#limit.tell(given.limit.total, given.limit.available);
        for (const { front } of this.#fronts.values()) front.space?.(given);
      }),
    "front.facts": ({ name }) => answer(() => this.#front(name).facts?.() ?? null),
    "front.end-session": ({ name, session }) => answer(() => this.#front(name).endSession?.(session) ?? false),
    "reservations.open": ({ path }) => this.#openReservations(path),
    reservations: () => answer(() => describeReservations(this.#book)),
    "reservations.clear": ({ uuid }) => clearReservations(this.#book, uuid),
    "reservations.take": ({ shared, cleared }) => now(() => this.#book.take(shared, cleared)),
    "device.compare-write": (given) => this.#compareWrite(given),
    "device.copy": (given) => this.#copy(given),
    answer: ({ wish, answer: said }) => now(() => this.#wishes.answer(wish, said)),
    meters: () => answer(() => this.#meters()),
    connections: () => answer(() => this.#connections()),
    facts: () => answer(() => this.#facts()),
    drain: () => this.#drain(),
    fail: () =>
      now(() => {
        throw new Error("the control plane wanted it so");
      }),
  };

  #set(uuid: string): OpenSet {
    const set = this.#sets.get(uuid);
    if (set === undefined) throw new Refusal("not-found", `Version set ${uuid} is not open on this lane`);
    return set;
  }

  *#openReservations(path: string): Task<undefined> {
    yield* this.#book.open(new DirectoryReservationStore(this.#env.disk, this.#env.memory, path));
    return undefined;
  }

  /** Not all at once: each replays its log through a buffer of the lane's memory, and a thousand of those do not fit. */
  *#openInTurn(path: string): Task<OpenSet> {
    if (this.#opening === OPENING_MAX) yield* perform<void>((resume) => void this.#waitingToOpen.push(resume));
    else this.#opening++;
    try {
      return yield* OpenSet.open(this.#env, path, this.#limit);
    } finally {
      const next = this.#waitingToOpen.shift();
      if (next === undefined) this.#opening--;
      else next();
    }
  }

  *#openSet({ uuid, path }: Given<"set.open">): Task<SetFacts> {
    const set = yield* this.#openInTurn(path);
    if (set.uuid !== uuid) {
      yield* set.close();
      throw new Refusal("damaged", `${path} holds version set ${set.uuid}`, "Give the directory the set's own name.");
    }
    this.#sets.set(uuid, set);
    this.#publish(set);
    return this.#factsOf(set);
  }

  *#changeSet(set: OpenSet, change: SetChange): Task<SetFacts> {
    if (change.kind === "rollback") yield* this.#refuseInUse(change.to.slice(0, change.to.indexOf("@")), "roll back");
    if (change.kind === "rename") yield* this.#refuseInUse(change.name, "rename");
    if (change.kind === "remove" && !change.force) yield* this.#refuseInUse(change.name, "delete");
    yield* set.change(change);
    this.#publish(set);
    return this.#factsOf(set);
  }

  /** Hosts that have just said goodbye may not be gone yet: "copy, then rename" must not depend on who is faster. */
  *#refuseInUse(name: string, what: string): Task<void> {
    const { clock } = this.#env;
    const patience = clock.now() + LEAVING_MS;
    let connections = this.#connectionsTo(name);
    for (; connections > 0 && clock.now() < patience; connections = this.#connectionsTo(name))
      yield* perform<void>((resume) => {
        clock.alarm(() => resume()).at = clock.now() + LOOK_MS;
      });
    if (connections === 0) return;
    const hosts = connections === 1 ? "a host is" : `${connections} connections of hosts are`;
    const hint = what === "delete" ? "Disconnect the hosts first, or use --force." : "Disconnect the hosts first.";
    throw new Refusal("in-use", `Cannot ${what} "${name}": ${hosts} using it`, hint);
  }

  *#measure(set: OpenSet): Task<SetFacts> {
    yield* set.measure();
    return this.#factsOf(set);
  }

  *#closeSet(set: OpenSet): Task<undefined> {
    this.#sets.delete(set.uuid);
    this.#directory.replaceOwn(set.published, new Map());
    yield* set.close();
    return undefined;
  }

  *#scrub({ uuid, versions, job }: Given<"set.scrub">): Task<LaneCalls["set.scrub"]["reply"]> {
    try {
      return yield* this.#set(uuid).scrub(versions, (facts) => {
        if (this.#stoppedJobs.has(job)) throw new Refusal("interrupted", "The scrub was cancelled");
        this.#tell({ type: "scrub-progress", job, facts });
      });
    } finally {
      this.#stoppedJobs.delete(job);
    }
  }

  *#loadDrives({ state, mapsPath }: Given<"drives.load">): Task<DriveSetFacts> {
    const facts = yield* this.#driveChanges.run(this.#drives.load(state, mapsPath));
    const now = this.#drives.devices;
    this.#directory.replaceOwn(this.#partitions, now);
    this.#partitions = now;
    return facts;
  }

  /** Bytes that all sets of this lane take on the disk. */
  *#used(): Task<number> {
    for (const set of [...this.#sets.values()]) yield* set.lookAtUsage();
    // In one step: what is taken or given back before it is in the sum, and what is after it counts since then.
    this.#limit.onAsked();
    let used = 0;
    for (const set of this.#sets.values()) used += set.used;
    return used;
  }

  #place({ set, lane, address, versions }: Given<"placed">): void {
    const before = this.#placed.get(set) ?? new Map<string, RemoteDevice>();
    const devices = new Map<string, RemoteDevice>();
    for (const version of versions) {
      const known = before.get(version.name);
      const same = known?.uuid === version.uuid && known.lane === lane;
      devices.set(version.name, same ? known : new RemoteDevice(this.#env, version, lane, address, this.#wishes));
    }
    if (devices.size === 0) this.#placed.delete(set);
    else this.#placed.set(set, devices);
    this.#directory.replaceRemote(before, devices);
    for (const [name, device] of before) if (devices.get(name) !== device) device.end();
    for (const version of versions) devices.get(version.name)!.resize(version.size);
  }

  /** For another lane, on a volume of this one. What reaches the device has been judged there. */
  *#compareWrite({
    volume,
    offset,
    fua,
    data,
  }: Given<"device.compare-write">): Task<LaneCalls["device.compare-write"]["reply"]> {
    const device = this.#directory.find(volume);
    if (device === undefined || !this.#directory.isOwn(volume)) return { status: "away", result: 0 };
    const { memory } = this.#env;
    const at = memory.allocate(data.length);
    if (at === 0) return { status: "busy", result: 0 };
    memory.bytes.set(data, at);
    const { status, result } = yield* perform<BlockOp>((resume) => {
      const op = new BlockOp(resume);
      op.kind = "compare-write";
      op.offset = offset;
      op.length = data.length / 2;
      op.at = at;
      op.fua = fua;
      device.submit(op);
    });
    memory.free(at);
    return { status, result };
  }

  *#copy({ volume, source, offset, length, from, fua }: Given<"device.copy">): Task<LaneCalls["device.copy"]["reply"]> {
    const device = this.#directory.find(volume);
    const other = this.#directory.find(source);
    if (device?.copyFrom === undefined || other === undefined || !this.#directory.isOwn(volume))
      return { status: "unsupported", result: 0 };
    const { status, result } = yield* perform<BlockOp>((resume) => {
      const op = new BlockOp(resume);
      op.kind = "write";
      op.offset = offset;
      op.length = length;
      op.fua = fua;
      device.copyFrom!(op, other, from);
    });
    return { status, result };
  }

  #startFront(given: FrontStart): void {
    const maker = this.#makers[given.front];
    if (maker === undefined) throw new Refusal("unsupported", `There is no front "${given.front}"`);
    const { handover } = this.#env.net;
    const handOver = (line: Line, lane: number, state: unknown): void => {
      const detached = handover!.detach(line);
      if (detached === undefined) line.close();
      else this.#tell({ type: "hand-over", name: given.name, lane, ...detached, state });
    };
    const context = { env: this.#env, table: this.#table, directory: this.#directory, book: this.#book };
    const front = maker({ ...context, handOver: handover === undefined ? undefined : handOver }, given);
    this.#fronts.set(given.name, { kind: given.front, front });
    if (this.#pool !== undefined) front.space?.(this.#pool);
  }

  *#listen(name: string, address: Address): Task<Address> {
    return yield* this.#front(name).listen(address);
  }

  #resume({ name, fd, peer, state }: Given<"front.resume">): void {
    this.#front(name).resume(this.#env.net.handover!.adopt(fd, peer), state);
  }

  #front(name: string): Front {
    const running = this.#fronts.get(name);
    if (running === undefined) throw new Refusal("not-found", `The front "${name}" does not run`);
    return running.front;
  }

  *#drain(): Task<undefined> {
    // All at once: a front that waits for a slow client must not keep the others open.
    const fronts = [...this.#fronts.values()];
    let left = fronts.length;
    if (left > 0)
      yield* perform<void>((resume) => {
        for (const { front } of fronts)
          front.drain()(() => {
            left--;
            if (left === 0) resume();
          });
      });
    for (const set of [...this.#sets.values()]) yield* this.#closeSet(set);
    yield* this.#driveChanges.run(this.#drives.close());
    return undefined;
  }

  #publish(set: OpenSet): void {
    const versions = new Map(set.engine.versions);
    this.#directory.replaceOwn(set.published, versions);
    for (const [name, version] of versions)
      if (set.published.get(name) !== version)
        version.watch((change) => {
          if (change === "read-only" && set.engine.trouble !== undefined)
            this.#tell({ type: "set-trouble", uuid: set.uuid, reason: set.engine.trouble });
        });
    set.published = versions;
  }

  #factsOf(set: OpenSet): SetFacts {
    return set.facts((name) => this.#connectionsTo(name));
  }

  #connectionsTo(name: string): number {
    let count = 0;
    for (const { front } of this.#fronts.values()) count += front.meters().get(name)?.connections ?? 0;
    return count;
  }

  #connections(): LaneCalls["connections"]["reply"][number][] {
    return [...this.#fronts].flatMap(([name, { front }]) =>
      front.connections().map((one) => ({ front: name, ...one })),
    );
  }

  #meters(): MeterFacts[] {
    const facts: MeterFacts[] = [];
    for (const [name, { front }] of this.#fronts)
      for (const [volume, meter] of front.meters()) {
        // A name that was deleted is nobody's any more.
        if (this.#directory.find(volume) === undefined) continue;
        const { connections, errors } = meter;
        facts.push({ volume, front: name, connections, operations: meter.operations(), errors: { ...errors } });
      }
    return facts;
  }

  #facts(): LaneFacts {
    const { used, peak, size } = this.#env.memory;
    let connections = 0;
    for (const { front } of this.#fronts.values()) connections += front.connections().length;
    const cache = Reads.of(this.#env).cache.facts;
    return { memory: { used, peak, size }, cache, sets: this.#sets.size, connections };
  }
}

// biome-ignore lint/correctness/useYield: an answer that is there at once is a task as well
function* answer<T>(what: () => T): Task<T> {
  return what();
}

// biome-ignore lint/correctness/useYield: likewise
function* now(what: () => unknown): Task<undefined> {
  what();
  return undefined;
}
