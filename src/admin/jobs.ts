/** Work that outlives a request: scrubs, with their progress and what they found. */
import { Refusal } from "#base/refusal";
import type { ScrubFacts } from "#lane/messages";
import type { Events } from "./events.ts";
import type { Lanes } from "./lanes.ts";
import type { Registry, SetEntry } from "./registry.ts";

/** Jobs that have ended are kept for those who ask what came of them. */
const ENDED_MAX = 50;

interface Part {
  readonly set: SetEntry;
  facts: ScrubFacts;
}
export interface Job {
  readonly id: string;
  readonly kind: "scrub";
  readonly volume: string;
  state: "running" | "done" | "failed" | "cancelled";
  readonly started: Date;
  ended: Date | undefined;
  error: string | undefined;
  readonly parts: Part[];
  readonly whenEnded: Promise<void>;
}

export class Jobs {
  readonly #jobs = new Map<string, Job>();
  readonly #registry: Registry;
  readonly #lanes: Lanes;
  readonly #events: Events;
  #lastId = 0;

  constructor(registry: Registry, lanes: Lanes, events: Events) {
    this.#registry = registry;
    this.#lanes = lanes;
    this.#events = events;
  }

  list(): readonly Job[] {
    return [...this.#jobs.values()];
  }

  find(id: string): Job {
    const job = this.#jobs.get(id);
    if (job === undefined) throw new Refusal("not-found", `There is no job "${id}"`, "GET /v1/jobs lists them.");
    return job;
  }

  /** Starts a scrub of one volume with all it shares, or of everything. @throws Refusal not-found */
  async scrub(volume: string | undefined): Promise<Job> {
    const sets =
      volume === undefined
        ? this.#registry.sets().filter(({ state }) => state === "online" || state === "read-only")
        : [(await this.#registry.find(volume.includes("@") ? "snapshot" : "volume", volume)).set];
    const id = String(++this.#lastId);
    const parts = sets.map((set) => ({ set, facts: { doneBytes: 0, totalBytes: 0, damage: [] } }));
    const whenEnded = Promise.resolve().then(() => this.#run(id, volume));
    const started = new Date();
    const job: Job = {
      id,
      kind: "scrub",
      volume: volume ?? "",
      state: "running",
      started,
      ended: undefined,
      error: undefined,
      parts,
      whenEnded,
    };
    this.#jobs.set(id, job);
    this.#forgetOld();
    return job;
  }

  cancel(id: string): void {
    const job = this.find(id);
    if (job.state !== "running") return;
    job.state = "cancelled";
    for (const { set } of job.parts)
      void this.#lanes.call(set.lane, "set.scrub-stop", { job: partId(id, set) }).catch(() => {});
  }

  /** What a lane tells about a part of a job. */
  progress(part: string, facts: ScrubFacts): void {
    const [id = "", uuid] = part.split(":");
    const found = this.#jobs.get(id)?.parts.find(({ set }) => set.uuid === uuid);
    if (found !== undefined) found.facts = facts;
  }

  async #run(id: string, volume: string | undefined): Promise<void> {
    const job = this.find(id);
    const versions = volume === undefined ? undefined : [volume];
    try {
      for (const part of job.parts) {
        if (job.state !== "running") break;
        const { set } = part;
        part.facts = await this.#lanes.call(set.lane, "set.scrub", { uuid: set.uuid, versions, job: partId(id, set) });
      }
      if (job.state === "running") job.state = "done";
    } catch (error) {
      if (job.state === "running") {
        job.state = "failed";
        job.error = (error as Error).message;
      }
    }
    job.ended = new Date();
    const damaged = job.parts.reduce((sum, { facts }) => sum + facts.damage.length, 0);
    const what = volume === undefined ? "all volumes" : `"${volume}"`;
    const found = damaged === 0 ? "no damage found" : `${damaged} damaged extents found`;
    this.#events.add("scrub-ended", `Scrub of ${what} ${job.state}: ${found}`, { job: id, damaged });
  }

  #forgetOld(): void {
    for (const [id, { state }] of this.#jobs) {
      if (this.#jobs.size <= ENDED_MAX) return;
      if (state !== "running") this.#jobs.delete(id);
    }
  }
}

const partId = (id: string, { uuid }: SetEntry): string => `${id}:${uuid}`;
