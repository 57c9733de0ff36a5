/**
 * A host that looks in over NBD, with one operation at a time on a connection of its own: what somebody who cannot
 * register meets when others have reserved the volume.
 */

import { Refusal } from "#base/refusal";
import { perform, start, type Task } from "#base/task";
import { type BlockDevice, BlockOp, type DeviceWatcher } from "#device/device";
import { NbdClient } from "#initiator/nbd-client";
import type { SimProcess } from "../env/sim-process.ts";
import type { World } from "../env/world.ts";
import { conflicts, type PrState } from "../oracle/pr-model.ts";
import { Violation } from "../violation.ts";
import { Host, type Io } from "./host.ts";
import { nameOfUnit, type Shared } from "./iscsi-port.ts";

const PATIENCE_MS = 2000;

export class NbdVisitor {
  readonly #world: World;
  readonly #port: number;
  #process: SimProcess | undefined;
  #isBusy = false;

  constructor(world: World, port: number) {
    this.#world = world;
    this.#port = port;
  }

  get isIdle(): boolean {
    return !this.#isBusy;
  }
  get inFlight(): number {
    return this.#isBusy ? 1 : 0;
  }

  /** The server is dead, and this host is made to die with it: what it had asked for is not asked again. */
  kill(): void {
    this.#process?.crash();
    this.#process = undefined;
    this.#isBusy = false;
  }

  visit(shared: Shared, io: Io): void {
    if (this.#isBusy) return;
    this.#isBusy = true;
    const process = (this.#process ??= this.#world.node("visitor").start());
    const leave = (): void => {
      if (this.#process === process) this.kill();
    };
    start(this.#visit(process, shared, io), leave, (error) => {
      if (!(error instanceof Refusal)) throw error;
      leave();
    });
  }

  *#visit(process: SimProcess, shared: Shared, io: Io): Task<void> {
    const name = nameOfUnit(shared.lun);
    const address = { address: { host: "server", port: this.#port }, exportName: name, tls: undefined };
    const client = yield* NbdClient.open(process, address, {
      connections: 1,
      giveUpMs: PATIENCE_MS,
      waitMs: PATIENCE_MS,
    });
    const { ticks, stamps, history, runs, reservations } = shared;
    const run = { states: new Set<PrState>(reservations.possible) };
    runs.add(run);
    const access = io.kind === "read" || io.kind === "status" ? "read" : "write";
    const host = new Host(process, ticks, stamps, (status) => {
      // After a connection that was lost, it may be the second attempt that was refused.
      if (status === "denied" || status === "unsupported") return "unknown";
      throw new Violation(`${io.kind} over NBD is answered with "${status}" for no reason`);
    });
    const device = new Judge(client, (op) => {
      runs.delete(run);
      if (op.status !== "ok" && op.status !== "denied") return op.status === "unsupported";
      const isConflict = op.status === "denied";
      if (![...run.states].some((state) => conflicts(state, undefined, access) === isConflict))
        throw new Violation(
          `${io.kind} over NBD ${isConflict ? "is refused" : "passes"}; reservations: ${reservations.describe()}`,
        );
      return true;
    });
    const target = { name: `${name} over NBD`, device, history, frozen: undefined };
    const isKnown = yield* perform<boolean>((resume) => {
      device.onLost = () => resume(false);
      if (!host.submit(target, io, () => resume(true))) resume(true);
    });
    // What may still be on its way must not be taken for over: it stays in flight for the history.
    if (isKnown) yield* perform(client.close());
  }
}

/** Lets an answer through when `isTold` says so; anything else means that nobody knows. */
class Judge implements BlockDevice {
  readonly #device: BlockDevice;
  readonly #isTold: (op: BlockOp) => boolean;
  onLost: () => void = () => {};

  constructor(device: BlockDevice, isTold: (op: BlockOp) => boolean) {
    this.#device = device;
    this.#isTold = isTold;
  }
  get size(): number {
    return this.#device.size;
  }
  get blockSize(): number {
    return this.#device.blockSize;
  }
  get preferredBlockSize(): number {
    return this.#device.preferredBlockSize;
  }
  get readOnly(): boolean {
    return this.#device.readOnly;
  }
  get uuid(): string {
    return this.#device.uuid;
  }
  watch(watcher: DeviceWatcher): () => void {
    return this.#device.watch(watcher);
  }
  submit(op: BlockOp): void {
    const inner = new BlockOp(() => {
      op.status = inner.status;
      op.result = inner.result;
      if (this.#isTold(op)) op.done(op);
      else this.onLost();
    });
    inner.kind = op.kind;
    inner.offset = op.offset;
    inner.length = op.length;
    inner.at = op.at;
    inner.fua = op.fua;
    inner.noHole = op.noHole;
    inner.fastOnly = op.fastOnly;
    inner.extents = op.extents;
    this.#device.submit(inner);
  }
}
