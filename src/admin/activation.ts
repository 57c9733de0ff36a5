/** Listening sockets from systemd (sd_listen_fds(3)): LISTEN_FDS of them from descriptor 3 on, named by LISTEN_FDNAMES. */
import { readFileSync, readlinkSync } from "node:fs";
import type { Address } from "#env/env";

const FIRST_FD = 3;

/**
 * The descriptors by the name of the front. The variables are removed, so that children do not take the sockets for
 * theirs. A socket that was not given a name in the unit file is for NBD.
 */
export function takeActivatedSockets(env: NodeJS.ProcessEnv): Map<string, number> {
  const { LISTEN_PID: pid, LISTEN_FDS: count, LISTEN_FDNAMES: names = "" } = env;
  for (const name of ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"]) delete env[name];
  const found = new Map<string, number>();
  if (Number(pid) !== process.pid) return found;
  const given = names.split(":");
  for (let index = 0; index < Number(count); index++) {
    const name = given[index] ?? "";
    const isNamed = name !== "" && name !== "unknown" && !name.endsWith(".socket");
    found.set(isNamed ? name : "nbd", FIRST_FD + index);
  }
  return found;
}

/** Where a listening socket listens, as the kernel's tables say; undefined when they do not. */
export function describeSocket(fd: number): Address | undefined {
  try {
    const inode = /^socket:\[(\d+)\]$/.exec(readlinkSync(`/proc/self/fd/${fd}`))?.[1];
    if (inode === undefined) return undefined;
    for (const table of ["tcp", "tcp6"]) {
      const fields = rowsOf(table).find((row) => row[9] === inode);
      if (fields !== undefined) return parseHexAddress(fields[1]!);
    }
    const unix = rowsOf("unix").find((row) => row[6] === inode);
    return unix === undefined ? undefined : { path: unix[7] ?? "" };
  } catch {
    return undefined;
  }
}

const rowsOf = (table: string): string[][] =>
  readFileSync(`/proc/self/net/${table}`, "utf8")
    .split("\n")
    .slice(1)
    .map((line) => line.trim().split(/\s+/));

/** "0100007F:2A39" is 127.0.0.1:10809: words of 32 bits in the machine's own order, then the port. */
function parseHexAddress(text: string): Address {
  const [hex = "", port = ""] = text.split(":");
  const bytes = (hex.match(/.{8}/g) ?? []).flatMap((word) => (word.match(/../g) ?? []).reverse());
  if (bytes.length === 4)
    return { host: bytes.map((byte) => Number.parseInt(byte, 16)).join("."), port: Number.parseInt(port, 16) };
  const groups = Array.from({ length: 8 }, (_, index) => bytes[2 * index]! + bytes[2 * index + 1]!);
  const host = groups.map((group) => Number.parseInt(group, 16).toString(16)).join(":");
  return { host: host === "0:0:0:0:0:0:0:1" ? "::1" : host, port: Number.parseInt(port, 16) };
}
