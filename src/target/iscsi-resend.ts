/** Data-In PDUs that the initiator asks for again: RFC 7143 §7.2.1, §11.16. */
import type { Outbox, Sendable } from "./iscsi-outbox.ts";
import type { IscsiTask } from "./iscsi-task.ts";

export class DataResend implements Sendable {
  queued = false;
  readonly #task: IscsiTask;
  readonly #cuts: number;
  #next: number;
  readonly #end: number;

  constructor(task: IscsiTask, begin: number, end: number) {
    this.#task = task;
    this.#cuts = task.cuts;
    this.#next = begin;
    this.#end = end;
  }

  write(outbox: Outbox): boolean {
    const task = this.#task;
    const first = this.#next;
    let isDone = true;
    while (this.#isWanted && this.#next < this.#end && isDone) {
      const written = task.rewriteDataIn(outbox, this.#next);
      if (written === "beyond") break;
      if (written === "no-room") isDone = false;
      else this.#next++;
    }
    // Until the batch has left its buffer must stay, even when the initiator acknowledges the answer meanwhile.
    if (this.#next > first) outbox.finished(task);
    return isDone;
  }

  /** Acknowledged meanwhile, its buffer is another's; cut anew, everything is sent again anyway. */
  get #isWanted(): boolean {
    const task = this.#task;
    return task.session.tasks.get(task.tag) === task && task.cuts === this.#cuts && task.scsi.stage === "done";
  }
}
