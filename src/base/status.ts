/**
 * How a block operation ended: the one vocabulary of the store, the fronts, the hosts and every protocol.
 * Each protocol keeps a table `satisfies Record<Status, …>` beside its codes, so a new word breaks the build
 * wherever it has not been given a meaning yet.
 */
export type Status =
  | "ok"
  /** Data of this range is damaged or unreadable; other ranges are fine. */
  | "medium"
  /** The storage below failed (a write, or an fdatasync); the volume takes no more writes until it is reopened. */
  | "failed"
  /** No space left for this write. Nothing was changed; of a write longer than 4 MiB, blocks from its start may have been. */
  | "full"
  /** The range lies beyond the end of the device. */
  | "range"
  /** The request makes no sense: misaligned, of a forbidden length, with unknown flags. */
  | "invalid"
  /** This device cannot do that. */
  | "unsupported"
  /** The host has no right to do that (a read-only grant, a read-only snapshot). */
  | "denied"
  /** Another host's reservation stands in the way. */
  | "conflict"
  /** A newer epoch holds the volume: no path to this server may try again. */
  | "fenced"
  /** Compare-and-write found other data; `op.result` is the offset of the first difference in bytes. */
  | "miscompare"
  /** Out of resources for the moment: try again on the same path. */
  | "busy"
  /** This way to the device is gone: try another path, or wait for it. */
  | "away"
  /** The device does not exist any more. */
  | "gone"
  /** Given up on request, before it had any effect that must be told. */
  | "aborted";

/** What a host with several paths does about it. It is decided here, and nowhere else. */
export const REMEDY = {
  ok: "done",
  medium: "fail",
  failed: "fail",
  full: "fail",
  range: "fail",
  invalid: "fail",
  unsupported: "fail",
  denied: "fail",
  conflict: "fail",
  fenced: "stop",
  miscompare: "fail",
  busy: "retry-later",
  away: "other-path",
  gone: "fail",
  aborted: "retry-later",
} as const satisfies Record<Status, "done" | "fail" | "stop" | "retry-later" | "other-path">;
