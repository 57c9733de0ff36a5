/** What the system's error codes mean in the words of `env.ts`. Both real Envs use it. */
import type { DiskFault, NetError, NetFault } from "./env.ts";

const DISK_FAULTS: Readonly<Record<string, DiskFault>> = {
  ENOSPC: "full",
  EDQUOT: "full",
  EFBIG: "full",
  EEXIST: "exists",
  ENOTEMPTY: "exists",
  ENOENT: "missing",
  ENOTDIR: "missing",
  ENXIO: "missing",
  ENODEV: "missing",
  EACCES: "denied",
  EPERM: "denied",
  EBUSY: "denied",
  EISDIR: "denied",
  EROFS: "read-only",
  EMFILE: "too-many-files",
  ENFILE: "too-many-files",
  EOPNOTSUPP: "unsupported",
  ENOTSUP: "unsupported",
  ENOSYS: "unsupported",
  EXDEV: "unsupported",
};

const NET_FAULTS: Readonly<Record<string, NetFault>> = {
  ECONNREFUSED: "refused",
  // A Unix socket that is not there.
  ENOENT: "refused",
  EHOSTUNREACH: "unreachable",
  ENETUNREACH: "unreachable",
  EHOSTDOWN: "unreachable",
  ENETDOWN: "unreachable",
  EAI_AGAIN: "unreachable",
  ETIMEDOUT: "timeout",
  EADDRINUSE: "in-use",
  EACCES: "denied",
  EPERM: "denied",
  EADDRNOTAVAIL: "bad-address",
  ENOTFOUND: "bad-address",
  EINVAL: "bad-address",
  EAFNOSUPPORT: "bad-address",
  ENOTSOCK: "bad-address",
  EBADF: "bad-address",
  ENAMETOOLONG: "bad-address",
  ERR_SOCKET_BAD_PORT: "bad-address",
  ERR_INVALID_IP_ADDRESS: "bad-address",
  ERR_INVALID_FD: "bad-address",
  ERR_INVALID_ARG_VALUE: "bad-address",
};

/** Codes that mean: the other side ended the line without finishing. */
const RESETS: ReadonlySet<string> = new Set(["ECONNRESET", "EPIPE", "ECONNABORTED"]);

export function codeOf(error: unknown): string {
  return String((error as { code?: unknown } | undefined)?.code ?? "");
}

export function diskFault(code: string): DiskFault {
  return DISK_FAULTS[code] ?? "io";
}

export function netError(error: unknown): NetError {
  const detail = error instanceof Error && error.message !== "" ? error.message : codeOf(error);
  return { fault: NET_FAULTS[codeOf(error)] ?? "broken", detail };
}

export function isReset(code: string): boolean {
  return RESETS.has(code);
}
