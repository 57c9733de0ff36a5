/** What is wrong now, for `status`, metrics and alerts: each is logged and told once when it begins and when it ends. */

import type { Log } from "#env/env";
import type { Events } from "./events.ts";

export interface ProblemFacts {
  readonly severity: "warning" | "error";
  readonly message: string;
  readonly hint: string | undefined;
}
interface Problem extends ProblemFacts {
  readonly code: string;
  readonly since: string;
}

export class Problems {
  readonly #now = new Map<string, Problem>();
  readonly #log: Log;
  readonly #events: Events;

  constructor(log: Log, events: Events) {
    this.#log = log;
    this.#events = events;
  }

  /** States that a problem is there; saying so again changes its words, and tells nobody. */
  raise(code: string, facts: ProblemFacts): void {
    const before = this.#now.get(code);
    this.#now.set(code, { ...facts, code, since: before?.since ?? new Date().toISOString() });
    if (before?.severity === facts.severity) return;
    this.#log[facts.severity === "error" ? "error" : "warn"]({ problem: code, hint: facts.hint }, facts.message);
    this.#events.add("problem", facts.message, { code, severity: facts.severity });
  }

  clear(code: string, message: string): void {
    if (!this.#now.delete(code)) return;
    this.#log.info({ problem: code }, message);
    this.#events.add("problem-solved", message, { code });
  }

  list(): { code: string; severity: "warning" | "error"; message: string; hint?: string; since: string }[] {
    return [...this.#now.values()].map(({ hint, ...problem }) => (hint === undefined ? problem : { ...problem, hint }));
  }
}
