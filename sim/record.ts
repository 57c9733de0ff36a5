/** A run that is kept: `sim/results/NAME.md`, written by the runner itself, so that what documents say of it can be looked up. */
import { execFileSync } from "node:child_process";
import { mkdirSync, writeFileSync } from "node:fs";
import { cpus } from "node:os";

const FOLDER = "sim/results";

function git(...args: string[]): string {
  return execFileSync("git", args, { encoding: "utf8" }).trim();
}

/** The commit that is checked out; with a plus where the tree is not what it says. */
export function commitNow(): string {
  const isChanged = git("status", "--porcelain", "--untracked-files=no") !== "";
  return git("rev-parse", "--short=12", "HEAD") + (isChanged ? "+" : "");
}

export interface Kept {
  readonly commit: string;
  readonly startedAt: Date;
  readonly command: string;
  /** What the run has printed, and after it the canaries' score. */
  readonly lines: readonly string[];
  readonly canaries: readonly string[];
}

/** Writes the record, and returns where it is. */
export function keepRecord(name: string, { commit, startedAt, command, lines, canaries }: Kept): string {
  const summary = lines.at(-1) ?? "";
  const text = [
    `# A run of the simulator: ${name}`,
    "",
    `\`${command}\`, commit ${commit}, ${startedAt.toISOString().slice(0, 16).replace("T", " ")} UTC, ${cpus().length} × ${cpus()[0]?.model ?? "?"}, Node ${process.version}`,
    "",
    `**${summary}**`,
    "",
    `**${canaries.at(-1) ?? ""}**`,
    "",
    "How the worlds ended, and which fault met which state of the product:",
    "",
    "```",
    ...lines,
    "```",
    "",
    "Deliberate mistakes, and the world that noticed each of them:",
    "",
    "```",
    ...canaries,
    "```",
    "",
  ].join("\n");
  mkdirSync(FOLDER, { recursive: true });
  const path = `${FOLDER}/${name}.md`;
  writeFileSync(path, text);
  return path;
}
