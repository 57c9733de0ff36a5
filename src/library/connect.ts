/** Opens a remote device by its URI: `connect("nbd://…")`. */
import { promiseOf } from "#base/task";
import { type Bytes, MIB } from "#base/units";
import type { Env, Log, Tls } from "#env/env";
import { NodeEnv } from "#env/node/node-env";
import { NbdClient } from "#initiator/nbd-client";
import { dialNbd, isDialFailure } from "#initiator/nbd-dial";
import type { NbdClientFigures, NbdClientOptions } from "#initiator/nbd-options";
import { refusalOf } from "#initiator/nbd-refusals";
import { listExports } from "#proto/nbd/client-handshake";
import { parseNbdUri } from "#proto/nbd/uri";
import { Flag } from "#wire/nbd/codes";
import type { ServerReply } from "#wire/nbd/handshake";
import { DeviceHandle } from "./handle.ts";
import { clientTls } from "./tls-files.ts";

export interface ConnectOptions extends NbdClientOptions {
  /** TLS material, instead of what the URI names files for. The URI's scheme must be `nbds` or `nbds+unix`. */
  readonly tls?: Omit<Tls, "role">;
  /** Memory for everything in flight and kept. Pages are touched only when needed. Default 128 MiB. */
  readonly memoryBytes?: Bytes;
  /** Where losses of connections and the like are told. Default: nowhere. */
  readonly log?: Log;
  /** An Env that is shared with others, instead of one of its own. It stays open. */
  readonly env?: Env;
}

const MEMORY_BYTES_DEFAULT = 128 * MIB;
const LIST_MS = 10_000;
const SILENT: Log = { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} };

/** What the server can do for this export. */
export interface RemoteFeatures {
  readonly flush: boolean;
  readonly fua: boolean;
  readonly trim: boolean;
  readonly zero: boolean;
  readonly fastZero: boolean;
  readonly cache: boolean;
  readonly multiConn: boolean;
  readonly rotational: boolean;
  /** Block status tells data from holes and zeroes. */
  readonly status: boolean;
  /** Block status tells which version of the set an extent comes from. */
  readonly depth: boolean;
  readonly replies: "simple" | "structured" | "extended";
  readonly tls: boolean;
}

/** A device on another machine, or in another process. */
export class RemoteHandle extends DeviceHandle {
  readonly uri: string;
  readonly #client: NbdClient;
  readonly #isTls: boolean;

  constructor(uri: string, client: NbdClient, env: Env, isTls: boolean, close: () => void) {
    const end = (): Promise<void> =>
      new Promise((resolve) =>
        client.close()(() => {
          close();
          resolve();
        }),
      );
    super(client, env.memory, end, client.grainBytes);
    this.uri = uri;
    this.#client = client;
    this.#isTls = isTls;
  }

  /** A line about the export that the server may tell. */
  get description(): string {
    return this.#client.export.description;
  }

  get features(): RemoteFeatures {
    const { flags, allocationId, depthId, replyStyle } = this.#client.export;
    const has = (flag: number): boolean => (flags & flag) !== 0;
    return {
      flush: has(Flag.SEND_FLUSH),
      fua: has(Flag.SEND_FUA),
      trim: has(Flag.SEND_TRIM),
      zero: has(Flag.SEND_WRITE_ZEROES),
      fastZero: has(Flag.SEND_FAST_ZERO),
      cache: has(Flag.SEND_CACHE),
      multiConn: has(Flag.CAN_MULTI_CONN),
      rotational: has(Flag.ROTATIONAL),
      status: allocationId !== undefined,
      depth: depthId !== undefined,
      replies: replyStyle,
      tls: this.#isTls,
    };
  }

  /** What has happened on the connections since the device was opened. */
  get figures(): NbdClientFigures {
    return this.#client.figures;
  }
}

/**
 * Opens the export that an NBD URI names. Rejects with a `Refusal`: "bad-request" for a URI that is none, "unreachable",
 * "timeout", "not-found" for an unknown export, "not-allowed" where TLS or the server's policy stands in the way.
 */
export async function connect(uri: string, options: ConnectOptions = {}): Promise<RemoteHandle> {
  const { target, env, done } = await reach(uri, options);
  try {
    const client = await promiseOf(NbdClient.open(env, target, options));
    return new RemoteHandle(uri, client, env, target.tls !== undefined, done);
  } catch (error) {
    done();
    throw error;
  }
}

/** The exports of the server that the URI names; what it says about an export does not matter. */
export async function list(
  uri: string,
  options: Pick<ConnectOptions, "tls" | "env" | "dialMs"> = {},
): Promise<{ name: string; description: string }[]> {
  const { target, env, done } = await reach(uri, { memoryBytes: 4 * MIB, ...options });
  try {
    const outcome = await promiseOf(
      dialNbd<ServerReply[]>(env, target, options.dialMs ?? LIST_MS, (send) =>
        listExports({ tls: target.tls !== undefined }, send),
      ),
    );
    if (isDialFailure(outcome)) throw refusalOf(target, outcome);
    await new Promise<void>((resolve) => {
      outcome.line.ear = { onReceived: () => {}, onSent: () => {}, onClosed: () => resolve() };
      outcome.line.close();
    });
    env.memory.free(outcome.window);
    return [...outcome.result];
  } finally {
    done();
  }
}

async function reach(uri: string, options: ConnectOptions) {
  const { address, exportName, tls: wish } = parseNbdUri(uri);
  const tls: Tls | undefined =
    wish === undefined
      ? undefined
      : options.tls !== undefined
        ? { role: "client", ...(wish.hostname !== undefined && { serverName: wish.hostname }), ...options.tls }
        : await clientTls(wish);
  const own =
    options.env === undefined
      ? new NodeEnv({ memoryBytes: options.memoryBytes ?? MEMORY_BYTES_DEFAULT, log: options.log ?? SILENT })
      : undefined;
  const env: Env = options.env ?? own!;
  return { target: { address, exportName, tls }, env, done: () => own?.close() };
}
