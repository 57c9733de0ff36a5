/** A Net whose lines can be cut, stalled and corrupted: what happens between a host and a server. */

import type { Memory, Pieces } from "#base/memory";
import type { Effect } from "#base/task";
import type { Address, DialOptions, Ear, Env, Line, LineEnd, Listener, Net, NetError, Peer, Tls } from "#env/env";
import { isNetError } from "#env/env";

export class MeddledLine implements Line {
  ear!: Ear;
  readonly to: Address;
  closed = false;
  /** Changes what was received, in place. */
  corrupt: ((bytes: Uint8Array) => void) | undefined;
  /** After so many more bytes have arrived, the connection breaks. */
  cutAfter = Number.POSITIVE_INFINITY;
  readonly #line: Line;
  readonly #memory: Memory;
  #stalled = false;
  #held: number | undefined;
  #at = 0;

  constructor(line: Line, to: Address, memory: Memory) {
    this.#line = line;
    this.to = to;
    this.#memory = memory;
    line.ear = {
      onReceived: (count) => {
        if (this.#stalled) this.#held = count;
        else this.#deliver(count);
      },
      onSent: () => this.ear.onSent(),
      onClosed: (end: LineEnd) => {
        this.closed = true;
        this.ear.onClosed(end);
      },
    };
  }

  get peer(): Peer {
    return this.#line.peer;
  }
  receive(at: number, length: number, restAt = 0, restLength = 0): void {
    this.#at = at;
    if (this.cutAfter < length) {
      if (this.cutAfter === 0) this.cut();
      else this.#line.receive(at, this.cutAfter);
    } else this.#line.receive(at, length, restAt, restLength);
  }
  send(pieces: Pieces): void {
    this.#line.send(pieces);
  }
  keepAlive(idleMs: number): void {
    this.#line.keepAlive(idleMs);
  }
  close(): void {
    this.#line.close();
  }
  abort(): void {
    this.#line.abort();
  }

  /** The connection breaks, as a reset would do it. */
  cut(): void {
    this.#line.close();
  }
  /** Nothing arrives any more, and nothing says so. */
  stall(): void {
    this.#stalled = true;
  }
  resume(): void {
    this.#stalled = false;
    const held = this.#held;
    this.#held = undefined;
    if (held !== undefined && !this.closed) this.#deliver(held);
  }

  #deliver(count: number): void {
    this.cutAfter -= count;
    if (count > 0) this.corrupt?.(this.#memory.bytes.subarray(this.#at, this.#at + count));
    this.ear.onReceived(count);
  }
}

export class MeddlingNet implements Net {
  readonly lines = new Set<MeddledLine>();
  /** Dials that are refused. */
  refuse: ((to: Address) => boolean) | undefined;
  /** Told of every line before anything has been said on it. */
  onLine: ((line: MeddledLine) => void) | undefined;
  readonly #env: Env;

  constructor(env: Env) {
    this.#env = env;
  }

  /** Lines that are open, those to `port` or those to any other. */
  open(which: (port: number) => boolean = () => true): MeddledLine[] {
    return [...this.lines].filter((line) => !line.closed && "port" in line.to && which(line.to.port));
  }

  dial(to: Address, options?: DialOptions): Effect<Line | NetError> {
    return (resume) => {
      if (this.refuse?.(to) === true) {
        resume({ fault: "unreachable", detail: "the test said so" });
        return;
      }
      this.#env.net.dial(
        to,
        options,
      )((line) => {
        if (isNetError(line)) return resume(line);
        const meddled = new MeddledLine(line, to, this.#env.memory);
        this.lines.add(meddled);
        this.onLine?.(meddled);
        return resume(meddled);
      });
    };
  }
  listen(at: Address, accept: (line: Line) => void): Effect<Listener | NetError> {
    return this.#env.net.listen(at, accept);
  }
  secure(line: Line, tls: Tls): Effect<Line | NetError> {
    return this.#env.net.secure(line, tls);
  }
}

/** The same Env with another Net. */
export function withNet(env: Env, net: Net): Env {
  const { clock, random, memory, turn, disk, log } = env;
  return { clock, random, memory, turn, disk, log, net };
}
