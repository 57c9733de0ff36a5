/** The few calls of the C library that Node lacks, through koffi; without koffi (other systems) they are unsupported. */
import { createRequire } from "node:module";
import { getSystemErrorName } from "node:util";
import type { Bytes } from "#base/units";
import type { DiskFault } from "./env.ts";
import { diskFault } from "./faults.ts";

/** fallocate(2), FALLOC_FL_*. */
export const FallocateMode = {
  ALLOCATE: 0,
  /** FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE */
  PUNCH: 3,
} as const;

type Koffi = typeof import("koffi");

let found: Koffi | { missing: string } | undefined;

/** koffi, or why there is none. */
export function koffi(): Koffi | { readonly missing: string } {
  if (found === undefined)
    try {
      found = createRequire(import.meta.url)("koffi") as Koffi;
    } catch (error) {
      found = { missing: `koffi cannot be loaded: ${error instanceof Error ? error.message : error}` };
    }
  return found;
}

let call: ((fd: number, mode: number, position: number, length: number) => number) | undefined;

/**
 * Synchronous: allocating or freeing extents is a matter of the file system's metadata. The Env `uring` does it in the
 * ring instead.
 */
export function fallocate(fd: number, mode: number, position: Bytes, length: Bytes): DiskFault | undefined {
  const native = koffi();
  if ("missing" in native || process.platform !== "linux") return "unsupported";
  call ??= native.load("libc.so.6").func("int fallocate(int, int, int64_t, int64_t)");
  if (call!(fd, mode, position, length) === 0) return undefined;
  return diskFault(getSystemErrorName(-native.errno()));
}

/** lseek(2), SEEK_*. */
const SeekTo = { END: 2, DATA: 3, HOLE: 4 } as const;
let seek: ((fd: number, position: number, whence: number) => number) | undefined;

/**
 * lseek(2) for what Node's positions cannot ask: where the next data or hole begins, or how long a device is. -1 when
 * there is none up to the end; "unsupported" when the file system cannot tell. It moves the descriptor's own position.
 */
export function seekFor(fd: number, what: keyof typeof SeekTo, from: Bytes): Bytes | "unsupported" {
  const native = koffi();
  if ("missing" in native || process.platform !== "linux") return "unsupported";
  seek ??= native.load("libc.so.6").func("int64_t lseek(int, int64_t, int)");
  const found = Number(seek!(fd, from, SeekTo[what]));
  if (found >= 0) return found;
  return getSystemErrorName(-native.errno()) === "ENXIO" ? -1 : "unsupported";
}
