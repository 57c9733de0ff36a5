/** A host's operation and the pieces it was cut into. Both are pooled by the host that owns them. */
import type { Status } from "#base/status";
import type { Bytes, Millis } from "#base/units";
import type { BlockOp } from "#device/device";
import { Op } from "#wire/scp/codes";
import type { ScpAgent } from "./scp-agent.ts";
import type { Replay } from "./scp-replay.ts";
import type { ScpUnit } from "./scp-unit.ts";

/** One operation of an application: it is done when the last of its pieces is. */
export class ScpWork {
  op!: BlockOp;
  device!: ScpUnit;
  left = 0;
  status: Status = "ok";
  result = 0;
}

/** What travels as one command over one socket, from one attempt to the next. */
export class ScpPiece {
  work!: ScpWork;
  /** `Op` of the wire. */
  code = 0;
  flags = 0;
  unit = 0;
  offset: Bytes = 0;
  length: Bytes = 0;
  /** Where its data is or goes; 0 without. */
  at = 0;
  /** Bytes that leave with the request, and that come with an answer. */
  outBytes = 0;
  inBytes = 0;
  attempts = 0;
  /** Since when it is under way in the host; for giving up. */
  since: Millis = 0;
  /** Not to be tried again before this. */
  notBefore: Millis = 0;
  agent: ScpAgent | undefined = undefined;
  /** It repeats what a restarted server has forgotten, and goes before all others: as part of this. */
  replay: Replay | undefined = undefined;
  /** Nobody knows whether it was done, and it cannot be repeated: a flush now, it fails when that has been answered. */
  isDoomed = false;
  /** Of a flush: what had been acknowledged when it was sent. */
  mark = 0;
  /** Goes up with every use of this object: what comes for an earlier one is recognised. */
  turn = 0;
}

/** Whether a command that may have been done, or may yet be, must not be repeated before it has been fenced. */
export const changes = ({ code }: ScpPiece): boolean =>
  code === Op.WRITE || code === Op.ZERO || code === Op.TRIM || code === Op.COMPARE_WRITE;
