/**
 * Shares a lane's memory out among the connections of a front. A request that finds none waits in one queue, first
 * come, first served; while somebody waits nobody overtakes, so that a large request gets its room and a busy
 * connection cannot starve the others. One connection's requests hold at most a share of the memory.
 *
 * Nobody waits for ever: a request that has been first for MEMORY_WAIT_MS without getting anything is answered with an
 * error. It takes that if others than this front hold the memory and do not give it back.
 */
import { type Bytes, MIB, type Millis } from "#base/units";
import { type Env, Soon } from "#env/env";
import type { MemoryUser } from "./nbd-home.ts";

const MEMORY_WAIT_MS = 10_000;
/** What one who waits may take before the next one has its turn: bytes, and requests. */
const TURN_BYTES = MIB;
const TURN_REQUESTS = 64;

export class FairMemory {
  readonly #env: Env;
  readonly #share: Bytes;
  /** In the order of their turns. */
  readonly #waiting: MemoryUser[] = [];
  #waitingSince: Millis = 0;
  /** The one whose turn it is, and what it has been given in it. */
  #serving: MemoryUser | undefined;
  #grants = 0;
  #granted: Bytes = 0;
  readonly #soon = new Soon(() => this.#serve());
  /** Those who may go on, since they hold less again. */
  readonly #lighter: MemoryUser[] = [];
  readonly #lighterSoon = new Soon(() => {
    for (const user of this.#lighter.splice(0)) user.retry();
  });

  /** @param share what the requests of one connection may hold, in bytes. */
  constructor(env: Env, share: Bytes) {
    this.#env = env;
    this.#share = share;
  }

  /** How many wait. */
  get waiting(): number {
    return this.#waiting.length;
  }

  /** See `ConnectionHome.mayHold`. */
  mayHold(user: MemoryUser, bytes: Bytes): boolean {
    if (user.held === 0 || user.held + bytes <= this.#share) return true;
    user.overShare = true;
    return false;
  }

  /** See `ConnectionHome.admit`. */
  admit(user: MemoryUser, bytes: Bytes, keepTurn: boolean): number {
    if (this.#waiting.length > 0 && !(this.#serving === user && (keepTurn || !this.#turnIsOver()))) {
      this.#wait(user, keepTurn);
      return 0;
    }
    if (!keepTurn && !this.mayHold(user, bytes)) return 0;
    const at = this.#env.memory.allocate(bytes);
    if (at === 0) {
      this.#wait(user, keepTurn || (this.#serving === user && this.#grants === 0));
      return 0;
    }
    this.#grants++;
    this.#granted += bytes;
    return at;
  }

  /** Frees what `admit` gave; `user.held` has been lowered already. */
  discharge(user: MemoryUser, at: number): void {
    this.#env.memory.free(at);
    if (!user.overShare || user.held > this.#share / 2) return;
    user.overShare = false;
    this.#lighter.push(user);
    this.#env.turn.soon(this.#lighterSoon);
  }

  /** The user does not wait any more: it has ended. */
  leave(user: MemoryUser): void {
    const index = this.#waiting.indexOf(user);
    if (index >= 0) this.#waiting.splice(index, 1);
  }

  /** Lets the first one in the queue give up if it has waited for too long. */
  checkTime(now: Millis): void {
    if (this.#waiting.length === 0 || now - this.#waitingSince <= MEMORY_WAIT_MS) return;
    this.#waitingSince = now;
    this.#waiting[0]!.refuseForMemory();
    this.#env.turn.soon(this.#soon);
  }

  /** Something was freed in the lane's memory. */
  onMemory(): void {
    this.#env.turn.soon(this.#soon);
  }

  #turnIsOver(): boolean {
    return this.#grants >= TURN_REQUESTS || this.#granted >= TURN_BYTES;
  }

  #wait(user: MemoryUser, first: boolean): void {
    user.waiting = true;
    if (this.#waiting.length === 0) this.#waitingSince = this.#env.clock.now();
    if (first) this.#waiting.unshift(user);
    else this.#waiting.push(user);
    this.#env.memory.whenFreed(this);
  }

  #serve(): void {
    while (this.#waiting.length > 0) {
      const user = this.#waiting.shift()!;
      this.#serving = user;
      this.#grants = this.#granted = 0;
      user.retry();
      this.#serving = undefined;
      if (this.#grants > 0) this.#waitingSince = this.#env.clock.now();
      // The memory is used up: it is this one's turn when there is some again.
      if (this.#grants === 0 && this.#waiting[0] === user) break;
    }
    if (this.#waiting.length > 0) this.#env.memory.whenFreed(this);
  }
}
