/** Watches the space under the data directory, and tells the operator before writers meet "no space". */
import { statfs } from "node:fs/promises";
import { formatSize } from "#base/size";
import { type Bytes, GIB, MIB } from "#base/units";
import type { Problems } from "./problems.ts";

/**
 * Between two looks, where there is so much room that nobody fills it in that time, and where there is little. The first is
 * all that a server without hosts does: as often as monitoring usually asks.
 */
const LOOK_EVERY_MS_MAX = 15_000;
const LOOK_EVERY_MS_MIN = 250;
/** As fast as hosts may fill a disk, in bytes per millisecond: what is left up to a threshold says when to look again. */
const FILLING_PER_MS = GIB / 1000;
/** With less than this no set can begin another segment of its log. */
const SEGMENT_BYTES = 32 * MIB;
/** Looking may take this part of the time: with a capacity, every file of every set is asked for its size. */
const LOOKING_SHARE = 1 / 10;

export interface SpaceSettings {
  readonly path: string;
  readonly capacity: Bytes | undefined;
  readonly softPercent: number;
  readonly hardPercent: number;
}
export interface SpaceNow {
  readonly level: "ok" | "soft" | "hard";
  readonly used: Bytes;
  readonly capacity: Bytes;
  readonly available: Bytes;
  /** What is available when the soft threshold is reached. */
  readonly soft: Bytes;
  /** `capacity` is what --capacity allows, and not what the file system has. */
  readonly limited: boolean;
}

export class SpaceWatch {
  readonly #settings: SpaceSettings;
  readonly #problems: Problems;
  /** Bytes of all version sets, asked when a capacity was set; the file system answers otherwise. */
  readonly #usedBySets: () => Promise<Bytes>;
  #timer: NodeJS.Timeout | undefined;
  #stopped = false;
  #lookedForMs = 0;
  /** Told whenever it was looked. */
  onLook: ((now: SpaceNow) => void) | undefined;
  now: SpaceNow = { level: "ok", used: 0, capacity: 0, available: 0, soft: 0, limited: false };

  constructor(settings: SpaceSettings, problems: Problems, usedBySets: () => Promise<Bytes>) {
    this.#settings = settings;
    this.#problems = problems;
    this.#usedBySets = usedBySets;
  }

  async start(): Promise<void> {
    await this.look();
    this.#plan();
  }

  stop(): void {
    this.#stopped = true;
    clearTimeout(this.#timer);
  }

  #plan(): void {
    if (this.#stopped) return;
    const { available, capacity, level } = this.now;
    const { softPercent, hardPercent } = this.#settings;
    const left = (percent: number) => available - capacity * (1 - percent / 100);
    const toNext = level === "ok" ? left(softPercent) : level === "soft" ? left(hardPercent) : available;
    const soon = Math.max(LOOK_EVERY_MS_MIN, toNext / FILLING_PER_MS, this.#lookedForMs / LOOKING_SHARE);
    const after = Math.min(soon, LOOK_EVERY_MS_MAX);
    this.#timer = setTimeout(() => void this.look().then(() => this.#plan()), after);
    this.#timer.unref();
  }

  async look(): Promise<SpaceNow> {
    const began = performance.now();
    try {
      this.now = await this.#measure();
      this.#lookedForMs = performance.now() - began;
      this.#problems.clear("data-away", "The data directory answers again");
    } catch (error) {
      this.#problems.raise("data-away", {
        severity: "error",
        message: `The data directory does not answer: ${(error as Error).message}`,
        hint: "Check that its disk is there and mounted.",
      });
      return this.now;
    }
    this.#tell();
    this.onLook?.(this.now);
    return this.now;
  }

  async #measure(): Promise<SpaceNow> {
    const { path, capacity: limit, softPercent, hardPercent } = this.#settings;
    const { bsize, blocks, bfree, bavail } = await statfs(path);
    // As `df` counts: what is kept back for root is neither used nor to be had.
    const total = (blocks - bfree + bavail) * bsize;
    const limited = limit !== undefined && limit < total;
    const capacity = limited ? limit : total;
    const used = limited ? await this.#usedBySets() : (blocks - bfree) * bsize;
    const available = Math.max(0, Math.min(capacity - used, bavail * bsize));
    const percent = capacity === 0 ? 100 : (1 - available / capacity) * 100;
    const isFull = percent >= hardPercent || available < SEGMENT_BYTES;
    const level = isFull ? "hard" : percent >= softPercent ? "soft" : "ok";
    const soft = Math.floor(capacity * (1 - softPercent / 100));
    return { level, used, capacity, available, soft, limited };
  }

  #tell(): void {
    const { level, available, capacity } = this.now;
    const left = `${formatSize(available)} of ${formatSize(capacity)} left for volumes`;
    if (level === "ok") this.#problems.clear("space", `Space is fine again: ${left}`);
    else
      this.#problems.raise("space", {
        severity: level === "hard" ? "error" : "warning",
        message: level === "hard" ? `Almost no space: ${left}` : `Space is getting short: ${left}`,
        hint:
          level === "hard"
            ? 'Writers will meet "no space" soon, and no new volumes are made. Delete snapshots or volumes, or add space.'
            : "Delete snapshots or volumes, or add space (`ashlar volume ls` shows what takes it).",
      });
  }
}
