/**
 * What one front did with one device: operations, bytes, how long they took, how they ended. The front notes every
 * operation when its answer is handed to the line; the control plane reads it for metrics and `ashlar top`.
 */
import { Histogram } from "#base/histogram";
import type { Status } from "#base/status";
import type { Bytes, Millis } from "#base/units";
import type { OpKind } from "./device.ts";

export class Meter {
  /** One per kind of operation that has occurred. */
  readonly latency: Partial<Record<OpKind, Histogram>> = {};
  readonly bytes: Partial<Record<OpKind, Bytes>> = {};
  /** Operations that ended with anything but "ok". */
  readonly errors: Partial<Record<Status, number>> = {};
  /** Connections that have the device open now. */
  connections = 0;

  /** @param took from the arrival of the request's last header byte to the answer. */
  note(kind: OpKind, length: Bytes, took: Millis, status: Status): void {
    (this.latency[kind] ??= new Histogram()).observe(took);
    if (status === "ok") this.bytes[kind] = (this.bytes[kind] ?? 0) + length;
    else this.errors[status] = (this.errors[status] ?? 0) + 1;
  }
}
