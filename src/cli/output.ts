/** How commands print: tables and colours for a terminal, JSON for programs; refusals with what to do about them. */
import { styleText } from "node:util";
import { REFUSALS, Refusal } from "#base/refusal";

type Format = Parameters<typeof styleText>[0];

export function paint(format: Format, text: string, stream: NodeJS.WriteStream = process.stdout): string {
  return stream.isTTY && process.env["NO_COLOR"] === undefined ? styleText(format, text) : text;
}

export interface Column<Row> {
  readonly title: string;
  readonly right?: boolean;
  readonly of: (row: Row) => string;
}

/** Rows in columns as wide as their content. */
export function table<Row>(rows: readonly Row[], columns: readonly Column<Row>[]): string {
  const cells = rows.map((row) => columns.map((column) => column.of(row)));
  const widths = columns.map(({ title }, index) =>
    Math.max(title.length, ...cells.map((line) => visible(line[index]!))),
  );
  const lay = (line: readonly string[]): string =>
    line
      .map((text, index) => {
        const room = " ".repeat(widths[index]! - visible(text));
        if (columns[index]!.right === true) return room + text;
        return index === line.length - 1 ? text : text + room;
      })
      .join("  ")
      .trimEnd();
  const head = paint("bold", lay(columns.map(({ title }) => title.toUpperCase())));
  return [head, ...cells.map(lay)].join("\n");
}

/** Names and values, one pair per line. */
export function facts(pairs: readonly (readonly [name: string, value: string])[]): string {
  const width = Math.max(...pairs.map(([name]) => name.length));
  return pairs.map(([name, value]) => `${paint("dim", name.padEnd(width))}  ${value}`).join("\n");
}

// biome-ignore lint/suspicious/noControlCharactersInRegex: colours are control characters
const visible = (text: string): number => text.replace(/\u001b\[[0-9;]*m/g, "").length;

/** Prints one answer: as JSON when asked for, else as `text` says. */
export function show<T>(json: boolean, value: T, text: (value: T) => string): void {
  const said = json ? JSON.stringify(value, undefined, 2) : text(value);
  if (said !== "") process.stdout.write(`${said}\n`);
}

/** Says why a command was refused; the exit status is that of the code. */
export function showRefusal(json: boolean, error: unknown): number {
  if (!(error instanceof Refusal)) {
    process.stderr.write(`ashlar: ${(error as Error).stack ?? error}\n`);
    const mistake = new Refusal("internal", (error as Error).message, "Please report it with what stderr says.");
    return json ? showRefusal(json, mistake) : REFUSALS.internal.exit;
  }
  const { code, message, hint } = error;
  if (json) process.stdout.write(`${JSON.stringify({ error: { code, message, hint } }, undefined, 2)}\n`);
  else {
    process.stderr.write(`${paint("red", "ashlar:", process.stderr)} ${message} (${code})\n`);
    if (hint !== undefined) process.stderr.write(`        ${hint}\n`);
  }
  return REFUSALS[code].exit;
}

/** "3 s", "12 min", "5 h", "2 days". */
export function formatSpan(seconds: number): string {
  if (seconds < 120) return `${Math.round(seconds)} s`;
  if (seconds < 7200) return `${Math.round(seconds / 60)} min`;
  if (seconds < 172_800) return `${Math.round(seconds / 3600)} h`;
  return `${Math.round(seconds / 86_400)} days`;
}

/** "2026-11-21 04:05" in local time, from RFC 3339. */
export function formatMoment(moment: string): string {
  const date = new Date(moment);
  const two = (value: number) => String(value).padStart(2, "0");
  const day = `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())}`;
  return `${day} ${two(date.getHours())}:${two(date.getMinutes())}`;
}
