/** The path of a socket in the data directory that fits into an address: a long one goes through `/proc/self/fd`. */
import { closeSync, openSync } from "node:fs";
import { join, resolve } from "node:path";

/** Linux: `sun_path` holds 108 bytes with the zero that ends it. */
const SOCKET_PATH_BYTES_MAX = 107;

/** `close` gives back what the path stands on, once connected. */
export function socketPath(directory: string, name = "ashlar.sock"): { path: string; close: () => void } {
  const path = join(resolve(directory), name);
  if (Buffer.byteLength(path) <= SOCKET_PATH_BYTES_MAX) return { path, close: () => {} };
  let handle: number;
  try {
    handle = openSync(resolve(directory), "r");
  } catch {
    return { path, close: () => {} };
  }
  return { path: `/proc/self/fd/${handle}/${name}`, close: () => closeSync(handle) };
}
