/** Writes the Prometheus text format (version 0.0.4): one family after another, each with its help and type. */
import { BUCKET_COUNT, bucketStart } from "#base/histogram";

export type Labels = Readonly<Record<string, string | number>>;

/** Upper bounds of the exported latency buckets: powers of two from 8 µs to 17 s, in buckets of the histogram. */
const BOUND_FIRST = 3;
const BOUND_FINAL = 24;

export class PrometheusText {
  readonly #lines: string[] = [];
  #family = "";

  /** Begins a family; the samples that follow belong to it. */
  family(name: string, type: "counter" | "gauge" | "histogram", help: string): this {
    this.#family = name;
    this.#lines.push(
      `# HELP ${name} ${help.replaceAll("\\", "\\\\").replaceAll("\n", "\\n")}`,
      `# TYPE ${name} ${type}`,
    );
    return this;
  }

  sample(value: number, labels: Labels = {}): this {
    this.#lines.push(`${this.#family}${formatLabels(labels)} ${formatNumber(value)}`);
    return this;
  }

  /** @param counts as in `Histogram.counts`. @param sum in milliseconds. It is written in seconds. */
  histogram(counts: ArrayLike<number>, sum: number, labels: Labels): this {
    let below = 0;
    let index = 0;
    for (let power = BOUND_FIRST; power <= BOUND_FINAL; power++) {
      const bound = 2 ** power / 1000;
      while (index < BUCKET_COUNT && bucketStart(index) < bound) below += counts[index++]!;
      this.#bucket(formatNumber(bound / 1000), below, labels);
    }
    while (index < BUCKET_COUNT) below += counts[index++]!;
    this.#bucket("+Inf", below, labels);
    this.#lines.push(`${this.#family}_sum${formatLabels(labels)} ${formatNumber(sum / 1000)}`);
    this.#lines.push(`${this.#family}_count${formatLabels(labels)} ${formatNumber(below)}`);
    return this;
  }

  toString(): string {
    return `${this.#lines.join("\n")}\n`;
  }

  #bucket(bound: string, count: number, labels: Labels): void {
    this.#lines.push(`${this.#family}_bucket${formatLabels({ ...labels, le: bound })} ${formatNumber(count)}`);
  }
}

function formatLabels(labels: Labels): string {
  const parts = Object.entries(labels).map(([name, value]) => `${name}="${escapeLabel(String(value))}"`);
  return parts.length === 0 ? "" : `{${parts.join(",")}}`;
}

const escapeLabel = (text: string): string =>
  text.replaceAll("\\", "\\\\").replaceAll('"', '\\"').replaceAll("\n", "\\n");

function formatNumber(value: number): string {
  if (value === Infinity) return "+Inf";
  // 0.000008 and not 8e-06: both are legal, and one of them can be read.
  return Number.isInteger(value) ? String(value) : String(Number(value.toPrecision(12)));
}
