/** Where data is in a file or a device, in order; everything else is zeroes. Two numbers per run, however many. */
import { open } from "node:fs/promises";
import { Refusal } from "#base/refusal";
import type { Bytes } from "#base/units";
import { seekFor } from "#env/libc";
import type { DeviceHandle } from "./handle.ts";

export class Runs {
  count = 0;
  /** Bytes in all runs. */
  total: Bytes = 0;
  #offsets = new Float64Array(64);
  #lengths = new Float64Array(64);

  /** Adds a run behind all others; one that continues the last run makes that longer. */
  add(offset: Bytes, length: Bytes): void {
    this.total += length;
    const last = this.count - 1;
    if (last >= 0 && this.#offsets[last]! + this.#lengths[last]! === offset) {
      this.#lengths[last]! += length;
      return;
    }
    if (this.count === this.#offsets.length) {
      this.#offsets = grown(this.#offsets);
      this.#lengths = grown(this.#lengths);
    }
    this.#offsets[this.count] = offset;
    this.#lengths[this.count++] = length;
  }

  /** Data and, if asked for, what lies between, cut into pieces of at most `most` bytes; up to `size`. */
  *pieces(most: Bytes, size: Bytes, withGaps: boolean): Generator<Piece> {
    let position = 0;
    for (let index = 0; index <= this.count; index++) {
      const start = index < this.count ? this.#offsets[index]! : size;
      if (withGaps && start > position) yield { offset: position, length: start - position, isData: false };
      if (index === this.count) return;
      position = start + this.#lengths[index]!;
      for (let offset = start; offset < position; ) {
        // Pieces end at multiples of their size: what writes them writes whole blocks.
        const length = Math.min(position, offset - (offset % most) + most) - offset;
        yield { offset, length, isData: true };
        offset += length;
      }
    }
  }
}

export interface Piece {
  readonly offset: Bytes;
  readonly length: Bytes;
  readonly isData: boolean;
}

function grown(from: Float64Array<ArrayBuffer>): Float64Array<ArrayBuffer> {
  const to = new Float64Array(from.length * 2);
  to.set(from);
  return to;
}

/** Where a file has data, by SEEK_DATA and SEEK_HOLE; all of it where the file system cannot tell. */
export function runsOfFile(fd: number, size: Bytes): Runs {
  const runs = new Runs();
  for (let position = 0; position < size; ) {
    const data = seekFor(fd, "DATA", position);
    if (data === -1) break;
    const hole = data === "unsupported" ? data : seekFor(fd, "HOLE", data);
    if (data === "unsupported" || hole === "unsupported") {
      runs.add(position, size - position);
      break;
    }
    const end = Math.min(hole === -1 ? size : hole, size);
    if (end <= data) break;
    runs.add(data, end - data);
    position = end;
  }
  return runs;
}

/** Where a device has something other than zeroes. */
export async function runsOfDevice(device: DeviceHandle, step: Bytes): Promise<Runs> {
  const runs = new Runs();
  for (let offset = 0; offset < device.size; offset += step)
    for (const extent of await device.status(offset, Math.min(step, device.size - offset)))
      if (!extent.zero) runs.add(extent.offset, extent.length);
  return runs;
}

/** Bytes of an image file or block device; undefined for a pipe. Throws a `Refusal` if it is neither or is not there. */
export async function sizeOfFile(path: string): Promise<Bytes | undefined> {
  let file: Awaited<ReturnType<typeof open>>;
  try {
    file = await open(path, "r");
  } catch (error) {
    throw fileRefusal(error, path, "read");
  }
  try {
    const facts = await file.stat();
    if (facts.isFile()) return facts.size;
    if (facts.isFIFO() || facts.isCharacterDevice() || facts.isSocket()) return undefined;
    if (!facts.isBlockDevice()) throw new Refusal("bad-request", `${path} is a directory`, "Name an image file.");
    const end = seekFor(file.fd, "END", 0);
    if (typeof end === "number") return end;
    throw new Refusal("unsupported", `The size of ${path} cannot be found out`);
  } finally {
    await file.close();
  }
}

/** A fault of the file system as a refusal that names the file. */
export function fileRefusal(error: unknown, path: string, doing: string): Refusal {
  if (error instanceof Refusal) return error;
  const { code, message } = error as NodeJS.ErrnoException;
  const tell = `${path} cannot be ${doing === "read" ? "read" : "written"}`;
  if (code === "ENOENT") return new Refusal("not-found", `There is no ${path}`);
  if (code === "EACCES" || code === "EPERM" || code === "EROFS")
    return new Refusal("not-allowed", `${tell}: ${message}`);
  if (code === "ENOSPC" || code === "EDQUOT") return new Refusal("full", `${tell}: the file system is full`);
  if (code === "EFBIG") return new Refusal("full", `${tell}: the file system takes no file of this size`);
  if (code === "EEXIST") return new Refusal("exists", `${path} exists already`);
  if (code === "EISDIR") return new Refusal("bad-request", `${path} is a directory`, "Name an image file.");
  return new Refusal("storage-failed", `${tell}: ${message}`);
}
