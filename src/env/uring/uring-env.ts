/** The Env of Linux's io_uring: sockets and files in one ring, one system call per turn. */
import { Memory } from "#base/memory";
import type { Env, Log } from "../env.ts";
import { NodeClock } from "../node/node-clock.ts";
import type { RealEnvOptions } from "../node/node-env.ts";
import { NodeRandom } from "../node/node-random.ts";
import { UringCore } from "./core.ts";
import { Remains } from "./remains.ts";
import { UringDisk } from "./uring-disk.ts";
import { UringNet } from "./uring-net.ts";
import type { UringTurn } from "./uring-turn.ts";

export class UringEnv implements Env {
  readonly kind = "uring";
  readonly clock = new NodeClock();
  readonly random = new NodeRandom();
  readonly memory: Memory;
  readonly turn: UringTurn;
  readonly net: UringNet;
  readonly disk: UringDisk;
  readonly log: Log;
  readonly #core: UringCore;

  /** @throws Error where io_uring is not to be had; ask `chooseEnv` first. */
  constructor(options: RealEnvOptions) {
    this.memory = new Memory(options.memoryBytes, options.cacheBytes);
    this.log = options.log;
    this.#core = new UringCore(this.memory, options.remains ?? new Remains());
    this.turn = this.#core.turn;
    this.net = new UringNet(this.#core, this.clock);
    this.disk = new UringDisk(this.#core);
  }

  /** What the ring has counted as lost; anything but 0 is a bug of ours. */
  get lost(): number {
    return this.#core.ring.lost;
  }

  /** Calls of `io_uring_enter` so far. A lane that sleeps makes none. */
  get enters(): number {
    return this.#core.ring.enters;
  }

  /** Ends what is still in flight, waits for the kernel to let go of the memory, and tells nobody. */
  close(): void {
    this.#core.close();
  }
}
