/**
 * Random operations, closed and cancelled at random, on lines and files at once. Checked are the data, that the kernel
 * does not touch memory after it has been given back, that nothing is lost or leaked, and that an Env which is closed in
 * the middle of everything leaves nothing behind.
 */
import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import { before, test } from "node:test";
import { Pieces } from "#base/memory";
import { KIB } from "#base/units";
import { type Address, DiskOp, type Ear, type File, isDiskFault, isNetError, type Line, Soon } from "#env/env";
import { realGround } from "#test/contract/env-real";
import { TRIAL_FIRST } from "./gathering.ts";
import { UringEnv } from "./uring-env.ts";

const STEPS = 300;
const PAIRS_MAX = 12;
const FILE_BYTES = 512 * KIB;
const POISON = 0xa5;

/** A small generator of its own: a failing seed is replayed by its number. */
function chance(seed: number): (limit: number) => number {
  return (limit) => {
    seed = (Math.imul(seed ^ (seed >>> 15), 0x2c1b3c6d) + 0x9e3779b9) | 0;
    return ((seed ^ (seed >>> 13)) >>> 0) % limit;
  };
}

class Fuzz {
  readonly env: UringEnv;
  readonly below: (limit: number) => number;
  readonly folder: string;
  readonly lines = new Set<FuzzLine>();
  address!: Address;
  files: { file: File; content: Uint8Array; busy: boolean[] }[] = [];
  inFlight = 0;
  /** From now on, lines that still come about are closed at once. */
  ending = false;
  soons = 0;
  #waiting: (() => void)[] = [];

  constructor(env: UringEnv, folder: string, seed: number) {
    this.env = env;
    this.folder = folder;
    this.below = chance(seed);
  }

  async open(): Promise<() => void> {
    const accept = (line: Line): void => {
      new FuzzLine(this, line, "answers");
    };
    const listener = await effect(this.env.net.listen({ host: "127.0.0.1", port: 0 }, accept));
    assert.ok(!isNetError(listener));
    this.address = listener.address;
    for (let n = 0; n < 2; n++) {
      const file = await effect(this.env.disk.open(`${this.folder}/${n}`, "create"));
      assert.ok(!isDiskFault(file));
      await effect(this.env.disk.truncate(file, FILE_BYTES));
      this.files.push({ file, content: new Uint8Array(FILE_BYTES), busy: Array(FILE_BYTES / (32 * KIB)).fill(false) });
    }
    return () => listener.close();
  }

  step(): void {
    const what = this.below(10);
    const lines = [...this.lines];
    const line = lines[this.below(Math.max(lines.length, 1))];
    if (what < 2 && lines.length < 2 * PAIRS_MAX) this.dial();
    else if (what < 5) line?.act();
    else if (what < 8) this.disk();
    else if (what === 8) this.soon();
    else if (this.below(4) === 0) line?.line.close();
  }

  dial(): void {
    this.begin();
    const timeout = this.below(4) === 0 ? { timeoutMs: this.below(2) } : {};
    this.env.net.dial(
      this.address,
      timeout,
    )((line) => {
      if (!isNetError(line)) new FuzzLine(this, line, "asks");
      else assert.equal(line.fault, "timeout");
      this.end();
    });
  }

  soon(): void {
    this.soons++;
    this.env.turn.soon(new Soon(() => this.soons--));
  }

  /** One operation on a slice of a file that no other one is using, of which the content is known. */
  disk(): void {
    const target = this.files[this.below(this.files.length)]!;
    const slice = this.below(target.busy.length);
    if (target.busy[slice]) return;
    target.busy[slice] = true;
    this.begin();
    const { bytes } = this.env.memory;
    const length = 1 + this.below(32 * KIB);
    const position = slice * 32 * KIB + this.below(32 * KIB - length + 1);
    const at = this.env.memory.allocate(length);
    const kind = this.below(8) === 0 ? "sync" : this.below(2) === 0 ? "read" : "write";
    const salt = this.below(256);
    if (kind === "write") for (let i = 0; i < length; i++) bytes[at + i] = said(salt + i);
    const written = bytes.slice(at, at + length);
    const op = new DiskOp(() => {
      assert.equal(op.fault, undefined);
      if (kind !== "sync") assert.equal(op.count, length);
      if (kind === "write") target.content.set(written, position);
      if (kind === "read")
        assert.equal(
          Buffer.compare(bytes.subarray(at, at + length), target.content.subarray(position, position + length)),
          0,
        );
      target.busy[slice] = false;
      this.giveBack(at, length);
      this.end();
    });
    Object.assign(op, { kind, file: target.file, position, at, length });
    if (kind !== "sync" && this.below(2) === 0) op.pieces = this.cut(at, length);
    this.env.disk.submit(op);
  }

  /** A buffer in pieces that do not follow each other in memory order cannot be checked; so: in order, but cut. */
  cut(at: number, length: number): Pieces {
    const pieces = new Pieces();
    for (let done = 0; done < length; ) {
      const part = Math.min(length - done, 1 + this.below(9000));
      // `add` would join them again.
      pieces.at[pieces.count] = at + done;
      pieces.length[pieces.count++] = part;
      pieces.total += part;
      done += part;
    }
    return pieces;
  }

  /** Memory that has been given back is poisoned, and the poison must stay for a while. */
  giveBack(at: number, length: number): void {
    const { memory } = this.env;
    memory.bytes.fill(POISON, at, at + length);
    this.begin();
    setTimeout(() => {
      let touched = 0;
      for (let i = at; i < at + length; i++) touched |= memory.bytes[i]! ^ POISON;
      assert.equal(touched, 0, "memory was written to after it had been given back");
      memory.free(at);
      this.end();
    }, this.below(4));
  }

  begin(): void {
    this.inFlight++;
  }
  end(): void {
    this.inFlight--;
    if (this.inFlight === 0) for (const resume of this.#waiting.splice(0)) resume();
  }
  settled(): Promise<void> {
    return this.inFlight === 0 ? Promise.resolve() : new Promise((resolve) => this.#waiting.push(resolve));
  }
}

/** Byte n of what one side of a connection says. */
const said = (n: number): number => (n * 31 + (n >>> 8) * 7) & 0xff;

class FuzzLine implements Ear {
  readonly fuzz: Fuzz;
  readonly line: Line;
  #heard = 0;
  #told = 0;
  #receiving: { at: number; length: number } | undefined;
  #sending: { at: number; length: number } | undefined;

  constructor(fuzz: Fuzz, line: Line, role: "asks" | "answers") {
    this.fuzz = fuzz;
    this.line = line;
    line.ear = this;
    fuzz.lines.add(this);
    fuzz.begin();
    if (fuzz.ending) line.close();
    else if (role === "answers" || fuzz.below(2) === 0) this.#receive();
  }

  act(): void {
    if (this.#receiving === undefined && this.fuzz.below(2) === 0) this.#receive();
    else if (this.#sending === undefined) this.#send();
  }

  onReceived(count: number): void {
    const { at, length } = this.#receiving!;
    this.#receiving = undefined;
    assert.ok(count <= length);
    const { bytes } = this.fuzz.env.memory;
    for (let i = 0; i < count; i++) if (bytes[at + i] !== said(this.#heard + i)) assert.fail(`byte ${this.#heard + i}`);
    this.#heard += count;
    this.fuzz.giveBack(at, length);
    if (count === 0) this.line.close();
    else if (this.fuzz.below(4) > 0) this.#receive();
  }

  onSent(): void {
    const { at, length } = this.#sending!;
    this.#sending = undefined;
    this.#told += length;
    this.fuzz.giveBack(at, length);
  }

  onClosed(): void {
    for (const buffer of [this.#receiving, this.#sending]) if (buffer) this.fuzz.giveBack(buffer.at, buffer.length);
    this.fuzz.lines.delete(this);
    this.fuzz.end();
  }

  #receive(): void {
    // Then this one is held back, to see what it brings.
    if (this.fuzz.below(3) === 0) for (let n = 0; n < TRIAL_FIRST; n++) this.line.gather?.(1);
    const length = 1 + this.fuzz.below(64 * KIB);
    const at = this.fuzz.env.memory.allocate(length);
    this.#receiving = { at, length };
    this.line.receive(at, length);
  }

  #send(): void {
    const length = 1 + this.fuzz.below(this.fuzz.below(8) === 0 ? 512 * KIB : 8 * KIB);
    const at = this.fuzz.env.memory.allocate(length);
    const { bytes } = this.fuzz.env.memory;
    for (let i = 0; i < length; i++) bytes[at + i] = said(this.#told + i);
    this.#sending = { at, length };
    this.line.send(this.fuzz.cut(at, length));
  }
}

const effect = <T>(run: (resume: (value: T) => void) => void): Promise<T> => new Promise((resolve) => run(resolve));
const descriptors = (): number => readdirSync("/proc/self/fd").length;
const pass = (): Promise<void> => new Promise((resolve) => setImmediate(resolve));

// libuv keeps one descriptor in reserve, which it opens with a thread's first stream.
before(async () => realGround((options) => new UringEnv(options)).close());

for (let seed = 1; seed <= 4; seed++)
  test(`seed ${seed}: data, memory and descriptors are right whatever is closed when`, async () => {
    const open = descriptors();
    const ground = realGround((options) => new UringEnv(options));
    const env = ground.env as UringEnv;
    const fuzz = new Fuzz(env, ground.folder, seed);
    const stop = await fuzz.open();
    for (let step = 0; step < STEPS; step++) {
      fuzz.step();
      if (fuzz.below(3) === 0) await pass();
    }
    fuzz.ending = true;
    while (fuzz.lines.size > 0 || fuzz.inFlight > 0) {
      for (const line of fuzz.lines) line.line.close();
      await fuzz.settled();
      await pass();
    }
    stop();
    for (const { file } of fuzz.files) await effect(env.disk.close(file));
    await pass();
    assert.equal(fuzz.soons, 0);
    assert.equal(env.memory.used, 0);
    assert.equal(env.lost, 0);
    await ground.close();
    await pass();
    assert.equal(descriptors(), open);
  });

test("an Env that is closed in the middle of everything tells nobody, and leaves nothing behind", async () => {
  const open = descriptors();
  for (let seed = 100; seed < 104; seed++) {
    const ground = realGround((options) => new UringEnv(options));
    const env = ground.env as UringEnv;
    const fuzz = new Fuzz(env, ground.folder, seed);
    await fuzz.open();
    const files = fuzz.files.map(({ file }) => file);
    for (let step = 0; step < 200; step++) {
      fuzz.step();
      if (fuzz.below(3) === 0) await pass();
    }
    await ground.close();
    // What belongs to the Env is closed with it; files are the owner's, and their close does not need the ring.
    for (const file of files) await effect(env.disk.close(file));
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
  // The kernel takes a ring apart in its own time.
  for (let tries = 0; descriptors() !== open && tries < 500; tries++)
    await new Promise((resolve) => setTimeout(resolve, 10));
  assert.equal(descriptors(), open);
});
