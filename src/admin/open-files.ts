/** How many files and connections this process may have open, and what of that is for connections. */
import { readFileSync } from "node:fs";

/** The limit that is in force (RLIMIT_NOFILE); Infinity without one, undefined where it cannot be known. */
export function openFilesMax(): number | undefined {
  try {
    const limit = /^Max open files\s+(\S+)/m.exec(readFileSync("/proc/self/limits", "utf8"))?.[1];
    if (limit === undefined) return undefined;
    return limit === "unlimited" ? Number.POSITIVE_INFINITY : Number(limit);
  } catch {
    return undefined;
  }
}

/** At most half of it: a crowd of connections must not keep the volumes from opening their segments. */
export function connectionsMax(): number | undefined {
  const files = openFilesMax();
  return files === undefined || files === Number.POSITIVE_INFINITY ? undefined : Math.floor(files / 2);
}
