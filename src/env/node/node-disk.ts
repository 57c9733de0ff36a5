/** Files by node:fs and its threads. A short read or write is continued until it is whole. */
import * as fs from "node:fs";
import type { Memory, Pieces } from "#base/memory";
import type { Disk, DiskOp } from "../env.ts";
import { codeOf, diskFault } from "../faults.ts";
import { fdOf, NodeFiles } from "./node-files.ts";

export class NodeDisk extends NodeFiles implements Disk {
  readonly #memory: Memory;

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
    const [fd, at, position] = [fdOf(op.file), op.at + op.count, op.position + op.count];
    if (op.kind === "read") fs.read(fd, this.#memory.bytes, at, left, position, moved);
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
    const move = op.kind === "read" ? fs.readv : fs.writev;
    move(fdOf(op.file), views, op.position + op.count, moved);
  }

  #finish(op: DiskOp, error: NodeJS.ErrnoException | null, count = 0): void {
    op.count += count;
    if (error) op.fault = diskFault(codeOf(error));
    // A write that gets nowhere without saying why.
    else if (op.kind === "write" && op.count < (op.pieces?.total ?? op.length)) op.fault = "io";
    op.done(op);
  }
}
