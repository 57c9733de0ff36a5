/**
 * An SCP server and a host, the shipping code of both, with a slow device behind the server and a bad network between
 * them. Applications write and read blocks of their own, one operation at a time each; whatever happens, an operation
 * ends once and well, and a read finds exactly what the last write put there.
 */
import { type HostRecord, RIGHTS_EMPTY } from "#base/rights";
import { start } from "#base/task";
import { type BlockDevice, BlockOp, checkRange, type DeviceWatcher } from "#device/device";
import { isNetError } from "#env/env";
import { SCP_SETTINGS_DEFAULT, ScpHost } from "#initiator/scp-host";
import type { ScpUnit } from "#initiator/scp-unit";
import { ProtectionTable } from "#target/protection";
import { SCP_FRONT_DEFAULTS, ScpFront } from "#target/scp-front";
import type { SimProcess } from "../env/sim-process.ts";
import type { World } from "../env/world.ts";
import type { Script } from "../scenario.ts";
import { Violation } from "../violation.ts";

export interface ScpSetup {
  /** Bits of versions on offer at the server, and known to the host. */
  readonly serverVersions: number;
  readonly hostVersions: number;
  readonly sockets: number;
  readonly applications: number;
  /** Operations of each application while things go wrong. */
  readonly operations: number;
  readonly deviceMs: number;
  /** Now and then an operation of the device takes so long. */
  readonly deviceSlowMs: number;
  readonly reset: number;
  readonly vanish: number;
  readonly clog: number;
  readonly refuse: number;
  readonly chunkMax: number;
  readonly latencyMs: number;
  readonly crashes: number;
  readonly partitions: number;
  readonly pauses: number;
  readonly rightsChanges: number;
  readonly spanMs: number;
}

const BLOCK = 4096;
/** Blocks of an application: more than a piece, so that operations are cut up. */
const BLOCKS = 40;
const SECRET = "5c".repeat(32);
const PORT = 10001;
/** After the faults have ended, everything is answered within this. */
const LIVENESS_MS = 120_000;

export function playScp(world: World, { setup }: Script<ScpSetup>): string {
  return new ScpWorld(world, setup).play();
}

class ScpWorld {
  readonly #world: World;
  readonly #setup: ScpSetup;
  readonly #blocks: Int32Array;
  #server: SimProcess | undefined;
  #table: ProtectionTable | undefined;
  #generation = 0;
  #units = 1;

  constructor(world: World, setup: ScpSetup) {
    this.#world = world;
    this.#setup = setup;
    this.#blocks = new Int32Array(setup.applications * BLOCKS);
    Object.assign(world.network.faults, {
      reset: setup.reset,
      vanish: setup.vanish,
      clog: setup.clog,
      refuse: setup.refuse,
      chunkMax: setup.chunkMax,
      latencyMs: setup.latencyMs,
    });
  }

  play(): string {
    const world = this.#world;
    const setup = this.#setup;
    this.#startServer();
    const machine = world.node("host");
    const env = machine.start();
    const instance = new Uint8Array(16);
    env.random.fill(instance);
    const host = new ScpHost(env, {
      addresses: [{ host: world.node("server").address, port: PORT }],
      hostName: "web",
      secret: Uint8Array.from({ length: 32 }, () => 0x5c),
      requireSecret: false,
      tls: undefined,
      instance,
      versions: setup.hostVersions,
      dataCrc: true,
      privilegedPort: false,
      settings: { ...SCP_SETTINGS_DEFAULT, socketsMin: setup.sockets, giveUpMs: Number.POSITIVE_INFINITY },
    });
    host.start();
    if (!world.runUntil(() => host.unit(0) !== undefined)) throw new Violation("the host never gets its unit");
    const unit = host.unit(0)!;
    const applications = Array.from(
      { length: setup.applications },
      (_, index) => new Application(world, env, unit, index, setup.operations),
    );
    this.#planTrouble(machine.processes.values().next().value as SimProcess);
    for (const application of applications) application.next();
    const isDone = () => applications.every(({ idle }) => idle);
    const bound = world.now + setup.spanMs + LIVENESS_MS;
    world.runUntil(() => isDone() || world.now > bound);
    if (!isDone()) {
      world.say(env, "is stuck", host.facts());
      throw new Violation(`after ${LIVENESS_MS} ms without faults, operations are still not answered`);
    }
    for (const application of applications) application.audit();
    world.runUntil(() => isDone() || world.now > bound + LIVENESS_MS);
    if (!isDone()) throw new Violation("the last reads are not answered");
    const { fences, reconfigurations } = host.facts();
    host.stop();
    this.#server?.crash();
    return fences > 0 ? "fenced" : reconfigurations > 1 ? "reconfigured" : "undisturbed";
  }

  #startServer(): void {
    const world = this.#world;
    const env = world.node("server").start();
    this.#server = env;
    const device = new SlowDevice(world, env, this.#blocks, this.#setup);
    const table = new ProtectionTable({
      find: (name) => (name.startsWith("db") ? device : undefined),
      names: () => ["db"],
      watch: () => () => {},
    });
    this.#table = table;
    this.#loadRights();
    const front = new ScpFront(env, table, {
      ...SCP_FRONT_DEFAULTS,
      anySourcePort: true,
      versions: this.#setup.serverVersions,
      serverId: new Uint8Array(16),
      run: 1,
      stallMs: 5_000,
    });
    start(
      front.listen({ host: "0.0.0.0", port: PORT }),
      (address) => {
        if (isNetError(address)) throw new Error(address.detail);
      },
      (error) => {
        throw error;
      },
    );
  }

  #loadRights(): void {
    const host: HostRecord = {
      name: "web",
      addresses: [this.#world.node("host").address],
      secret: SECRET,
      requireSecret: false,
      requireTls: false,
      tlsNames: [],
      iqns: [],
      chap: undefined,
      mutualChap: undefined,
      units: {},
      dataSocketsMax: undefined,
      dataPorts: [],
    };
    const grants = Array.from({ length: this.#units }, (_, unit) => ({
      host: "web",
      device: `db${unit === 0 ? "" : unit}`,
      unit,
      access: "read-write" as const,
      range: undefined,
    }));
    this.#table?.load({ ...RIGHTS_EMPTY, generation: ++this.#generation, hosts: [host], grants });
  }

  #planTrouble(host: SimProcess): void {
    const world = this.#world;
    const { chance, network } = world;
    const { crashes, partitions, pauses, rightsChanges, spanMs } = this.#setup;
    const at = () => chance.fraction() * spanMs;
    for (let i = 0; i < crashes; i++)
      world.plan(at(), () => {
        this.#server?.crash();
        this.#server = undefined;
        world.plan(chance.span(100), () => {
          if (this.#server === undefined) this.#startServer();
        });
      });
    for (let i = 0; i < partitions; i++)
      world.plan(at(), () => {
        network.cut(world.node("host"), world.node("server"), chance.often(0.5));
        world.plan(chance.span(500), () => network.healAll());
      });
    for (let i = 0; i < pauses; i++)
      world.plan(at(), () => {
        const process = chance.often(0.5) ? host : this.#server;
        if (process === undefined || process.dead) return;
        process.pause();
        world.plan(chance.span(200), () => {
          if (!process.dead) process.resume();
        });
      });
    for (let i = 0; i < rightsChanges; i++)
      world.plan(at(), () => {
        this.#units = 1 + chance.below(3);
        this.#loadRights();
      });
    world.plan(spanMs, () => {
      network.faults.stop();
      network.healAll();
    });
  }
}

/** Does writes when it pleases; until then they have not happened, and afterwards they have. */
class SlowDevice implements BlockDevice {
  readonly blockSize = BLOCK;
  readonly preferredBlockSize = BLOCK;
  readonly readOnly = false;
  readonly uuid = "0".repeat(32);
  readonly #world: World;
  readonly #process: SimProcess;
  readonly #blocks: Int32Array;
  readonly #setup: ScpSetup;

  constructor(world: World, process: SimProcess, blocks: Int32Array, setup: ScpSetup) {
    this.#world = world;
    this.#process = process;
    this.#blocks = blocks;
    this.#setup = setup;
  }

  get size(): number {
    return this.#blocks.length * BLOCK;
  }
  watch(_watcher: DeviceWatcher): () => void {
    return () => {};
  }

  submit(op: BlockOp): void {
    const { chance } = this.#world;
    const { deviceMs, deviceSlowMs } = this.#setup;
    const delay = chance.often(0.05) ? chance.span(deviceSlowMs) : chance.span(deviceMs);
    this.#process.plan(delay, () => {
      op.status = checkRange(this, op) ?? "ok";
      if (op.status === "ok") this.#do(op);
      op.done(op);
    });
  }

  #do(op: BlockOp): void {
    const { view } = this.#process.memory;
    const first = op.offset / BLOCK;
    for (let i = 0; i < op.length / BLOCK && op.kind !== "flush"; i++) {
      const at = op.at + i * BLOCK;
      if (op.kind === "write") {
        const value = view.getInt32(at);
        if (view.getInt32(at + BLOCK - 4) !== value)
          throw new Violation("a block reaches the device with two contents");
        this.#blocks[first + i] = value;
      } else if (op.kind === "zero" || op.kind === "trim") this.#blocks[first + i] = 0;
      else if (op.kind === "read")
        for (let word = 0; word < BLOCK; word += 4) view.setInt32(at + word, this.#blocks[first + i]!);
    }
  }
}

/** Owns some blocks, and does one thing at a time with them. */
class Application {
  idle = false;
  readonly #world: World;
  readonly #env: SimProcess;
  readonly #unit: ScpUnit;
  readonly #index: number;
  readonly #wanted = new Int32Array(BLOCKS);
  readonly #op: BlockOp;
  #left: number;
  #sequence = 0;
  #at = 0;
  #busy = false;

  constructor(world: World, env: SimProcess, unit: ScpUnit, index: number, operations: number) {
    this.#world = world;
    this.#env = env;
    this.#unit = unit;
    this.#index = index;
    this.#left = operations;
    this.#op = new BlockOp((op) => this.#onDone(op));
  }

  next(): void {
    if (this.#left-- === 0) {
      this.idle = true;
      return;
    }
    const { chance } = this.#world;
    const from = chance.below(BLOCKS);
    const count = chance.between(1, BLOCKS - from);
    const kind = chance.pick(["read", "read", "write", "write", "write", "zero", "flush"] as const);
    this.#submit(kind, from, count);
  }

  audit(): void {
    this.idle = false;
    this.#left = 0;
    this.#submit("read", 0, BLOCKS);
  }

  #submit(kind: "read" | "write" | "zero" | "flush", from: number, count: number): void {
    const op = this.#op;
    const { memory } = this.#env;
    op.kind = kind;
    op.offset = (this.#index * BLOCKS + from) * BLOCK;
    op.length = count * BLOCK;
    this.#at = op.at = memory.allocate(op.length);
    if (op.at === 0) throw new Error("the simulated host has no memory");
    if (kind === "write") {
      const value = ++this.#sequence;
      for (let at = 0; at < op.length; at += 4) memory.view.setInt32(op.at + at, value);
      this.#wanted.fill(value, from, from + count);
    } else if (kind === "zero") this.#wanted.fill(0, from, from + count);
    this.#busy = true;
    this.#unit.submit(op);
  }

  #onDone(op: BlockOp): void {
    if (!this.#busy) throw new Violation("an operation is completed twice");
    this.#busy = false;
    if (op.status !== "ok") throw new Violation(`a ${op.kind} ends with "${op.status}"`);
    const { memory } = this.#env;
    const from = op.offset / BLOCK - this.#index * BLOCKS;
    if (op.kind === "read")
      for (let i = 0; i < op.length / BLOCK; i++)
        for (const word of [0, BLOCK - 4]) {
          const found = memory.view.getInt32(op.at + i * BLOCK + word);
          if (found !== this.#wanted[from + i])
            throw new Violation(
              `block ${from + i} of application ${this.#index} reads ${found}, and ${this.#wanted[from + i]} was written`,
            );
        }
    memory.free(this.#at);
    this.#env.plan(this.#world.chance.span(1), () => this.next());
  }
}
