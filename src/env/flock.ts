/**
 * `flock(2)`, which Node does not have: a lock that the kernel gives back when its holder dies, however it dies. Where
 * the native bridge is missing, `tryLock` answers undefined, and the caller falls back on asking whether the pid lives.
 */
import { koffi } from "./libc.ts";

const LOCK_EX = 2;
const LOCK_NB = 4;

let flock: ((file: number, operation: number) => number) | undefined;

/** True: the lock is ours until the file is closed. False: somebody else has it. Undefined: cannot tell here. */
export function tryLock(file: number): boolean | undefined {
  const native = koffi();
  if ("missing" in native) return undefined;
  try {
    flock ??= native.load("libc.so.6").func("int flock(int, int)") as NonNullable<typeof flock>;
    return flock(file, LOCK_EX | LOCK_NB) === 0;
  } catch {
    return undefined;
  }
}
