/** What the contract of `Env` stands on: where it runs, and an ear that answers by effects. */
import assert from "node:assert/strict";
import { Pieces } from "#base/memory";
import { type Effect, perform, type Task } from "#base/task";
import { type Address, DiskOp, type Ear, type Env, isDiskFault, isNetError, type Line, type LineEnd } from "#env/env";

/** One Env, fresh, with an empty directory. */
export interface Ground {
  readonly env: Env;
  readonly folder: string;
  /** Somewhere to listen, with the port still to be chosen. */
  readonly address: Address;
  /** Runs a task to its end, letting time go by as it needs. */
  run<T>(task: Task<T>): Promise<T>;
  /** Ends the Env; what is open on it is closed by the tests. */
  close(): Promise<void>;
}

export interface Abilities {
  /** Unix sockets. */
  readonly unix: boolean;
  /** Reserving and giving back ranges of files. */
  readonly allocate: boolean;
}

/** Text at the edges of a test. */
export const bytesOf = (text: string): Uint8Array => new TextEncoder().encode(text);

/** A line's owner that waits with `yield*`. It checks that nothing is told from within the call that causes it. */
export class Talk implements Ear {
  readonly line: Line;
  readonly env: Env;
  readonly pieces = new Pieces();
  readonly buffer: number;
  readonly size: number;
  /** Everything that was told, in order. */
  readonly heard: string[] = [];
  end: LineEnd | undefined;
  #calling = false;
  #received: ((count: number) => void) | undefined;
  #sent: ((sent: boolean) => void) | undefined;
  #closed: ((end: LineEnd) => void) | undefined;

  constructor(env: Env, line: Line, size = 65536) {
    this.env = env;
    this.line = line;
    this.size = size;
    this.buffer = env.memory.allocate(size);
    line.ear = this;
  }

  onReceived(count: number): void {
    this.#hear(`received ${count}`);
    const resume = this.#received;
    this.#received = undefined;
    assert.ok(resume, "received without having asked");
    resume(count);
  }

  onSent(): void {
    this.#hear("sent");
    const resume = this.#sent;
    this.#sent = undefined;
    assert.ok(resume, "sent without having asked");
    resume(true);
  }

  onClosed(end: LineEnd): void {
    this.#hear(`closed ${end}`);
    this.end = end;
    this.env.memory.free(this.buffer);
    this.#received?.(-1);
    this.#sent?.(false);
    this.#closed?.(end);
  }

  /** Receives up to `length` bytes to the start of the buffer; -1 when the line ended instead. */
  receive(length = this.size, at = this.buffer, restAt = 0, restLength = 0): Effect<number> {
    return (resume) => {
      if (this.end !== undefined) return resume(-1);
      this.#received = resume;
      this.#call(() => this.line.receive(at, length, restAt, restLength));
    };
  }

  /** Sends what `pieces` holds; false when the line ended instead. */
  sendPieces(): Effect<boolean> {
    return (resume) => {
      if (this.end !== undefined) return resume(false);
      this.#sent = resume;
      this.#call(() => this.line.send(this.pieces));
    };
  }

  *say(text: string): Task<boolean> {
    const data = bytesOf(text);
    const at = this.env.memory.allocate(data.length);
    this.env.memory.bytes.set(data, at);
    this.pieces.clear();
    this.pieces.add(at, data.length);
    const sent = yield* perform(this.sendPieces());
    this.env.memory.free(at);
    return sent;
  }

  /** What comes until there are `length` bytes of it, or the other side finishes. */
  *hearAll(length: number): Task<string> {
    let text = "";
    while (text.length < length) {
      const count = yield* perform(this.receive(Math.min(this.size, length - text.length)));
      if (count <= 0) break;
      text += new TextDecoder().decode(this.env.memory.slice(this.buffer, count));
    }
    return text;
  }

  /** Closes the line and waits for the last word. */
  *close(): Task<LineEnd> {
    if (this.end !== undefined) return this.end;
    this.#call(() => this.line.close());
    return yield* perform(this.closed());
  }

  closed(): Effect<LineEnd> {
    return (resume) => {
      if (this.end !== undefined) resume(this.end);
      else this.#closed = resume;
    };
  }

  #call(run: () => void): void {
    this.#calling = true;
    run();
    this.#calling = false;
  }

  #hear(what: string): void {
    assert.ok(!this.#calling, `"${what}" was told from within the call that caused it`);
    assert.ok(this.end === undefined, `"${what}" was told after the last word`);
    this.heard.push(what);
  }
}

/** Somebody who accepts: lines that came before they were asked for wait. */
export class Porter {
  readonly env: Env;
  readonly #waiting: Talk[] = [];
  readonly #askers: ((talk: Talk) => void)[] = [];

  constructor(env: Env) {
    this.env = env;
  }

  readonly accept = (line: Line): void => {
    const talk = new Talk(this.env, line);
    const asker = this.#askers.shift();
    if (asker) asker(talk);
    else this.#waiting.push(talk);
  };

  next(): Effect<Talk> {
    return (resume) => {
      const talk = this.#waiting.shift();
      if (talk) resume(talk);
      else this.#askers.push(resume);
    };
  }
}

/** Whatever is not a fault. */
export function good<T>(value: T): Exclude<T, string | { fault: unknown } | undefined> {
  assert.ok(!isDiskFault(value), `fault: ${value}`);
  if (typeof value === "object" && value !== null && isNetError(value)) assert.fail(JSON.stringify(value));
  return value as Exclude<T, string | { fault: unknown } | undefined>;
}

/** A listener and both ends of a line to it. */
export function* connected(ground: Ground) {
  const { env } = ground;
  const porter = new Porter(env);
  const listener = good(yield* perform(env.net.listen(ground.address, porter.accept)));
  const near = new Talk(env, good(yield* perform(env.net.dial(listener.address))));
  const far = yield* perform(porter.next());
  return { listener, porter, near, far };
}

/** Lets `ms` go by. */
export function pause(env: Env, ms: number): Effect<void> {
  return (resume) => {
    env.clock.alarm(resume).at = env.clock.now() + ms;
  };
}

/** One disk operation, waited for; it checks that `done` is not called from within `submit`. */
export function disk(env: Env, set: Partial<DiskOp>): Effect<DiskOp> {
  return (resume) => {
    let submitting = true;
    const op = new DiskOp((done) => {
      assert.ok(!submitting, "done from within submit");
      assert.equal(done, op);
      resume(op);
    });
    Object.assign(op, set);
    env.disk.submit(op);
    submitting = false;
  };
}
