/**
 * Watches the device behind a server: which write of which command reaches it, and when. So it is noticed when a command
 * is done twice, when one that was given up is done all the same, and when ORDERED commands are overtaken.
 */

import { type BlockDevice, BlockOp, type DeviceWatcher } from "#device/device";
import type { SimProcess } from "../env/sim-process.ts";
import { Violation } from "../violation.ts";
import type { CommandAttribute } from "./iscsi-initiator.ts";

/** A write command, as its initiator has sent it. */
interface Sent {
  readonly stamp: number;
  /** Initiator and session, in one word. */
  readonly session: string;
  readonly cmdSn: number;
  readonly attribute: CommandAttribute;
  /** Nothing of it may happen any more. */
  isOver: boolean;
  running: number;
  readonly places: Set<number>;
}

export class WriteLedger {
  readonly #sent = new Map<number, Sent>();
  /** By session: commands whose writes have reached the device, in that order. */
  readonly #reached = new Map<string, Sent[]>();

  /** A command leaves, perhaps for another time: it was told to come again. */
  sent(stamp: number, session: string, cmdSn: number, attribute: CommandAttribute): void {
    const before = this.#sent.get(stamp);
    if (before !== undefined && before.places.size > 0)
      throw new Violation(`write ${stamp} was told to come again, and has been done`);
    this.#sent.set(stamp, { stamp, session, cmdSn, attribute, isOver: false, running: 0, places: new Set() });
  }

  /** The target has said that the command is over, or the session is. */
  over(stamp: number, why: string): void {
    const sent = this.#sent.get(stamp);
    if (sent === undefined) return;
    sent.isOver = true;
    if (sent.running > 0) throw new Violation(`write ${stamp} still runs after ${why}`);
  }

  /** The server has died. */
  restart(): void {
    this.#sent.clear();
    this.#reached.clear();
  }

  reached(stamp: number, offset: number): Sent | undefined {
    const sent = this.#sent.get(stamp);
    if (sent === undefined) return undefined;
    if (sent.isOver) throw new Violation(`write ${stamp} reaches the device, and was over before`);
    if (sent.places.has(offset)) throw new Violation(`write ${stamp} is done twice`);
    const others = this.#reached.get(sent.session) ?? [];
    if (sent.places.size === 0) {
      for (const other of others) this.#judgeOrder(sent, other);
      others.push(sent);
      this.#reached.set(sent.session, others);
    }
    sent.places.add(offset);
    sent.running++;
    return sent;
  }

  /** SAM-5 §8.6: an ORDERED command waits for all before it, and all after it wait for it. */
  #judgeOrder(sent: Sent, before: Sent): void {
    if (sent.attribute === "head-of-queue" || before.attribute === "head-of-queue") return;
    if (sent.attribute !== "ordered" && before.attribute !== "ordered") return;
    const names = `${before.attribute} command ${before.cmdSn} and ${sent.attribute} command ${sent.cmdSn}`;
    if (((before.cmdSn - sent.cmdSn) | 0) > 0) throw new Violation(`${names} are done in the wrong order`);
    if (before.running > 0) throw new Violation(`${names} run at the same time`);
  }
}

/** A device that tells the ledger of its writes. */
export class WatchedDevice implements BlockDevice {
  readonly #device: BlockDevice;
  readonly #process: SimProcess;
  readonly #ledger: WriteLedger;

  constructor(device: BlockDevice, process: SimProcess, ledger: WriteLedger) {
    this.#device = device;
    this.#process = process;
    this.#ledger = ledger;
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
  get atomicWriteBytes(): number {
    return this.#device.atomicWriteBytes ?? 0;
  }
  get uuid(): string {
    return this.#device.uuid;
  }
  watch(watcher: DeviceWatcher): () => void {
    return this.#device.watch(watcher);
  }

  submit(op: BlockOp): void {
    if (op.kind !== "write") return this.#device.submit(op);
    const sent = this.#ledger.reached(this.#process.memory.view.getInt32(op.at, true), op.offset);
    const inner = new BlockOp(() => {
      if (sent !== undefined) sent.running--;
      op.status = inner.status;
      op.result = inner.result;
      op.done(op);
    });
    inner.kind = op.kind;
    inner.offset = op.offset;
    inner.length = op.length;
    inner.at = op.at;
    inner.fua = op.fua;
    this.#device.submit(inner);
  }
}
