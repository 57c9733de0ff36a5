/**
 * A session: one initiator port logged in to one portal group, over one or several connections. It orders commands by
 * CmdSN over all of them (RFC 7143 §4.2.2), owns their tasks, and does task management (§11.5).
 */

import { canary } from "#base/canary";
import type { SessionParameters } from "#proto/iscsi/negotiate";
import type { Nexus } from "#scsi/nexus";
import type { DeviceServer } from "#scsi/server";
import type { LogicalUnit } from "#scsi/unit";
import { isBefore, nextSn } from "#wire/iscsi/bhs";
import { RESERVED_TAG, TaskFunction, TaskResponse } from "#wire/iscsi/codes";
import type { IscsiConnection } from "./iscsi-connection.ts";
import type { Window } from "./iscsi-outbox.ts";
import type { IscsiTask } from "./iscsi-task.ts";
import type { HostUnits } from "./iscsi-units.ts";

/** Commands that an initiator may have in flight at a time. */
export const WINDOW_COMMANDS = 128;
/** And how many immediate ones beyond that. */
export const IMMEDIATE_COMMANDS_MAX = 16;

const NOTHING = (): void => undefined;

export interface SessionHome {
  readonly server: DeviceServer;
  takeTask(): IscsiTask;
  giveTask(task: IscsiTask): void;
  leaveUnits(session: IscsiSession, nexus: Nexus): void;
  sessionEnded(session: IscsiSession): void;
}

export interface Management {
  readonly function: number;
  readonly lun: number;
  readonly referencedTag: number;
  readonly refCmdSn: number;
  readonly expDataSn: number;
  readonly cmdSn: number;
}

export class IscsiSession implements Window {
  readonly home: SessionHome;
  readonly key: string;
  readonly tsih: number;
  readonly initiatorName: string;
  readonly isid: string;
  readonly parameters: SessionParameters;
  readonly isDiscovery: boolean;
  readonly host: string;
  readonly startedAt: number;
  nexus: Nexus | undefined;
  units: HostUnits | undefined;
  readonly connections = new Map<number, IscsiConnection>();
  readonly tasks = new Map<number, IscsiTask>();
  /** Tasks whose connection is gone, by its CID: level 2 keeps them for a while. §7.2.2. */
  readonly lost = new Map<number, { readonly tasks: Set<IscsiTask>; readonly until: number }>();
  expCmdSn = 0;
  maxCmdSn = 0;
  ending = false;
  ended = false;
  /** Called when the session has ended and touches nothing any more. */
  readonly #whenEnded: (() => void)[] = [];
  /** What is to be done in order, that came too early: by CmdSN. */
  readonly #early = new Map<number, () => void>();
  readonly #managing: { readonly request: Management; readonly done: (response: number) => void }[] = [];
  #transferTag = 0;
  #immediates = 0;
  commands = 0;

  constructor(
    home: SessionHome,
    who: {
      readonly key: string;
      readonly tsih: number;
      readonly initiatorName: string;
      readonly isid: string;
      readonly parameters: SessionParameters;
      readonly isDiscovery: boolean;
      readonly host: string;
    },
    firstCmdSn: number,
    now: number,
  ) {
    this.home = home;
    this.key = who.key;
    this.tsih = who.tsih;
    this.initiatorName = who.initiatorName;
    this.isid = who.isid;
    this.parameters = who.parameters;
    this.isDiscovery = who.isDiscovery;
    this.host = who.host;
    this.startedAt = now;
    this.expCmdSn = firstCmdSn;
    this.maxCmdSn = (firstCmdSn + WINDOW_COMMANDS - 1) >>> 0;
  }

  nextTransferTag(): number {
    this.#transferTag = nextSn(this.#transferTag);
    if (this.#transferTag === RESERVED_TAG) this.#transferTag = 1;
    return this.#transferTag;
  }

  /* ---------------------------------------------------------------------------- order */

  /** What is to become of a request with this number: done now, kept until its turn comes, or dropped. §4.2.2.1. */
  turnOf(cmdSn: number, immediate: boolean): "now" | "early" | "drop" {
    if (immediate) return "now";
    if (canary.armed === "iscsi-done-twice" && isBefore(cmdSn, this.expCmdSn)) return "now";
    if (cmdSn === this.expCmdSn) return isBefore(this.maxCmdSn, cmdSn) ? "drop" : "now";
    if (isBefore(cmdSn, this.expCmdSn) || isBefore(this.maxCmdSn, cmdSn) || this.#early.has(cmdSn)) return "drop";
    return "early";
  }
  /** Keeps something for its turn. */
  keep(cmdSn: number, todo: () => void): void {
    this.#early.set(cmdSn, todo);
  }
  /** A number has been used up: what waited for it follows. */
  advance(): void {
    this.expCmdSn = nextSn(this.expCmdSn);
    this.#widen();
  }
  /** Does what was kept and whose turn has come. */
  drainEarly(): void {
    for (;;) {
      this.#manageDue();
      const todo = this.#early.get(this.expCmdSn);
      if (todo === undefined) return;
      this.#early.delete(this.expCmdSn);
      this.advance();
      todo();
    }
  }
  get hasEarly(): boolean {
    return this.#early.size > 0 || this.#managing.length > 0;
  }
  /** Task management that has waited for the commands before it. */
  #manageDue(): void {
    if (this.#managing.length === 0) return;
    const due = this.#managing.filter(({ request }) => !isBefore(this.expCmdSn, request.cmdSn));
    for (const one of due) {
      this.#managing.splice(this.#managing.indexOf(one), 1);
      this.#manage(one.request, one.done);
    }
  }
  /** The window opens as tasks end, and never closes: MaxCmdSN does not go back. */
  #widen(): void {
    const free = Math.max(0, WINDOW_COMMANDS - this.tasks.size + this.#immediates);
    const max = (this.expCmdSn + free - 1) >>> 0;
    if (isBefore(this.maxCmdSn, max)) this.maxCmdSn = max;
  }

  /* ---------------------------------------------------------------------------- tasks */

  /** Whether the tag belongs to a command that still runs: §11.2.1.8. */
  isTagTaken(tag: number): boolean {
    const task = this.tasks.get(tag);
    return task !== undefined && !(task.scsi.aborted && task.scsi.stage === "done") && !(task.answered && !task.queued);
  }

  /** A task for a command; undefined when there are too many immediate ones. */
  startTask(connection: IscsiConnection, tag: number, immediate: boolean): IscsiTask | undefined {
    if (immediate && this.#immediates >= IMMEDIATE_COMMANDS_MAX) return undefined;
    const before = this.tasks.get(tag);
    if (before !== undefined) {
      // The initiator has its answer, or none will come: the tag is free for it.
      before.loseSequences();
      this.endTask(before);
      if (this.tasks.has(tag)) return undefined;
    }
    const task = this.home.takeTask();
    task.begin(this, connection);
    task.tag = tag;
    task.isImmediate = immediate;
    if (immediate) this.#immediates++;
    this.tasks.set(tag, task);
    this.commands++;
    return task;
  }

  /** A task is over: answered and acknowledged, or given up. */
  endTask(task: IscsiTask): void {
    if (this.tasks.get(task.tag) !== task) return;
    // The line is still writing into its buffer, or an R2T of it still stands in a queue: it ends when it is let go.
    if (task.pinned || task.queued) {
      task.endWhenFree = true;
      return;
    }
    task.endWhenFree = false;
    this.tasks.delete(task.tag);
    for (const { tasks } of this.lost.values()) tasks.delete(task);
    if (task.isImmediate) this.#immediates--;
    this.#widen();
    // An initiator can acknowledge an answer before our line says that it has sent it.
    if (task.leaving) task.endsWithBatch = true;
    else this.#release(task);
    if (this.ending) this.#endIfQuiet();
  }
  #release(task: IscsiTask): void {
    this.home.server.release(task.scsi);
    this.home.giveTask(task);
  }

  /** The answer has left with a batch. With recovery, it is kept until the initiator has acknowledged it. */
  answerSent(task: IscsiTask): void {
    task.leaving = false;
    if (task.endsWithBatch) {
      task.endsWithBatch = false;
      return this.#release(task);
    }
    if (this.tasks.get(task.tag) !== task || !task.answered) return;
    if (this.parameters.errorRecoveryLevel === 0 || task.orphan || this.ending) this.endTask(task);
  }

  /** §4.2.2.3: everything before `expStatSn` has been received. */
  acknowledge(connection: IscsiConnection, expStatSn: number): void {
    for (const task of this.tasks.values())
      if (task.connection === connection && task.answered && !task.queued && task.isAcknowledged(expStatSn))
        this.endTask(task);
  }

  /* ----------------------------------------------------------------- task management */

  /**
   * §11.5. `done` is told a code of `TaskResponse`, once everything that the function concerns has ended. §4.2.3.3 (b): a
   * function for many waits for the commands before it, which may be on their way on other connections.
   */
  manage(request: Management, done: (response: number) => void): void {
    const isForMany =
      request.function === TaskFunction.ABORT_TASK_SET ||
      request.function === TaskFunction.CLEAR_TASK_SET ||
      request.function === TaskFunction.LOGICAL_UNIT_RESET ||
      request.function === TaskFunction.TARGET_WARM_RESET ||
      request.function === TaskFunction.TARGET_COLD_RESET;
    if (isForMany && isBefore(this.expCmdSn, request.cmdSn)) this.#managing.push({ request, done });
    else this.#manage(request, done);
  }

  #manage(request: Management, done: (response: number) => void): void {
    const { server } = this.home;
    const { nexus, units } = this;
    if (nexus === undefined || units === undefined) return done(TaskResponse.REJECTED);
    const unit = units.find(request.lun)?.unit;
    switch (request.function) {
      case TaskFunction.ABORT_TASK:
        return this.#abortTask(request, done);
      case TaskFunction.ABORT_TASK_SET:
      case TaskFunction.CLEAR_TASK_SET: {
        if (unit === undefined) return done(TaskResponse.NO_LUN);
        const everybody = request.function === TaskFunction.CLEAR_TASK_SET;
        return server.clearTasks(unit, nexus, everybody, () => done(TaskResponse.COMPLETE));
      }
      case TaskFunction.LOGICAL_UNIT_RESET:
        if (unit === undefined) return done(TaskResponse.NO_LUN);
        if (canary.armed === "iscsi-reset-all") return this.#resetAll(units, () => done(TaskResponse.COMPLETE));
        return server.resetUnit(unit, () => done(TaskResponse.COMPLETE));
      case TaskFunction.TARGET_WARM_RESET:
      case TaskFunction.TARGET_COLD_RESET:
        // Deviates: a target is shared by hosts that know nothing of each other. A reset concerns the units that this
        // host may see, and a cold one ends no sessions.
        return this.#resetAll(units, () => done(TaskResponse.COMPLETE));
      case TaskFunction.CLEAR_ACA:
        return done(TaskResponse.UNSUPPORTED);
      default:
        return done(TaskResponse.UNSUPPORTED);
    }
  }

  #resetAll(units: HostUnits, done: () => void): void {
    const all = new Set<LogicalUnit>(units.list().map((view) => view.unit));
    if (canary.armed === "iscsi-reset-some" && all.size > 1) all.delete([...all].at(-1)!);
    let left = all.size;
    if (left === 0) return done();
    for (const unit of all)
      this.home.server.resetUnit(unit, () => {
        if (--left === 0) done();
      });
  }

  #abortTask(request: Management, done: (response: number) => void): void {
    const task = this.tasks.get(request.referencedTag);
    if (task?.scsi.aborted) {
      // Aborted before, by a reset perhaps: only its data was still awaited, or its last operation.
      task.loseSequences();
      if (task.scsi.stage === "done") this.endTask(task);
      return this.home.server.abort([task.scsi], () => done(TaskResponse.NO_TASK));
    }
    if (task?.ended) return done(TaskResponse.NO_TASK);
    if (task === undefined) {
      // §11.5.1: a command that has not come yet is taken to have been aborted on its way.
      const isOnItsWay = isBefore(request.refCmdSn, request.cmdSn) && !isBefore(request.refCmdSn, this.expCmdSn);
      if (!isOnItsWay) return done(TaskResponse.NO_TASK);
      if (this.turnOf(request.refCmdSn, false) === "now") {
        this.advance();
        this.drainEarly();
      } else this.keep(request.refCmdSn, NOTHING);
      return done(TaskResponse.COMPLETE);
    }
    this.giveUp([task], () => done(TaskResponse.COMPLETE));
  }

  /** Ends tasks without an answer. `done` once none of them touches memory. */
  giveUp(tasks: readonly IscsiTask[], done: () => void): void {
    for (const task of tasks) {
      task.orphan = true;
      task.scsi.aborted = true;
      task.loseSequences();
    }
    const running = tasks.filter((task) => task.scsi.stage !== "done" && task.scsi.stage !== "idle");
    // Those that have ended may be on their way out of memory: only a closed line has certainly let go of them.
    for (const task of tasks)
      if (!running.includes(task) && (task.scsi.stage === "idle" || task.connection.isClosed)) this.endTask(task);
    this.home.server.abort(
      running.map((task) => task.scsi),
      done,
    );
  }

  /* ------------------------------------------------------------------------ connections */

  /** A connection is gone. What becomes of its tasks depends on the recovery level: §7.3. */
  connectionLost(connection: IscsiConnection, now: number, forGood: boolean): void {
    if (this.connections.get(connection.cid) !== connection) {
      // It was replaced. What had to wait for its line to let go can end now.
      this.giveUp(
        [...this.tasks.values()].filter((task) => task.connection === connection && task.orphan),
        NOTHING,
      );
      return;
    }
    this.connections.delete(connection.cid);
    const tasks = [...this.tasks.values()].filter((task) => task.connection === connection);
    for (const task of tasks) task.loseSequences();
    const { errorRecoveryLevel, time2Wait, time2Retain } = this.parameters;
    if (this.ending) {
      this.giveUp(tasks, NOTHING);
      return this.#endIfQuiet();
    }
    if (errorRecoveryLevel === 2 && !forGood && time2Retain > 0) {
      for (const task of tasks) task.forgetStatSn();
      this.lost.set(connection.cid, { tasks: new Set(tasks), until: now + (time2Wait + time2Retain) * 1000 });
      return;
    }
    this.giveUp(tasks, NOTHING);
    if (this.connections.size === 0 && this.lost.size === 0) this.end();
  }

  /** Another connection takes the place of `connection`, which is closing: its tasks are lost before it is. */
  connectionReplaced(connection: IscsiConnection, now: number): void {
    const tasks = [...this.tasks.values()].filter((task) => task.connection === connection);
    const { errorRecoveryLevel, time2Wait, time2Retain } = this.parameters;
    if (errorRecoveryLevel < 2) return this.giveUp(tasks, NOTHING);
    for (const task of tasks) {
      task.loseSequences();
      task.forgetStatSn();
    }
    this.lost.set(connection.cid, { tasks: new Set(tasks), until: now + (time2Wait + time2Retain) * 1000 });
  }

  /** Tasks that wait for a new connection do so only for a time. */
  expire(now: number): void {
    for (const [cid, one] of this.lost)
      if (one.until <= now) {
        this.lost.delete(cid);
        this.giveUp([...one.tasks], NOTHING);
      }
    if (this.connections.size === 0 && this.lost.size === 0) this.end();
  }

  /**
   * Gives up what runs (on one connection, or on all), for a logout on `asking`; `done` once nothing does. Answers that
   * are on their way still leave.
   */
  quiesce(asking: IscsiConnection, done: () => void, only?: IscsiConnection): void {
    for (const connection of [...this.connections.values()])
      if (only === undefined && connection !== asking) connection.close("logout");
    const tasks = [...this.tasks.values()].filter((task) => only === undefined || task.connection === only);
    const isLast = only === undefined || this.connections.size === 1;
    this.giveUp(
      tasks.filter((task) => !task.ended),
      () => {
        // What the nexus had reserved is free before the initiator hears that it is logged out.
        if (isLast) this.leaveUnits();
        done();
      },
    );
  }

  /** The nexus is over: reservations of the old kind and the like end. Commands that still come are dropped. */
  leaveUnits(): void {
    if (this.nexus === undefined) return;
    this.home.leaveUnits(this, this.nexus);
    this.nexus = undefined;
    this.units = undefined;
  }

  /** §11.14: a connection that the initiator has given up. Its tasks wait to be reassigned. False: no such CID. */
  removeForRecovery(cid: number): boolean {
    const connection = this.connections.get(cid);
    if (connection === undefined) return this.lost.has(cid);
    connection.close("replaced");
    return true;
  }

  /** §7.2.2, §11.5.1: a task of a lost connection answers on this one from now on. */
  reassign(connection: IscsiConnection, tag: number, expDataSn: number): number {
    if (this.parameters.errorRecoveryLevel < 2) return TaskResponse.REASSIGN_UNSUPPORTED;
    const task = this.tasks.get(tag);
    if (task === undefined) return TaskResponse.NO_TASK;
    for (const { tasks } of this.lost.values())
      if (tasks.delete(task)) {
        task.reassign(connection, expDataSn);
        return TaskResponse.COMPLETE;
      }
    return TaskResponse.STILL_ALLEGIANT;
  }

  /** Ends the session: its tasks are given up, its connections closed; `whenEnded` follows. */
  end(): void {
    if (this.ending) return;
    this.ending = true;
    this.#early.clear();
    this.#managing.length = 0;
    this.lost.clear();
    for (const connection of [...this.connections.values()]) connection.close("session-ended");
    this.giveUp([...this.tasks.values()], NOTHING);
    this.#endIfQuiet();
  }
  whenEnded(told: () => void): void {
    if (this.ended) told();
    else this.#whenEnded.push(told);
  }

  /** This one takes the place of `before`, and is not over before that is: what comes after both must wait for both. */
  follow(before: IscsiSession): void {
    this.#before = before;
    before.whenEnded(() => {
      this.#before = undefined;
      if (this.ending) this.#endIfQuiet();
    });
  }
  #before: IscsiSession | undefined;

  #endIfQuiet(): void {
    if (this.ended || this.#before !== undefined || this.tasks.size > 0 || this.connections.size > 0) return;
    this.ended = true;
    this.leaveUnits();
    this.home.sessionEnded(this);
    for (const told of this.#whenEnded.splice(0)) told();
  }
}
