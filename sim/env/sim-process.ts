/**
 * A simulated process: the `Env` that the product runs in. It dies at any event, and then nothing of it happens any more;
 * it can be paused, and then everything of it happens later.
 */

import type { Millis } from "#base/units";
import type { Alarm, Clock, Disk, Env, Log, Random, Soon, Turn } from "#env/env";
import type { Happening } from "./event-queue.ts";
import { SimDisk } from "./sim-disk.ts";
import type { SimMemory } from "./sim-memory.ts";
import { SimNet } from "./sim-net.ts";
import type { SimNode } from "./sim-node.ts";
import type { World } from "./world.ts";

/** Rounds of one turn; what is asked for then waits for the next turn, as in a real Env. */
const SOON_ROUNDS_MAX = 100;
/** Two turns are never at the same time, or nothing else would ever happen. */
const TURN_MS = 0.001;

export class SimProcess implements Env {
  readonly world: World;
  readonly node: SimNode;
  readonly name: string;
  readonly clock: Clock;
  readonly random: Random;
  readonly memory: SimMemory;
  readonly turn: Turn;
  readonly net: SimNet;
  readonly disk: Disk;
  readonly log: Log;
  /** Nothing of it happens any more. */
  dead = false;
  paused = false;
  /** What the product says it is doing, for the table of which fault met which state. */
  readonly states = new Set<string>();
  readonly #disk: SimDisk;
  #soons: Soon[] = [];
  #isTurnEnding = false;
  #held: Happening[] = [];

  constructor(world: World, node: SimNode, name: string) {
    this.world = world;
    this.node = node;
    this.name = name;
    this.clock = new SimClock(this);
    const chance = world.chance.fork();
    this.random = { below: (limit) => chance.below(limit), fill: (to) => chance.fill(to) };
    this.memory = world.resources.memories.take();
    if (!world.hasBlockCache) this.memory.cacheBytes = 0;
    this.turn = { soon: (soon) => this.#soon(soon) };
    this.#disk = new SimDisk(this);
    this.disk = this.#disk;
    this.net = new SimNet(this);
    this.log = {
      debug: (fields, message) => this.#log("debug", fields, message),
      info: (fields, message) => this.#log("info", fields, message),
      warn: (fields, message) => this.#log("warn", fields, message),
      error: (fields, message) => this.#log("error", fields, message),
    };
  }

  /** Plans an event of this process after `delay`; it is dropped when the process dies. */
  plan(delay: Millis, what: () => void): Happening {
    return this.world.plan(delay, what, this);
  }

  /** The process ends at once (kill -9). What it had asked of the kernel may have happened, in part, or not. */
  crash(): void {
    if (this.dead) return;
    this.world.say(this, "is killed");
    this.#disk.abandon();
    this.net.abandon();
    this.dead = true;
    this.#soons = [];
    this.#held = [];
    this.states.clear();
    this.node.forget(this);
    this.world.resources.memories.giveBack(this.memory);
  }

  pause(): void {
    this.paused = true;
  }

  resume(): void {
    this.paused = false;
    for (const happening of this.#held.splice(0)) this.world.plan(0, happening.what, this);
  }

  /** Keeps an event for when the process runs again. */
  hold(happening: Happening): void {
    this.#held.push(happening);
  }

  /** Tells what the product is in the midst of; `on` false when it is not any more. */
  readonly probe = (state: string, on = true): void => {
    if (on) this.states.add(state);
    else this.states.delete(state);
  };

  #soon(soon: Soon): void {
    if (soon.queued || this.dead) return;
    soon.queued = true;
    this.#soons.push(soon);
    if (this.#isTurnEnding) return;
    this.#isTurnEnding = true;
    this.plan(0, () => this.#endTurn());
  }

  #endTurn(): void {
    for (let round = 0; this.#soons.length > 0; round++) {
      if (round === SOON_ROUNDS_MAX) {
        this.plan(TURN_MS, () => this.#endTurn());
        return;
      }
      for (const soon of this.#soons.splice(0)) {
        soon.queued = false;
        soon.run();
        if (this.dead) return;
      }
    }
    this.#isTurnEnding = false;
  }

  #log(level: string, fields: object, message: string): void {
    this.world.say(this, `${level}: ${message}`, fields);
  }
}

class SimClock implements Clock {
  readonly #process: SimProcess;
  constructor(process: SimProcess) {
    this.#process = process;
  }
  now(): Millis {
    return this.#process.node.localTime();
  }
  date(): number {
    return Math.floor(this.#process.node.date());
  }
  alarm(ring: () => void): Alarm {
    return new SimAlarm(this.#process, ring);
  }
}

class SimAlarm implements Alarm {
  readonly #process: SimProcess;
  readonly #ring: () => void;
  #at = Number.POSITIVE_INFINITY;
  #planned: Happening | undefined;

  constructor(process: SimProcess, ring: () => void) {
    this.#process = process;
    this.#ring = ring;
  }

  get at(): Millis {
    return this.#at;
  }
  set at(at: Millis) {
    // Silenced alarms are set anew all the time; one that rings too early finds that out by itself.
    this.#at = at;
    if (this.#planned !== undefined) this.#planned.off = true;
    this.#planned = undefined;
    if (at === Number.POSITIVE_INFINITY) return;
    if (Number.isNaN(at)) throw new Error("an alarm is set to no time");
    const span = at - this.#process.clock.now();
    // A little late rather than a rounding error too early: who finds an alarm early sets it again, for ever.
    const delay = span <= 0 ? 0 : this.#process.node.worldSpan(span) + 1e-6;
    this.#planned = this.#process.plan(delay, () => {
      this.#planned = undefined;
      this.#at = Number.POSITIVE_INFINITY;
      this.#ring();
    });
  }
}
