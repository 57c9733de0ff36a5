/**
 * Where attachments leave their traces: one folder each, under /run/ashlar (root) or the user's runtime directory. It
 * holds the control socket and `attachment.json`. Who finds a folder whose process is gone cleans up after it.
 */
import { spawnSync } from "node:child_process";
import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";

export interface AttachmentFacts {
  readonly id: string;
  readonly pid: number;
  readonly servers: readonly string[];
  readonly host: string;
  readonly unit: number | undefined;
  /** Where the units are: a socket always; and what was asked for. */
  readonly socket: string;
  readonly device: string | undefined;
  readonly fuse: string | undefined;
  /** Shell commands that undo what was done outside of the process, to be run once it is gone. */
  readonly undo: readonly string[];
}

export function runFolder(): string {
  const given = process.env["ASHLAR_RUN"];
  if (given !== undefined && given !== "") return given;
  if (process.getuid?.() === 0) return "/run/ashlar";
  const runtime = process.env["XDG_RUNTIME_DIR"];
  return runtime === undefined ? `/tmp/ashlar-${process.getuid?.() ?? "user"}` : join(runtime, "ashlar");
}

export function makeFolder(id: string): string {
  const path = join(runFolder(), id);
  mkdirSync(path, { recursive: true, mode: 0o700 });
  return path;
}

export function writeFacts(facts: AttachmentFacts): void {
  writeFileSync(join(runFolder(), facts.id, "attachment.json"), JSON.stringify(facts), { mode: 0o600 });
}

/** All that is attached. What a killed process has left is cleaned up first. */
export function attachments(): AttachmentFacts[] {
  const folder = runFolder();
  if (!existsSync(folder)) return [];
  const found: AttachmentFacts[] = [];
  for (const id of readdirSync(folder)) {
    const facts = readFacts(join(folder, id, "attachment.json"));
    if (facts === undefined) continue;
    if (isAlive(facts.pid)) found.push(facts);
    else cleanUp(facts);
  }
  return found;
}

export function cleanUp(facts: AttachmentFacts): void {
  for (const command of facts.undo) spawnSync("sh", ["-c", command], { stdio: "ignore", timeout: 10_000 });
  rmSync(join(runFolder(), facts.id), { recursive: true, force: true });
}

function readFacts(path: string): AttachmentFacts | undefined {
  try {
    return JSON.parse(readFileSync(path, "utf8")) as AttachmentFacts;
  } catch {
    return undefined;
  }
}

function isAlive(pid: number): boolean {
  try {
    process.kill(pid, 0);
    return true;
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === "EPERM";
  }
}
