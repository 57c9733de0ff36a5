/**
 * A server with the engine, the iSCSI and the NBD front, and up to three hosts that share its volumes over iSCSI and one
 * that looks in over NBD, with a network between them that fails and a server that dies. What is held against the answers:
 * the history of every block, and of each unit by itself the reservations after SPC-4, the order of commands, and what each
 * host has to be told.
 */
import { newHostRecord, RIGHTS_EMPTY } from "#base/rights";
import { perform, start, type Task } from "#base/task";
import { Guard } from "#device/guard";
import { isNetError } from "#env/env";
import { DirectoryReservationStore, ReservationBook } from "#scsi/reservation-store";
import { DirectoryStore } from "#store/segment-store";
import type { Version } from "#store/version";
import { VersionSet } from "#store/version-set";
import { OpenExportTable } from "#target/exports";
import { IscsiFront } from "#target/iscsi-front";
import { NbdFront } from "#target/nbd-front";
import { ProtectionTable } from "#target/protection";
import { CDB_PR_IN, CDB_PR_OUT } from "#wire/scsi/cdb";
import { Asc, Op, PrIn, PrOut, SamStatus } from "#wire/scsi/codes";
import { bytesOfHex, decodeTransportId, encodeTransportId, hexOfBytes } from "#wire/scsi/identity";
import type { PowerCut } from "../env/file-system.ts";
import type { SimNode } from "../env/sim-node.ts";
import type { SimProcess } from "../env/sim-process.ts";
import type { World } from "../env/world.ts";
import { History, Ticks } from "../oracle/history.ts";
import { PrModel, type PrRequest, type PrState } from "../oracle/pr-model.ts";
import { type Action, type DrawnIo, describeAction, type NetTrouble } from "../script.ts";
import { Violation } from "../violation.ts";
import { Host } from "./host.ts";
import type { Answer, InitiatorSettings } from "./iscsi-initiator.ts";
import { type Attention, IscsiHost, type IscsiPort, nameOfUnit, type Shared } from "./iscsi-port.ts";
import { NbdVisitor } from "./nbd-visitor.ts";
import { type Course, runUntil, troubleNetwork } from "./settle.ts";
import { WatchedDevice, WriteLedger } from "./write-ledger.ts";

export interface IscsiSetup {
  readonly segmentBlocks: number;
  readonly checkpointBytes: number;
  readonly size: number;
  readonly blockSize: number;
  /** Volumes, each a unit of every host. */
  readonly units: number;
  /** Logical blocks that the hosts work on. */
  readonly blocks: number;
  /** Commands that each host has in flight at most, for each unit. */
  readonly depth: number;
  readonly names: "loose" | "journal";
  readonly turnMs: number;
  readonly chunkMax: number;
  readonly bufferBytes: number;
  readonly latencyMs: number;
  /** How many times slower than usual the disk is. */
  readonly slowDisk: number;
  readonly hosts: readonly Pick<
    InitiatorSettings,
    "connections" | "immediateData" | "initialR2t" | "errorRecoveryLevel" | "burst" | "patienceMs"
  >[];
}

const PORT = 3260;
const NBD_PORT = 10_809;
const DIRECTORY = "/data/set";
const RESERVATIONS = "/data/reservations";
const TARGET = "iqn.2025-01.example:sim";
const ANSWER_MS_MAX = 600_000;
const FAULTS_MS_MAX = 30_000;
const IO_BLOCKS_MAX = 64;
const FULL_STATUS_BYTES = 4096;

const PR_ACTION = {
  register: PrOut.REGISTER,
  "register-ignore": PrOut.REGISTER_AND_IGNORE,
  reserve: PrOut.RESERVE,
  release: PrOut.RELEASE,
  clear: PrOut.CLEAR,
  preempt: PrOut.PREEMPT,
  "preempt-abort": PrOut.PREEMPT_AND_ABORT,
  move: PrOut.REGISTER_AND_MOVE,
} as const;

type Crash = Extract<Action, { do: "kill" } | { do: "cut-power" }>;

/** A unit, as all hosts know it. */
interface Unit extends Shared {
  /** A service action, or a look at the reservations, is in flight: one at a time. */
  isReserving: boolean;
}

export class IscsiWorld {
  readonly #world: World;
  readonly #setup: IscsiSetup;
  readonly #actions: readonly Action[];
  readonly #server: SimNode;
  readonly #units: readonly Unit[];
  readonly #hosts: readonly IscsiHost[];
  readonly #visitor: NbdVisitor;
  #serverProcess: SimProcess | undefined;
  #versions: readonly Version[] = [];
  #cursor = 0;
  #crash: Crash | undefined;
  #isServing = false;

  constructor(world: World, setup: IscsiSetup, actions: readonly Action[]) {
    this.#world = world;
    this.#setup = setup;
    this.#actions = actions;
    world.turnMs = setup.turnMs;
    const { faults } = world.network;
    faults.chunkMax = setup.chunkMax;
    faults.bufferBytes = setup.bufferBytes;
    faults.latencyMs = setup.latencyMs;
    this.#server = world.node("server");
    this.#server.files.names = setup.names;
    this.#server.diskFaults.writeMs *= setup.slowDisk;
    this.#server.diskFaults.readMs *= setup.slowDisk;
    const ticks = new Ticks();
    const stamps = { next: 1 };
    this.#units = Array.from({ length: setup.units }, (_, lun) => ({
      lun,
      ticks,
      stamps,
      history: new History(ticks),
      reservations: new PrModel(),
      ledger: new WriteLedger(),
      runs: new Set(),
      isReserving: false,
    }));
    this.#hosts = setup.hosts.map((host, index) => {
      const process = world.node(`host${index}`).start();
      const settings = {
        ...host,
        name: nameOf(index),
        isid: isidOf(index),
        targetName: TARGET,
        server: "server",
        port: PORT,
      };
      return new IscsiHost(index, process, settings, setup, this.#units);
    });
    this.#visitor = new NbdVisitor(world, NBD_PORT);
  }

  play(): string {
    this.#world.finish(this.#createSet());
    this.#serve();
    this.#runUntil(() => this.#isServing, "the server's start");
    for (const host of this.#hosts) host.initiator.login();
    this.#world.plan(0, () => this.#next());
    this.#runUntil(() => this.#cursor >= this.#actions.length && this.#crash === undefined, "the script");
    this.#calm();
    this.#runUntil(() => this.#isServing && this.#inFlight === 0, "what was in flight");
    this.#audit();
    for (const unit of this.#hosts[0]!.units) this.#look(unit);
    this.#runUntil(() => this.#inFlight === 0, "the last look at the reservations");
    this.#die({ do: "kill", afterEvents: 0, downMs: 1 });
    this.#runUntil(() => this.#isServing, "the last start");
    this.#audit();
    for (const unit of this.#hosts.at(-1)!.units) this.#look(unit);
    this.#runUntil(() => this.#inFlight === 0, "a look at the reservations after the last start");
    for (const host of this.#hosts) host.initiator.stop();
    const { hosts, units } = this.#setup;
    return `${hosts.length === 1 ? "one host" : "several hosts"}, ${units === 1 ? "one unit" : "several units"}`;
  }

  get #inFlight(): number {
    return (
      this.#hosts.reduce((sum, host) => sum + host.inFlight, 0) +
      this.#visitor.inFlight +
      this.#units.filter(({ isReserving }) => isReserving).length
    );
  }

  /* --------------------------------------------------------------- server */

  *#createSet(): Task<void> {
    const process = this.#server.start("server");
    const { disk } = process;
    yield* perform(disk.makeDirectory("/data"));
    yield* perform(disk.makeDirectory(RESERVATIONS));
    yield* perform(disk.syncDirectory("/data"));
    yield* perform(disk.syncDirectory("/"));
    const store = new DirectoryStore(process, DIRECTORY);
    yield* store.make();
    const { segmentBlocks, checkpointBytes, size, blockSize } = this.#setup;
    const set = yield* VersionSet.create(process, store, { segmentBlocks, checkpointBytes });
    for (const { lun } of this.#units) yield* set.createVolume({ name: nameOfUnit(lun), size, blockSize });
    yield* set.close();
    process.crash();
  }

  #serve(): void {
    const process = this.#server.start("server");
    this.#serverProcess = process;
    this.#isServing = false;
    start(
      this.#start(process),
      (versions) => {
        this.#versions = versions;
        this.#isServing = true;
        this.#world.say(process, "serves");
      },
      (error) => {
        throw error;
      },
    );
  }

  *#start(process: SimProcess): Task<Version[]> {
    const { checkpointBytes, segmentBlocks } = this.#setup;
    const probe = (state: string, on: boolean): void => {
      process.probe(state, on);
      if (on) this.#world.onState?.(state);
    };
    const store = new DirectoryStore(process, DIRECTORY);
    const set = yield* VersionSet.open(process, store, { checkpointBytes, segmentBlocks, probe });
    const versions = this.#units.map(({ lun }) => set.versions.get(nameOfUnit(lun))!);
    const book = new ReservationBook();
    yield* book.open(new DirectoryReservationStore(process.disk, process.memory, RESERVATIONS));
    const devices = new Map(
      this.#units.map(({ lun, ledger }) => [nameOfUnit(lun), new WatchedDevice(versions[lun]!, process, ledger)]),
    );
    const directory = {
      find: (name: string) => devices.get(name),
      names: () => devices.keys(),
      watch: () => () => {},
    };
    const table = new ProtectionTable(directory, (one) => book.gate(one.uuid));
    const hosts = this.#hosts.map(({ index }) => ({ ...newHostRecord(`host${index}`), iqns: [nameOf(index)] }));
    const grants = hosts.flatMap(({ name }) =>
      this.#units.map(({ lun }) => ({
        host: name,
        device: nameOfUnit(lun),
        unit: lun,
        access: "read-write" as const,
        range: undefined,
      })),
    );
    table.load({ ...RIGHTS_EMPTY, generation: 1, hosts, grants });
    const front = new IscsiFront(process, table, directory, book, {
      targetName: TARGET,
      hash: () => new Uint8Array(16),
    });
    const exports = new OpenExportTable();
    for (const [name, device] of devices) {
      const guard = new Guard(device, "read-write");
      guard.gate = book.gate(device.uuid);
      exports.add(name, guard);
    }
    const nbd = new NbdFront(process, exports);
    for (const at of [
      yield* front.listen({ host: "0.0.0.0", port: PORT }),
      yield* nbd.listen({ host: "0.0.0.0", port: NBD_PORT }),
    ])
      if (isNetError(at)) throw new Error(`a front cannot listen: ${at.fault}`);
    return versions;
  }

  #die(action: {
    readonly do: "kill" | "cut-power";
    readonly afterEvents: number;
    readonly downMs: number;
    readonly cut?: PowerCut;
  }): void {
    this.#crash = undefined;
    this.#world.stopAtStep = Number.POSITIVE_INFINITY;
    if (this.#serverProcess === undefined || this.#serverProcess.dead) return;
    this.#world.fault(action.do === "kill" ? "kill" : "power cut", this.#server);
    if (action.cut === undefined) this.#serverProcess.crash();
    else this.#server.losePower(action.cut);
    this.#isServing = false;
    this.#visitor.kill();
    for (const host of this.#hosts) host.serverDied();
    for (const { history, reservations, ledger } of this.#units) {
      if (action.cut === undefined) history.killed();
      else history.powerCut();
      reservations.restart();
      ledger.restart();
    }
    this.#world.plan(action.downMs, () => this.#serve());
  }

  /* --------------------------------------------------------------- script */

  #next(): void {
    if (this.#cursor >= this.#actions.length) return;
    const action = this.#actions[this.#cursor]!;
    const canGo = (): boolean =>
      action.do === "scsi"
        ? this.#portOf(action).host.inFlight < this.#setup.depth
        : action.do === "reserve"
          ? !this.#unitOf(action.unit).isReserving
          : action.do === "nbd-io"
            ? this.#visitor.isIdle
            : this.#crash === undefined;
    if (!canGo()) {
      this.#world.look(1, canGo, () => this.#next());
      return;
    }
    this.#cursor++;
    if (this.#world.onLine !== undefined) this.#world.say(this.#server, describeAction(action));
    this.#act(action);
    this.#world.plan(action.waitMs ?? 0, () => this.#next());
  }

  #hostOf(host: number): IscsiHost {
    return this.#hosts[host % this.#hosts.length]!;
  }
  #unitOf(unit: number): Unit {
    return this.#units[unit % this.#units.length]!;
  }
  #portOf({ host, unit }: { readonly host: number; readonly unit: number }): IscsiPort {
    return this.#hostOf(host).units[unit % this.#units.length]!;
  }
  /** What all hosts have of a unit. */
  #portsOf(lun: number): IscsiPort[] {
    return this.#hosts.map(({ units }) => units[lun]!);
  }

  #act(action: Action): void {
    switch (action.do) {
      case "scsi": {
        const port = this.#portOf(action);
        port.attribute = action.attribute;
        port.host.submit(port.target, this.#place(action.io));
        return;
      }
      case "nbd-io":
        return this.#visitor.visit(this.#unitOf(action.unit), this.#place(action.io));
      case "reserve":
        return this.#reserve(this.#portOf(action), action);
      case "look":
        return this.#look(this.#portOf(action));
      case "manage":
        return this.#manage(this.#portOf(action), action.function, action.immediate);
      case "resend":
        this.#hostOf(action.host).initiator.resend();
        return;
      case "log-in-again":
        if (action.politely !== true) this.#hostOf(action.host).initiator.drop("it is told to");
        else this.#hostOf(action.host).initiator.logOut();
        return;
      case "kill":
      case "cut-power":
        this.#crash = action;
        this.#world.stopAtStep = this.#world.steps + action.afterEvents;
        return;
      case "pause": {
        const process = this.#serverProcess;
        if (process === undefined || process.dead) return;
        this.#world.fault("pause", this.#server);
        process.pause();
        this.#world.plan(action.ms, () => {
          if (!process.dead) process.resume();
        });
        return;
      }
      case "net":
        return this.#netTrouble(action.trouble);
      default:
        return;
    }
  }

  #place(drawn: DrawnIo) {
    const { area: _, offset, count, ...io } = drawn;
    const block = offset % this.#setup.blocks;
    return { ...io, block, count: Math.max(1, Math.min(count, this.#setup.blocks - block, IO_BLOCKS_MAX)) };
  }

  #netTrouble(trouble: NetTrouble): void {
    const pick = trouble.kind === "partition" ? Math.floor(trouble.ms) : 0;
    troubleNetwork(this.#world, this.#server, this.#hostOf(pick).process.node, trouble, FAULTS_MS_MAX);
  }

  #calm(): void {
    this.#world.network.faults.stop();
    this.#world.network.healAll();
  }

  /* --------------------------------------------------------- task management */

  #manage(port: IscsiPort, what: Extract<Action, { do: "manage" }>["function"], immediate: boolean): void {
    const told: [IscsiPort, Attention][] = [];
    const management = {
      function: what,
      lun: port.lun,
      immediate,
      onAnswer: (response: number | undefined) => {
        const COMPLETE = 0;
        const NO_TASK = 1;
        if (response !== undefined && response !== COMPLETE && !(response === NO_TASK && what === "abort-task"))
          throw new Violation(`${what} is answered with ${response}`);
        for (const [other, attention] of told)
          if (response === undefined) this.#orphan(attention);
          else other.settle(attention, what === "lun-reset" || what === "target-reset");
      },
    };
    if (!port.initiator.manage(management)) return;
    // A reset of the target is one of every unit; one of a unit is no other unit's business.
    const reset =
      what === "target-reset"
        ? this.#hosts.flatMap(({ units }) => units)
        : what === "lun-reset"
          ? this.#portsOf(port.lun)
          : [];
    for (const other of reset) told.push([other, other.expect(Asc.BUS_DEVICE_RESET)]);
    if (what === "clear-task-set")
      for (const other of this.#portsOf(port.lun))
        if (other !== port) told.push([other, other.expect(Asc.COMMANDS_CLEARED_BY_ANOTHER)]);
  }

  #orphan(attention: Attention): void {
    const ports = this.#hosts.flatMap(({ units }) => units);
    const waitsFor = new Set(ports);
    for (const port of ports) port.orphan({ attention, waitsFor });
  }

  /* ------------------------------------------------------------ reservations */

  #reserve(port: IscsiPort, action: Extract<Action, { do: "reserve" }>): void {
    const unit = this.#units[port.lun]!;
    if (unit.isReserving) return;
    const request = this.#requestOf(port, action);
    if (request === undefined) return;
    const { reservations, runs } = unit;
    const ports = this.#portsOf(port.lun);
    const { memory } = port.process;
    const list = listOf(request, ports);
    const at = memory.allocate(list.length);
    memory.bytes.set(list, at);
    const cdb = new Uint8Array(16);
    cdb[0] = Op.PERSISTENT_RESERVE_OUT;
    cdb[CDB_PR_OUT.action] = PR_ACTION[request.action];
    cdb[CDB_PR_OUT.type] = "type" in request ? request.type : 0;
    new DataView(cdb.buffer).setUint32(CDB_PR_OUT.length, list.length);
    unit.isReserving = true;
    const told = reservations
      .ask(port.index, request)
      .map(([nexus, asc]) => [ports[nexus]!, asc, ports[nexus]!.expect(asc)] as const);
    for (const { states } of runs) for (const state of reservations.possible) states.add(state);
    const what = `${request.action} ${JSON.stringify(request)}`;
    const base = { attribute: "simple", outLength: list.length, inLength: 0, access: "none", stamp: 0 } as const;
    port.run({ ...base, what, cdb, at }, (answer) => {
      unit.isReserving = false;
      memory.free(at);
      if (answer.kind === "unknown") {
        reservations.lose();
        for (const [other, , attention] of told) other.settle(attention, false);
        return;
      }
      const before = reservations.describe();
      const certain = reservations.answer(outcomeOf(answer));
      if (certain === undefined)
        throw new Violation(
          `${what} of host ${port.index} is answered with status ${answer.status.toString(16)}; reservations: ${before}`,
        );
      for (const [other, asc, attention] of told)
        other.settle(
          attention,
          certain.some(([nexus, one]) => nexus === other.index && one === asc),
        );
    });
  }

  /** Drawn by place: keys and victims are those of the state as it seems to be now. */
  #requestOf(port: IscsiPort, drawn: Extract<Action, { do: "reserve" }>): PrRequest | undefined {
    const state = this.#units[port.lun]!.reservations.possible[0]!;
    const own = state.keys.get(port.index) ?? keyOf(0);
    const key = drawn.wrong ? keyOf(99) : own;
    const { type, aptpl } = drawn;
    const newKey = keyOf(1 + (drawn.pick % 3));
    const registered = [...state.keys.keys()];
    switch (drawn.what) {
      case "register":
        return { action: "register", key, newKey, aptpl };
      case "unregister":
        return { action: "register", key, newKey: keyOf(0), aptpl };
      case "register-ignore":
        return { action: "register-ignore", newKey, aptpl };
      case "reserve":
        return { action: "reserve", key, type };
      case "release":
        return { action: "release", key, type: drawn.wrong ? type : state.type };
      case "clear":
        return { action: "clear", key };
      case "preempt":
      case "preempt-abort": {
        const victim =
          state.holder === "all" && drawn.pick % 2 === 0
            ? keyOf(0)
            : (state.keys.get(registered[drawn.pick % Math.max(1, registered.length)] ?? 0) ?? keyOf(7));
        // SPC-4 leaves open what becomes of somebody who preempts itself.
        if (victim === own && !(typeof state.holder === "number" && state.keys.get(state.holder) === victim))
          return undefined;
        return { action: drawn.what, key, victim, type };
      }
      case "move": {
        const to = drawn.pick % this.#hosts.length;
        return { action: "move", key, newKey, to, unregister: drawn.wrong, aptpl };
      }
    }
  }

  /** Looks at the reservations as they are: READ FULL STATUS. */
  #look(port: IscsiPort): void {
    const unit = this.#units[port.lun]!;
    if (unit.isReserving) return;
    unit.isReserving = true;
    const { memory } = port.process;
    const at = memory.allocate(FULL_STATUS_BYTES);
    const cdb = new Uint8Array(16);
    cdb[0] = Op.PERSISTENT_RESERVE_IN;
    cdb[CDB_PR_IN.action] = PrIn.READ_FULL_STATUS;
    new DataView(cdb.buffer).setUint16(CDB_PR_IN.length, FULL_STATUS_BYTES);
    const base = { attribute: "simple", outLength: 0, inLength: FULL_STATUS_BYTES, access: "none", stamp: 0 } as const;
    port.run({ ...base, what: "read full status", cdb, at }, (answer) => {
      unit.isReserving = false;
      const bytes = memory.bytes.slice(at, at + FULL_STATUS_BYTES);
      memory.free(at);
      if (answer.kind === "unknown") return;
      if (answer.status !== SamStatus.GOOD) throw new Violation(`the reservations cannot be read: ${answer.status}`);
      const seen = this.#readFullStatus(bytes);
      const before = unit.reservations.describe();
      if (!unit.reservations.see((state) => isSeen(state, seen)))
        throw new Violation(`the reservations are ${JSON.stringify(seen)}, and should be ${before}`);
    });
  }

  #readFullStatus(bytes: Uint8Array): Seen[] {
    const HEADER_BYTES = 8;
    const DESCRIPTOR_BYTES = 24;
    const view = new DataView(bytes.buffer);
    const seen: Seen[] = [];
    const end = HEADER_BYTES + view.getUint32(4);
    for (let at = HEADER_BYTES; at < end; ) {
      const id = decodeTransportId(bytes.subarray(at + DESCRIPTOR_BYTES));
      const nexus = this.#hosts.findIndex(({ index }) => portName(index) === id?.name);
      if (nexus < 0) throw new Violation(`somebody unknown is registered: ${id?.name}`);
      const key = hexOfBytes(bytes.subarray(at, at + 8));
      seen.push({ nexus, key, holds: (bytes[at + 12]! & 1) !== 0, type: bytes[at + 13]! });
      at += DESCRIPTOR_BYTES + view.getUint32(at + 20);
    }
    return seen;
  }

  /* ----------------------------------------------------------------- end */

  /** Reads everything, on the server, where no reservation is in the way. */
  #audit(): void {
    for (const unit of this.#units) this.#auditUnit(unit);
  }

  #auditUnit({ lun, ticks, stamps, history }: Unit): void {
    const host = new Host(this.#serverProcess!, ticks, stamps, (status, io) => {
      throw new Violation(`a ${io.kind} on the server ends with "${status}"`);
    });
    const target = { name: nameOfUnit(lun), device: this.#versions[lun]!, history, frozen: undefined };
    host.audit(target);
    this.#runUntil(() => host.inFlight === 0, "an audit");
  }

  readonly #course: Course = {
    isDoomed: () => this.#crash !== undefined,
    die: () => this.#die(this.#crash!),
    hasMore: () => this.#cursor < this.#actions.length,
    calm: () => this.#calm(),
    answerMsMax: ANSWER_MS_MAX,
  };
  #runUntil(isDone: () => boolean, what: string): void {
    if (!runUntil(this.#world, isDone, this.#course))
      throw new Violation(
        `${what} does not end; in flight: ${this.#hosts.map(({ units, initiator }) => `${initiator.state} ${initiator.inFlight} ${units.map(({ host }) => host.waitingFor).join(", ")}`).join("; ")}`,
      );
  }
}

interface Seen {
  readonly nexus: number;
  readonly key: string;
  readonly holds: boolean;
  readonly type: number;
}
function isSeen(state: PrState, seen: readonly Seen[]): boolean {
  if (seen.length !== state.keys.size) return false;
  return seen.every(({ nexus, key, holds, type }) => {
    const isHolder = state.holder === "all" || state.holder === nexus;
    return state.keys.get(nexus) === key && holds === isHolder && (!holds || type === state.type);
  });
}

function outcomeOf(answer: Extract<Answer, { kind: "status" }>): "good" | "conflict" | "check" {
  if (answer.status === SamStatus.GOOD) return "good";
  return answer.status === SamStatus.RESERVATION_CONFLICT ? "conflict" : "check";
}

const keyOf = (number: number): string => number.toString(16).padStart(16, "0");
const nameOf = (index: number): string => `iqn.2025-01.example:host${index}`;
const isidOf = (index: number): string => `80000000000${index}`;
const portName = (index: number): string => `${nameOf(index)},i,0x${isidOf(index)}`;

/** The parameter list of a service action: SPC-4 §6.16.3 and §6.16.4. */
function listOf(request: PrRequest, ports: readonly IscsiPort[]): Uint8Array {
  const LIST_BYTES = 24;
  const APTPL = 0x01;
  const UNREG = 0x02;
  const key = "key" in request ? request.key : keyOf(0);
  const newKey = "newKey" in request ? request.newKey : "victim" in request ? request.victim : keyOf(0);
  const aptpl = "aptpl" in request && request.aptpl ? APTPL : 0;
  const id = request.action === "move" ? encodeTransportId(portName(ports[request.to]!.index)) : new Uint8Array(0);
  const list = new Uint8Array(LIST_BYTES + id.length);
  const view = new DataView(list.buffer);
  list.set(bytesOfHex(key), 0);
  list.set(bytesOfHex(newKey), 8);
  if (request.action !== "move") {
    list[20] = aptpl;
    return list;
  }
  list[17] = aptpl | (request.unregister ? UNREG : 0);
  view.setUint16(18, 1);
  view.setUint32(20, id.length);
  list.set(id, LIST_BYTES);
  return list;
}

/** Plays a drawn iSCSI world. */
export function playIscsi(
  world: World,
  script: { readonly setup: IscsiSetup; readonly actions: readonly Action[] },
): string {
  return new IscsiWorld(world, script.setup, script.actions).play();
}
