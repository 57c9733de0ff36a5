/** Whether the machine has run on since: then what was written is there, synced or not, whatever became of its processes. */
import { randomInt } from "node:crypto";
import { readFileSync } from "node:fs";
import { crc32c } from "#base/crc32c";

const BOOT_ID = "/proc/sys/kernel/random/boot_id";

/** A number from 1 to 2^32 - 1 that another start of the machine changes; where the system does not tell, of the server. */
export function machineRun(): number {
  try {
    return crc32c(readFileSync(BOOT_ID)) || 1;
  } catch {
    return randomInt(1, 2 ** 32);
  }
}
