/** How the library tells of an operation that failed: what was asked, and the status that came back. */

import type { Status } from "#base/status";
import type { OpKind } from "#device/device";

/** What each status means to whoever called. */
const MEANINGS: Record<Status, string> = {
  ok: "it was done",
  medium: "the data there is damaged or unreadable",
  failed: "the storage failed; writes that were not flushed may be lost",
  full: "no space is left",
  range: "that lies beyond the end",
  invalid: "the request makes no sense to the device",
  unsupported: "the device cannot do that",
  denied: "the device may not be written",
  conflict: "another host has reserved the device",
  fenced: "another server has taken the volume over",
  miscompare: "other data was found",
  busy: "the server is out of resources for the moment",
  away: "there is no connection to the server",
  gone: "the device does not exist any more",
  aborted: "it was given up",
};

export class DeviceError extends Error {
  override readonly name = "DeviceError";
  readonly status: Status;
  readonly operation: OpKind;
  /** Bytes from the start of the device; 0 for a flush. */
  readonly offset: number;
  readonly length: number;

  constructor(status: Status, operation: OpKind, offset = 0, length = 0) {
    const where = operation === "flush" ? "" : ` of ${length} bytes at ${offset}`;
    super(`The ${operation}${where} failed: ${MEANINGS[status]} (${status})`);
    this.status = status;
    this.operation = operation;
    this.offset = offset;
    this.length = length;
  }
}
