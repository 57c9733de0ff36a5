/** A progress bar with rate and remaining time, on a terminal; silent elsewhere. */
import { formatSize } from "#base/size";
import type { Bytes } from "#base/units";
import { formatSpan } from "./output.ts";

const BAR_LENGTH = 30;
const DRAW_EVERY_MS = 100;

export class Progress {
  readonly #title: string;
  readonly #shown: boolean;
  readonly #started = performance.now();
  #drawn = Number.NEGATIVE_INFINITY;

  constructor(title: string, json: boolean) {
    this.#title = title;
    this.#shown = !json && process.stderr.isTTY;
  }

  /** @param total undefined where it is not known: then there is no bar, only amount and rate. */
  update(done: Bytes, total: Bytes | undefined): void {
    const now = performance.now();
    if (!this.#shown || now - this.#drawn < DRAW_EVERY_MS) return;
    this.#drawn = now;
    process.stderr.write(`\r\u001b[K${renderProgress(this.#title, done, total, (now - this.#started) / 1000)}`);
  }

  /** Clears the line. */
  end(): void {
    if (this.#shown) process.stderr.write("\r\u001b[K");
  }
}

/** "import  ███████░░░  43 %  1.2 GiB of 2.8 GiB  512 MiB/s  3 s left" */
export function renderProgress(title: string, done: Bytes, total: Bytes | undefined, seconds: number): string {
  if (total === undefined) return `${title}  ${formatSize(done)}  ${formatSize(Math.round(done / seconds))}/s`;
  const part = total === 0 ? 0 : Math.min(done / total, 1);
  const full = Math.round(part * BAR_LENGTH);
  const bar = "█".repeat(full) + "░".repeat(BAR_LENGTH - full);
  const rate = seconds > 0 ? done / seconds : 0;
  const left = rate > 0 ? `  ${formatSpan((total - done) / rate)} left` : "";
  const amount = `${formatSize(done)} of ${formatSize(total)}  ${formatSize(Math.round(rate))}/s`;
  return `${title}  ${bar}  ${Math.floor(part * 100)} %  ${amount}${left}`;
}
