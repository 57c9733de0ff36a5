/**
 * All lanes of the server. Those that are needed at once begin together, the others when the server is ready: a thread
 * takes as much processor time as all that the control plane does until then. One that dies is replaced. What a lane that
 * begins late must be given (rights, listeners, version sets) is given by whoever listens to `onBegun`.
 */
import { Refusal } from "#base/refusal";
import type { FromLane, LaneCall, LaneCalls, LaneStart } from "#lane/messages";
import { LaneHandle } from "./lane-handle.ts";
import { dropThreads } from "./lane-thread.ts";

/** A lane that dies more often than this within `DEATHS_WINDOW_MS` stays down: something is wrong that a restart does not cure. */
const DEATHS_MAX = 5;
const DEATHS_WINDOW_MS = 60_000;
/** Doubles with each death in the window. */
const RESTART_DELAY_MS = 50;

export type LaneMessage = Exclude<FromLane, { type: "reply" | "refused" | "ready" }>;

export interface LanesListener {
  onMessage(lane: number, message: LaneMessage): void;
  /** A lane has ended; its sets answer nobody. `final`: it will not be replaced. */
  onDied(lane: number, reason: string, final: boolean): void;
  /** It takes calls and holds nothing yet: it begins late, or stands in the place of one that died. */
  onBegun(lane: number): Promise<void>;
}

export class Lanes {
  readonly #program: URL;
  readonly #starts: readonly LaneStart[];
  readonly #listener: LanesListener;
  readonly #handles: LaneHandle[] = [];
  readonly #deaths: number[][];
  /** Lanes that have begun late, until they have been given everything or have died. */
  readonly #late = new Map<number, Promise<void>>();
  #closing = false;

  /** @param atOnce so many lanes begin now, the others with `beginOthers`. */
  constructor(program: URL, starts: readonly LaneStart[], atOnce: number, listener: LanesListener) {
    this.#program = program;
    this.#starts = starts;
    this.#listener = listener;
    this.#deaths = starts.map(() => []);
    for (const start of starts.slice(0, atOnce)) this.#handles.push(this.#make(start));
    dropThreads();
  }

  /** Of all lanes that the server is to have. */
  get count(): number {
    return this.#starts.length;
  }
  /** Of those that have begun: lanes 0 to this. Only they can be called. */
  get begun(): number {
    return this.#handles.length;
  }

  beginOthers(): void {
    if (this.#closing) return;
    for (const start of this.#starts.slice(this.begun)) {
      const handle = this.#make(start);
      this.#handles.push(handle);
      const given = handle.ready.then(() => this.#listener.onBegun(start.index)).catch(() => {});
      this.#late.set(
        start.index,
        given.finally(() => this.#late.delete(start.index)),
      );
    }
  }

  /** Waits for a lane that has begun late to have been given what it needs to serve volumes. */
  async whenFurnished(lane: number): Promise<void> {
    await this.#late.get(lane);
  }

  /** Waits until the lanes that began at once take calls. @throws Refusal unreachable */
  async started(): Promise<void> {
    await Promise.all(this.#handles.map((handle) => handle.ready));
  }

  /** Undefined before it has begun. */
  handle(lane: number): LaneHandle | undefined {
    return this.#handles[lane];
  }

  /** Every lane that has begun, but this one. */
  others(lane: number): number[] {
    return [...this.#handles.keys()].filter((index) => index !== lane);
  }

  start(lane: number): LaneStart {
    return this.#starts[lane]!;
  }

  restarts(lane: number): number {
    return this.#deaths[lane]!.length;
  }

  call<Call extends LaneCall>(
    lane: number,
    call: Call,
    given: LaneCalls[Call]["given"],
  ): Promise<LaneCalls[Call]["reply"]> {
    return this.#handles[lane]!.call(call, given);
  }

  /** Asks every lane that lives; one that dies meanwhile is left out. */
  async ask<Call extends LaneCall>(
    call: Call,
    given: LaneCalls[Call]["given"],
  ): Promise<{ lane: number; reply: LaneCalls[Call]["reply"] }[]> {
    const answers = await Promise.all(
      this.#handles.map(async (handle, lane) => {
        try {
          return [{ lane, reply: await handle.call(call, given) }];
        } catch (error) {
          if (error instanceof Refusal && error.code === "unreachable") return [];
          throw error;
        }
      }),
    );
    return answers.flat();
  }

  async terminate(): Promise<void> {
    this.#closing = true;
    await Promise.all(this.#handles.map((handle) => handle.terminate()));
  }

  #make(start: LaneStart): LaneHandle {
    return new LaneHandle(this.#program, start, {
      onMessage: (message) => this.#listener.onMessage(start.index, message),
      onDeath: (reason) => this.#died(start, reason),
    });
  }

  #died(start: LaneStart, reason: string): void {
    if (this.#closing) return;
    const now = performance.now();
    const deaths = this.#deaths[start.index]!;
    deaths.push(now);
    const recent = deaths.filter((at) => now - at < DEATHS_WINDOW_MS).length;
    const final = recent > DEATHS_MAX;
    this.#listener.onDied(start.index, reason, final);
    if (final) return;
    setTimeout(() => this.#replace(start), RESTART_DELAY_MS * 2 ** (recent - 1));
  }

  #replace(start: LaneStart): void {
    if (this.#closing) return;
    const handle = this.#make(this.#starts[start.index]!);
    this.#handles[start.index] = handle;
    handle.ready.then(
      () => this.#listener.onBegun(start.index),
      () => {},
    );
  }
}
