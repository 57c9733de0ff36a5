/**
 * `Disk` of a simulated process over its node's file system: time, faults, and what becomes of operations that are in
 * flight when the process dies. Each operation takes effect at the moment it completes; one whose process died first may
 * still take effect, a write in part.
 */
import type { Effect } from "#base/task";
import type { Bytes, Millis } from "#base/units";
import type { Disk, DiskFault, DiskOp, File, FileFacts } from "#env/env";
import { type Inode, SECTOR_BYTES } from "./file-system.ts";
import type { SimNode } from "./sim-node.ts";
import type { SimProcess } from "./sim-process.ts";

/** What may go wrong with a node's disk, as probabilities per operation; and how long things take. */
export class DiskFaults {
  readError = 0;
  writeError = 0;
  syncError = 0;
  /** After a failed sync the page cache forgets at once, rather than with the power. */
  syncErrorEvicts = false;
  /** A write is told as done and never happens. */
  dropWrite = 0;
  /** A write is told as done and happens elsewhere in the same file. */
  misdirectWrite = 0;
  /** A control operation (open, rename, allocate …) fails with "io". */
  controlError = 0;
  /** An operation takes a hundred times as long. */
  stall = 0;
  /** `allocate` and `punch` answer "unsupported", as some file systems do. */
  noAllocate = false;
  noPunch = false;
  /** Which files faults of content befall; all, unless narrowed. */
  befalls: (path: string, position: Bytes, length: Bytes) => boolean = () => true;
  /** Told of each write that was dropped or misdirected: the file, and the range that now has other content. */
  onCorrupted: ((path: string, position: Bytes, length: Bytes) => void) | undefined;
  onSyncError: (() => void) | undefined;
  readMs: Millis = 0.08;
  writeMs: Millis = 0.02;
  syncMs: Millis = 0.5;
  controlMs: Millis = 0.02;

  /** True when what fails now may succeed another time. */
  get failsSometimes(): boolean {
    return this.readError > 0 || this.controlError > 0;
  }

  /** No more faults; those that have happened stay. */
  stop(): void {
    this.readError = this.writeError = this.syncError = this.controlError = 0;
    this.dropWrite = this.misdirectWrite = this.stall = 0;
  }
}

class SimFile implements File {
  readonly path: string;
  readonly inode: Inode;
  readonly owner: SimProcess;
  readonly canWrite: boolean;
  isOpen = true;
  inFlight = 0;

  constructor(path: string, inode: Inode, owner: SimProcess, canWrite: boolean) {
    this.path = path;
    this.inode = inode;
    this.owner = owner;
    this.canWrite = canWrite;
  }
}

export class SimDisk implements Disk {
  readonly #process: SimProcess;
  readonly #node: SimNode;
  /** Operations that the process waits for, and the control operations that have not taken effect yet. */
  readonly #ops = new Set<DiskOp>();
  readonly #controls = new Set<() => unknown>();
  readonly #open = new Set<SimFile>();

  constructor(process: SimProcess) {
    this.#process = process;
    this.#node = process.node;
  }

  submit(op: DiskOp): void {
    if (this.#process.dead) return;
    const file = this.#own(op.file);
    if (this.#ops.has(op)) throw new Error(`a ${op.kind} of ${file.path} is submitted while it is in flight`);
    if (op.kind !== "sync") this.#checkRange(op, file);
    this.#ops.add(op);
    file.inFlight++;
    this.#node.world.ioCount++;
    const mark = op.kind === "sync" ? this.#node.files.mark(file.inode) : 0;
    this.#process.plan(this.#delay(op), () => {
      this.#ops.delete(op);
      file.inFlight--;
      op.fault = undefined;
      op.count = 0;
      if (op.kind === "read") this.#read(op, file);
      else if (op.kind === "write") this.#write(op, file);
      else this.#sync(op, file, mark);
      op.done(op);
    });
  }

  open(path: string, how: "read" | "write" | "create"): Effect<File | DiskFault> {
    return this.#control(`open ${how} ${path}`, () => {
      const { files } = this.#node;
      const inode = how === "create" ? files.create(path, "file") : (files.find(path) ?? "missing");
      if (typeof inode === "string") return inode;
      if (inode.kind !== "file") return "denied";
      if (this.#process.dead) return "io";
      const file = new SimFile(path, inode, this.#process, how !== "read");
      files.opened(inode);
      this.#open.add(file);
      return file;
    });
  }

  close(file: File): Effect<DiskFault | undefined> {
    const own = this.#own(file);
    if (own.inFlight > 0) throw new Error(`${file.path} is closed with ${own.inFlight} operations in flight`);
    own.isOpen = false;
    return this.#control(`close ${file.path}`, () => {
      if (this.#open.delete(own)) this.#node.files.closed(own.inode);
      return undefined;
    });
  }

  truncate(file: File, size: Bytes): Effect<DiskFault | undefined> {
    const { inode } = this.#own(file);
    return this.#control(`truncate ${file.path} to ${size}`, () => this.#node.files.truncate(inode, size));
  }

  allocate(file: File, position: Bytes, length: Bytes): Effect<DiskFault | undefined> {
    const { inode } = this.#own(file);
    return this.#control(`allocate ${file.path} ${position} + ${length}`, () => {
      if (this.#node.diskFaults.noAllocate) return "unsupported";
      const fault = this.#node.files.allocate(inode, position, length);
      if (fault === "full") this.#node.world.fault("disk full", this.#node);
      return fault;
    });
  }

  punch(file: File, position: Bytes, length: Bytes): Effect<DiskFault | undefined> {
    const { inode } = this.#own(file);
    return this.#control(`punch ${file.path} ${position} + ${length}`, () =>
      this.#node.diskFaults.noPunch ? "unsupported" : this.#node.files.punch(inode, position, length),
    );
  }

  facts(path: string): Effect<FileFacts | DiskFault> {
    return this.#control(`facts ${path}`, () => {
      const inode = this.#node.files.find(path);
      return inode === undefined ? "missing" : this.#node.files.facts(inode);
    });
  }

  list(directory: string): Effect<string[] | DiskFault> {
    return this.#control(`list ${directory}`, () => {
      const inode = this.#node.files.find(directory);
      if (inode === undefined) return "missing";
      if (inode.kind !== "directory") return "denied";
      // In no order that could be relied on.
      const names = [...inode.entries.keys()];
      for (let i = names.length - 1; i > 0; i--) {
        const j = this.#process.random.below(i + 1);
        const name = names[i]!;
        names[i] = names[j]!;
        names[j] = name;
      }
      return names;
    });
  }

  makeDirectory(path: string): Effect<DiskFault | undefined> {
    return this.#control(`make directory ${path}`, () => {
      const made = this.#node.files.create(path, "directory");
      return typeof made === "string" ? made : undefined;
    });
  }

  removeDirectory(path: string): Effect<DiskFault | undefined> {
    return this.#control(`remove directory ${path}`, () => this.#node.files.remove(path, "directory"));
  }

  link(from: string, to: string): Effect<DiskFault | undefined> {
    return this.#control(`link ${from} ${to}`, () => this.#node.files.link(from, to));
  }

  rename(from: string, to: string): Effect<DiskFault | undefined> {
    return this.#control(`rename ${from} ${to}`, () => this.#node.files.rename(from, to));
  }

  unlink(path: string): Effect<DiskFault | undefined> {
    return this.#control(`unlink ${path}`, () => this.#node.files.remove(path, "file"));
  }

  syncDirectory(path: string): Effect<DiskFault | undefined> {
    return this.#control(
      `sync directory ${path}`,
      () => {
        const inode = this.#node.files.find(path);
        if (inode === undefined) return "missing";
        if (inode.kind !== "directory") return "denied";
        this.#node.files.syncDirectory(inode);
        return undefined;
      },
      this.#node.diskFaults.syncMs,
    );
  }

  space(path: string): Effect<{ readonly total: Bytes; readonly available: Bytes } | DiskFault> {
    return this.#control(`space ${path}`, () => {
      const { files } = this.#node;
      if (files.find(path) === undefined) return "missing";
      const total = Math.min(files.capacity, 2 ** 50);
      return { total, available: Math.max(0, total - files.used) };
    });
  }

  /** The process dies: what it has asked for may happen still, now or never. */
  abandon(): void {
    const { world, files } = this.#node;
    for (const take of this.#controls) if (world.chance.often(0.5)) take();
    for (const op of this.#ops)
      if (op.kind === "write" && world.chance.often(0.7)) {
        const length = op.pieces?.total ?? op.length;
        const sectors = Math.floor(length / SECTOR_BYTES);
        const part = world.chance.often(0.5) ? length : world.chance.below(sectors + 1) * SECTOR_BYTES;
        this.#put(op, op.file as SimFile, op.position, part);
      }
    for (const file of this.#open) files.closed(file.inode);
    this.#controls.clear();
    this.#ops.clear();
    this.#open.clear();
  }

  /* ------------------------------------------------------------ helpers */

  #control<T>(
    what: string,
    take: () => T | DiskFault,
    typical = this.#node.diskFaults.controlMs,
  ): Effect<T | DiskFault> {
    const { world, diskFaults } = this.#node;
    return (resume) => {
      if (this.#process.dead) return;
      this.#controls.add(take);
      world.ioCount++;
      this.#process.plan(world.toTurn(world.chance.span(typical)), () => {
        this.#controls.delete(take);
        if (world.chance.often(diskFaults.controlError)) {
          world.fault("control error", this.#node);
          world.say(this.#process, `${what}: io`);
          return resume("io");
        }
        const answer = take();
        if (world.onLine !== undefined) world.say(this.#process, `${what}: ${brief(answer)}`);
        resume(answer);
      });
    };
  }

  #read(op: DiskOp, file: SimFile): void {
    const { world, diskFaults, files } = this.#node;
    const { memory } = this.#process;
    const length = op.pieces?.total ?? op.length;
    this.#checkMemory(op);
    if (world.chance.often(diskFaults.readError) && diskFaults.befalls(file.path, op.position, length)) {
      world.fault("read error", this.#node);
      op.fault = "io";
    } else if (op.pieces === undefined) {
      this.#take(op, files.read(file.inode, op.position, op.length, memory, op.at));
    } else {
      for (let i = 0; i < op.pieces.count && op.fault === undefined; i++) {
        const wanted = op.pieces.length[i]!;
        const before = op.count;
        this.#take(op, files.read(file.inode, op.position + op.count, wanted, memory, op.pieces.at[i]!));
        if (op.count - before < wanted) break;
      }
    }
    if (world.onLine !== undefined) this.#sayOp(op, length);
  }

  #take(op: DiskOp, read: number | DiskFault): void {
    if (typeof read === "number") op.count += read;
    else op.fault = read;
  }

  #write(op: DiskOp, file: SimFile): void {
    const { world, diskFaults } = this.#node;
    if (!file.canWrite) {
      op.fault = "denied";
      return;
    }
    const length = op.pieces?.total ?? op.length;
    this.#checkMemory(op);
    const isBefallen = diskFaults.befalls(file.path, op.position, length);
    if (isBefallen && world.chance.often(diskFaults.writeError)) {
      // A part may have been written all the same.
      this.#put(op, file, op.position, world.chance.below(Math.floor(length / SECTOR_BYTES) + 1) * SECTOR_BYTES);
      world.fault("write error", this.#node);
      op.fault = "io";
    } else if (isBefallen && world.chance.often(diskFaults.dropWrite)) {
      world.fault("dropped write", this.#node);
      diskFaults.onCorrupted?.(file.path, op.position, length);
      op.count = length;
    } else if (isBefallen && world.chance.often(diskFaults.misdirectWrite)) {
      const blocks = Math.ceil(Math.max(file.inode.size, op.position + 1) / 4096);
      const elsewhere = world.chance.below(blocks) * 4096;
      world.fault("misdirected write", this.#node);
      diskFaults.onCorrupted?.(file.path, op.position, length);
      diskFaults.onCorrupted?.(file.path, elsewhere, length);
      op.fault = this.#put(op, file, elsewhere, length);
      op.count = length;
    } else {
      op.fault = this.#put(op, file, op.position, length);
      op.count = op.fault === undefined ? length : 0;
      if (op.fault === "full") world.fault("disk full", this.#node);
    }
    if (world.onLine !== undefined) this.#sayOp(op, length);
  }

  /** Writes the first `length` bytes of the operation to `position`. */
  #put(op: DiskOp, file: SimFile, position: number, length: number): DiskFault | undefined {
    const { files } = this.#node;
    const { memory } = this.#process;
    if (op.pieces === undefined)
      return length === 0 ? undefined : files.write(file.inode, position, length, memory, op.at);
    let done = 0;
    for (let i = 0; i < op.pieces.count && done < length; i++) {
      const step = Math.min(op.pieces.length[i]!, length - done);
      const fault = files.write(file.inode, position + done, step, memory, op.pieces.at[i]!);
      if (fault !== undefined) return fault;
      done += step;
    }
    return undefined;
  }

  #sync(op: DiskOp, file: SimFile, mark: number): void {
    const { world, diskFaults, files } = this.#node;
    if (diskFaults.befalls(file.path, 0, file.inode.size) && world.chance.often(diskFaults.syncError)) {
      world.fault("sync error", this.#node);
      diskFaults.onSyncError?.();
      files.failSync(file.inode, diskFaults.syncErrorEvicts);
      op.fault = "io";
    } else files.sync(file.inode, mark);
    if (world.onLine !== undefined) this.#sayOp(op, 0);
  }

  #delay(op: DiskOp): Millis {
    const { world, diskFaults } = this.#node;
    const typical =
      op.kind === "read" ? diskFaults.readMs : op.kind === "write" ? diskFaults.writeMs : diskFaults.syncMs;
    let delay = world.chance.span(typical);
    if (world.chance.often(diskFaults.stall)) {
      delay *= 100;
      world.fault("stall", this.#node);
    }
    return world.toTurn(delay);
  }

  #own(file: File): SimFile {
    if (!(file instanceof SimFile) || file.owner !== this.#process)
      throw new Error(`${file.path} is another process's`);
    if (!file.isOpen) throw new Error(`${file.path} is used after it was closed`);
    return file;
  }

  #checkRange(op: DiskOp, file: SimFile): void {
    const length = op.pieces?.total ?? op.length;
    if (!Number.isSafeInteger(op.position) || op.position < 0 || !Number.isSafeInteger(length) || length <= 0)
      throw new Error(`a ${op.kind} of ${file.path} at ${op.position} + ${length}`);
    this.#checkMemory(op);
  }

  #checkMemory(op: DiskOp): void {
    const who = `a ${op.kind} of ${op.file.path}`;
    if (op.pieces === undefined) this.#process.memory.assertOwned(op.at, op.length, who);
    else this.#process.memory.assertOwnedPieces(op.pieces, who);
  }

  #sayOp(op: DiskOp, length: number): void {
    const range = op.kind === "sync" ? "" : ` ${op.position} + ${length}`;
    this.#node.world.say(this.#process, `${op.kind} ${op.file.path}${range}: ${op.fault ?? "ok"}`);
  }
}

function brief(answer: unknown): string {
  if (answer === undefined) return "ok";
  if (typeof answer === "string") return answer;
  if (answer instanceof SimFile) return "ok";
  return JSON.stringify(answer);
}
