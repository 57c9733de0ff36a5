/** Clock over Node's timers. Alarms are moved far more often than they ring, so moving one later costs no timer. */

// Imported, since the global one is a getter: with it, looking at the clock takes half as long again.
import { performance } from "node:perf_hooks";
import type { Millis } from "#base/units";
import type { Alarm, Clock } from "../env.ts";

/** Node takes no longer timers; a longer wait is done in several. */
const TIMER_MS_MAX = 2 ** 31 - 1;

export class NodeClock implements Clock {
  now(): Millis {
    return performance.now();
  }

  date(): number {
    return Date.now();
  }

  alarm(ring: () => void): Alarm {
    return new NodeAlarm(ring);
  }
}

/**
 * One timer follows the alarm lazily: when `at` moves later, the timer that runs out too early is started again; when
 * the alarm is silenced, the timer stays but does not keep the process alive.
 */
class NodeAlarm implements Alarm {
  readonly #ring: () => void;
  #at: Millis = Infinity;
  #timer: NodeJS.Timeout | undefined;
  #timerAt: Millis = Infinity;

  constructor(ring: () => void) {
    this.#ring = ring;
  }

  get at(): Millis {
    return this.#at;
  }

  set at(at: Millis) {
    this.#at = at;
    if (at === Infinity) this.#timer?.unref();
    else if (this.#timer !== undefined && this.#timerAt <= at) this.#timer.ref();
    else this.#startTimer();
  }

  #startTimer(): void {
    clearTimeout(this.#timer);
    const wait = Math.min(Math.max(Math.ceil(this.#at - performance.now()), 0), TIMER_MS_MAX);
    this.#timerAt = performance.now() + wait;
    this.#timer = setTimeout(this.#onTimer, wait);
  }

  readonly #onTimer = (): void => {
    this.#timer = undefined;
    this.#timerAt = Infinity;
    if (this.#at === Infinity) return;
    if (this.#at > performance.now()) {
      this.#startTimer();
    } else {
      this.#at = Infinity;
      this.#ring();
    }
  };
}
