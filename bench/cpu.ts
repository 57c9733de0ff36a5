/** Processor time and memory of a server, with all its threads and child processes, from /proc. */
import { readdirSync, readFileSync } from "node:fs";

/** USER_HZ: fixed at 100 on every architecture that Node runs on. */
const TICK_MS = 10;

interface Stat {
  readonly parent: number;
  /** Milliseconds of user and system time: of all threads, and of children that have ended. */
  readonly ms: number;
}

function stat(pid: number): Stat | undefined {
  try {
    const text = readFileSync(`/proc/${pid}/stat`, "latin1");
    // The name in parentheses may hold anything, so count from behind it: state is field 3.
    const fields = text.slice(text.lastIndexOf(")") + 2).split(" ");
    const ticks = [11, 12, 13, 14].reduce((sum, index) => sum + Number(fields[index]), 0);
    return { parent: Number(fields[1]), ms: ticks * TICK_MS };
  } catch {
    return undefined;
  }
}

/** Processor time that a process and its descendants have used so far, in milliseconds (10 ms granularity). */
export function cpuMs(root: number): number {
  const all = new Map<number, Stat>();
  for (const entry of readdirSync("/proc")) {
    const found = /^\d+$/.test(entry) ? stat(Number(entry)) : undefined;
    if (found !== undefined) all.set(Number(entry), found);
  }
  let sum = 0;
  for (const [pid, own] of all) {
    let at: number | undefined = pid;
    for (let steps = 0; at !== undefined && at !== root && steps < 64; steps++) at = all.get(at)?.parent;
    if (at === root) sum += own.ms;
  }
  return sum;
}

/** Resident memory of one process in bytes. */
export function residentBytes(pid: number): number {
  const match = /^VmRSS:\s+(\d+) kB/m.exec(readFileSync(`/proc/${pid}/status`, "latin1"));
  return match === null ? 0 : Number(match[1]) * 1024;
}
