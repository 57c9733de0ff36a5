/** What a lane asks of a front: to listen, to say who is connected, to stop. One maker per front, in `fronts.ts`. */
import type { Effect, Task } from "#base/task";
import type { Meter } from "#device/meter";
import type { Address, Env, Line } from "#env/env";
import type { ReservationBook } from "#scsi/reservation-store";
import type { ProtectionTable } from "#target/protection";
import type { LaneDirectory } from "./directory.ts";
import type { ConnectionFacts, FrontStart, PoolFacts } from "./messages.ts";

export interface FrontContext {
  readonly env: Env;
  readonly table: ProtectionTable;
  readonly directory: LaneDirectory;
  readonly book: ReservationBook;
  /** Gives a quiet line away to another lane, with what that lane's front of the same name needs to go on with it. */
  readonly handOver: ((line: Line, lane: number, state: unknown) => void) | undefined;
}

export interface Front {
  /** Listens at one more address. @throws Refusal in-use, not-allowed, bad-request */
  listen(address: Address): Task<Address>;
  /** Goes on with a line that another lane has given away. */
  resume(line: Line, state: unknown): void;
  connections(): ConnectionFacts[];
  /** What the front can tell of itself, as plain data of its own shape. */
  facts?(): unknown;
  /** How much space there is for thin volumes, whenever it was looked at. */
  space?(now: PoolFacts): void;
  /** Ends a session by its number. False when there is none. */
  endSession?(session: number): boolean;
  /** By the name of the volume or snapshot. */
  meters(): ReadonlyMap<string, Meter>;
  /** Accepts no more, lets what is in flight finish, closes every connection; answers when the last one is closed. */
  drain(): Effect<void>;
}

export type FrontMaker = (context: FrontContext, start: FrontStart) => Front;
