/** What holds one SCP command on the server, from its first byte to the last one of its answer; reused. */
import { BlockOp, type Extents, type OpKind } from "#device/device";
import { Op } from "#wire/scp/codes";

/** Runs in one BLOCK_STATUS answer: it may be shorter than what was asked for. */
export const EXTENTS_MAX = 256;
/** Bytes of one run: length, flags, depth. */
export const EXTENT_BYTES = 16;

export class ScpSlot {
  readonly op: BlockOp;
  /** The buffer, 0 when there is none: room for the answer's header, then data. */
  at = 0;
  dataAt = 0;
  code = 0;
  tag = 0;
  unit = 0;
  lba = 0;
  /** Bytes that the command is about. */
  length = 0;
  /** Bytes of the answer behind the header. */
  replyBytes = 0;
  /** On the clock, when its header had arrived. */
  since = 0;
  extents: Extents | undefined = undefined;

  constructor(done: (slot: ScpSlot) => void) {
    this.op = new BlockOp(() => done(this));
  }
}

export const OP_KIND: Readonly<Record<number, OpKind>> = {
  [Op.READ]: "read",
  [Op.WRITE]: "write",
  [Op.FLUSH]: "flush",
  [Op.TRIM]: "trim",
  [Op.ZERO]: "zero",
  [Op.COMPARE_WRITE]: "compare-write",
  [Op.BLOCK_STATUS]: "status",
  [Op.CACHE]: "cache",
};
