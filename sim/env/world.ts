/**
 * A simulated world: machines, their disks, the network between them, and one queue of what happens next. Time jumps from
 * one event to the next. The same seed gives the same world, event by event; `trace` is the proof.
 *
 *     const world = new World(1);
 *     const env = world.node("server").start();
 *     const set = world.finish(VersionSet.create(env, store, options));
 *     env.node.losePower(POWER_CUTS.random);
 */
import { start, type Task } from "#base/task";
import type { Millis } from "#base/units";
import { Chance } from "./chance.ts";
import { EventQueue, type Happening } from "./event-queue.ts";
import { Network } from "./network.ts";
import { PageStore } from "./page-store.ts";
import { MemoryPool } from "./sim-memory.ts";
import { SimNode } from "./sim-node.ts";
import { SimProcess } from "./sim-process.ts";

/** What is dear to make and serves one world after another. */
export class Resources {
  readonly memories: MemoryPool;
  readonly pages = new PageStore();
  constructor(memoryBytes?: number) {
    this.memories = new MemoryPool(memoryBytes);
  }
}

/** Something that a world waits for. */
interface Look {
  at: Millis;
  readonly interval: Millis;
  readonly isReady: () => boolean;
  readonly what: () => void;
}

/** In a world some thousand things happen; one in which so many do goes in circles. */
const HAPPENINGS_MAX = 1_000_000;
/** So many looks for one thing after another take half an hour: slow disks may keep a world for minutes, but not for that. */
const LOOKS_MAX = 10_000_000;

export class World {
  readonly seed: number;
  readonly chance: Chance;
  readonly resources: Resources;
  readonly network: Network;
  readonly nodes = new Map<string, SimNode>();
  /** Milliseconds since the world began. */
  now: Millis = 0;
  /** Events that have happened. */
  steps = 0;
  /** Depends on everything that has happened, and on its order. */
  trace = 0;
  /** I/O that simulated disks and lines have done. */
  ioCount = 0;
  /** Completions are told at multiples of this, so that several arrive in one turn; 0: whenever they are done. */
  turnMs: Millis = 0;
  /** Whether the engine keeps blocks that were read: every other world, since those without read the disk more. */
  readonly hasBlockCache: boolean;
  /** Gets a line for everything worth reading; unset, nothing is put together. */
  onLine: ((line: string) => void) | undefined;
  /** Told of every fault that happened, and where: the table of coverage. */
  onFault: ((fault: string, at: SimNode) => void) | undefined;
  /** Told of every state that the product enters. */
  onState: ((state: string) => void) | undefined;
  /** At this many events the world stops to look for what nobody finds: see `look`. */
  stopAtStep = Number.POSITIVE_INFINITY;
  /** Of the events: looks, see `look`. */
  #looks = 0;
  readonly #queue = new EventQueue();
  #order = 0;
  #look: Look | undefined;

  constructor(seed: number, resources: Resources = new Resources()) {
    this.seed = seed;
    this.hasBlockCache = seed % 2 === 1;
    this.chance = new Chance(seed);
    this.resources = resources;
    this.network = new Network(this);
  }

  /** The machine of that name; made when it is asked for first. */
  node(name: string): SimNode {
    let node = this.nodes.get(name);
    if (node === undefined) {
      node = new SimNode(this, name);
      this.nodes.set(name, node);
    }
    return node;
  }

  /** Something will happen `delay` from now. Of one instant, what was planned first happens first. */
  plan(delay: Millis, what: () => void, owner?: SimProcess): Happening {
    const happening = { at: this.now + delay, order: this.#order++, owner, what, off: false };
    this.#queue.push(happening);
    return happening;
  }

  /**
   * Looks every `interval` from now whether `isReady`, and then does `what`. Each look is an event, so that a crash that
   * is to come after so many events comes in a world that waits, too; but as long as nothing else happens, none of them
   * can find anything, and they are only counted.
   */
  look(interval: Millis, isReady: () => boolean, what: () => void): void {
    if (this.#look !== undefined) throw new Error("a world looks for two things at once");
    this.#look = { at: this.now + interval, interval, isReady, what };
  }

  /** `delay`, made longer so that it ends with a turn. */
  toTurn(delay: Millis): Millis {
    if (this.turnMs === 0) return delay;
    return Math.ceil((this.now + delay) / this.turnMs) * this.turnMs - this.now;
  }

  /** Lets the next thing happen. False when nothing ever will. */
  step(): boolean {
    for (;;) {
      const look = this.#look;
      if (look !== undefined && look.at < this.#queue.dueAt) return this.#lookAgain(look);
      const next = this.#queue.pop();
      if (next === undefined) return false;
      const { owner } = next;
      if (next.off || owner?.dead) continue;
      this.now = next.at;
      if (owner?.paused) {
        owner.hold(next);
        continue;
      }
      this.#count();
      this.trace = (Math.imul(this.trace, 31) + next.order + Math.floor(next.at * 1000)) | 0;
      next.what();
      return true;
    }
  }

  #lookAgain(look: Look): boolean {
    // Between two events nothing changes: all looks but the first would find the same.
    const isReady = look.isReady();
    const dueAt = this.#queue.dueAt;
    if (!isReady && dueAt === Number.POSITIVE_INFINITY && this.stopAtStep === Number.POSITIVE_INFINITY) return false;
    do {
      this.now = look.at;
      this.steps++;
      if (++this.#looks > LOOKS_MAX) throw new Error(`what is waited for does not come in ${LOOKS_MAX} looks`);
      look.at += look.interval;
    } while (!isReady && look.at < dueAt && this.steps < this.stopAtStep);
    this.trace = (Math.imul(this.trace, 31) + Math.floor(this.now * 1000)) | 0;
    if (!isReady) return true;
    this.#look = undefined;
    look.what();
    return true;
  }

  #count(): void {
    this.steps++;
    if (this.steps - this.#looks > HAPPENINGS_MAX)
      throw new Error(`the world does not come to rest in ${HAPPENINGS_MAX} events`);
  }

  /** Lets things happen until `isDone`, or until nothing ever will: then false. */
  runUntil(isDone: () => boolean): boolean {
    while (!isDone()) if (!this.step()) return false;
    return true;
  }

  /** Lets everything happen that will within `span`. */
  run(span: Millis = Number.POSITIVE_INFINITY): void {
    if (span === Number.POSITIVE_INFINITY) {
      while (this.step());
      return;
    }
    let isOver = false;
    this.plan(span, () => {
      isOver = true;
    });
    this.runUntil(() => isOver);
  }

  /** Runs a task to its end; throws what it throws, and an error when it never ends. */
  finish<T>(task: Task<T>): T {
    let answer: { value: T } | { error: unknown } | undefined;
    start(
      task,
      (value) => {
        answer = { value };
      },
      (error) => {
        answer = { error };
      },
    );
    this.runUntil(() => answer !== undefined);
    if (answer === undefined) throw new Error("a task never ends: nothing will happen any more");
    if ("error" in answer) throw answer.error;
    return answer.value;
  }

  /** Kills everything, so that memories and pages serve the next world. */
  end(): void {
    for (const node of this.nodes.values()) for (const process of [...node.processes]) process.crash();
    this.resources.pages.reset();
  }

  say(who: SimNode | SimProcess, what: string, fields?: object): void {
    if (this.onLine === undefined) return;
    const name = who instanceof SimProcess ? `${who.node.name}/${who.name}` : who.name;
    const more = fields === undefined || Object.keys(fields).length === 0 ? "" : ` ${JSON.stringify(fields)}`;
    this.onLine(`${this.now.toFixed(3).padStart(12)} #${this.steps} ${name}: ${what}${more}`);
  }

  fault(fault: string, at: SimNode): void {
    this.say(at, `fault: ${fault}`);
    this.onFault?.(fault, at);
  }
}
