/**
 * The server's log on standard error: JSON lines for programs, in pino's shape, or lines that a person can read on a
 * terminal. Never called per operation of the data path. (pino itself costs a tenth of the start-up time, and memory.)
 */
import { styleText } from "node:util";
import type { Log } from "#env/env";

const LEVELS = { debug: 20, info: 30, warn: 40, error: 50 } as const;
export type LogLevel = keyof typeof LEVELS;

const COLOUR = { debug: "gray", info: "green", warn: "yellow", error: "red" } as const;

export function makeLog(least: LogLevel, format: "auto" | "json" | "text"): Log {
  const render = format === "text" || (format === "auto" && process.stderr.isTTY) ? renderText : renderJson;
  const at = (level: LogLevel) => (fields: object, message: string) => {
    // Standard error is written synchronously on Linux, so that the last words of a process are not lost.
    if (LEVELS[level] >= LEVELS[least]) process.stderr.write(`${render(level, new Date(), fields, message)}\n`);
  };
  return { debug: at("debug"), info: at("info"), warn: at("warn"), error: at("error") };
}

function renderJson(level: LogLevel, time: Date, fields: object, message: string): string {
  return JSON.stringify({ level, time: time.toISOString(), pid: process.pid, ...fields, msg: message });
}

function renderText(level: LogLevel, time: Date, fields: object, message: string): string {
  const { hint, ...rest } = fields as { hint?: unknown } & Record<string, unknown>;
  const words = Object.entries(rest)
    .filter(([, value]) => value !== undefined && value !== "")
    .map(([name, value]) => `${name}=${typeof value === "string" ? value : JSON.stringify(value)}`);
  const details = words.length > 0 ? ` ${paint("gray", words.join(" "))}` : "";
  const advice = typeof hint === "string" ? `\n${" ".repeat(19)}${hint}` : "";
  const clock = paint("gray", time.toISOString().slice(11, 23));
  return `${clock} ${paint(COLOUR[level], level.padEnd(5))} ${message}${details}${advice}`;
}

function paint(colour: Parameters<typeof styleText>[0], text: string): string {
  return process.stderr.isTTY && process.env["NO_COLOR"] === undefined ? styleText(colour, text) : text;
}
