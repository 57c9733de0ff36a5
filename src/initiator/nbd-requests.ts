/** Operations as requests: what a server can do at all, how much of it at once, and which flags say it. */
import type { Status } from "#base/status";
import { type Bytes, GIB, MIB, TIB } from "#base/units";
import type { BlockOp, OpKind } from "#device/device";
import type { Env } from "#env/env";
import type { NbdExport } from "#proto/nbd/client-handshake";
import type { NbdSlot } from "#proto/nbd/client-replies";
import { Cmd, CmdFlag, DF_BYTES_MIN, Flag } from "#wire/nbd/codes";
import type { NbdSettings } from "./nbd-options.ts";
import type { NbdPart } from "./nbd-parts.ts";

/** Requests without payload, where a header holds 32 bits of length, and where it holds 64. */
const EFFECT_BYTES_MAX = GIB;
const STATUS_BYTES_MAX_EXTENDED = TIB;
const PAYLOAD_BYTES_MAX = 32 * MIB;

export function changes(kind: OpKind): kind is "write" | "zero" | "trim" {
  return kind === "write" || kind === "zero" || kind === "trim";
}

/** Why this server cannot do `op`, whatever its range; undefined if it can. */
export function lacks({ flags, allocationId, depthId }: NbdExport, op: BlockOp): Status | undefined {
  const has = (flag: number): boolean => (flags & flag) !== 0;
  switch (op.kind) {
    case "trim":
      return has(Flag.SEND_TRIM) ? undefined : "unsupported";
    case "cache":
      return has(Flag.SEND_CACHE) ? undefined : "unsupported";
    case "zero":
      // Without WRITE_ZEROES they are written; but not for who wants it fast.
      return !op.fastOnly || (has(Flag.SEND_FAST_ZERO) && has(Flag.SEND_WRITE_ZEROES)) ? undefined : "unsupported";
    case "status":
      if (op.extents === undefined || op.extents.countMax < 1) return "invalid";
      return allocationId !== undefined || depthId !== undefined ? undefined : "unsupported";
    case "compare-write":
      return "unsupported";
    default:
      return undefined;
  }
}

/** The most that one request of a kind may cover, in bytes. */
export function limitOf(kind: OpKind, { blockSizes, replyStyle }: NbdExport, { replayBytes }: NbdSettings): Bytes {
  const { maximumPayload, minimum } = blockSizes;
  const payload = Math.min(maximumPayload, PAYLOAD_BYTES_MAX);
  if (kind === "read" || kind === "cache") return payload;
  // A quarter of the budget: one write must never wait for its own room.
  const quarter = replayBytes / 4;
  if (kind === "write") return Math.min(payload, Math.max(minimum, quarter - (quarter % minimum)));
  return kind === "status" && replyStyle === "extended" ? STATUS_BYTES_MAX_EXTENDED : EFFECT_BYTES_MAX;
}

/** Writes a part as the request of a slot. */
export function fillRequest(slot: NbdSlot, part: NbdPart, { flags }: NbdExport, settings: NbdSettings): void {
  const { request } = slot;
  request.setOffset(part.offset);
  request.length = part.length;
  request.flags = part.fua && (flags & Flag.SEND_FUA) !== 0 ? CmdFlag.FUA : 0;
  slot.at = part.at;
  switch (part.kind) {
    case "read":
      request.type = Cmd.READ;
      if (settings.unfragmented && (flags & Flag.SEND_DF) !== 0 && part.length <= DF_BYTES_MIN)
        request.flags |= CmdFlag.DF;
      break;
    case "write":
      request.type = Cmd.WRITE;
      break;
    case "trim":
      request.type = Cmd.TRIM;
      break;
    case "zero":
      request.type = Cmd.WRITE_ZEROES;
      if (part.noHole) request.flags |= CmdFlag.NO_HOLE;
      if (part.job?.op.fastOnly) request.flags |= CmdFlag.FAST_ZERO;
      break;
    case "cache":
      request.type = Cmd.CACHE;
      break;
    case "status": {
      const { countMax } = part.job!.op.extents!;
      request.type = Cmd.BLOCK_STATUS;
      if (countMax === 1) request.flags |= CmdFlag.REQ_ONE;
      slot.descriptorsMax = countMax;
      break;
    }
    default:
      request.type = Cmd.FLUSH;
  }
}

/** The same 128 bits for the same address and export: NBD has no names that last. */
export function uuidOf(env: Env, text: string): string {
  const bytes = new TextEncoder().encode(text);
  const at = env.memory.allocate(bytes.length + 1);
  if (at === 0) return "0".repeat(32);
  env.memory.bytes.set(bytes, at + 1);
  let uuid = "";
  for (let salt = 0; salt < 4; salt++) {
    env.memory.bytes[at] = salt;
    uuid += env.memory
      .hash(at, bytes.length + 1)
      .toString(16)
      .padStart(8, "0");
  }
  env.memory.free(at);
  return uuid;
}
