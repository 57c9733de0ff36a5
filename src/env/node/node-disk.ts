/**
 * Files by node:fs: directly while the page cache answers at once (a read of 4 KiB is 3 µs then, 20 µs by a thread), by its
 * threads otherwise. A short read or write is continued until it is whole.
 */
import * as fs from "node:fs";
import type { Memory, Pieces } from "#base/memory";
import type { Disk, DiskOp } from "../env.ts";
import { codeOf, diskFault } from "../faults.ts";
import { Promptness, READ_SLOW_MS, WRITE_SLOW_MS } from "../promptness.ts";
import { fdOf, NodeFiles } from "./node-files.ts";

export class NodeDisk extends NodeFiles implements Disk {
  readonly #memory: Memory;
  readonly #reads = new Promptness(READ_SLOW_MS);
  readonly #writes = new Promptness(WRITE_SLOW_MS);

  constructor(memory: Memory) {
    super();
    this.#memory = memory;
  }

  submit(op: DiskOp): void {
    op.fault = undefined;
    op.count = 0;
    if (op.kind === "sync") fs.fdatasync(fdOf(op.file), (error) => this.#finish(op, error));
    else if (op.pieces !== undefined) this.#movePieces(op, op.pieces);
    else this.#move(op);
  }

  #move(op: DiskOp): void {
    const left = op.length - op.count;
    if (left === 0) return void process.nextTick(op.done, op);
    const moved = (error: NodeJS.ErrnoException | null, count: number): void => {
      if (error || count === 0 || count === left) this.#finish(op, error, count);
      else {
        op.count += count;
        this.#move(op);
      }
    };
    const fd = fdOf(op.file);
    const at = op.at + op.count;
    const position = op.position + op.count;
    const prompt = op.kind === "read" ? this.#reads : this.#writes;
    if (prompt.begin(left)) {
      const move = op.kind === "read" ? fs.readSync : (fs.writeSync as typeof fs.readSync);
      tell(moved, () => move(fd, this.#memory.bytes, at, left, position));
      prompt.end(left);
    } else if (op.kind === "read") fs.read(fd, this.#memory.bytes, at, left, position, moved);
    else fs.write(fd, this.#memory.bytes, at, left, position, moved);
  }

  #movePieces(op: DiskOp, pieces: Pieces): void {
    if (op.count === pieces.total) return void process.nextTick(op.done, op);
    const views: Uint8Array[] = [];
    let skip = op.count;
    for (let piece = 0; piece < pieces.count; piece++) {
      const length = pieces.length[piece]!;
      if (skip < length) views.push(this.#memory.slice(pieces.at[piece]! + skip, length - skip));
      skip = Math.max(0, skip - length);
    }
    const left = pieces.total - op.count;
    const moved = (error: NodeJS.ErrnoException | null, count: number): void => {
      if (error || count === 0 || count === left) this.#finish(op, error, count);
      else {
        op.count += count;
        this.#movePieces(op, pieces);
      }
    };
    const fd = fdOf(op.file);
    const position = op.position + op.count;
    const prompt = op.kind === "read" ? this.#reads : this.#writes;
    if (prompt.begin(left)) {
      const move = op.kind === "read" ? fs.readvSync : fs.writevSync;
      tell(moved, () => move(fd, views, position));
      prompt.end(left);
    } else (op.kind === "read" ? fs.readv : fs.writev)(fd, views, position, moved);
  }

  #finish(op: DiskOp, error: NodeJS.ErrnoException | null, count = 0): void {
    op.count += count;
    if (error) op.fault = diskFault(codeOf(error));
    // A write that gets nowhere without saying why.
    else if (op.kind === "write" && op.count < (op.pieces?.total ?? op.length)) op.fault = "io";
    op.done(op);
  }
}

/** Tells what a direct call came to, but not from within it. */
function tell(moved: (error: NodeJS.ErrnoException | null, count: number) => void, call: () => number): void {
  try {
    process.nextTick(moved, null, call());
  } catch (error) {
    process.nextTick(moved, error, 0);
  }
}
