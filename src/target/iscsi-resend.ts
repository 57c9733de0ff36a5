/** Data-In PDUs that the initiator asks for again: RFC 7143 §7.2.1, §11.16. */
import type { Outbox, Sendable } from "./iscsi-outbox.ts";
import type { IscsiTask } from "./iscsi-task.ts";

export class DataResend implements Sendable {
  queued = false;
  readonly #task: IscsiTask;
  #next: number;
  readonly #end: number;

  /** @param count of PDUs; 0 for all from `begin` on. */
  constructor(task: IscsiTask, begin: number, count: number) {
    this.#task = task;
    this.#next = begin;
    this.#end = count === 0 ? Number.POSITIVE_INFINITY : begin + count;
  }

  write(outbox: Outbox): boolean {
    const task = this.#task;
    // Acknowledged meanwhile: its buffer is another's.
    if (!task.ended || task.session.tasks.get(task.tag) !== task || task.scsi.stage !== "done") return true;
    while (this.#next < this.#end) {
      const written = task.rewriteDataIn(outbox, this.#next);
      if (written === "no-room") return false;
      if (written === "beyond") return true;
      this.#next++;
    }
    return true;
  }
}
