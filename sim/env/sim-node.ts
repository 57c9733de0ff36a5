/** A simulated machine: a disk that survives, a clock that drifts, and the processes that run on it now. */
import type { Millis } from "#base/units";
import type { PowerCut } from "./file-system.ts";
import { SimFileSystem } from "./file-system.ts";
import { DiskFaults } from "./sim-disk.ts";
import { SimProcess } from "./sim-process.ts";
import type { World } from "./world.ts";

const EPOCH = Date.UTC(2030, 0, 1);
/** Every machine is on all of them; most worlds use the first only. */
const NETWORKS = 2;

export class SimNode {
  readonly world: World;
  readonly name: string;
  /** Its address on each of the networks; the name stands for the first. */
  readonly addresses: readonly string[];
  /** A node without power answers nothing, not even with a refusal. */
  isUp = true;
  readonly files: SimFileSystem;
  readonly diskFaults = new DiskFaults();
  readonly processes = new Set<SimProcess>();
  /** Local milliseconds per millisecond of the world. */
  clockRate = 1;
  /** How often it has lost its power. */
  powerCuts = 0;
  /** What the wall clock is wrong by, in milliseconds. */
  dateError = 0;
  #clockStart: Millis;
  #clockSince: Millis = 0;

  constructor(world: World, name: string) {
    this.world = world;
    this.name = name;
    this.addresses = Array.from({ length: NETWORKS }, (_, net) => `10.0.${net}.${world.nodes.size + 1}`);
    const chance = world.chance.fork();
    this.files = new SimFileSystem(world.resources.pages, chance);
    this.#clockStart = chance.below(1_000_000);
  }

  /** Starts a process: what the product runs in until it is killed. A node without power has it again. */
  start(name = this.name): SimProcess {
    if (!this.isUp) {
      this.isUp = true;
      this.world.network.flush();
    }
    const process = new SimProcess(this.world, this, name);
    this.processes.add(process);
    return process;
  }

  /** The power fails: all processes are dead, and the disk keeps what `cut` leaves of it. */
  losePower(cut: PowerCut): void {
    this.world.say(this, "loses its power", cut);
    this.isUp = false;
    this.powerCuts++;
    for (const process of [...this.processes]) process.crash();
    this.files.cutPower(cut);
    // A monotonic clock begins anew with the machine.
    this.#clockStart = this.world.chance.below(1000);
    this.#clockSince = this.world.now;
  }

  /** Its address on the first network. */
  get address(): string {
    return this.addresses[0]!;
  }
  /** Which of the networks has this address of it; a name is looked up in the first. */
  networkOf(host: string): number {
    return Math.max(0, this.addresses.indexOf(host));
  }

  forget(process: SimProcess): void {
    this.processes.delete(process);
  }

  localTime(): Millis {
    return this.#clockStart + (this.world.now - this.#clockSince) * this.clockRate;
  }
  date(): number {
    return EPOCH + this.world.now + this.dateError;
  }
  worldSpan(local: Millis): Millis {
    return local / this.clockRate;
  }
}
