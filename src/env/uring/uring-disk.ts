/** Files in the ring. Names and metadata go through node:fs, as in `NodeDisk`. */
// Imported, since the global one is a getter: with it, looking at the clock takes half as long again.
import { performance } from "node:perf_hooks";
import type { Pieces } from "#base/memory";
import type { Effect } from "#base/task";
import type { Bytes, Millis } from "#base/units";
import { type Disk, type DiskFault, type DiskOp, type File, Soon } from "../env.ts";
import { diskFault } from "../faults.ts";
import { FallocateMode } from "../libc.ts";
import { fdOf, NodeFiles } from "../node/node-files.ts";
import { ERRNO, FSYNC_DATASYNC, OP } from "./abi.ts";
import type { UringCore } from "./core.ts";
import { errorName } from "./native.ts";
import type { Request } from "./ring.ts";
import type { HeldSync } from "./uring-turn.ts";

export class UringDisk extends NodeFiles implements Disk {
  readonly #core: UringCore;
  readonly #free: DiskRequest[] = [];
  /** Operations that were done directly, to be told in the same turn. */
  #done: DiskOp[] = [];
  #doneCount = 0;
  #telling: DiskOp[] = [];
  readonly #soon = new Soon(() => this.#tell());

  constructor(core: UringCore) {
    super();
    this.#core = core;
  }

  submit(op: DiskOp): void {
    op.fault = undefined;
    op.count = 0;
    if (op.kind !== "sync" && this.#doNow(op)) {
      this.#done[this.#doneCount++] = op;
      this.#core.turn.soon(this.#soon);
      return;
    }
    const request = this.#free.pop() ?? new DiskRequest(this.#core, this.#free);
    request.start(op);
  }

  /**
   * Where the page cache answers at once, a call of the lane's own is the shortest way. The ring would give a write to a
   * thread, since most file systems do not promise that a buffered write does not wait: 48 µs of the processor for 8 KiB
   * that way, 5 µs this way. A read costs the same either way, but here its data are still in the processor's cache when
   * they are checked and sent. False: it was not done, or not whole, and is the ring's.
   */
  #doNow(op: DiskOp): boolean {
    const core = this.#core;
    const { ring, base, native } = core;
    const left = totalOf(op);
    const prompt = op.kind === "read" ? core.reads : core.writes;
    if ((op.kind === "read" && op.pieces !== undefined) || !prompt.begin(left)) return false;
    const fd = fdOf(op.file);
    let result: number;
    if (op.kind === "read") result = native.read(fd, base + op.at, left, op.position);
    else {
      const first = ring.takeIovecs(op.pieces?.count ?? 1);
      let used = 1;
      if (op.pieces === undefined) ring.setIovec(first, base + op.at, left);
      else used = core.fillIovecs(first, op.pieces, 0);
      result = ring.writeNow(fd, first, used, op.position);
    }
    prompt.end(left);
    // A short one goes on in the ring, where its end or its error is found again.
    if (result > 0) op.count = result;
    return result === left;
  }

  #tell(): void {
    // Neither array is cut: one that is emptied gives its room back, and has to get it again.
    const telling = this.#done;
    const count = this.#doneCount;
    this.#done = this.#telling;
    this.#doneCount = 0;
    this.#telling = telling;
    for (let at = 0; at < count; at++) {
      const op = telling[at]!;
      op.done(op);
    }
  }

  override allocate(file: File, position: Bytes, length: Bytes): Effect<DiskFault | undefined> {
    return this.#fallocate(file, FallocateMode.ALLOCATE, position, length);
  }

  override punch(file: File, position: Bytes, length: Bytes): Effect<DiskFault | undefined> {
    return this.#fallocate(file, FallocateMode.PUNCH, position, length);
  }

  #fallocate(file: File, mode: number, position: Bytes, length: Bytes): Effect<DiskFault | undefined> {
    return (resume) => {
      const { ring, turn } = this.#core;
      const request: Request = {
        index: 0,
        complete: (result) => {
          ring.release(request);
          resume(result < 0 ? diskFault(errorName(-result)) : undefined);
        },
      };
      ring.register(request);
      // The length stands where others have an address, the mode where others have a length.
      ring.prepare(request, OP.FALLOCATE, fdOf(file), length, mode, position, 0);
      turn.kick();
    };
  }
}

/** One operation in the ring; made once and used again and again. A short read or write is continued. */
class DiskRequest implements Request, HeldSync {
  index = 0;
  /** Of a sync: when it began, and what the ring will have told at its end if nothing else comes. */
  #began: Millis = 0;
  #toldAlone = 0;
  readonly #core: UringCore;
  readonly #free: DiskRequest[];
  #op!: DiskOp;

  constructor(core: UringCore, free: DiskRequest[]) {
    this.#core = core;
    this.#free = free;
    core.ring.register(this);
  }

  start(op: DiskOp): void {
    this.#op = op;
    const { ring, base, turn, soleSync } = this.#core;
    const fd = fdOf(op.file);
    const position = op.position + op.count;
    if (op.kind === "sync") {
      turn.syncs++;
      if (!soleSync.mayBlock || !turn.hold(this)) this.#submitSync();
    } else if (totalOf(op) === 0) ring.prepare(this, OP.NOP, -1, 0, 0, 0, 0);
    else if (op.pieces === undefined) {
      const code = op.kind === "read" ? OP.READ : OP.WRITE;
      ring.prepare(this, code, fd, base + op.at + op.count, op.length - op.count, position, 0);
    } else {
      const code = op.kind === "read" ? OP.READV : OP.WRITEV;
      const first = ring.takeIovecs(op.pieces.count);
      const count = this.#core.fillIovecs(first, op.pieces, op.count);
      ring.prepare(this, code, fd, ring.iovecAddress(first), count, position, 0);
    }
    turn.kick();
  }

  #submitSync(): void {
    const { ring } = this.#core;
    this.#began = performance.now();
    this.#toldAlone = ring.told + 1;
    ring.prepare(this, OP.FSYNC, fdOf(this.#op.file), 0, 0, 0, FSYNC_DATASYNC);
  }

  /** Of `HeldSync`. */
  release(alone: boolean): void {
    if (!alone) return this.#submitSync();
    const { ring, native } = this.#core;
    this.#began = performance.now();
    const result = native.sync(fdOf(this.#op.file));
    this.#toldAlone = ring.signalled ? -1 : ring.told;
    this.complete(result);
  }

  #endSync(): void {
    const { ring, turn, soleSync } = this.#core;
    turn.syncs--;
    soleSync.note(performance.now() - this.#began, ring.told !== this.#toldAlone);
  }

  complete(result: number): void {
    const op = this.#op;
    if (op.kind === "sync") this.#endSync();
    if (result > 0 && op.kind !== "sync") {
      op.count += result;
      if (op.count < totalOf(op)) {
        this.start(op);
        return;
      }
    } else if (result === -ERRNO.EINTR || result === -ERRNO.EAGAIN) {
      this.start(op);
      return;
    } else if (result < 0) {
      op.fault = diskFault(errorName(-result));
    } else if (op.kind === "write" && totalOf(op) > 0) {
      // A write that gets nowhere without saying why.
      op.fault = "io";
    }
    this.#free.push(this);
    op.done(op);
  }
}

function totalOf(op: DiskOp): number {
  const pieces: Pieces | undefined = op.pieces;
  return pieces === undefined ? op.length : pieces.total;
}
