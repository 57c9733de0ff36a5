/** What an NBD client can be told, what it does when it is told nothing, and what it counts. */
import { type Bytes, MIB, type Millis } from "#base/units";

export interface NbdClientOptions {
  /** How many connections if the server promises CAN_MULTI_CONN; otherwise there is one. Default 4. */
  readonly connections?: number;
  /** Requests in flight per connection. Default 64. */
  readonly depth?: number;
  /** For dialling, TLS and the handshake of one connection. Default 10 s. */
  readonly dialMs?: Millis;
  /** How long `open` goes on trying if there is no server yet. Default 0: one attempt. */
  readonly waitMs?: Millis;
  /** How long operations wait without a connection before they are answered "away". Default 30 s. */
  readonly giveUpMs?: Millis;
  /** A connection that says nothing for so long while it owes answers is dropped. Default 30 s. */
  readonly silenceMs?: Millis;
  /**
   * What becomes of writes that a restarted server may have lost. "replay" is for volumes with one writer: with more of
   * them it may put an old write in the place of somebody's newer one. "trust": this server loses nothing when it is
   * restarted, so there is nothing to do.
   */
  readonly unflushed?: "replay" | "fail" | "trust";
  /** Memory for what "replay" keeps; when half of it is used, the client flushes. Default 32 MiB, at least 1 MiB. */
  readonly replayBytes?: Bytes;
  /** Refuse writes, whatever the server allows. */
  readonly readOnly?: boolean;
  /** Ask for reads in one piece where the server can (the flag DF): no holes in replies. */
  readonly unfragmented?: boolean;
}

/** Counted since the client was opened. */
export interface NbdClientFigures {
  readonly connections: number;
  readonly connectionsLost: number;
  /** Requests sent again, because their connection was lost. */
  readonly requestsRepeated: number;
  readonly writesReplayed: number;
  /** Bytes of acknowledged, unflushed writes kept now. */
  readonly keptBytes: Bytes;
}

const CONNECTIONS_DEFAULT = 4;
const CONNECTIONS_MAX = 64;
const DEPTH_DEFAULT = 64;
const DEPTH_MAX = 1024;
const DIAL_MS_DEFAULT = 10_000;
const GIVE_UP_MS_DEFAULT = 30_000;
const SILENCE_MS_DEFAULT = 30_000;
const REPLAY_BYTES_DEFAULT = 32 * MIB;
const REPLAY_BYTES_MIN = MIB;

export type NbdSettings = Required<NbdClientOptions>;

/** The options with their defaults, within their limits. */
export function settled(options: NbdClientOptions): NbdSettings {
  return {
    connections: clamp(options.connections ?? CONNECTIONS_DEFAULT, 1, CONNECTIONS_MAX),
    depth: clamp(options.depth ?? DEPTH_DEFAULT, 1, DEPTH_MAX),
    dialMs: options.dialMs ?? DIAL_MS_DEFAULT,
    waitMs: options.waitMs ?? 0,
    giveUpMs: options.giveUpMs ?? GIVE_UP_MS_DEFAULT,
    silenceMs: options.silenceMs ?? SILENCE_MS_DEFAULT,
    unflushed: options.unflushed ?? "replay",
    replayBytes: Math.max(options.replayBytes ?? REPLAY_BYTES_DEFAULT, REPLAY_BYTES_MIN),
    readOnly: options.readOnly ?? false,
    unfragmented: options.unfragmented ?? false,
  };
}

const clamp = (value: number, least: number, most: number): number =>
  Math.min(Math.max(Math.floor(value), least), most);
