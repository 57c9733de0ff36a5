/**
 * The device server: takes commands from a transport, orders them in their unit's task set, lets those through that
 * nothing forbids (unit attentions, reservations, a sanitize, an empty drive), and runs them. Free of any transport.
 *
 * A command goes: deliver → [task set] → checks → its `start` → [memory, data from the initiator] → device operations
 * → `end`, which hands the outcome to its transport. SAM-5 §5.
 */
import { canary } from "#base/canary";
import type { Memory } from "#base/memory";
import type { Status } from "#base/status";
import { start, type Task } from "#base/task";
import type { Clock, Log } from "#env/env";
import { AccessState, Asc, Op, SamStatus, SenseKey } from "#wire/scsi/codes";
import { encodeInquiry } from "#wire/scsi/inquiry";
import { encodeSense, Sense } from "#wire/scsi/sense";
import { SCSI_STATUS } from "#wire/scsi/status";
import type { Command } from "./commands.ts";
import { findCommand } from "./commands.ts";
import type { Nexus } from "./nexus.ts";
import { reportLuns } from "./report-commands.ts";
import type { ReservationBook } from "./reservation-store.ts";
import type { ScsiTask, Step } from "./task.ts";
import type { LogicalUnit } from "./unit.ts";

export interface ScsiEnv {
  readonly clock: Clock;
  readonly memory: Memory;
  readonly log: Log;
}

interface Abortion {
  readonly tasks: Set<ScsiTask>;
  readonly done: () => void;
}
interface MemoryWish {
  readonly task: ScsiTask;
  readonly length: number;
  readonly scratch: boolean;
  readonly then: Step;
}

export class DeviceServer {
  readonly env: ScsiEnv;
  readonly memory: Memory;
  readonly book: ReservationBook;
  /** Tasks that wait for memory, in order of arrival. */
  readonly #wishes: MemoryWish[] = [];
  readonly #abortions = new Set<Abortion>();

  constructor(env: ScsiEnv, book: ReservationBook) {
    this.env = env;
    this.memory = env.memory;
    this.book = book;
  }

  /* ------------------------------------------------------------ for transports */

  /** Takes a command: `nexus`, `unit`, `device`, `cdb`, `attribute`, `outMax` and `inMax` are set. */
  deliver(task: ScsiTask): void {
    const { unit } = task;
    if (unit === undefined) return this.#withoutUnit(task);
    if (task.opcode === Op.SANITIZE) task.attribute = "ordered";
    if (unit.tasks.enter(task)) this.#begin(task);
  }

  /** The data that a task wanted lies in its buffer. */
  collected(task: ScsiTask): void {
    if (task.stage !== "waiting" || task.next === undefined) return;
    task.stage = "executing";
    task.next(task);
  }

  /** The transport could not get the data: the command ends with this sense. */
  collectFailed(task: ScsiTask, key: number, asc: number): void {
    if (task.stage === "waiting") this.fail(task, key, asc);
  }

  /** The outcome was sent (or nobody wants it): the task is free again. */
  release(task: ScsiTask): void {
    task.freeBuffers(this.memory);
    task.reset();
  }

  /** A nexus is gone: its tasks are given up. Calls `done` when none of them touches memory any more. */
  nexusLost(nexus: Nexus, units: Iterable<LogicalUnit>, done: () => void): void {
    const tasks: ScsiTask[] = [];
    for (const unit of units) tasks.push(...unit.tasksOf((task) => task.nexus === nexus));
    this.abort(tasks, () => {
      for (const unit of units) unit.leave(nexus);
      done();
    });
  }

  /** Gives tasks up; `done` once all of them have ended, possibly before it returns. None of them is answered. */
  abort(tasks: readonly ScsiTask[], done: () => void): void {
    const pending = new Set(tasks.filter((task) => task.stage !== "done" && task.stage !== "idle"));
    const abortion = { tasks: pending, done };
    // All of them first: as one ends, the next one's turn comes.
    for (const task of pending) task.aborted = true;
    for (const task of [...pending]) {
      if (task.stage === "executing") {
        if (canary.armed === "scsi-abort-early") pending.delete(task);
        continue;
      }
      pending.delete(task);
      this.end(task);
    }
    if (pending.size === 0) done();
    else this.#abortions.add(abortion);
  }

  /** ABORT TASK SET: those of one nexus. CLEAR TASK SET: everybody's, who are told. SAM-5 §7.3, §7.5. */
  clearTasks(unit: LogicalUnit, nexus: Nexus, everybody: boolean, done: () => void): void {
    const tasks = unit.tasksOf((task) => everybody || task.nexus === nexus);
    const others = new Set(tasks.map((task) => task.nexus).filter((other) => other !== nexus));
    for (const other of others) other.addAttention(unit, Asc.COMMANDS_CLEARED_BY_ANOTHER);
    this.abort(tasks, done);
  }

  /** SAM-5 §6.3.3: everything ends but a sanitize and persistent reservations; every nexus is told. */
  resetUnit(unit: LogicalUnit, done: () => void): void {
    this.abort([...unit.tasks], () => {
      unit.reservations.dropLegacy();
      unit.preventing.clear();
      unit.tell(Asc.BUS_DEVICE_RESET);
      done();
    });
  }

  /* -------------------------------------------------------------- for commands */

  /** Ends a command with GOOD, or with CHECK CONDITION if its sense says so. */
  end(task: ScsiTask): void {
    const { unit } = task;
    task.stage = "done";
    if (task.status === SamStatus.CHECK_CONDITION && !task.aborted)
      task.senseLength = encodeSense(task.sense, unit?.mode.descriptorSense ?? false, task.senseBytes);
    const woken = unit?.tasks.leave(task);
    const { aborted } = task;
    task.transport.finish(task);
    if (aborted) this.#aborted(task);
    if (woken !== undefined) this.#wake(woken);
  }

  #wake(woken: readonly ScsiTask[]): void {
    for (const next of woken) if (next.stage === "dormant" && !next.aborted) this.#begin(next);
  }

  /** A command goes on in the background: those behind it need not wait for it. */
  relax(task: ScsiTask): void {
    this.#wake(task.unit!.tasks.relax(task));
  }

  /** Ends a command with CHECK CONDITION. `field`: the first wrong byte of the CDB, where that is the reason. */
  fail(task: ScsiTask, key: number, asc: number, field = -1): void {
    task.status = SamStatus.CHECK_CONDITION;
    task.sense.set(key, asc);
    task.sense.fieldByte = field;
    task.inLength = 0;
    this.end(task);
  }
  /** The most frequent refusals. */
  invalidField(task: ScsiTask, field: number): void {
    this.fail(task, SenseKey.ILLEGAL_REQUEST, Asc.INVALID_FIELD_IN_CDB, field);
  }
  invalidParameter(task: ScsiTask, field: number, asc: number = Asc.INVALID_FIELD_IN_PARAMETERS): void {
    task.status = SamStatus.CHECK_CONDITION;
    task.sense.set(SenseKey.ILLEGAL_REQUEST, asc);
    task.sense.fieldByte = field;
    task.sense.fieldInCdb = false;
    task.inLength = 0;
    this.end(task);
  }
  conflict(task: ScsiTask): void {
    task.status = SamStatus.RESERVATION_CONFLICT;
    task.inLength = 0;
    this.end(task);
  }

  /** Ends a command as an operation on the device ended. */
  endWith(task: ScsiTask, status: Status): void {
    if (status !== "ok") {
      const meaning = SCSI_STATUS[status];
      task.status = meaning.status;
      task.inLength = 0;
      if (meaning.status === SamStatus.CHECK_CONDITION) {
        task.sense.set(meaning.key, meaning.asc);
        if (status === "miscompare") task.sense.information = task.op.result;
        if (status === "medium") task.sense.information = this.#damagedBlock(task);
        if (status === "medium" && task.op.kind !== "read") task.sense.asc = Asc.WRITE_ERROR;
        if (status === "denied" && task.unit?.mode.softwareWriteProtect) task.sense.asc = Asc.SOFTWARE_WRITE_PROTECTED;
      }
    }
    this.end(task);
  }

  /** Ends a command with `bytes` as its data-in, cut to what the CDB (`allocation`) and the initiator allow. */
  reply(task: ScsiTask, bytes: Uint8Array, allocation: number): void {
    task.total = Math.min(bytes.length, allocation);
    const length = Math.min(task.total, task.inMax);
    if (length === 0) return this.end(task);
    this.withMemory(task, length, false, () => {
      this.memory.bytes.set(bytes.subarray(0, length), task.at);
      task.inLength = length;
      this.end(task);
    });
  }

  /** Goes on with `then` once the task has a buffer (or a second one, `scratch`) of `length` bytes. */
  withMemory(task: ScsiTask, length: number, scratch: boolean, then: Step): void {
    if (!scratch && task.at !== 0 && task.capacity >= length) return then(task);
    if (this.#wishes.length === 0 && this.#allocate(task, length, scratch)) return then(task);
    task.stage = "waiting";
    this.#wishes.push({ task, length, scratch, then });
    this.memory.whenFreed(this);
  }

  /** Collects `length` bytes of data-out, as far as the initiator sends that many, and goes on with `then`. */
  collect(task: ScsiTask, length: number, then: Step): void {
    task.total = length;
    task.outLength = Math.min(length, task.outMax);
    task.next = then;
    if (task.outLength === 0) {
      task.stage = "executing";
      return then(task);
    }
    this.withMemory(task, task.outLength, false, this.#startCollecting);
  }

  /** Submits the task's operation to the device that its host sees; goes on with `then`. */
  submit(task: ScsiTask, then: Step): void {
    task.next = then;
    task.stage = "executing";
    task.device!.submit(task.op);
  }

  /** Makes the present reservations durable, then ends the command; if that fails, the change is undone. */
  persist(task: ScsiTask, undo: () => void): void {
    const run: Task<unknown> = this.book.save(task.unit!.reservations);
    task.stage = "executing";
    start(
      run,
      (fault) => {
        if (fault === undefined) return this.end(task);
        this.env.log.error({ volume: task.unit?.device.uuid, fault }, "cannot save reservations");
        undo();
        this.fail(task, SenseKey.ILLEGAL_REQUEST, Asc.INSUFFICIENT_REGISTRATION_RESOURCES);
      },
      (error) => {
        throw error;
      },
    );
  }

  /** Of the memory: something was freed. */
  onMemory(): void {
    while (this.#wishes.length > 0) {
      const wish = this.#wishes[0]!;
      const given = wish.task.stage === "waiting" && !wish.task.aborted;
      if (given && !this.#allocate(wish.task, wish.length, wish.scratch)) return this.memory.whenFreed(this);
      this.#wishes.shift();
      if (given) {
        wish.task.stage = "executing";
        wish.then(wish.task);
      }
    }
  }

  readonly #startCollecting: Step = (task) => {
    task.stage = "waiting";
    task.transport.collect(task);
  };

  #allocate(task: ScsiTask, length: number, scratch: boolean): boolean {
    const at = this.memory.allocate(length);
    if (at === 0) return false;
    if (scratch) {
      task.scratch = at;
      task.scratchLength = length;
    } else {
      if (task.at !== 0) this.memory.free(task.at);
      task.at = at;
      task.capacity = length;
    }
    return true;
  }

  #begin(task: ScsiTask): void {
    const unit = task.unit!;
    task.stage = "executing";
    const command = findCommand(task);
    if (command === undefined) return this.fail(task, SenseKey.ILLEGAL_REQUEST, Asc.INVALID_OPCODE, 0);
    if (command === "unknown-action") return this.invalidField(task, 1);
    if (task.nexus.hasAttention(unit) && !command.hearsNoAttention) {
      const asc = task.nexus.takeAttention(unit);
      if (asc !== 0) return this.fail(task, SenseKey.UNIT_ATTENTION, asc);
    }
    if (!unit.reservations.isFree && this.#isReserved(task, command)) return this.conflict(task);
    if (command.access === "free") return command.start(task);
    const refused = this.#notReady(task, command);
    if (refused !== 0) {
      task.sense.set(SenseKey.NOT_READY, refused);
      if (refused === Asc.SANITIZE_IN_PROGRESS) task.sense.progress = unit.sanitize?.progress ?? -1;
      task.status = SamStatus.CHECK_CONDITION;
      return this.end(task);
    }
    if (unit.sanitizeFailed !== undefined && !command.worksInSanitize && command.opcode !== Op.SANITIZE)
      return this.fail(task, SenseKey.MEDIUM_ERROR, Asc.SANITIZE_FAILED);
    if (command.changes && (task.device!.readOnly || unit.mode.softwareWriteProtect))
      return this.endWith(task, "denied");
    command.start(task);
  }

  #isReserved(task: ScsiTask, command: Command): boolean {
    const { reservations } = task.unit!;
    if (command.access === "free") return false;
    if (command.access === "write" && canary.armed === "scsi-write-not-judged") return false;
    if (command.access === "status" || command.isHarmless?.(task) === true)
      return reservations.legacyHolder !== undefined && reservations.legacyHolder !== task.nexus.name;
    return reservations.refuses(task.nexus.name, command.access);
  }

  /** Why a unit cannot take a command that touches the medium: a code of NOT READY, or 0. */
  #notReady(task: ScsiTask, command: Command): number {
    const unit = task.unit!;
    const state = unit.accessOf(task.nexus.port.portal);
    if (state === AccessState.STANDBY && !command.worksInStandby) return Asc.STANDBY;
    if (state === AccessState.UNAVAILABLE && !command.worksInStandby) return Asc.UNAVAILABLE;
    if (unit.sanitize !== undefined && !command.worksInSanitize) return Asc.SANITIZE_IN_PROGRESS;
    if (!command.needsMedium) return 0;
    return unit.loaded ? 0 : Asc.MEDIUM_NOT_PRESENT_TRAY_OPEN;
  }

  /** SPC-4 §6.6.2, §6.33 and §6.39: what is answered at a LUN where this host has nothing. */
  #withoutUnit(task: ScsiTask): void {
    task.stage = "executing";
    if (task.opcode === Op.INQUIRY && task.byte(1) === 0)
      return this.reply(task, encodeInquiry(false, false), task.cdb.getUint16(3));
    if (task.opcode === Op.REPORT_LUNS) return reportLuns(task);
    if (task.opcode === Op.REQUEST_SENSE) {
      const sense = new Sense();
      sense.set(SenseKey.ILLEGAL_REQUEST, Asc.LOGICAL_UNIT_NOT_SUPPORTED);
      const length = encodeSense(sense, (task.byte(1) & 1) !== 0, task.senseBytes);
      return this.reply(task, new Uint8Array(task.senseBytes.buffer.slice(0, length)), task.byte(4));
    }
    this.fail(task, SenseKey.ILLEGAL_REQUEST, Asc.LOGICAL_UNIT_NOT_SUPPORTED);
  }

  #damagedBlock(task: ScsiTask): number {
    return Math.floor((task.op.offset + task.op.result) / task.unit!.blockSize);
  }

  #aborted(task: ScsiTask): void {
    for (const abortion of this.#abortions)
      if (abortion.tasks.delete(task) && abortion.tasks.size === 0) {
        this.#abortions.delete(abortion);
        abortion.done();
      }
  }
}
