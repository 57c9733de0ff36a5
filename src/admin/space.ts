/** Watches the space under the data directory, and tells the operator before writers meet "no space". */
import { statfs } from "node:fs/promises";
import { formatSize } from "#base/size";
import type { Bytes } from "#base/units";
import type { Problems } from "./problems.ts";

const LOOK_EVERY_MS = 5_000;
/** When it is getting short, since what is left may go fast. */
const LOOK_EVERY_MS_SHORT = 1_000;

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
  /** What --capacity allows is used up: writes that take space are refused. */
  readonly hold: boolean;
}

export class SpaceWatch {
  readonly #settings: SpaceSettings;
  readonly #problems: Problems;
  /** Bytes of all version sets, asked when a capacity was set; the file system answers otherwise. */
  readonly #usedBySets: () => Promise<Bytes>;
  #timer: NodeJS.Timeout | undefined;
  #stopped = false;
  readonly #onHold: (hold: boolean) => void;
  /** Told whenever it was looked. */
  onLook: ((now: SpaceNow) => void) | undefined;
  now: SpaceNow = { level: "ok", used: 0, capacity: 0, available: 0, hold: false };

  constructor(
    settings: SpaceSettings,
    problems: Problems,
    usedBySets: () => Promise<Bytes>,
    onHold: (hold: boolean) => void,
  ) {
    this.#settings = settings;
    this.#problems = problems;
    this.#usedBySets = usedBySets;
    this.#onHold = onHold;
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
    const after = this.now.level === "ok" ? LOOK_EVERY_MS : LOOK_EVERY_MS_SHORT;
    this.#timer = setTimeout(() => void this.look().then(() => this.#plan()), after);
    this.#timer.unref();
  }

  async look(): Promise<SpaceNow> {
    try {
      const { hold } = this.now;
      this.now = await this.#measure();
      if (this.now.hold !== hold) this.#onHold(this.now.hold);
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
    const level = percent >= hardPercent ? "hard" : percent >= softPercent ? "soft" : "ok";
    return { level, used, capacity, available, hold: limited && used >= capacity };
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
