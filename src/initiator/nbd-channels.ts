/**
 * The connections of one client: dials them, and dials again after a growing pause when one is lost. It knows nothing
 * of requests; what it has joined it hands to its owner, who hands it back when it is lost.
 */
import { start } from "#base/task";
import type { Millis } from "#base/units";
import type { Alarm, Env } from "#env/env";
import { joinExport, type NbdExport } from "#proto/nbd/client-handshake";
import { type DialFailure, dialNbd, isDialFailure, type Joined, type NbdTarget } from "./nbd-dial.ts";

const BACKOFF_MS = 50;
const BACKOFF_MS_MAX = 5_000;

export interface ChannelsOwner {
  /** A connection has joined the export. */
  onJoined(channel: number, joined: Joined<NbdExport>): void;
  /** An attempt has failed; the next one follows by itself. */
  onFailed(channel: number, failure: DialFailure): void;
}

interface Channel {
  state: "idle" | "waiting" | "dialling" | "joined";
  failures: number;
  readonly alarm: Alarm;
}

export class NbdChannels {
  readonly #env: Env;
  readonly #target: NbdTarget;
  readonly #dialMs: Millis;
  readonly #owner: ChannelsOwner;
  readonly #channels: Channel[] = [];
  #stopped = false;

  constructor(env: Env, target: NbdTarget, count: number, dialMs: Millis, owner: ChannelsOwner) {
    this.#env = env;
    this.#target = target;
    this.#dialMs = dialMs;
    this.#owner = owner;
    for (let index = 0; index < count; index++)
      this.#channels.push({ state: "idle", failures: 0, alarm: env.clock.alarm(() => this.#dial(index)) });
  }

  get count(): number {
    return this.#channels.length;
  }
  /** No attempt is under way. */
  get isQuiet(): boolean {
    return this.#channels.every(({ state }) => state !== "dialling");
  }

  /** Dials the first `count` channels that are idle, at once. */
  open(count: number): void {
    for (let index = 0; index < count; index++) if (this.#channels[index]!.state === "idle") this.#dial(index);
  }

  /** The channel has been joined by other means. */
  adopt(index: number): void {
    this.#channels[index]!.state = "joined";
  }

  /** The channel's connection is lost: it is dialled again. */
  reopen(index: number): void {
    const channel = this.#channels[index]!;
    if (this.#stopped) {
      channel.state = "idle";
      return;
    }
    channel.state = "waiting";
    const pause = Math.min(BACKOFF_MS * 2 ** channel.failures, BACKOFF_MS_MAX);
    // Between half and all of it: clients of one server that came down together do not come back together.
    const spread = this.#env.random.below(Math.ceil(pause / 2) + 1);
    channel.alarm.at = this.#env.clock.now() + pause - spread;
  }

  /** Gives the channel up: the server takes only one connection, or the client is closing. */
  rest(index: number): void {
    const channel = this.#channels[index]!;
    channel.state = "idle";
    channel.alarm.at = Infinity;
  }

  /** Proof that the server is well: the next loss is followed by a short pause again. */
  proven(index: number): void {
    this.#channels[index]!.failures = 0;
  }

  /** No more dialling. An attempt that is under way ends by itself, and `onFailed` or `onJoined` is still told. */
  stop(): void {
    this.#stopped = true;
    for (const channel of this.#channels) {
      channel.alarm.at = Infinity;
      if (channel.state === "waiting") channel.state = "idle";
    }
  }

  #dial(index: number): void {
    if (this.#stopped) return;
    const channel = this.#channels[index]!;
    channel.state = "dialling";
    const { exportName, tls } = this.#target;
    start(
      dialNbd<NbdExport>(this.#env, this.#target, this.#dialMs, (send) =>
        joinExport({ exportName, tls: tls !== undefined }, send),
      ),
      (outcome) => {
        // Counted as a failure until something has been answered: a server that lets everyone in and then drops them
        // is not to be dialled as fast as it can.
        channel.failures++;
        if (isDialFailure(outcome)) {
          this.reopen(index);
          this.#owner.onFailed(index, outcome);
        } else {
          channel.state = "joined";
          this.#owner.onJoined(index, outcome);
        }
      },
      (bug) => {
        throw bug;
      },
    );
  }
}
