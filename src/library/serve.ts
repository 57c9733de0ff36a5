/** Serves a device of one's own, or any `BlockDevice`, over NBD: `serve(device, { nbd: "127.0.0.1:10809" })`. */
import { Refusal } from "#base/refusal";
import { promiseOf } from "#base/task";
import { type Bytes, MIB } from "#base/units";
import type { BlockDevice } from "#device/device";
import type { Address, Env, Log, Tls } from "#env/env";
import { isNetError } from "#env/env";
import { NodeEnv } from "#env/node/node-env";
import { formatNbdUri } from "#proto/nbd/uri";
import { OpenExportTable } from "#target/exports";
import { NbdFront } from "#target/nbd-front";
import { isExportName } from "#wire/nbd/handshake";
import { UserBlockDevice, type UserDevice } from "./user-device.ts";

export interface ServeOptions {
  /** Where to listen: "ADDRESS:PORT" (port 0 takes a free one), "[IPV6]:PORT" or "unix:PATH". */
  readonly nbd: string;
  /** The export's name. Default "": the one that a client gets who names none. */
  readonly name?: string;
  /** A line about the export for those who list it. */
  readonly description?: string;
  /** Serve it read-only, whatever the device allows. */
  readonly readOnly?: boolean;
  /** Certificates or pre-shared keys, as texts: then TLS is a must. `serverTls` reads them from files. */
  readonly tls?: Omit<Tls, "role">;
  /** Without TLS, only loopback addresses and Unix sockets are listened on; unless this says otherwise. */
  readonly allowInsecure?: boolean;
  /** Memory for requests in flight; pages are touched only when needed. Default 64 MiB. */
  readonly memoryBytes?: Bytes;
  /** Where connections and failures are told. Default: nowhere. */
  readonly log?: Log;
  /** An Env that is shared with others. It is a must for a `BlockDevice`, whose I/O is done in the memory of its Env. */
  readonly env?: Env;
}

export interface Served {
  /** For NBD clients, with the port that was really taken. */
  readonly uri: string;
  readonly address: Address;
  /** Clients connected now. */
  readonly connections: number;
  /** Answers what is in flight, closes all connections, and stops listening. */
  close(): Promise<void>;
}

const MEMORY_BYTES_DEFAULT = 64 * MIB;
const SILENT: Log = { debug: () => {}, info: () => {}, warn: () => {}, error: () => {} };

/** Rejects with a `Refusal` if the address is none, is in use, or would be open to everyone without TLS. */
export async function serve(device: UserDevice | BlockDevice, options: ServeOptions): Promise<Served> {
  const { name = "", log = SILENT } = options;
  const asked = parseAddress(options.nbd);
  if (!isExportName(name)) throw new Refusal("bad-request", `"${name}" cannot be the name of an export`);
  if (options.tls === undefined && options.allowInsecure !== true && "host" in asked && !isLoopback(asked.host))
    throw new Refusal(
      "not-allowed",
      `Everyone who reaches ${asked.host} could read and write the device`,
      "Give `tls`, listen on 127.0.0.1, or say `allowInsecure: true`.",
    );
  const isBlockDevice = "submit" in device;
  if (isBlockDevice && options.env === undefined)
    throw new Refusal("bad-request", "A BlockDevice is served in its own Env", "Give `env`.");
  const own =
    options.env === undefined
      ? new NodeEnv({ memoryBytes: options.memoryBytes ?? MEMORY_BYTES_DEFAULT, log })
      : undefined;
  const env: Env = options.env ?? own!;
  const table = new OpenExportTable();
  table.add(name, isBlockDevice ? device : new UserBlockDevice(device, env.memory, log), {
    ...(options.description !== undefined && { description: options.description }),
    ...(options.readOnly !== undefined && { readOnly: options.readOnly }),
  });
  const front = new NbdFront(env, table, options.tls === undefined ? {} : { tls: "require", identity: options.tls });
  const address = await promiseOf(front.listen(asked));
  if (isNetError(address)) {
    own?.close();
    throw new Refusal(
      address.fault === "in-use" ? "in-use" : "unreachable",
      `Cannot listen on ${options.nbd}: ${address.detail} (${address.fault})`,
      address.fault === "in-use" ? "Is it being served already? Port 0 takes a free one." : undefined,
    );
  }
  let closing: Promise<void> | undefined;
  const uri = "fd" in address ? "" : formatNbdUri(address, name);
  return {
    address,
    uri: options.tls === undefined ? uri : uri.replace(/^nbd/, "nbds"),
    get connections(): number {
      return front.figures.connected;
    },
    close: () => {
      closing ??= new Promise<void>((resolve) => front.drain()(resolve)).then(() => own?.close());
      return closing;
    },
  };
}

function parseAddress(text: string): Exclude<Address, { fd: number }> {
  if (text.startsWith("unix:") && text.length > 5) return { path: text.slice(5) };
  const [, host, port] = /^(\[[0-9a-fA-F:.]+\]|[^:[\]/\s]+):(\d{1,5})$/.exec(text) ?? [];
  if (host === undefined || Number(port) > 65535)
    throw new Refusal(
      "bad-request",
      `"${text}" is not an address`,
      "Examples: 127.0.0.1:10809, [::1]:0, unix:/tmp/nbd",
    );
  return { host: host.replace(/^\[|\]$/g, ""), port: Number(port) };
}

const isLoopback = (host: string): boolean => host === "localhost" || host === "::1" || /^127(\.\d+){3}$/.test(host);
