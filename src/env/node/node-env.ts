/** The Env of Node's own library: runs everywhere, and is the reference for the others. */
import { Memory } from "#base/memory";
import type { Bytes } from "#base/units";
import type { Env, Log } from "../env.ts";
import type { Remains } from "../uring/remains.ts";
import { NodeClock } from "./node-clock.ts";
import { NodeDisk } from "./node-disk.ts";
import { NodeNet } from "./node-net.ts";
import { NodeRandom } from "./node-random.ts";
import { NodeTurn } from "./node-turn.ts";

export interface RealEnvOptions {
  /** The data plane's memory of this Env. */
  readonly memoryBytes: Bytes;
  /** Beside it, for blocks that were read lately (0). */
  readonly cacheBytes?: Bytes;
  readonly log: Log;
  /** Where an Env that goes past Node lists what it has open, for whoever survives its thread. */
  readonly remains?: Remains | undefined;
}

export class NodeEnv implements Env {
  readonly kind = "node";
  readonly clock = new NodeClock();
  readonly random = new NodeRandom();
  readonly memory: Memory;
  readonly turn = new NodeTurn();
  readonly net: NodeNet;
  readonly disk: NodeDisk;
  readonly log: Log;

  constructor(options: RealEnvOptions) {
    this.memory = new Memory(options.memoryBytes, options.cacheBytes);
    this.log = options.log;
    this.net = new NodeNet(this.memory);
    this.disk = new NodeDisk(this.memory);
  }

  /** What was opened on it must have been closed. */
  close(): void {}
}
