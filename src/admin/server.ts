/**
 * A server: its data directory, lanes, registry, fronts and API, started in the order in which they need each other and
 * drained in the reverse one. `bin/ashlar.ts` makes one; tests make theirs in their own process or with the command.
 */
import { chmodSync } from "node:fs";
import type { Server as HttpServer } from "node:http";
import { availableParallelism, networkInterfaces, totalmem } from "node:os";
import { LANE_BYTES_MAX } from "#base/memory";
import { Refusal } from "#base/refusal";
import { formatSize } from "#base/size";
import { type Bytes, MIB } from "#base/units";
import type { Address, Log, Tls } from "#env/env";
import type { EnvName, LaneFacts, LaneStart, PoolFacts } from "#lane/messages";
import type { DriveSetFacts } from "#store/drive-set";
import { formatAddress, nbdUri } from "./address.ts";
import { DataDirectory } from "./data-directory.ts";
import { Drives } from "./drives.ts";
import { Events } from "./events.ts";
import { FRONTS } from "./fronts.ts";
import { Jobs } from "./jobs.ts";
import { LaneWishDesk } from "./lane-wishes.ts";
import { type LaneMessage, Lanes } from "./lanes.ts";
import { machineRun } from "./machine-run.ts";
import { connectionsMax } from "./open-files.ts";
import { Problems } from "./problems.ts";
import { Registry, type SetEntry } from "./registry.ts";
import { Rights } from "./rights.ts";
import { forgetDevice } from "./rights-edits.ts";
import { loadTls, type Settings } from "./settings.ts";
import { socketPath } from "./socket-path.ts";
import { type SpaceNow, SpaceWatch } from "./space.ts";

export const ADMIN_SOCKET = "ashlar.sock";
/** The private NBD listener: whoever may open the data directory may use every volume. For the command line. */
const PRIVATE_SOCKET = "nbd.sock";
const PRIVATE = "nbd-private";
/** Over it, a lane reaches what others have where a connection cannot be given away. */
const BETWEEN_LANES = "nbd-lanes";
/** Of the machine's memory, for blocks that were read lately. */
const CACHE_PART = 1 / 8;
const laneSocket = (lane: number): string => `lane-${lane}.sock`;
/** The lane that accepts connections. */
export const LISTENING_LANE = 0;

export interface EnvChoice {
  readonly name: EnvName;
  /** Why this one, in words. */
  readonly reason: string;
}
export interface ServerParts {
  readonly settings: Settings;
  readonly log: Log;
  readonly version: string;
  readonly env: EnvChoice;
  /** The module that a lane's thread runs. */
  readonly laneProgram: URL;
}

export interface FrontNow {
  readonly name: string;
  readonly address: Address;
  readonly tls: "off" | "offered" | "required";
}

export class Server {
  readonly settings: Settings;
  readonly log: Log;
  readonly version: string;
  readonly env: EnvChoice;
  readonly started = new Date();
  readonly events = new Events();
  readonly problems: Problems;
  readonly directory: DataDirectory;
  readonly lanes: Lanes;
  readonly #wishes: LaneWishDesk;
  readonly registry: Registry;
  readonly rights: Rights;
  readonly drives: Drives;
  readonly jobs: Jobs;
  state: "starting" | "ready" | "draining" = "starting";
  readonly fronts: FrontNow[] = [];
  readonly #space: SpaceWatch;
  #poolTold = "";
  readonly #tls: Tls | undefined;
  #api: Promise<HttpServer[]> = Promise.resolve([]);

  /** Takes the data directory and starts the first lanes' threads; `start` does the rest. @throws Refusal */
  constructor({ settings, log, version, env, laneProgram }: ServerParts) {
    this.settings = settings;
    this.log = log;
    this.version = version;
    this.env = env;
    this.#tls = loadTls(settings.tls);
    this.problems = new Problems(log, this.events);
    this.directory = DataDirectory.open(settings.data, (pid) =>
      log.warn({ pid }, "Waiting for the server that was killed: its disk has not answered yet"),
    );
    this.rights = new Rights(this.directory.file("rights.json"), (state) =>
      this.lanes.ask("rights.load", { rights: state }),
    );
    this.drives = new Drives(this.directory.file("drives.json"), this.directory.file("zero-maps"), async (given) => {
      const facts = await this.lanes.call(LISTENING_LANE, "drives.load", given);
      this.#onDrives(facts);
      return facts;
    });
    // As many as there are version sets for; whoever waits for "ready" need not wait for the others.
    const atOnce = Math.max(1, this.directory.sets().length);
    this.lanes = new Lanes(laneProgram, laneStarts(settings, env), atOnce, {
      onMessage: (lane, message) => this.#onMessage(lane, message),
      onDied: (lane, reason, final) => this.#onDied(lane, reason, final),
      onBegun: (lane) => this.#furnish(lane).catch((error) => this.#giveUp(error)),
    });
    this.#wishes = new LaneWishDesk(this.lanes);
    this.registry = new Registry(this.directory, this.lanes, {
      onChanged: (type, message, data) => {
        this.log.info(data, message);
        this.events.add(type, message, data);
      },
      onSetState: (set) => this.#onSetState(set),
      onPlaced: (set) => this.#place(set),
    });
    this.jobs = new Jobs(this.registry, this.lanes, this.events);
    const { capacity, softPercent, hardPercent } = settings;
    this.#space = new SpaceWatch(
      { path: this.directory.path, capacity, softPercent, hardPercent },
      this.problems,
      async () => (await this.lanes.ask("space.used", undefined)).reduce((sum, { reply }) => sum + reply, 0),
    );
    this.#space.onLook = () => {
      const facts = this.#poolFacts();
      const text = JSON.stringify(facts);
      // A lane that sleeps is woken for news only; but what a limit leaves is counted from when lanes were last asked.
      if (facts.limit === undefined && text === this.#poolTold) return;
      this.#poolTold = text;
      this.lanes.ask("space.now", facts).catch(() => {});
    };
  }

  get space(): SpaceNow {
    return this.#space.now;
  }

  /** Opens all sets, then lets hosts in. The API answers from the beginning. @throws Refusal */
  async start(makeApi: () => Promise<HttpServer[]>): Promise<void> {
    this.#api = makeApi();
    await this.lanes.started();
    await this.lanes.ask("reservations.open", { path: this.#reservationsPath });
    await this.rights.publish();
    await this.drives.publish();
    await this.registry.openAll();
    await this.#space.start();
    await Promise.all(Array.from({ length: this.lanes.begun }, (_, lane) => this.#startFronts(lane)));
    await this.#listen();
    await this.#api;
    this.state = "ready";
    this.lanes.beginOthers();
    this.events.add("ready", "The server is ready");
    if (this.directory.wasUnclean)
      this.log.info({}, "The server did not end in order last time; everything was replayed");
  }

  /** Where hosts find a volume, on every front that serves it. */
  urisOf(name: string): string[] {
    return this.fronts
      .filter((front) => front.name === "nbd")
      .map(({ address, tls }) => nbdUri(address, encodeURIComponent(name).replaceAll("%40", "@"), tls !== "off"));
  }

  async laneStatus(): Promise<
    {
      index: number;
      state: "starting" | "running" | "dead";
      env: EnvName;
      sets: number;
      connections: number;
      memory: { used: number; peak: number; size: number };
      cache: LaneFacts["cache"];
      restarts: number;
    }[]
  > {
    const facts = new Map((await this.lanes.ask("facts", undefined)).map(({ lane, reply }) => [lane, reply]));
    return Array.from({ length: this.lanes.count }, (_, index) => {
      const { env, memoryBytes, cacheBytes } = this.lanes.start(index);
      return {
        index,
        state: this.lanes.handle(index)?.state ?? "starting",
        env,
        sets: this.registry.setsOn(index),
        connections: facts.get(index)?.connections ?? 0,
        memory: facts.get(index)?.memory ?? { used: 0, peak: 0, size: memoryBytes },
        cache: facts.get(index)?.cache ?? { size: cacheBytes, used: 0, hits: 0, misses: 0 },
        restarts: this.lanes.restarts(index),
      };
    });
  }

  /**
   * Ends a lane as a mistake in it would; with `force` from outside, which it need not notice.
   * @throws Refusal not-found, unreachable
   */
  restartLane(index: number, force: boolean): void {
    if (index >= this.lanes.count)
      throw new Refusal("not-found", `There is no lane ${index}`, `Lanes are 0 to ${this.lanes.count - 1}.`);
    if (index >= this.lanes.begun)
      throw new Refusal("unreachable", `Lane ${index} has not begun yet`, "Try again when the server is ready.");
    if (force) this.lanes.handle(index)!.kill();
    else this.lanes.call(index, "fail", undefined).catch(ignoreDeath);
  }

  /** Refuses what takes space while there is almost none. @throws Refusal full */
  refuseWhenFull(): void {
    if (this.space.level !== "hard") return;
    throw new Refusal(
      "full",
      "There is almost no space left",
      "Delete snapshots or volumes, or add space; then try again.",
    );
  }

  /** What a host has a grant for is not deleted by mistake. @throws Refusal in-use */
  refuseWhenGranted(name: string, force: boolean): void {
    const grant = this.rights.state.grants.find(({ device }) => device === name);
    if (force || grant === undefined) return;
    throw new Refusal(
      "in-use",
      `"${name}" is granted to ${grant.host}`,
      `\`ashlar revoke ${name} ${grant.host}\` first, or use --force.`,
    );
  }

  /** @throws Refusal exists: volumes and partitions share one space of names */
  refuseVolumeName(name: string): void {
    if (!this.registry.has(name)) return;
    throw new Refusal("exists", `There is already a volume "${name}"`, "Choose another name.");
  }
  refusePartitionName(name: string): void {
    if (this.drives.partition(name) === undefined) return;
    throw new Refusal("exists", `There is already a partition "${name}"`, "Choose another name.");
  }

  /** A deleted device is granted to nobody. */
  async forgetGrants(device: string): Promise<void> {
    const { grants, hosts } = this.rights.state;
    if (grants.some((one) => one.device === device) || hosts.some(({ units }) => device in units))
      await this.rights.change((state) => forgetDevice(state, device));
  }

  driveFacts(): Promise<DriveSetFacts> {
    return this.lanes.call(LISTENING_LANE, "drives.facts", undefined);
  }

  #onDrives({ drives }: DriveSetFacts): void {
    for (const { name, fault } of drives)
      if (fault === undefined) this.problems.clear(`drive-${name}`, `Drive "${name}" is back`);
      else
        this.problems.raise(`drive-${name}`, {
          severity: "error",
          message: `Drive "${name}" cannot be used: ${fault}`,
          hint: "Its partitions are away. Put it back, and restart the server.",
        });
  }

  /** Stops accepting, finishes what is in flight, flushes, writes checkpoints, and lets the directory go. */
  async drain(): Promise<void> {
    if (this.state === "draining") return;
    this.state = "draining";
    this.log.info({}, "Draining: no new connections; what is in flight finishes");
    this.events.add("draining", "The server drains");
    this.#space.stop();
    const timeoutMs = this.settings.drainSeconds * 1000;
    const drained = this.lanes.ask("drain", undefined).then(() => true);
    let timer: NodeJS.Timeout | undefined;
    const late = new Promise<false>((resolve) => {
      timer = setTimeout(() => resolve(false), timeoutMs);
    });
    const inTime = await Promise.race([drained, late]);
    clearTimeout(timer);
    if (!inTime) this.log.warn({}, "The drain took too long; what is left is replayed at the next start");
    await this.close();
    this.log.info({}, "Stopped");
  }

  /** Ends at once. */
  async close(): Promise<void> {
    this.#space.stop();
    for (const server of await this.#api.catch(() => [])) {
      server.close();
      server.closeAllConnections();
    }
    await this.lanes.terminate();
    for (const { close } of this.#sockets.values()) close();
    this.directory.close();
  }

  /** Lets one lane listen: it gives connections away to the others. After its death, where it listened before. */
  async #listen(): Promise<void> {
    const before = new Map(this.fronts.splice(0).map(({ name, address }) => [name, address]));
    for (const [name, { address, more, requireTls }] of Object.entries(this.settings.fronts)) {
      // A socket that the process was given stays with it where the ring listens.
      const isGiven = "fd" in address && this.env.name === "uring";
      const at = await this.#listenAt(name, isGiven ? address : (before.get(name) ?? address));
      for (const other of more) await this.#listenAt(name, other);
      const offered = FRONTS[name]?.tls === true && (this.#tls !== undefined || FRONTS[name].hasSecrets === true);
      this.fronts.push({ name, address: at, tls: requireTls ? "required" : offered ? "offered" : "off" });
      this.log.info({ front: name, address: formatAddress(at) }, "Listening");
    }
    const socket = this.#socket(PRIVATE_SOCKET);
    await this.#listenAt(PRIVATE, socket);
    chmodSync(socket.path, 0o600);
  }

  async #listenAt(name: string, address: Address): Promise<Address> {
    try {
      return await this.lanes.call(LISTENING_LANE, "front.listen", { name, address });
    } catch (error) {
      if (!(error instanceof Refusal)) throw error;
      throw new Refusal(error.code, `${formatAddress(address)}: ${error.message}`, error.hint);
    }
  }

  async #startFronts(lane: number): Promise<void> {
    const crowd = { connectionsMax: connectionsMax() };
    const base = { tls: undefined, tlsRequired: false, trusted: true, ownOnly: false, options: crowd };
    for (const [name, { requireTls, options }] of Object.entries(this.settings.fronts)) {
      const tls = FRONTS[name]?.tls === true ? this.#tls : undefined;
      const { trustTheNetwork: trusted } = this.settings;
      await this.lanes.call(lane, "front.start", {
        ...base,
        front: name,
        name,
        tls,
        tlsRequired: requireTls,
        trusted,
        options: {
          ...crowd,
          ...options,
          serverUuid: this.directory.uuid,
          run: machineRun(),
          networks: localAddresses(),
        },
      });
    }
    await this.lanes.call(lane, "front.start", { ...base, front: "nbd", name: PRIVATE });
    if (this.lanes.count === 1) return;
    const name = BETWEEN_LANES;
    await this.lanes.call(lane, "front.start", { ...base, front: "nbd", name, ownOnly: true });
    const socket = this.#socket(laneSocket(lane));
    await this.lanes.call(lane, "front.listen", { name, address: socket });
    chmodSync(socket.path, 0o600);
  }

  #socket(name: string): { path: string } {
    return { path: this.#socketFolder(name).path };
  }
  readonly #sockets = new Map<string, { path: string; close: () => void }>();
  #socketFolder(name: string): { path: string } {
    let socket = this.#sockets.get(name);
    if (socket === undefined) this.#sockets.set(name, (socket = socketPath(this.directory.path, name)));
    return socket;
  }

  async #place(set: SetEntry): Promise<void> {
    if (this.lanes.count === 1) return;
    const { uuid, lane, versions } = set;
    const given = { set: uuid, lane, address: this.#socket(laneSocket(lane)), versions };
    await Promise.all(
      this.lanes.others(lane).map((index) => this.lanes.call(index, "placed", given).catch(ignoreDeath)),
    );
  }

  #onMessage(lane: number, message: LaneMessage): void {
    switch (message.type) {
      case "log":
        this.log[message.level]({ lane, ...message.fields }, message.message);
        break;
      case "set-trouble":
        this.registry.setTrouble(message.uuid, message.reason);
        break;
      case "scrub-progress":
        this.jobs.progress(message.job, message.facts);
        break;
      case "hand-over": {
        const { type: _, lane: to, ...given } = message;
        this.lanes.handle(to)!.handOver(given);
        break;
      }
      case "wish":
        this.#wishes.take(lane, message).catch(ignoreDeath);
        break;
      case "dying":
        break;
    }
  }

  #onDied(lane: number, reason: string, final: boolean): void {
    this.registry.lost(lane, final);
    this.#wishes.died(lane).catch(ignoreDeath);
    this.problems.raise(`lane-${lane}`, {
      severity: "error",
      message: `Lane ${lane} died: ${reason.split("\n")[0]}`,
      hint: final
        ? "It died too often and stays down. Restart the server, and report the log."
        : "It is being replaced; hosts reconnect. Please report the log.",
    });
    this.log.error(
      { lane, reason },
      final ? "A lane died, too often to be replaced" : "A lane died and is being replaced",
    );
  }

  get #reservationsPath(): string {
    return `${this.directory.path}/reservations`;
  }

  /** Gives a lane that has begun late, or in the place of another, all that it would have had from the beginning. */
  async #furnish(lane: number): Promise<void> {
    await this.lanes.call(lane, "reservations.open", { path: this.#reservationsPath });
    await this.#wishes.tellAll(lane);
    await this.lanes.call(lane, "rights.load", { rights: this.rights.state });
    if (lane === LISTENING_LANE) await this.drives.publish();
    await this.lanes.call(lane, "space.now", this.#poolFacts());
    await this.registry.reopen(lane);
    await this.registry.placeAll();
    if (this.state === "ready") {
      await this.#startFronts(lane);
      if (lane === LISTENING_LANE) await this.#listen();
    }
    this.problems.clear(`lane-${lane}`, `Lane ${lane} runs again, with all its volumes`);
  }

  #onSetState({ uuid, versions, state, reason, damage, checksumErrors }: SetEntry): void {
    const volumes = versions.filter(({ kind }) => kind === "volume").map(({ name }) => name);
    const what = volumes.length === 0 ? `version set ${uuid}` : volumes.map((name) => `"${name}"`).join(", ");
    if (state === "failed" || state === "read-only")
      this.problems.raise(`set-${uuid}`, {
        severity: "error",
        message: state === "failed" ? `Cannot open ${what}: ${reason}` : `No more writes to ${what}: ${reason}`,
        hint: "What is on the disk is left as it is. See the log and the disk's health; a restart opens it again.",
      });
    else this.problems.clear(`set-${uuid}`, `Writes to ${what} are possible again`);
    if (damage.length > 0 && state !== "closed")
      this.problems.raise(`damage-${uuid}`, {
        severity: "error",
        message: `Damage in ${what} (${checksumErrors} reads failed their checksum): ${damage[damage.length - 1]}`,
        hint: "`ashlar scrub` names every damaged extent; write them anew, or roll back. Check the disk.",
      });
    else this.problems.clear(`damage-${uuid}`, `No damage in ${what} any more`);
  }

  #giveUp(error: unknown): void {
    if (this.state === "draining") return;
    this.log.error({ error: String((error as Error).stack ?? error) }, "A lane could not be brought back");
  }

  #poolFacts(): PoolFacts {
    const { available, used, soft, capacity, limited } = this.space;
    return { available, used, soft, ...(limited ? { limit: { total: capacity, available } } : {}) };
  }
}

/** Of this machine, beyond itself: where hosts find data ports when a front listens everywhere. */
function localAddresses(): string[] {
  return Object.values(networkInterfaces())
    .flatMap((all) => all ?? [])
    .filter(({ internal, scopeid }) => !internal && (scopeid ?? 0) === 0)
    .map(({ address }) => address);
}

function laneStarts(settings: Settings, env: EnvChoice): LaneStart[] {
  // iSCSI sessions have units of many sets: they and their reservations live in one lane.
  const automatic = env.name === "uring" && settings.fronts["iscsi"] === undefined ? availableParallelism() : 1;
  const count = settings.lanes !== "auto" ? settings.lanes : automatic;
  const memoryBytes = Math.floor(settings.memory / count);
  const cacheBytes = cacheOfLane(settings, count, LANE_BYTES_MAX - memoryBytes);
  return Array.from({ length: count }, (_, index) => ({
    index,
    env: env.name,
    memoryBytes,
    cacheBytes,
    // NBD always: the command line and other lanes use it.
    fronts: [...new Set(["nbd", ...Object.keys(settings.fronts)])],
  }));
}

/** @throws Refusal bad-request, when a lane's memory has no room for its part of what was asked for. */
function cacheOfLane({ cache }: Settings, lanes: number, room: Bytes): Bytes {
  if (cache === "auto") return Math.max(0, Math.min(Math.floor((machineMemory() * CACHE_PART) / lanes), room));
  const bytes = Math.floor(cache / lanes);
  const most = Math.max(0, room);
  if (bytes <= most) return bytes;
  throw new Refusal(
    "bad-request",
    `${lanes === 1 ? "One lane has" : `${lanes} lanes have`} no room for a cache of ${formatSize(cache)}`,
    `A lane has ${formatSize(LANE_BYTES_MAX)} at most, requests and cache: give --cache ${Math.floor((most * lanes) / MIB)}M or less, or more --lanes.`,
  );
}

/** What this process may have, which in a container may be less than what the machine has. */
function machineMemory(): Bytes {
  const constrained = process.constrainedMemory();
  return constrained > 0 ? Math.min(constrained, totalmem()) : totalmem();
}

/** A lane that died meanwhile is replaced, and then told everything. */
function ignoreDeath(error: unknown): void {
  if (!(error instanceof Refusal) || error.code !== "unreachable") throw error;
}
