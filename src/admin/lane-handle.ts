/**
 * The control plane's end of one lane: its thread, the calls that wait for answers, its death. A lane that ends on its
 * own refuses all its calls as "unreachable", and tells `onDeath` once.
 */
import type { Worker } from "node:worker_threads";
import { Refusal } from "#base/refusal";
import { closeSocket, Remains } from "#env/uring/remains";
import type { FromLane, LaneCall, LaneCalls, LaneStart, LaneThreadStart, ToLane } from "#lane/messages";
import { takeThread } from "./lane-thread.ts";

export interface LaneListener {
  onMessage(message: Exclude<FromLane, { type: "reply" | "refused" | "ready" }>): void;
  onDeath(reason: string): void;
}

interface Waiting {
  resolve(reply: unknown): void;
  reject(refusal: Error): void;
}

export class LaneHandle {
  readonly index: number;
  readonly start: LaneStart;
  state: "starting" | "running" | "dead" = "starting";
  readonly #worker: Worker;
  readonly #waiting = new Map<number, Waiting>();
  readonly #listener: LaneListener;
  readonly #remains = new Remains();
  #lastId = 0;
  #reason = "";
  #stopping = false;
  /** Settled when the lane takes calls, or has died before that. */
  readonly ready: Promise<void>;

  /** @param program the module that the lane's thread runs. */
  constructor(program: URL, start: LaneStart, listener: LaneListener) {
    this.index = start.index;
    this.start = start;
    this.#listener = listener;
    this.#worker = takeThread(program, start.index);
    this.#worker.postMessage({ ...start, remains: this.#remains.shared } satisfies LaneThreadStart);
    this.ready = new Promise((resolve, reject) => {
      this.#worker.on("message", (message: FromLane) => {
        if (message.type === "ready") {
          this.state = "running";
          resolve();
        } else this.#take(message);
      });
      this.#worker.on("error", (error) => {
        this.#reason ||= error.stack ?? String(error);
      });
      this.#worker.on("exit", (code) => {
        this.#remains.clear();
        this.#die(this.#reason || `its thread ended with code ${code}`);
        reject(new Refusal("unreachable", `Lane ${this.index} did not start: ${this.#reason}`));
      });
    });
    this.ready.catch(() => {});
  }

  call<Call extends LaneCall>(call: Call, given: LaneCalls[Call]["given"]): Promise<LaneCalls[Call]["reply"]> {
    if (this.state === "dead") return Promise.reject(this.#gone());
    return new Promise((resolve, reject) => {
      const id = ++this.#lastId;
      this.#waiting.set(id, { resolve: resolve as (reply: unknown) => void, reject });
      this.#worker.postMessage({ id, call, given } as ToLane);
    });
  }

  /** Gives it a connection of another lane; one that it does not take is closed, and its host comes again. */
  handOver(given: LaneCalls["front.resume"]["given"]): void {
    if (this.state === "dead") return closeSocket(given.fd);
    // On its list before it is its own: whatever becomes of the lane, the descriptor is closed once.
    this.#remains.add(given.fd);
    this.call("front.resume", given).catch(() => {
      if (this.#remains.remove(given.fd)) closeSocket(given.fd);
    });
  }

  /** Ends the thread as if it had died by itself, whatever it is doing. It is replaced. */
  kill(): void {
    this.#reason ||= "it was ended from outside";
    void this.#worker.terminate();
  }

  /** Ends the thread without ceremony, for good. What it had acknowledged is in its log. */
  async terminate(): Promise<void> {
    this.#stopping = true;
    await this.#worker.terminate();
  }

  #take(message: Exclude<FromLane, { type: "ready" }>): void {
    if (message.type === "dying") this.#reason = message.reason;
    if (message.type !== "reply" && message.type !== "refused") {
      this.#listener.onMessage(message);
      return;
    }
    const waiting = this.#waiting.get(message.id);
    this.#waiting.delete(message.id);
    if (message.type === "reply") waiting?.resolve(message.reply);
    else {
      const { code, message: text, hint } = message.refusal;
      waiting?.reject(new Refusal(code, text, hint));
    }
  }

  #die(reason: string): void {
    if (this.state === "dead") return;
    this.state = "dead";
    this.#reason = reason;
    for (const waiting of this.#waiting.values()) waiting.reject(this.#gone());
    this.#waiting.clear();
    if (!this.#stopping) this.#listener.onDeath(reason);
  }

  #gone(): Refusal {
    return new Refusal("unreachable", `Lane ${this.index} has ended`, "It is being restarted: try again in a moment.");
  }
}
