/**
 * Copies between raw images and devices: `importFile` and `exportFile`. Only data travels: holes of a file and zeroes
 * of a device are found beforehand, and blocks that turn out to be zeroes are not written where zeroes are already.
 * Several requests are in flight. A copy that is broken off can go on: with `resume`, what is there already is compared
 * rather than believed, so that it ends with the same bytes as a copy that was never broken off.
 */
import { createHash } from "node:crypto";
import { type FileHandle, open, rename, stat, statfs, unlink } from "node:fs/promises";
import { dirname, resolve } from "node:path";
import { addAbortSignal, type Readable, type Writable } from "node:stream";
import { Refusal } from "#base/refusal";
import { formatSize } from "#base/size";
import { type Bytes, GIB, KIB, MIB } from "#base/units";
import { DeviceError } from "./device-error.ts";
import { allocate, type DeviceHandle, submit } from "./handle.ts";
import { fileRefusal, type Piece, Runs, runsOfDevice, runsOfFile, sizeOfFile } from "./runs.ts";

export interface CopyProgress {
  readonly phase: "copy" | "flush" | "verify";
  /** Bytes of data dealt with, of so many; undefined when a pipe does not tell. */
  readonly done: Bytes;
  readonly total: Bytes | undefined;
}

export interface CopyOptions {
  /** Called at every step of the copy; whoever shows it draws as often as it likes. */
  readonly onProgress?: (progress: CopyProgress) => void;
  /** Breaks the copy off: it rejects with the refusal "interrupted". */
  readonly signal?: AbortSignal;
  /** Reads both sides again at the end, and compares. */
  readonly verify?: boolean;
  /** Something is there from a copy that was broken off: write only what differs. */
  readonly resume?: boolean;
  /** Requests in flight. Default 8. */
  readonly requests?: number;
}
export interface ImportOptions extends CopyOptions {
  /** The device is new and reads as zeroes: zeroes need not be written. */
  readonly targetIsZero?: boolean;
  /** What "-" reads. Default: the process' standard input. */
  readonly stdin?: Readable;
}
export interface ExportOptions extends CopyOptions {
  /** Replace the file if there is one. */
  readonly overwrite?: boolean;
  /** Where "-" goes. Default: the process' standard output. */
  readonly stdout?: Writable;
}

export interface CopyResult {
  /** Bytes of the image. */
  readonly size: Bytes;
  /** Bytes that were written as data. */
  readonly written: Bytes;
  /** Bytes that were there already, with `resume`. */
  readonly same: Bytes;
  readonly elapsedMs: number;
}

const PIECE_BYTES = MIB;
const REQUESTS_DEFAULT = 8;
const REQUESTS_MAX = 64;
/** The grain of finding zeroes, and of writing around them. */
const GRAIN_BYTES = 4 * KIB;
/** How much of a device is asked about at once. */
const STATUS_STEP_BYTES = 16 * GIB;
const BUSY_MS = 50;
const BUSY_TRIES = 100;
const ZEROES = Buffer.alloc(GRAIN_BYTES);

/**
 * Writes the image `path` ("-": standard input) to `device`, from its start. What the device has beyond the image
 * reads as zeroes afterwards. It resolves when all is on stable storage. Rejects with a `Refusal`; what has been written
 * until then stays.
 */
export async function importFile(path: string, device: DeviceHandle, options: ImportOptions = {}): Promise<CopyResult> {
  const started = performance.now();
  if (device.readOnly) throw new Refusal("not-allowed", "The volume may not be written");
  const size = path === "-" ? undefined : await sizeOfFile(path);
  if (size !== undefined && size > device.size)
    throw new Refusal(
      "bad-request",
      `${path} has ${formatSize(size)} (${size} bytes), and the volume only ${formatSize(device.size)} (${device.size})`,
      "Make the volume larger.",
    );
  const copy = new Copy(device, options);
  if (path === "-" || size === undefined) {
    const file = path === "-" ? undefined : await open(path, "r").catch((error) => throwFor(error, path, "read"));
    const source = file?.createReadStream() ?? options.stdin ?? process.stdin;
    return { size: await importStream(copy, source, path, options), ...copy.result(started) };
  }
  const file = await open(path, "r").catch((error) => throwFor(error, path, "read"));
  try {
    const runs = runsOfFile(file.fd, size);
    const withGaps = options.targetIsZero !== true || options.resume === true;
    copy.total = runs.total;
    await copy.each(runs.pieces(PIECE_BYTES, size, withGaps), async (piece, at) => {
      if (!piece.isData) return copy.zeroDevice(piece.offset, piece.length, options.resume === true);
      await readFile(file, path, copy.bytes(at, piece.length), piece.offset);
      await copy.toDevice(piece, at, options);
      copy.tell(piece.length);
    });
    await clearRest(copy, size, options);
    await copy.flush();
    if (options.verify) {
      copy.phase("verify", runs.total);
      await copy.each(runs.pieces(PIECE_BYTES, size, true), async (piece, at) => {
        if (!piece.isData) return copy.expectZeroes(piece.offset, piece.length);
        const expected = copy.bytes(at, piece.length);
        await readFile(file, path, expected, piece.offset);
        await copy.expect(piece.offset, expected);
        copy.tell(piece.length);
      });
    }
    return { size, ...copy.result(started) };
  } finally {
    await file.close();
  }
}

/**
 * Writes the whole of `device` to `path` ("-": standard output). A regular file is written as `path.part`, synced, and
 * only then gets its name; so there is never half an image under it. Broken off, the part stays, for `resume`; on any
 * other failure it is removed. A block device is written in place. Rejects with a `Refusal`.
 */
export async function exportFile(device: DeviceHandle, path: string, options: ExportOptions = {}): Promise<CopyResult> {
  const started = performance.now();
  const copy = new Copy(device, options);
  if (path === "-") {
    await exportStream(copy, options.stdout ?? process.stdout);
    return { size: device.size, ...copy.result(started) };
  }
  const there = await kindOf(path);
  if (there === "block") return exportToDevice(copy, path, options, started);
  if (there !== undefined && there !== "file")
    throw new Refusal("bad-request", `${path} is a ${there}`, "Name an image file, a block device, or - for a pipe.");
  if (there === "file" && options.overwrite !== true)
    throw new Refusal("exists", `${path} exists already`, "Choose another name, or remove it first.");
  const part = `${path}.part`;
  const partThere = await kindOf(part);
  if (partThere !== undefined && options.resume !== true && options.overwrite !== true)
    throw new Refusal(
      "exists",
      `${part} is there, from an export that was broken off or still runs`,
      `Go on with it (--resume), or remove it.`,
    );
  const resume = partThere !== undefined && options.resume === true;
  const file = await open(part, resume ? "r+" : "w+").catch((error) => throwFor(error, part, "written"));
  let keepPart = false;
  try {
    const runs = await runsOfDevice(device, STATUS_STEP_BYTES);
    copy.total = runs.total;
    if (!resume) await roomFor(runs.total, part);
    // Holes are made by saying how long the file is, and writing nothing.
    await file.truncate(device.size);
    await copyToFile(copy, runs, file, part, resume);
    copy.phase("flush", undefined);
    await file.sync();
    if (options.verify) await verifyFile(copy, file, part);
    await rename(part, path);
    await syncFolder(path);
  } catch (error) {
    keepPart = error instanceof Refusal && error.code === "interrupted";
    throw fileRefusalUnlessKnown(error, part);
  } finally {
    await file.close();
    if (!keepPart) await unlink(part).catch(() => {});
  }
  return { size: device.size, ...copy.result(started) };
}

/* --------------------------------------------------------------- both directions */

class Copy {
  readonly device: DeviceHandle;
  readonly #options: CopyOptions;
  written = 0;
  same = 0;
  total: Bytes | undefined;
  #done = 0;
  #phase: CopyProgress["phase"] = "copy";

  constructor(device: DeviceHandle, options: CopyOptions) {
    this.device = device;
    this.#options = options;
  }

  result(started: number): Omit<CopyResult, "size"> {
    return { written: this.written, same: this.same, elapsedMs: performance.now() - started };
  }

  phase(phase: CopyProgress["phase"], total: Bytes | undefined): void {
    this.#phase = phase;
    this.#done = 0;
    this.total = total;
    this.tell(0);
  }

  tell(bytes: Bytes): void {
    this.#done += bytes;
    this.#options.onProgress?.({ phase: this.#phase, done: this.#done, total: this.total });
  }

  check(): void {
    if (this.#options.signal?.aborted)
      throw new Refusal("interrupted", "The copy was broken off", "The same command with --resume goes on with it.");
  }

  get requests(): number {
    return Math.min(Math.max(Math.floor(this.#options.requests ?? REQUESTS_DEFAULT), 1), REQUESTS_MAX);
  }

  bytes(at: number, length: Bytes): Uint8Array<ArrayBuffer> {
    return this.device.memory.bytes.subarray(at, at + length);
  }

  /** Does `work` for each piece, several at a time, each with a buffer of a piece. The first failure ends it. */
  async each(pieces: Generator<Piece>, work: (piece: Piece, at: number) => Promise<void>): Promise<void> {
    let failed = false;
    const worker = async (): Promise<void> => {
      const at = await allocate(this.device.memory, PIECE_BYTES);
      try {
        for (let step = pieces.next(); step.done !== true && !failed; step = pieces.next()) {
          this.check();
          await work(step.value, at);
        }
      } catch (error) {
        failed = true;
        throw error;
      } finally {
        this.device.memory.free(at);
      }
    };
    const ends = await Promise.allSettled(Array.from({ length: this.requests }, worker));
    const broken = ends.find((end) => end.status === "rejected");
    if (broken !== undefined) throw refusalOf(broken.reason);
  }

  /** An operation of the device; what is busy is tried again. */
  async submit(kind: "read" | "write" | "zero" | "flush", offset: Bytes, length: Bytes, at = 0): Promise<void> {
    for (let tries = 1; ; tries++) {
      const status = await submit(this.device.device, { kind, offset, length, at });
      if (status === "ok") return;
      if (status !== "busy" || tries === BUSY_TRIES) throw new DeviceError(status, kind, offset, length);
      await new Promise((resume) => setTimeout(resume, BUSY_MS));
    }
  }

  /** Writes a piece that lies at `at`: around its zeroes where there are some already, and only what differs. */
  async toDevice(piece: Piece, at: number, options: ImportOptions): Promise<void> {
    // The last piece of an image may end within a block: the rest of the block is zeroes.
    const length = Math.ceil(piece.length / this.device.grainBytes) * this.device.grainBytes;
    this.device.memory.bytes.fill(0, at + piece.length, at + length);
    const mine = this.bytes(at, length);
    let theirs: Uint8Array | undefined;
    if (options.resume) theirs = await this.device.read(piece.offset, length);
    const grain = Math.max(GRAIN_BYTES, this.device.grainBytes);
    for (const run of differences(mine, theirs, grain, options.targetIsZero === true)) {
      await this.submit("write", piece.offset + run.start, run.end - run.start, at + run.start);
      this.written += run.end - run.start;
    }
    if (theirs !== undefined) this.same += length;
  }

  /** Makes a range of the device zeroes; with `asNeeded`, only where it is not known to be. */
  async zeroDevice(offset: Bytes, length: Bytes, asNeeded: boolean): Promise<void> {
    const start = Math.ceil(offset / this.device.grainBytes) * this.device.grainBytes;
    const end = Math.min(
      Math.ceil((offset + length) / this.device.grainBytes) * this.device.grainBytes,
      this.device.size,
    );
    for (let from = start; from < end; from += STATUS_STEP_BYTES) {
      this.check();
      const bytes = Math.min(STATUS_STEP_BYTES, end - from);
      if (!asNeeded) await this.submit("zero", from, bytes);
      else
        for (const extent of await this.device.status(from, bytes))
          if (!extent.zero) await this.submit("zero", extent.offset, extent.length);
    }
  }

  async flush(): Promise<void> {
    this.phase("flush", undefined);
    this.check();
    await this.submit("flush", 0, 0).catch((error) => {
      throw refusalOf(error);
    });
  }

  async expect(offset: Bytes, expected: Uint8Array): Promise<void> {
    const found = await this.device.read(offset, expected.length);
    const order = Buffer.compare(found, expected);
    if (order !== 0) throw differs(offset + found.findIndex((byte, index) => byte !== expected[index]));
  }

  async expectZeroes(offset: Bytes, length: Bytes): Promise<void> {
    for (let from = offset; from < offset + length; from += STATUS_STEP_BYTES) {
      this.check();
      for (const extent of await this.device.status(from, Math.min(STATUS_STEP_BYTES, offset + length - from))) {
        if (extent.zero) continue;
        for (let at = extent.offset; at < extent.offset + extent.length; at += PIECE_BYTES) {
          const bytes = await this.device.read(at, Math.min(PIECE_BYTES, extent.offset + extent.length - at));
          const wrong = bytes.findIndex((byte) => byte !== 0);
          if (wrong >= 0) throw differs(at + wrong);
        }
      }
    }
  }
}

const differs = (offset: Bytes): Refusal =>
  new Refusal("damaged", `The copy differs from its source at byte ${offset}`, "Was one of them written meanwhile?");

/**
 * Runs of whole grains of `mine` to be written. `theirs` is what is there, if that is known; `aroundZeroes` says that
 * zeroes are there.
 */
function* differences(
  mine: Uint8Array,
  theirs: Uint8Array | undefined,
  grain: number,
  aroundZeroes: boolean,
): Generator<{ start: number; end: number }> {
  let start = -1;
  for (let at = 0; at < mine.length; at += grain) {
    const end = Math.min(at + grain, mine.length);
    const isSame =
      theirs !== undefined
        ? Buffer.compare(mine.subarray(at, end), theirs.subarray(at, end)) === 0
        : aroundZeroes && isZero(mine, at, end);
    if (isSame && start >= 0) {
      yield { start, end: at };
      start = -1;
    } else if (!isSame && start < 0) start = at;
  }
  if (start >= 0) yield { start, end: mine.length };
}

function isZero(bytes: Uint8Array, start: number, end: number): boolean {
  if (bytes[start] !== 0) return false;
  for (let at = start; at < end; at += ZEROES.length) {
    const to = Math.min(at + ZEROES.length, end);
    if (Buffer.compare(ZEROES.subarray(0, to - at), bytes.subarray(at, to)) !== 0) return false;
  }
  return true;
}

function refusalOf(error: unknown): unknown {
  if (!(error instanceof DeviceError)) return error;
  const code = (
    { full: "full", away: "unreachable", gone: "not-found", medium: "damaged", denied: "not-allowed" } as const
  )[error.status as string as "full"];
  return new Refusal(code ?? "storage-failed", error.message);
}

const throwFor = (error: unknown, path: string, doing: string): never => {
  throw fileRefusal(error, path, doing);
};
const fileRefusalUnlessKnown = (error: unknown, path: string): unknown =>
  (error as NodeJS.ErrnoException).code !== undefined && "syscall" in (error as object)
    ? fileRefusal(error, path, "written")
    : refusalOf(error);

/* ------------------------------------------------------------------------- files */

async function readFile(file: FileHandle, path: string, into: Uint8Array, position: Bytes): Promise<void> {
  for (let done = 0; done < into.length; ) {
    const { bytesRead } = await file
      .read(into, done, into.length - done, position + done)
      .catch((error) => throwFor(error, path, "read"));
    if (bytesRead === 0)
      throw new Refusal("damaged", `${path} ends at ${position + done}, earlier than it did`, "Is it being written?");
    done += bytesRead;
  }
}

async function writeFile(file: FileHandle, path: string, from: Uint8Array, position: Bytes): Promise<void> {
  for (let done = 0; done < from.length; ) {
    const { bytesWritten } = await file
      .write(from, done, from.length - done, position + done)
      .catch((error) => throwFor(error, path, "written"));
    done += bytesWritten;
  }
}

async function kindOf(path: string): Promise<string | undefined> {
  try {
    const facts = await stat(path);
    return facts.isFile()
      ? "file"
      : facts.isBlockDevice()
        ? "block"
        : facts.isDirectory()
          ? "directory"
          : "special file";
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw fileRefusal(error, path, "written");
  }
}

async function roomFor(bytes: Bytes, path: string): Promise<void> {
  const { bavail, bsize } = await statfs(dirname(resolve(path)));
  if (bytes > bavail * bsize)
    throw new Refusal(
      "full",
      `The export needs ${formatSize(bytes)}, and there are ${formatSize(bavail * bsize)} free`,
    );
}

async function syncFolder(path: string): Promise<void> {
  const folder = await open(dirname(resolve(path)), "r");
  await folder.sync().finally(() => folder.close());
}

/** Writes the device's data; what lies between is zeroes in the file already, unless it holds something from before. */
async function copyToFile(copy: Copy, runs: Runs, file: FileHandle, path: string, holdsData: boolean): Promise<void> {
  await copy.each(runs.pieces(PIECE_BYTES, copy.device.size, holdsData), async (piece, at) => {
    if (!piece.isData) return clearFile(copy, file, path, piece);
    const mine = copy.bytes(at, piece.length);
    await copy.submit("read", piece.offset, piece.length, at);
    let theirs: Uint8Array | undefined;
    if (holdsData) {
      theirs = new Uint8Array(piece.length);
      await readFile(file, path, theirs, piece.offset);
      copy.same += piece.length;
    }
    for (const run of differences(mine, theirs, GRAIN_BYTES, true)) {
      await writeFile(file, path, mine.subarray(run.start, run.end), piece.offset + run.start);
      copy.written += run.end - run.start;
    }
    copy.tell(piece.length);
  });
}

/** Makes a range of a file or block device zeroes where it is not; it is read, since it may hold anything. */
async function clearFile(copy: Copy, file: FileHandle, path: string, piece: Piece): Promise<void> {
  const there = new Uint8Array(PIECE_BYTES);
  for (let from = piece.offset; from < piece.offset + piece.length; from += PIECE_BYTES) {
    copy.check();
    const part = there.subarray(0, Math.min(PIECE_BYTES, piece.offset + piece.length - from));
    await readFile(file, path, part, from);
    if (!isZero(part, 0, part.length)) await writeFile(file, path, part.fill(0), from);
  }
}

async function verifyFile(copy: Copy, file: FileHandle, path: string): Promise<void> {
  const everything = new Runs();
  everything.add(0, copy.device.size);
  copy.phase("verify", copy.device.size);
  await copy.each(everything.pieces(PIECE_BYTES, copy.device.size, false), async (piece, at) => {
    const found = copy.bytes(at, piece.length);
    await readFile(file, path, found, piece.offset);
    await copy.expect(piece.offset, found);
    copy.tell(piece.length);
  });
}

async function exportToDevice(copy: Copy, path: string, options: ExportOptions, started: number): Promise<CopyResult> {
  const { device } = copy;
  const size = (await sizeOfFile(path)) ?? 0;
  if (size < device.size)
    throw new Refusal("bad-request", `${path} has ${formatSize(size)}, and the volume ${formatSize(device.size)}`);
  if (options.overwrite !== true)
    throw new Refusal("exists", `${path} is a block device, and all on it would be lost`, "Say --overwrite to do it.");
  const file = await open(path, "r+").catch((error) => throwFor(error, path, "written"));
  try {
    const runs = await runsOfDevice(device, STATUS_STEP_BYTES);
    copy.total = runs.total;
    await copyToFile(copy, runs, file, path, true);
    copy.phase("flush", undefined);
    await file.sync();
    if (options.verify) await verifyFile(copy, file, path);
  } finally {
    await file.close();
  }
  return { size: device.size, ...copy.result(started) };
}

/* ----------------------------------------------------------------------- streams */

/** What the device has beyond the image. */
async function clearRest(copy: Copy, size: Bytes, options: ImportOptions): Promise<void> {
  const rest = copy.device.size - size;
  if (rest > 0 && (options.targetIsZero !== true || options.resume === true))
    await copy.zeroDevice(size, rest, options.resume === true);
}

async function importStream(copy: Copy, source: Readable, path: string, options: ImportOptions): Promise<Bytes> {
  const { device } = copy;
  const digests: string[] = [];
  let size = 0;
  const writes = new Set<Promise<void>>();
  let failure: unknown;
  const put = async (piece: Piece, at: number, length: number): Promise<void> => {
    try {
      if (options.verify) digests.push(digestOf(copy.bytes(at, length)));
      // Zeroes of a pipe cannot be known beforehand; they are left out all the same where zeroes are.
      await copy.toDevice(piece, at, options);
      copy.tell(length);
    } catch (error) {
      failure ??= error;
    } finally {
      device.memory.free(at);
    }
  };
  // It must end also while nothing comes.
  if (options.signal !== undefined) addAbortSignal(options.signal, source);
  const buffers = piecesOf(source, copy, path);
  try {
    for await (const { at, length } of buffers) {
      if (size + length > device.size) {
        device.memory.free(at);
        throw new Refusal("bad-request", `There is more input than the volume's ${formatSize(device.size)}`);
      }
      const write = put({ offset: size, length, isData: true }, at, length).finally(() => writes.delete(write));
      writes.add(write);
      size += length;
      if (writes.size >= copy.requests) await Promise.race(writes);
      if (failure !== undefined) throw failure;
      copy.check();
    }
    await Promise.all(writes);
    if (failure !== undefined) throw failure;
    await clearRest(copy, size, options);
  } catch (error) {
    await Promise.all(writes);
    throw refusalOf(error);
  }
  await copy.flush();
  if (options.verify) {
    copy.phase("verify", size);
    for (const [index, digest] of digests.entries()) {
      copy.check();
      const offset = index * PIECE_BYTES;
      const found = await device.read(offset, Math.min(PIECE_BYTES, size - offset));
      if (digestOf(found) !== digest) throw differs(offset);
      copy.tell(found.length);
    }
  }
  return size;
}

const digestOf = (bytes: Uint8Array): string => createHash("sha256").update(bytes).digest("base64");

/** A stream in buffers of a whole piece each, but for the last. Whoever gets a buffer frees it. */
async function* piecesOf(source: Readable, copy: Copy, path: string): AsyncGenerator<{ at: number; length: number }> {
  const { memory } = copy.device;
  let at = 0;
  let length = 0;
  try {
    for await (const chunk of source as AsyncIterable<Uint8Array>) {
      for (let from = 0; from < chunk.length; ) {
        if (at === 0) at = await allocate(memory, PIECE_BYTES);
        const count = Math.min(chunk.length - from, PIECE_BYTES - length);
        memory.bytes.set(chunk.subarray(from, from + count), at + length);
        from += count;
        length += count;
        if (length < PIECE_BYTES) continue;
        const whole = { at, length };
        at = length = 0;
        yield whole;
      }
    }
    if (length > 0) {
      const last = { at, length };
      at = 0;
      yield last;
    }
  } catch (error) {
    copy.check();
    throw error instanceof Refusal ? error : fileRefusal(error, path === "-" ? "The standard input" : path, "read");
  } finally {
    if (at !== 0) memory.free(at);
  }
}

/** Reads ahead, and writes in order. */
async function exportStream(copy: Copy, to: Writable): Promise<void> {
  const { device } = copy;
  copy.total = device.size;
  let broken: unknown;
  const onError = (error: unknown): void => {
    broken ??= error;
  };
  to.on("error", onError);
  const ahead: Promise<Uint8Array>[] = [];
  let asked = 0;
  try {
    while (asked < device.size || ahead.length > 0) {
      while (ahead.length < copy.requests && asked < device.size) {
        const read = device.read(asked, Math.min(PIECE_BYTES, device.size - asked));
        // It is waited for in its turn; until then, its failure is nobody's.
        read.catch(() => {});
        ahead.push(read);
        asked += PIECE_BYTES;
      }
      copy.check();
      const bytes = await ahead.shift()!;
      await new Promise<void>((resolve, reject) => {
        to.write(bytes, (error) => (error ? reject(error) : resolve()));
      });
      copy.written += bytes.length;
      copy.tell(bytes.length);
    }
    if (broken !== undefined) throw broken;
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    throw code === "EPIPE" ? new Refusal("interrupted", "Nobody reads the output any more") : refusalOf(error);
  } finally {
    await Promise.allSettled(ahead);
    to.off("error", onError);
  }
}
