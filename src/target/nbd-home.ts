/** What the parts of an NBD connection have of their front, and the words for how connections end. */
import type { Pieces } from "#base/memory";
import type { Bytes } from "#base/units";
import type { Extents } from "#device/device";
import type { Env } from "#env/env";
import type { Slot } from "./nbd-slot.ts";
import type { Rounds } from "./rounds.ts";

/** Receive buffers: what an idle connection has, and what one has that has filled it. Classes of `Memory`. */
export const RECEIVE_BYTES_SMALL = 4608;
export const RECEIVE_BYTES_LARGE = 131584;

/** Why a connection ended. It is kept, logged and counted. */
export type EndReason =
  /** The client said goodbye, or the server drained. */
  | "stopped"
  /** The client broke the protocol. */
  | "violated"
  /** A request, a payload or the reading of answers stood still for too long, or nothing at all happened. */
  | "silent"
  /** The client cannot have the export, or cannot have it any longer. */
  | "refused"
  /** The line broke, or the client went without goodbye. */
  | "lost"
  /** Given to the lane that owns the export. */
  | "handed-over";

export interface ConnectionEnd {
  readonly why: EndReason;
  readonly detail: string;
}

/** Whoever holds memory for requests; the front shares it out. */
export interface MemoryUser {
  /** Bytes that its requests hold. */
  held: Bytes;
  /** It waits for its turn at the memory. */
  waiting: boolean;
  /** Its requests hold as much as one connection may: it goes on when some of that is free. */
  overShare: boolean;
  /** There may be memory now. */
  retry(): void;
  /** Gives up the request that waits for memory, with an answer. */
  refuseForMemory(): void;
}

/** What a connection has of its front. */
export interface ConnectionHome {
  readonly env: Env;
  readonly rounds: Rounds;
  takeSlot(): Slot;
  giveSlot(slot: Slot): void;
  takePieces(): Pieces;
  givePieces(pieces: Pieces): void;
  takeExtents(): Extents;
  giveExtents(extents: Extents): void;
  /**
   * Memory for a request, or 0: then `retry` is called when it is this user's turn. With `keepTurn` it stays the first
   * in the queue: for a request that holds memory already while it waits for more.
   */
  admit(user: MemoryUser, bytes: Bytes, keepTurn: boolean): number;
  /** Whether the user may hold `bytes` more; if not, `retry` is called when it may. */
  mayHold(user: MemoryUser, bytes: Bytes): boolean;
  /** Gives back memory of a request. */
  discharge(user: MemoryUser, at: number): void;
  /** A larger receive buffer, or 0. */
  takeLargeBuffer(): number;
  giveLargeBuffer(at: number): void;
  /** Something may have to be watched for standing still. */
  watchTime(): void;
}
