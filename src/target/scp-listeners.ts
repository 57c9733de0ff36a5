/**
 * The listeners of SCP data ports. A port of one session does not listen while the allowed number of sockets is open,
 * so that one more is really refused (WO 02/15018 appendix D (13)); on a fixed port that hosts share, what is too much
 * is closed at once.
 */
import { perform, start, type Task } from "#base/task";
import { type Address, type Env, isNetError, type Line, type Listener, type NetError } from "#env/env";
import type { ScpSession } from "./scp-session.ts";

/** Closes a connection that nobody wants. */
export function turnAway(line: Line): void {
  line.ear = { onReceived() {}, onSent() {}, onClosed() {} };
  line.close();
}

export class OwnListener {
  readonly #env: Env;
  readonly #host: string;
  readonly #max: number;
  /** Takes a line; `gone` is to be called when it is closed. False: it was turned away. */
  readonly #accept: (line: Line, gone: () => void) => boolean;
  #listener: Listener | undefined;
  #port = 0;
  #open = 0;
  #closed = false;
  #opening = false;

  constructor(env: Env, host: string, max: number, accept: (line: Line, gone: () => void) => boolean) {
    this.#env = env;
    this.#host = host;
    this.#max = max;
    this.#accept = accept;
  }

  /** Listens; the port that the system chose the first time is kept. Undefined when it cannot. */
  *open(): Task<number | undefined> {
    this.#opening = true;
    const listener = yield* perform(
      this.#env.net.listen({ host: this.#host, port: this.#port }, (line) => this.#take(line)),
    );
    this.#opening = false;
    if (isNetError(listener)) {
      this.#env.log.warn({ front: "scp", host: this.#host, detail: listener.detail }, "Cannot open a data port");
      return undefined;
    }
    if (this.#closed || this.#open >= this.#max) listener.close();
    else this.#listener = listener;
    const { address } = listener;
    if ("port" in address) this.#port = address.port;
    return this.#port;
  }

  close(): void {
    this.#closed = true;
    this.#listener?.close();
    this.#listener = undefined;
  }

  #take(line: Line): void {
    if (this.#open >= this.#max) {
      turnAway(line);
      return;
    }
    this.#open++;
    if (!this.#accept(line, () => this.#gone())) this.#open--;
    if (this.#open < this.#max) return;
    this.#listener?.close();
    this.#listener = undefined;
  }

  #gone(): void {
    this.#open--;
    if (this.#listener === undefined && !this.#closed && !this.#opening) start(this.open(), ignore, ignore);
  }
}

export class SharedListener {
  /** Session to the sockets it may have here. */
  readonly sessions = new Map<ScpSession, number>();
  readonly #accept: (line: Line, from: SharedListener) => void;
  #listener: Listener | undefined;

  constructor(accept: (line: Line, from: SharedListener) => void) {
    this.#accept = accept;
  }

  *listen(env: Env, at: Address): Task<NetError | undefined> {
    const listener = yield* perform(env.net.listen(at, (line) => this.#accept(line, this)));
    if (isNetError(listener)) return listener;
    this.#listener = listener;
    return undefined;
  }

  close(): void {
    this.#listener?.close();
  }
}

const ignore = (): void => {};
