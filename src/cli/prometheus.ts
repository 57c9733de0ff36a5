/** Reads Prometheus' text format, for programs that would rather have JSON. */

export interface MetricFamily {
  readonly name: string;
  readonly type: string;
  readonly help: string;
  readonly samples: { name: string; labels: Record<string, string>; value: number | string }[];
}

/** The families of a text as our server writes it: every family begins with its help. */
export function parseMetrics(text: string): MetricFamily[] {
  const families: MetricFamily[] = [];
  for (const line of text.split("\n")) {
    const [, what, name = "", rest = ""] = /^# (HELP|TYPE) (\S+) (.*)$/.exec(line) ?? [];
    if (what === "HELP") families.push({ name, help: unescaped(rest), type: "", samples: [] });
    else if (what === "TYPE") families.push({ ...families.pop()!, type: rest });
    else if (line !== "") families.at(-1)?.samples.push(parseSample(line));
  }
  return families;
}

function parseSample(line: string): MetricFamily["samples"][number] {
  const value = line.slice(line.lastIndexOf(" ") + 1);
  const [, name = "", labels = ""] = /^(\w+)(?:\{(.*)\})? /.exec(line) ?? [];
  const pairs = [...labels.matchAll(/(\w+)="((?:[^"\\]|\\.)*)"/g)].map(([, key, text]) => [key, unescaped(text!)]);
  // JSON has no infinity.
  return { name, labels: Object.fromEntries(pairs), value: Number.isFinite(Number(value)) ? Number(value) : value };
}

const unescaped = (text: string): string =>
  text.replace(/\\(.)/g, (_, escaped: string) => (escaped === "n" ? "\n" : escaped));
