/**
 * From an address to a connection that has joined an export: dials, tells the handshake's story its bytes, goes on
 * under TLS when the story says so. One deadline covers all of it, since a server can be slow at every step.
 */
import { Pieces } from "#base/memory";
import { perform, type Task } from "#base/task";
import type { Millis } from "#base/units";
import type { Address, Alarm, Ear, Env, Line, LineEnd, NetError, NetFault, Tls } from "#env/env";
import { isNetError } from "#env/env";
import type { HandshakeFault, Story } from "#proto/nbd/client-handshake";
import { WINDOW_BYTES } from "#proto/nbd/client-replies";

export interface NbdTarget {
  readonly address: Address;
  readonly exportName: string;
  /** With it, TLS is a must. */
  readonly tls: Tls | undefined;
}

export interface DialFailure {
  readonly fault:
    | NetFault
    | HandshakeFault
    /** It accepted the connection, and then said too little. */
    | "silent"
    | "closed"
    /** There is no memory for a connection. */
    | "no-memory";
  readonly detail: string;
}
export const isDialFailure = (value: object): value is DialFailure => "fault" in value && "detail" in value;

/** A line on which a handshake has come to its end, and the memory that was its window. */
export interface Joined<T> {
  readonly line: Line;
  /** WINDOW_BYTES of memory; whoever takes the line frees it once the line is closed. */
  readonly window: number;
  readonly result: T;
}

/** Dials, and tells `storyOf` to its end. On failure nothing is left open. */
export function* dialNbd<T extends object>(
  env: Env,
  target: NbdTarget,
  deadlineMs: Millis,
  storyOf: (send: (bytes: Uint8Array) => void) => Story<T | DialFailure>,
): Task<Joined<T> | DialFailure> {
  const window = env.memory.allocate(WINDOW_BYTES);
  if (window === 0) return { fault: "no-memory", detail: "there is no memory for a connection" };
  const deadline = env.clock.now() + deadlineMs;
  const dialled = yield* perform(env.net.dial(target.address, { timeoutMs: deadlineMs }));
  if (isNetError(dialled)) {
    env.memory.free(window);
    return dialled;
  }
  const talk = new Talk(env, dialled, window, deadline);
  const result = yield* talk.tell(storyOf(talk.say), target.tls);
  if (!isDialFailure(result) && talk.isOpen) return { line: talk.release(), window, result };
  yield* talk.end();
  env.memory.free(window);
  return isDialFailure(result) ? result : CLOSED;
}

const CLOSED: DialFailure = { fault: "closed", detail: "it closed the connection during the handshake" };

class Talk implements Ear {
  readonly #env: Env;
  readonly #window: number;
  readonly #alarm: Alarm;
  readonly #pieces = new Pieces();
  readonly say = (bytes: Uint8Array): void => void this.#unsaid.push(bytes);
  #line: Line;
  #unsaid: Uint8Array[] = [];
  /** Bytes at the start of the window that have come and were not asked for yet. */
  #there = 0;
  #resume: ((count: number) => void) | undefined = undefined;
  #closed = false;
  /** The last word of a line that TLS has replaced, or that TLS has destroyed, does not come. */
  #gone = false;
  #late = false;

  constructor(env: Env, line: Line, window: number, deadline: Millis) {
    this.#env = env;
    this.#line = line;
    this.#window = window;
    line.ear = this;
    this.#alarm = env.clock.alarm(() => {
      this.#late = true;
      this.#line.close();
    });
    this.#alarm.at = deadline;
  }

  get isOpen(): boolean {
    return !this.#closed && !this.#gone;
  }

  *tell<T extends object>(story: Story<T | DialFailure>, tls: Tls | undefined): Task<T | DialFailure> {
    let given: Uint8Array = NOTHING;
    for (;;) {
      const step = story.next(given);
      const failure = yield* this.#sendUnsaid();
      if (failure !== undefined) return failure;
      if (step.done === true) {
        if (this.#there === 0 || isDialFailure(step.value)) return step.value;
        return { fault: "violated", detail: "it sent more than the handshake has" };
      }
      if (step.value === "secure") {
        // What came in the clear behind the answer must never be taken for something said under TLS.
        if (this.#there > 0) return { fault: "violated", detail: "it sent data ahead of TLS" };
        const secured: Line | NetError = yield* perform(this.#env.net.secure(this.#line, tls!));
        if (isNetError(secured)) {
          this.#gone = true;
          return secured;
        }
        this.#line = secured;
        secured.ear = this;
        if (this.#late) secured.close();
        given = NOTHING;
        continue;
      }
      while (this.#there < step.value) {
        const count = yield* this.#receive();
        if (count <= 0) return this.#late ? this.#silent() : CLOSED;
        this.#there += count;
      }
      const { bytes } = this.#env.memory;
      given = bytes.slice(this.#window, this.#window + step.value);
      bytes.copyWithin(this.#window, this.#window + step.value, this.#window + this.#there);
      this.#there -= step.value;
    }
  }

  /** Lets go of the line, for somebody else to go on with it. */
  release(): Line {
    this.#alarm.at = Infinity;
    return this.#line;
  }

  /** Closes the line, and waits for its last word. */
  *end(): Task<void> {
    this.#alarm.at = Infinity;
    if (this.#closed || this.#gone) return;
    this.#line.close();
    yield* perform<number>((resume) => {
      this.#resume = resume;
    });
  }

  *#sendUnsaid(): Task<DialFailure | undefined> {
    for (const bytes of this.#unsaid.splice(0)) {
      for (let from = 0; from < bytes.length; from += SAY_BYTES_MAX) {
        if (this.#closed) return this.#late ? this.#silent() : CLOSED;
        const part = bytes.subarray(from, from + SAY_BYTES_MAX);
        const at = this.#env.memory.allocate(part.length);
        if (at === 0) return { fault: "no-memory", detail: "there is no memory for a handshake" };
        this.#env.memory.bytes.set(part, at);
        this.#pieces.clear();
        this.#pieces.add(at, part.length);
        yield* perform<number>((resume) => {
          this.#resume = resume;
          this.#line.send(this.#pieces);
        });
        this.#env.memory.free(at);
      }
    }
    return this.#closed ? (this.#late ? this.#silent() : CLOSED) : undefined;
  }

  *#receive(): Task<number> {
    if (this.#closed) return -1;
    return yield* perform<number>((resume) => {
      this.#resume = resume;
      this.#line.receive(this.#window + this.#there, WINDOW_BYTES - this.#there);
    });
  }

  #silent(): DialFailure {
    return { fault: "silent", detail: "it did not finish the handshake in time" };
  }

  onReceived(count: number): void {
    this.#answer(count);
  }
  onSent(): void {
    this.#answer(0);
  }
  onClosed(_end: LineEnd): void {
    this.#closed = true;
    this.#answer(-1);
  }

  #answer(count: number): void {
    const resume = this.#resume;
    this.#resume = undefined;
    resume?.(count);
  }
}

const NOTHING = new Uint8Array(0);
const SAY_BYTES_MAX = 32 * 1024;
