/**
 * In the steady state a request leaves nothing behind for the garbage collector: from the bytes of its header through
 * front, volume, map and log to its answer. Measured with all of that in one process, an Env whose own parts allocate
 * nothing, and V8's count of bytes; repeated until the compiler has seen enough of it.
 */
import assert from "node:assert/strict";
import { test } from "node:test";
import { setTimeout as sleep } from "node:timers/promises";
import { Memory, type Pieces } from "#base/memory";
import { start, type Task } from "#base/task";
import { BLOCK_BYTES, MIB } from "#base/units";
import type { Disk, DiskOp, Ear, Env, File, Line, Soon } from "#env/env";
import { DirectoryStore } from "#store/segment-store";
import { VersionSet } from "#store/version-set";
import { OpenExportTable } from "#target/exports";
import { NbdFront } from "#target/nbd-front";
import { Cmd, PAYLOAD_BYTES_DEFAULT } from "#wire/nbd/codes";
import { encodeRequest, Request, requestBytes } from "#wire/nbd/request";

/** A file in RAM. */
interface RamFile extends File {
  /** Where in the memory it lies: copying within one array makes no object. */
  readonly at: number;
  size: number;
}

const FILE_BYTES = 33 * MIB;

class RamEnv implements Env {
  readonly memory = new Memory(1024 * MIB);
  readonly clock = { now: () => 1, date: () => 1, alarm: () => ({ at: Number.POSITIVE_INFINITY }) };
  readonly random = { below: () => 0, fill: (to: Uint8Array) => void to.fill(7) };
  readonly log = { debug: ignore, info: ignore, warn: ignore, error: ignore };
  readonly #files = new Map<string, RamFile>();
  #soons: Soon[] = [];
  #running: Soon[] = [];
  #soonCount = 0;
  #ops: DiskOp[] = [];
  #telling: DiskOp[] = [];
  #opCount = 0;

  readonly turn = {
    soon: (soon: Soon): void => {
      if (soon.queued) return;
      soon.queued = true;
      this.#soons[this.#soonCount++] = soon;
    },
  };

  get net(): never {
    throw new Error("there is no network here");
  }

  readonly disk: Disk = {
    submit: (op) => {
      const file = op.file as RamFile;
      op.fault = undefined;
      const from = file.at + op.position;
      if (op.kind === "read") this.memory.bytes.copyWithin(op.at, from, from + op.length);
      if (op.kind === "write" && op.pieces === undefined) this.#write(file, op.position, op.at, op.length);
      for (let i = 0, at = op.position; op.kind === "write" && op.pieces !== undefined && i < op.pieces.count; i++) {
        this.#write(file, at, op.pieces.at[i]!, op.pieces.length[i]!);
        at += op.pieces.length[i]!;
      }
      op.count = op.kind === "read" ? op.length : 0;
      this.#ops[this.#opCount++] = op;
    },
    open: (path, how) => (resume) => {
      const there = this.#files.get(path);
      if (how !== "create") return resume(there ?? "missing");
      if (there !== undefined) return resume("exists");
      const file = { path, at: this.memory.allocate(FILE_BYTES), size: 0 };
      this.#files.set(path, file);
      resume(file);
    },
    close: () => (resume) => resume(undefined),
    truncate: () => (resume) => resume("unsupported"),
    allocate: () => (resume) => resume(undefined),
    punch: () => (resume) => resume(undefined),
    facts: (path) => (resume) => {
      const file = this.#files.get(path);
      resume(file === undefined ? "missing" : { kind: "file", size: file.size, allocated: file.size });
    },
    list: () => (resume) => resume([...this.#files.keys()].map((path) => path.slice(path.lastIndexOf("/") + 1))),
    makeDirectory: () => (resume) => resume(undefined),
    removeDirectory: () => (resume) => resume(undefined),
    link: (from, to) => (resume) => {
      const file = this.#files.get(from);
      if (file !== undefined) this.#files.set(to, file);
      resume(file === undefined ? "missing" : undefined);
    },
    rename: (from, to) => (resume) => {
      const file = this.#files.get(from);
      if (file !== undefined) this.#files.set(to, file);
      this.#files.delete(from);
      resume(file === undefined ? "missing" : undefined);
    },
    unlink: (path) => (resume) => {
      const file = this.#files.get(path);
      this.#files.delete(path);
      // Not while it has another name.
      if (file !== undefined && ![...this.#files.values()].includes(file)) this.memory.free(file.at);
      resume(file === undefined ? "missing" : undefined);
    },
    syncDirectory: () => (resume) => resume(undefined),
    space: () => (resume) => resume({ total: 2 ** 40, available: 2 ** 40 }),
  };

  #write(file: RamFile, position: number, at: number, length: number): void {
    assert.ok(file.at > 0 && position + length <= FILE_BYTES);
    this.memory.bytes.copyWithin(file.at + position, at, at + length);
    file.size = Math.max(file.size, position + length);
  }

  finish<T>(task: Task<T>): T {
    const ended: T[] = [];
    const failed = (error: unknown): void => {
      throw error;
    };
    start(task, (value) => void ended.push(value), failed);
    this.settle();
    assert.equal(ended.length, 1, "the task never ends");
    return ended[0]!;
  }

  /** Turns until nothing moves any more. */
  settle(): void {
    while (this.#soonCount > 0 || this.#opCount > 0) {
      const ops = this.#ops;
      const opCount = this.#opCount;
      this.#ops = this.#telling;
      this.#telling = ops;
      this.#opCount = 0;
      for (let i = 0; i < opCount; i++) ops[i]!.done(ops[i]!);
      const soons = this.#soons;
      const soonCount = this.#soonCount;
      this.#soons = this.#running;
      this.#running = soons;
      this.#soonCount = 0;
      for (let i = 0; i < soonCount; i++) {
        soons[i]!.queued = false;
        soons[i]!.run();
      }
    }
  }
}
const ignore = (): void => {};

/** A line whose other end says the same again and again. */
class Parrot implements Line {
  readonly peer = { host: "", port: 0, localHost: "", localPort: 0, tlsName: "" };
  ear!: Ear;
  readonly #env: RamEnv;
  #at = 0;
  #length = 0;
  #restAt = 0;
  #restLength = 0;
  #sending = false;
  sends = 0;
  sentBytes = 0;

  constructor(env: RamEnv) {
    this.#env = env;
  }
  receive(at: number, length: number, restAt = 0, restLength = 0): void {
    this.#at = at;
    this.#length = length;
    this.#restAt = restAt;
    this.#restLength = restLength;
  }
  send(pieces: Pieces): void {
    this.#sending = true;
    this.sends++;
    this.sentBytes += pieces.total;
  }
  keepAlive(): void {}
  close(): void {
    this.ear.onClosed("stopped");
  }
  abort(): void {
    this.close();
  }
  /** Says `length` bytes of the memory, and takes what is answered. */
  say(at: number, length: number): void {
    const { memory } = this.#env;
    for (let done = 0; done < length; ) {
      const first = Math.min(this.#length, length - done);
      const rest = Math.min(this.#restLength, length - done - first);
      assert.ok(first > 0, "the front wants nothing");
      memory.bytes.copyWithin(this.#at, at + done, at + done + first);
      if (rest > 0) memory.bytes.copyWithin(this.#restAt, at + done + first, at + done + first + rest);
      done += first + rest;
      this.#length = this.#restLength = 0;
      this.ear.onReceived(first + rest);
    }
    this.#env.settle();
    while (this.#sending) {
      this.#sending = false;
      this.ear.onSent();
      this.#env.settle();
    }
  }
}

const DEPTH = 32;
const BATCHES = 10;
const ROUNDS_MAX = 1200;
/** Now and then V8's compiler threads get a moment: on a busy machine they come late, and what is not compiled allocates. */
const ROUNDS_BETWEEN_PAUSES = 100;
/** A group's own objects, an array that grew: some of it per batch, and not per request. */
const BYTES_MAX = 16;

const LOADS = [
  { name: "4 KiB reads", type: Cmd.READ, bytes: BLOCK_BYTES },
  { name: "128 KiB reads", type: Cmd.READ, bytes: 32 * BLOCK_BYTES },
  { name: "4 KiB writes", type: Cmd.WRITE, bytes: BLOCK_BYTES },
  { name: "flushes", type: Cmd.FLUSH, bytes: 0 },
] as const;

test("requests leave nothing for the garbage collector, and what comes together is answered together", async (t) => {
  const env = new RamEnv();
  const store = new DirectoryStore(env, "/set");
  const set = env.finish(VersionSet.create(env, store, { background: false }));
  const device = env.finish(set.createVolume({ name: "db", size: 64 * MIB }));
  const front = new NbdFront(env, new OpenExportTable().add("db", device));
  const line = new Parrot(env);
  const agreement = { name: "db", style: "structured", contexts: [], readOnly: false, size: 64 * MIB } as const;
  front.resume(line, { ...agreement, blockSize: 512, maximumPayload: PAYLOAD_BYTES_DEFAULT }, false, new Uint8Array(0));

  for (const { name, type, bytes } of LOADS)
    await t.test(name, async () => {
      const batch = encodeBatch(type, bytes);
      const at = env.memory.allocate(batch.length);
      env.memory.bytes.set(batch, at);
      let least = Number.POSITIVE_INFINITY;
      for (let round = 0; round < ROUNDS_MAX && least > BYTES_MAX; round++) {
        if (round % ROUNDS_BETWEEN_PAUSES === ROUNDS_BETWEEN_PAUSES - 1) await sleep(50);
        const { sends } = line;
        const before = process.memoryUsage().heapUsed;
        for (let each = 0; each < BATCHES; each++) line.say(at, batch.length);
        const grown = process.memoryUsage().heapUsed - before;
        assert.ok(line.sends - sends <= 2 * BATCHES, `${line.sends - sends} sends for ${BATCHES} batches`);
        // Less than nothing: the collector has been at work.
        if (grown >= 0) least = Math.min(least, grown / (BATCHES * DEPTH));
      }
      t.diagnostic(`${name}: ${least.toFixed(1)} bytes of heap per request`);
      assert.ok(least <= BYTES_MAX, `${least.toFixed(1)} bytes of heap per request`);
    });
});

function encodeBatch(type: number, bytes: number): Uint8Array {
  const payload = type === Cmd.WRITE ? bytes : 0;
  const head = requestBytes(false);
  const batch = new Uint8Array(DEPTH * (head + payload)).fill(1);
  const view = new DataView(batch.buffer);
  const request = new Request();
  for (let each = 0; each < DEPTH; each++) {
    request.type = type;
    request.flags = 0;
    request.offset = type === Cmd.FLUSH ? 0 : ((each * 37) % 64) * 32 * BLOCK_BYTES;
    request.length = bytes;
    encodeRequest(request, view, each * (head + payload), false);
  }
  return batch;
}
