/**
 * The network between the nodes of a world: who listens where, and what becomes of bytes on their way. Within a connection
 * bytes arrive in order or not at all (it stands for TCP); between connections anything overtakes anything.
 */
import type { Millis } from "#base/units";
import type { SimLine, SimListener } from "./sim-net.ts";
import type { SimNode } from "./sim-node.ts";
import type { World } from "./world.ts";

/** What may go wrong, as probabilities per piece of data under way; and how long things take. */
export class NetFaults {
  /** The connection is reset, and what is under way is lost. */
  reset = 0;
  /** One direction of the connection goes dead without a word: the other side is heard, but hears nothing any more. */
  vanish = 0;
  /** A direction stands still for a while (up to `clogMs`). */
  clog = 0;
  /** A dial is refused although somebody listens. */
  refuse = 0;
  clogMs: Millis = 500;
  latencyMs: Millis = 0.1;
  /** Bytes that a receive gets at most, drawn anew each time; small values cut messages everywhere. */
  chunkMax = 65536;
  /** Bytes that a direction holds before its sender has to wait. */
  bufferBytes = 65536;
  /** How long unacknowledged bytes are sent again before the sender gives up. */
  giveUpMs: Millis = 20_000;

  /** No more faults; what was cut stays cut, until `healAll`. */
  stop(): void {
    this.reset = this.vanish = this.clog = this.refuse = 0;
  }
}

const FIRST_PORT = 40_000;

export class Network {
  readonly world: World;
  readonly faults = new NetFaults();
  readonly #listeners = new Map<string, SimListener>();
  readonly #cuts = new Set<string>();
  readonly #lines = new Set<SimLine>();
  #nextPort = FIRST_PORT;

  constructor(world: World) {
    this.world = world;
  }

  port(): number {
    return this.#nextPort++;
  }

  /** The node that `host` names from the point of view of `from`. */
  resolve(host: string, from: SimNode): SimNode | undefined {
    if (host === "localhost" || host === "127.0.0.1" || host === "::1") return from;
    for (const node of this.world.nodes.values()) if (node.name === host || node.addresses.includes(host)) return node;
    return undefined;
  }

  listen(key: string, listener: SimListener): boolean {
    if (this.#listeners.has(key)) return false;
    this.#listeners.set(key, listener);
    return true;
  }
  unlisten(key: string, listener: SimListener): void {
    if (this.#listeners.get(key) === listener) this.#listeners.delete(key);
  }
  listener(key: string): SimListener | undefined {
    return this.#listeners.get(key);
  }

  /** From now on nothing gets from `from` to `to`, on one network or on all; with `bothWays` also not back. What is under way waits. */
  cut(from: SimNode, to: SimNode, bothWays: boolean, net: number | "all" = "all"): void {
    this.#cuts.add(cutName(from, to, net));
    if (bothWays) this.#cuts.add(cutName(to, from, net));
    this.world.fault(bothWays ? "partition" : "one-way partition", to);
  }
  heal(from: SimNode, to: SimNode, net: number | "all" = "all"): void {
    this.#cuts.delete(cutName(from, to, net));
    this.#cuts.delete(cutName(to, from, net));
    this.flush();
  }
  healAll(): void {
    this.#cuts.clear();
    this.flush();
  }
  /** What waited goes on, where it can. */
  flush(): void {
    for (const line of this.#lines) line.retransmit();
  }
  isCut(from: SimNode, to: SimNode, net: number): boolean {
    if (!to.isUp) return true;
    return this.#cuts.size > 0 && (this.#cuts.has(cutName(from, to, "all")) || this.#cuts.has(cutName(from, to, net)));
  }

  connected(line: SimLine): void {
    this.#lines.add(line);
  }
  ended(line: SimLine): void {
    this.#lines.delete(line);
  }
  /** Lines that are open now, in the order in which they were made. */
  get lines(): readonly SimLine[] {
    return [...this.#lines];
  }
}

const cutName = (from: SimNode, to: SimNode, net: number | "all"): string => `${from.name}>${to.name} ${net}`;
