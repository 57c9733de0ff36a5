/**
 * Several SCP hosts of either version that share volumes and partitions with rights of their own, over one network or two,
 * and a server that dies and comes back. Each operation is held against the history of its device. The hosts' devices
 * survive the server: what was in flight is done in the end, once; rights are neither widened nor forgotten; and in the
 * end every host knows its units as they are.
 */
import { start, type Task } from "#base/task";
import type { Millis } from "#base/units";
import { CHANGES } from "#device/guard";
import { SCP_SETTINGS_DEFAULT, ScpHost } from "#initiator/scp-host";
import type { ScpUnit } from "#initiator/scp-unit";
import { Version } from "#wire/scp/codes";
import type { PowerCut } from "../env/file-system.ts";
import type { SimNode } from "../env/sim-node.ts";
import type { SimProcess } from "../env/sim-process.ts";
import type { World } from "../env/world.ts";
import { Ticks } from "../oracle/history.ts";
import type { Script } from "../scenario.ts";
import { type Action, type DrawnIo, describeAction, type NetTrouble } from "../script.ts";
import { Violation } from "../violation.ts";
import { Host, type Io, type Meaning, type Target } from "./host.ts";
import {
  type DeviceSetup,
  hostName,
  type Right,
  SCP_PORT,
  SharedDevice,
  SharedServer,
  secretOf,
} from "./scp-shared-server.ts";
import { type Course, runUntil, troubleNetwork } from "./settle.ts";

export interface ScpSharedSetup {
  readonly segmentBlocks: number;
  readonly checkpointBytes: number;
  readonly names: "loose" | "journal";
  readonly turnMs: number;
  readonly chunkMax: number;
  readonly bufferBytes: number;
  readonly latencyMs: number;
  readonly slowDisk: number;
  readonly networks: number;
  /** Bits of `Version` that the server offers. */
  readonly versions: number;
  /** The server's clock, and after it the hosts'. */
  readonly clockRates: readonly number[];
  readonly devices: readonly DeviceSetup[];
  readonly hosts: readonly {
    readonly versions: number;
    readonly sockets: number;
    readonly depth: number;
    /** By device. */
    readonly rights: readonly Right[];
  }[];
  /** Logical blocks of each device that the hosts work on. */
  readonly blocks: number;
}

/** Everything asked must be answered, and everything known, within this once nothing goes wrong any more. */
const ANSWER_MS_MAX: Millis = 120_000;
const FAULTS_MS_MAX: Millis = 30_000;
const IO_BLOCKS_MAX = 160;

type Crash = Extract<Action, { do: "kill" } | { do: "cut-power" }>;

/** A unit as a host sees it when it sends something to it. */
class UnitTarget implements Target {
  readonly name: string;
  readonly device: ScpUnit;
  readonly history: Target["history"];
  readonly frozen = undefined;
  readonly shared: SharedDevice;
  readonly host: number;
  readonly #epoch: number;
  /** Whether the host knew its right when it sent. */
  readonly #wasKnown: boolean;

  constructor(shared: SharedDevice, host: number, device: ScpUnit) {
    this.name = `${shared.name} by ${hostName(host)}`;
    this.device = device;
    this.history = shared.history;
    this.shared = shared;
    this.host = host;
    this.#epoch = shared.epochs[host]!;
    this.#wasKnown = device.readOnly === (shared.rights[host] === "read-only");
  }

  get right(): Right {
    return this.shared.rights[this.host]!;
  }
  /** Nothing has changed since it was sent. */
  get isSettled(): boolean {
    return this.#epoch === this.shared.epochs[this.host] && !this.shared.isReplaced;
  }
  /** An answer that speaks of a right can only speak of the present one. */
  get isCertain(): boolean {
    return this.isSettled && this.#wasKnown;
  }
  /** The host has heard late that its right was taken away: one unit is over for each time that it was. */
  get isWithdrawn(): boolean {
    const { device, shared, host } = this;
    if (!device.isGone) return false;
    return shared.givenUp[host]!.add(device).size <= shared.withdrawals[host]!;
  }
}

class HostSide {
  readonly node: SimNode;
  readonly index: number;
  readonly setup: ScpSharedSetup["hosts"][number];
  process!: SimProcess;
  scp!: ScpHost;
  host!: Host;
  readonly #world: World;
  readonly #networks: number;
  readonly #server: SimNode;
  readonly #makeHost: (process: SimProcess) => Host;

  constructor(
    world: World,
    index: number,
    setup: HostSide["setup"],
    server: SimNode,
    { networks, versions }: Pick<ScpSharedSetup, "networks" | "versions">,
    makeHost: (process: SimProcess) => Host,
  ) {
    this.#world = world;
    this.isVersionOne = (setup.versions & versions & Version.TWO) === 0;
    this.node = world.node(hostName(index));
    this.index = index;
    this.setup = setup;
    this.#server = server;
    this.#networks = networks;
    this.#makeHost = makeHost;
  }

  get isUp(): boolean {
    return this.process !== undefined && !this.process.dead;
  }
  /** Version 1 knows less: every write is durable, and there is no trim, no block status, no compare-and-write. */
  readonly isVersionOne: boolean;

  /** The host is told of a way to the server, or that there is none any more; the last one stays. */
  setWay(net: number, isThere: boolean): void {
    if (!this.isUp || (!isThere && this.#ways.size === 1)) return;
    const address = this.#server.addresses[net]!;
    if (isThere) {
      this.#ways.add(net);
      this.scp.addNetwork({ host: address, port: SCP_PORT });
    } else if (this.#ways.delete(net)) this.scp.removeNetwork(address);
  }
  readonly #ways = new Set<number>();

  start(): void {
    this.#ways.clear();
    for (let net = 0; net < this.#networks; net++) this.#ways.add(net);
    this.process = this.node.start(hostName(this.index));
    const instance = new Uint8Array(16);
    this.process.random.fill(instance);
    this.scp = new ScpHost(this.process, {
      addresses: this.#server.addresses.slice(0, this.#networks).map((host) => ({ host, port: SCP_PORT })),
      hostName: hostName(this.index),
      secret: secretOf(this.index),
      requireSecret: false,
      tls: undefined,
      instance,
      versions: this.setup.versions,
      dataCrc: this.#world.seed % 2 === 0,
      privilegedPort: false,
      settings: { ...SCP_SETTINGS_DEFAULT, socketsMin: this.setup.sockets, giveUpMs: Number.POSITIVE_INFINITY },
    });
    this.host = this.#makeHost(this.process);
    this.scp.start();
  }

  die(): void {
    this.host.died();
    this.process.crash();
  }
}

export class ScpSharedWorld {
  readonly #world: World;
  readonly #setup: ScpSharedSetup;
  readonly #actions: readonly Action[];
  readonly #ticks = new Ticks();
  readonly #stamps = { next: 1 };
  readonly #devices: readonly SharedDevice[];
  readonly #sides: readonly HostSide[];
  readonly #server: SharedServer;
  #cursor = 0;
  #crash: Crash | undefined;
  #isChanging = false;
  #fences = 0;
  /**
   * Each host keeps to blocks of its own. What a power cut takes from one host comes back when that host has found the
   * server again; meanwhile another one could see that it was gone, or write there.
   */
  readonly #isSplit: boolean;

  constructor(world: World, setup: ScpSharedSetup, actions: readonly Action[]) {
    this.#world = world;
    this.#setup = setup;
    this.#actions = actions;
    this.#isSplit = actions.some((action) => action.do === "cut-power");
    world.turnMs = setup.turnMs;
    const { faults } = world.network;
    faults.chunkMax = setup.chunkMax;
    faults.bufferBytes = setup.bufferBytes;
    faults.latencyMs = setup.latencyMs;
    const server = world.node("server");
    server.files.names = setup.names;
    server.diskFaults.writeMs *= setup.slowDisk;
    server.diskFaults.readMs *= setup.slowDisk;
    server.clockRate = setup.clockRates[0]!;
    this.#devices = setup.devices.map(
      (device, unit) =>
        new SharedDevice(
          unit,
          device,
          this.#ticks,
          setup.hosts.map(({ rights }) => rights[unit]!),
        ),
    );
    this.#sides = setup.hosts.map((host, index) => {
      const makeHost = (process: SimProcess): Host =>
        new Host(process, this.#ticks, this.#stamps, (status, io, target) =>
          this.#explain(status, io, target as UnitTarget),
        );
      const side = new HostSide(world, index, host, server, setup, makeHost);
      side.node.clockRate = setup.clockRates[index + 1]!;
      return side;
    });
    const hosts = this.#sides.map(({ node }) => node);
    this.#server = new SharedServer(server, hosts, this.#devices, setup, this.#ticks);
  }

  play(): string {
    this.#world.finish(this.#server.create());
    this.#serve();
    for (const side of this.#sides) side.start();
    this.#runUntil(() => this.#server.isServing, "the server's start");
    this.#world.plan(0, () => this.#next());
    this.#runUntil(() => this.#cursor >= this.#actions.length && this.#crash === undefined, "the script");
    this.#calm();
    this.#runUntil(() => this.#isAtRest, "what was in flight");
    this.#runUntil(() => this.#sides.every((side) => this.#strangeness(side) === ""), "what hosts know");
    for (const side of this.#sides) this.#auditBy(side);
    this.#runUntil(() => this.#isAtRest, "the hosts' last audit");
    this.#auditOnServer();
    this.#die({ do: "kill", afterEvents: 0, downMs: 1 });
    this.#runUntil(() => this.#server.isServing, "the last start");
    this.#auditOnServer();
    for (const side of this.#sides) {
      this.#fences += side.scp.facts().fences;
      side.scp.stop();
    }
    return this.#fences > 0 ? "fenced" : "good";
  }

  get #isAtRest(): boolean {
    return (
      this.#server.isServing &&
      !this.#isChanging &&
      this.#sides.every((side) => side.isUp && side.host.inFlight === 0 && this.#hasAllBack(side))
    );
  }

  /** The host has found the server since its last power cut, and given back what that has lost. */
  #hasAllBack({ scp, isVersionOne }: HostSide): boolean {
    if (scp.configured === undefined || scp.isReplaying) return false;
    return isVersionOne || scp.configured.run === this.#server.run;
  }

  /* --------------------------------------------------------------------------- server */

  #serve(): void {
    const process = this.#server.node.start("server");
    start(
      this.#server.start(process),
      () => this.#world.say(process, "serves"),
      (error) => {
        throw error;
      },
    );
  }

  #die(action: {
    readonly do: "kill" | "cut-power";
    readonly afterEvents: number;
    readonly downMs: number;
    readonly cut?: PowerCut;
  }): void {
    this.#crash = undefined;
    this.#world.stopAtStep = Number.POSITIVE_INFINITY;
    const { process } = this.#server;
    if (process === undefined || process.dead) return;
    this.#world.fault(action.do === "kill" ? "kill" : "power cut", this.#server.node);
    if (action.cut === undefined) {
      process.crash();
    } else {
      this.#server.node.losePower(action.cut);
      for (const { history } of this.#devices) history.unansweredLost();
    }
    // What was acknowledged is there, or comes back: no history knows of that.
    this.#server.died();
    this.#isChanging = false;
    this.#world.plan(action.downMs, () => this.#serve());
  }

  /** Something that an operator asks for, one at a time. */
  #change(task: Task<void>): void {
    const { process } = this.#server;
    this.#isChanging = true;
    start(
      task,
      () => {
        if (this.#server.process === process) this.#isChanging = false;
      },
      (error) => {
        throw error;
      },
    );
  }

  /* --------------------------------------------------------------------------- script */

  #next(): void {
    if (this.#cursor >= this.#actions.length) return;
    const action = this.#actions[this.#cursor]!;
    const canGo = (): boolean => {
      if (action.do !== "unit-io") return this.#crash === undefined;
      const side = this.#sideOf(action.host);
      return !side.isUp || side.host.inFlight < side.setup.depth;
    };
    if (!canGo()) {
      this.#world.look(1, canGo, () => this.#next());
      return;
    }
    this.#cursor++;
    if (this.#world.onLine !== undefined && action.do !== "unit-io")
      this.#world.say(this.#server.node, describeAction(action));
    this.#act(action);
    this.#world.plan(action.waitMs ?? 0, () => this.#next());
  }

  #sideOf(host: number): HostSide {
    return this.#sides[host % this.#sides.length]!;
  }
  #deviceOf(unit: number): SharedDevice {
    return this.#devices[unit % this.#devices.length]!;
  }

  #act(action: Action): void {
    switch (action.do) {
      case "unit-io":
        return this.#io(this.#sideOf(action.host), this.#deviceOf(action.unit), action.io);
      case "grant":
        return this.#server.setRight(this.#deviceOf(action.unit), action.host % this.#sides.length, action.right);
      case "grow":
        if (this.#server.isServing && !this.#isChanging)
          this.#change(this.#server.grow(this.#deviceOf(action.unit), action.blocks));
        return;
      case "replace":
        // Version 1 has no name for a device but its number.
        if (this.#server.isServing && !this.#isChanging && !this.#sides.some(({ isVersionOne }) => isVersionOne))
          this.#change(this.#server.replace(this.#deviceOf(action.unit)));
        return;
      case "way":
        if (this.#setup.networks > 1) this.#sideOf(action.host).setWay(action.net, action.isThere);
        return;
      case "kill-host": {
        const side = this.#sideOf(action.host);
        if (!side.isUp) return;
        this.#world.fault("kill of a host", this.#server.node);
        this.#fences += side.scp.facts().fences;
        side.die();
        this.#world.plan(action.downMs, () => side.start());
        return;
      }
      case "kill":
      case "cut-power":
        this.#crash = action;
        this.#world.stopAtStep = this.#world.steps + action.afterEvents;
        return;
      case "pause":
        return this.#pause(action.host === true ? this.#sideOf(action.ms).process : this.#server.process, action.ms);
      case "net":
        return this.#netTrouble(action.trouble);
      default:
        return;
    }
  }

  #pause(process: SimProcess | undefined, ms: Millis): void {
    if (process === undefined || process.dead || process.paused) return;
    this.#world.fault("pause", process.node);
    process.pause();
    this.#world.plan(ms, () => {
      if (!process.dead) process.resume();
    });
  }

  #netTrouble(trouble: NetTrouble): void {
    const pick = trouble.kind === "partition" ? Math.floor(trouble.ms) : 0;
    troubleNetwork(this.#world, this.#server.node, this.#sideOf(pick).node, trouble, FAULTS_MS_MAX);
  }

  #calm(): void {
    this.#world.network.faults.stop();
    this.#world.network.healAll();
    // Every way that was taken away comes back.
    for (const side of this.#sides) for (let net = 0; net < this.#setup.networks; net++) side.setWay(net, true);
  }

  /* ------------------------------------------------------------------------------ I/O */

  #io(side: HostSide, device: SharedDevice, drawn: DrawnIo): void {
    const { isUp, scp, host, index } = side;
    const unit = isUp ? scp.unit(device.unit) : undefined;
    if (unit === undefined || device.isReplaced) return;
    if (!side.isVersionOne && unit.uuid !== device.uuid) return;
    const { area: _, offset, count, ...io } = drawn;
    const kind = kindFor(side, device, io.kind);
    if (kind === undefined) return;
    // Near the end as well, where a device that has grown is new.
    const size = Math.min(device.size, unit.size) / device.blockSize;
    const all = Math.min(this.#setup.blocks, this.#isSplit ? device.setup.size / device.blockSize : size);
    const window = this.#isSplit ? Math.floor(all / this.#sides.length) : all;
    if (window === 0 || size < all) return;
    // Whose a block is does not change when the device grows, nor with what a host knows of its size.
    const last = this.#isSplit ? (Math.floor(size / all) - 1) * all : size - all;
    const base = (drawn.area % 4 === 0 && size >= 2 * all ? last : 0) + (this.#isSplit ? index * window : 0);
    const block = base + (offset % window);
    const end = this.#isSplit ? base + window : size;
    const length = Math.max(1, Math.min(count, end - block, IO_BLOCKS_MAX));
    // Which of two changes at the same time came last, only the server knows, until it loses its power.
    if (this.#isSplit && CHANGES[kind] && host.isChanging(device.history, block, length)) return;
    const target = new UnitTarget(device, index, unit);
    const fua = kind !== "read" && kind !== "status" && (io.fua === true || side.isVersionOne);
    host.submit(target, { ...io, kind, block, count: length, fua }, (status) => {
      if (status === "ok" && CHANGES[kind] && target.isSettled && target.right !== "read-write")
        throw new Violation(`a ${kind} of ${target.name} is done, whose right is "${target.right}"`);
    });
  }

  #explain(status: string, io: Io, target: UnitTarget): Meaning {
    const { right, isCertain } = target;
    if (status === "unsupported" && io.fastOnly === true) return "refused";
    // A command that was sent and lost is not repeated, since it could find its own work.
    if (status === "failed" && io.kind === "compare-write") return "unknown";
    if (status === "denied" && CHANGES[io.kind] && isCertain && right === "read-only") return "refused";
    if ((status === "denied" || status === "gone") && (!isCertain || right === "none")) return "unknown";
    if (status === "gone" && target.isWithdrawn) return "unknown";
    throw new Violation(`a ${io.kind} of ${target.name} (${right}) ends with "${status}"`);
  }

  /** What a host believes that is not so; "" when all is right. */
  #strangeness({ scp, index, isVersionOne }: HostSide): string {
    for (const device of this.#devices) {
      const right = device.rights[index]!;
      const unit = scp.unit(device.unit);
      if ((unit !== undefined) !== (right !== "none")) return `${device.name} is there or is not`;
      if (unit === undefined) continue;
      if (unit.size !== device.size) return `${device.name} has ${unit.size} bytes`;
      if (isVersionOne) continue;
      if (unit.readOnly !== (right === "read-only")) return `${device.name} may be written or may not`;
      if (unit.uuid !== device.uuid) return `${device.name} is another device`;
    }
    return "";
  }

  /* ------------------------------------------------------------------------------ end */

  #auditBy(side: HostSide): void {
    for (const device of this.#devices) {
      const unit = side.scp.unit(device.unit);
      if (unit !== undefined) side.host.audit(new UnitTarget(device, side.index, unit));
    }
  }

  /** Reads everything, on the server, where no right is in the way. */
  #auditOnServer(): void {
    const host = new Host(this.#server.process!, this.#ticks, this.#stamps, (status, io) => {
      throw new Violation(`a ${io.kind} on the server ends with "${status}"`);
    });
    for (const { name, history } of this.#devices)
      host.audit({ name, device: this.#server.find(name)!, history, frozen: undefined });
    this.#runUntil(() => host.inFlight === 0, "an audit on the server");
  }

  readonly #course: Course = {
    isDoomed: () => this.#crash !== undefined,
    die: () => this.#die(this.#crash!),
    hasMore: () => this.#cursor < this.#actions.length,
    calm: () => this.#calm(),
    answerMsMax: ANSWER_MS_MAX,
  };
  #runUntil(isDone: () => boolean, what: string): void {
    if (runUntil(this.#world, isDone, this.#course)) return;
    const states = this.#sides.map((side) => `${side.host.waitingFor || "nothing"}; ${this.#strangeness(side)}`);
    for (const side of this.#sides) if (side.isUp) this.#world.say(side.process, "stands at", side.scp.facts());
    throw new Violation(`${what} does not end; in flight: ${states.join(" | ")}`);
  }
}

/** What becomes of a kind of operation that a host or a device does not have; undefined: it is left out. */
function kindFor(side: HostSide, device: SharedDevice, kind: Io["kind"]): Io["kind"] | undefined {
  // Thick: what is trimmed keeps its data, and nothing is a hole.
  if (device.setup.kind === "partition" && (kind === "trim" || kind === "status")) return "read";
  if (!side.isVersionOne) return kind;
  if (kind === "flush") return undefined;
  return kind === "trim" || kind === "status" || kind === "compare-write" ? "read" : kind;
}

/** Plays a drawn world of SCP hosts. */
export function playScpShared(world: World, { setup, actions }: Script<ScpSharedSetup>): string {
  return new ScpSharedWorld(world, setup, actions).play();
}
