/**
 * Whether a process is on its way out: killed, or past `exit`, and not yet gone. One whose disk is slow may be so for
 * seconds, since the kernel lets a sync in flight come to its end first, and it holds its locks and ports until then.
 */
import { readFileSync } from "node:fs";

/** proc(5): of /proc/PID/stat, counted from the state, which follows the name in parentheses. */
const STATE = 0;
const FLAGS = 6;
/** include/linux/sched.h. */
const PF_EXITING = 0x4;
const SIGKILL_BIT = 1n << 8n;

/** @returns false where there is no such process, or no /proc to ask. */
export function isEnding(pid: number): boolean {
  try {
    const stat = readFileSync(`/proc/${pid}/stat`, "latin1");
    const fields = stat.slice(stat.lastIndexOf(")") + 2).split(" ");
    // A process whose first thread is over while others live is a zombie to look at, too.
    if (fields[STATE] === "Z" || fields[STATE] === "X") return true;
    if ((Number(fields[FLAGS]) & PF_EXITING) !== 0) return true;
    const status = readFileSync(`/proc/${pid}/status`, "latin1");
    const pending = /^SigPnd:\s*([0-9a-f]+)\nShdPnd:\s*([0-9a-f]+)$/m.exec(status);
    return pending !== null && ((BigInt(`0x${pending[1]}`) | BigInt(`0x${pending[2]}`)) & SIGKILL_BIT) !== 0n;
  } catch {
    return false;
  }
}
