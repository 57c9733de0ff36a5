/**
 * Finds the zeroes in a range that is about to be read, so that they need neither reading nor sending. It asks the
 * device for block status and uses the answer if it comes at once, as it does from a map in memory; a device that
 * takes its time is not asked again.
 */
import { canary } from "#base/canary";
import type { Bytes } from "#base/units";
import { type BlockDevice, BlockOp, ExtentFlag, Extents } from "#device/device";
import { PART_BYTES } from "./nbd-slot.ts";

/** Shorter holes are sent as data: a chunk of its own costs more than it saves. Bytes. */
const HOLE_BYTES_MIN = 32 * 1024;
const EXTENTS_ASKED = 32;

export class HoleFinder {
  readonly #device: BlockDevice;
  readonly #op: BlockOp;
  readonly #extents = new Extents(EXTENTS_ASKED);
  #asking = false;
  /** The device has answered late once. */
  #slow = false;
  /** The answer covers bytes from here on; it is good for one request only, since others may write. */
  readonly #run = { length: 0, hole: false };

  constructor(device: BlockDevice) {
    this.#device = device;
    this.#op = new BlockOp(() => {
      this.#asking = false;
    });
    this.#op.kind = "status";
    this.#op.extents = this.#extents;
  }

  /**
   * What to do next of the range from `position` to `end`: a hole of any length, or data of at most PART_BYTES. The
   * object returned is the same one every time.
   */
  next(position: Bytes, end: Bytes): { readonly length: Bytes; readonly hole: boolean } {
    const run = this.#run;
    run.hole = false;
    run.length = Math.min(end - position, PART_BYTES);
    if (this.#slow || !this.#ask(position, end)) return run;
    // Short holes between data are taken along with it.
    const { extents } = this.#op;
    let at = 0;
    for (let index = 0; index < extents!.count; index++) {
      const length = Math.min(extents!.length[index]!, end - position - at);
      const zero = (extents!.flags[index]! & ExtentFlag.ZERO) !== 0 || canary.armed === "nbd-hole-over-data";
      if (zero && (length >= HOLE_BYTES_MIN || at + length === end - position)) {
        if (at > 0) {
          run.length = Math.min(at, PART_BYTES);
        } else {
          run.hole = true;
          // NBD_REPLY_TYPE_OFFSET_HOLE has 32 bits for the length; requests are shorter than that.
          run.length = length;
        }
        return run;
      }
      at += length;
      if (at >= PART_BYTES) break;
    }
    return run;
  }

  #ask(position: Bytes, end: Bytes): boolean {
    const op = this.#op;
    op.offset = position;
    op.length = end - position;
    this.#asking = true;
    this.#device.submit(op);
    if (this.#asking) this.#slow = true;
    return !this.#asking && op.status === "ok" && this.#extents.count > 0;
  }
}
