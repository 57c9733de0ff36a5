/**
 * A server with the engine and the NBD front, and a host that uses its volumes through the NBD client, with a network
 * between them that fails and a server that dies. The client promises that its device survives all of it: what was
 * acknowledged stays, also what was never flushed, as long as the client itself lives. So the history that the host's
 * operations are held against knows no power cuts.
 */
import { perform, start, type Task } from "#base/task";
import { isNetError } from "#env/env";
import { NbdClient } from "#initiator/nbd-client";
import { DirectoryStore } from "#store/segment-store";
import { VersionSet } from "#store/version-set";
import { OpenExportTable } from "#target/exports";
import { NbdFront } from "#target/nbd-front";
import type { PowerCut } from "../env/file-system.ts";
import type { SimNode } from "../env/sim-node.ts";
import type { SimProcess } from "../env/sim-process.ts";
import type { World } from "../env/world.ts";
import { History, Ticks } from "../oracle/history.ts";
import { type Action, describeAction, type NetTrouble } from "../script.ts";
import { Violation } from "../violation.ts";
import { Host, type Target } from "./host.ts";
import { type Course, runUntil, troubleNetwork } from "./settle.ts";

export interface NbdSetup {
  readonly segmentBlocks: number;
  readonly checkpointBytes: number;
  readonly size: number;
  readonly blockSize: number;
  /** Logical blocks that the host works on. */
  readonly blocks: number;
  readonly depth: number;
  readonly connections: number;
  readonly names: "loose" | "journal";
  readonly turnMs: number;
  readonly chunkMax: number;
  readonly bufferBytes: number;
  readonly latencyMs: number;
  /** How fast the clocks of server and host go; both right when not given. */
  readonly clockRates?: readonly [server: number, host: number];
}

const PORT = 10_809;
const DIRECTORY = "/data/set";
/** Longer than any outage here: the client must not give up. */
const GIVE_UP_MS = 3_600_000;
const ANSWER_MS_MAX = 600_000;
const FAULTS_MS_MAX = 60_000;
/** Longer operations only take time here: cutting them up is the same as for short ones. */
const IO_BLOCKS_MAX = 100;

export class NbdWorld {
  readonly #world: World;
  readonly #setup: NbdSetup;
  readonly #actions: readonly Action[];
  readonly #server: SimNode;
  readonly #clientNode: SimNode;
  readonly #client: SimProcess;
  readonly #history: History;
  readonly #host: Host;
  #serverProcess: SimProcess | undefined;
  #target!: Target;
  #device!: NbdClient;
  #cursor = 0;
  #crash: Extract<Action, { do: "kill" } | { do: "cut-power" }> | undefined;
  #isServing = false;

  constructor(world: World, setup: NbdSetup, actions: readonly Action[]) {
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
    this.#clientNode = world.node("client");
    [this.#server.clockRate, this.#clientNode.clockRate] = setup.clockRates ?? [1, 1];
    this.#client = this.#clientNode.start("host");
    const ticks = new Ticks();
    this.#history = new History(ticks);
    this.#host = new Host(this.#client, ticks, { next: 1 }, (status, io) => {
      if (status === "unsupported" && (io.kind === "status" || io.fastOnly === true)) return "refused";
      throw new Violation(`${io.kind} ${io.block} + ${io.count} is answered with "${status}" for no reason`);
    });
  }

  play(): void {
    this.#world.finish(this.#createSet());
    this.#serve();
    this.#runUntil(() => this.#isServing, "the server's start");
    const target = { address: { host: "server", port: PORT }, exportName: "v", tls: undefined };
    const { connections } = this.#setup;
    this.#device = this.#world.finish(NbdClient.open(this.#client, target, { connections, giveUpMs: GIVE_UP_MS }));
    if (this.#device.size !== this.#setup.size) throw new Violation(`the export has ${this.#device.size} bytes`);
    this.#target = { name: "v", device: this.#device, history: this.#history, frozen: undefined };
    this.#world.plan(0, () => this.#next());
    this.#runUntil(() => this.#cursor >= this.#actions.length && this.#crash === undefined, "the script");
    this.#calm();
    this.#runUntil(() => this.#isServing && this.#host.inFlight === 0, "what was in flight");
    this.#audit();
    this.#runUntil(() => this.#host.inFlight === 0, "the last audit");
    const device = this.#device;
    this.#world.finish(
      (function* (): Task<void> {
        yield* perform(device.close());
      })(),
    );
  }

  /* --------------------------------------------------------------- server */

  *#createSet(): Task<void> {
    const process = this.#server.start("server");
    const { disk } = process;
    yield* perform(disk.makeDirectory("/data"));
    yield* perform(disk.syncDirectory("/"));
    const store = new DirectoryStore(process, DIRECTORY);
    yield* store.make();
    const { segmentBlocks, checkpointBytes, size, blockSize } = this.#setup;
    const set = yield* VersionSet.create(process, store, { segmentBlocks, checkpointBytes });
    yield* set.createVolume({ name: "v", size, blockSize });
    yield* set.close();
    process.crash();
  }

  #serve(): void {
    const process = this.#server.start("server");
    this.#serverProcess = process;
    this.#isServing = false;
    const { checkpointBytes, segmentBlocks } = this.#setup;
    const world = this.#world;
    const task = (function* (): Task<void> {
      const set = yield* VersionSet.open(process, new DirectoryStore(process, DIRECTORY), {
        checkpointBytes,
        segmentBlocks,
        probe: (state, on) => {
          process.probe(state, on);
          if (on) world.onState?.(state);
        },
      });
      const table = new OpenExportTable();
      for (const [name, version] of set.versions) table.add(name, version);
      const front = new NbdFront(process, table);
      const at = yield* front.listen({ host: "0.0.0.0", port: PORT });
      if (isNetError(at)) throw new Error(`the front cannot listen: ${at.fault}`);
    })();
    start(
      task,
      () => {
        this.#isServing = true;
        this.#world.say(process, "serves");
      },
      (error) => {
        throw error;
      },
    );
  }

  #die(action: { readonly do: "kill" | "cut-power"; readonly downMs: number; readonly cut?: PowerCut }): void {
    this.#crash = undefined;
    this.#world.stopAtStep = Number.POSITIVE_INFINITY;
    if (this.#serverProcess === undefined || this.#serverProcess.dead) return;
    this.#world.fault(action.do === "kill" ? "kill" : "power cut", this.#server);
    if (action.cut === undefined) this.#serverProcess.crash();
    else this.#server.losePower(action.cut);
    this.#isServing = false;
    this.#world.plan(action.downMs, () => this.#serve());
  }

  /* --------------------------------------------------------------- script */

  #next(): void {
    if (this.#cursor >= this.#actions.length) return;
    const action = this.#actions[this.#cursor]!;
    const isIo = action.do === "io" || action.do === "audit";
    const canGo = (): boolean => (isIo ? this.#host.inFlight < this.#setup.depth : this.#crash === undefined);
    if (!canGo()) {
      this.#world.look(10, canGo, () => this.#next());
      return;
    }
    this.#cursor++;
    if (this.#world.onLine !== undefined && !isIo) this.#world.say(this.#server, describeAction(action));
    this.#act(action);
    this.#world.plan(action.waitMs ?? 0, () => this.#next());
  }

  #act(action: Action): void {
    switch (action.do) {
      case "io": {
        const { area: _, offset, count, ...io } = action.io;
        if (io.kind === "compare-write") return;
        const block = offset % this.#setup.blocks;
        const room = this.#setup.size / this.#setup.blockSize - block;
        this.#host.submit(this.#target, { ...io, block, count: Math.min(count, room, IO_BLOCKS_MAX) });
        return;
      }
      case "audit":
        this.#audit();
        return;
      case "kill":
      case "cut-power":
        this.#crash = action;
        this.#world.stopAtStep = this.#world.steps + action.afterEvents;
        return;
      case "pause": {
        const process = action.host === true ? this.#client : this.#serverProcess;
        if (process === undefined || process.dead || process.paused) return;
        this.#world.fault("pause", process.node);
        process.pause();
        this.#world.plan(action.ms, () => {
          if (!process.dead) process.resume();
        });
        return;
      }
      case "net":
        this.#netTrouble(action.trouble);
        return;
      case "calm":
        this.#calm();
        return;
      default:
        return;
    }
  }

  #netTrouble(trouble: NetTrouble): void {
    troubleNetwork(this.#world, this.#server, this.#clientNode, trouble, FAULTS_MS_MAX);
  }

  #calm(): void {
    this.#world.network.faults.stop();
    this.#world.network.healAll();
  }

  #audit(): void {
    this.#host.audit(this.#target);
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
      throw new Violation(`${what} does not end; in flight: ${this.#host.waitingFor || "nothing"}`);
  }
}

/** Plays a drawn NBD world. */
export function playNbd(
  world: World,
  script: { readonly setup: NbdSetup; readonly actions: readonly Action[] },
): string {
  new NbdWorld(world, script.setup, script.actions).play();
  return "good";
}
