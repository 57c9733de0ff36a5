/**
 * One host of an iSCSI world: an initiator, and of each unit the device that it makes of it for a `Host`, and what is
 * expected of the target's answers: unit attentions once each, and reservation conflicts exactly where they must be.
 */

import { writeU64 } from "#base/layout";
import type { Status } from "#base/status";
import type { BlockDevice, BlockOp, DeviceWatcher } from "#device/device";
import { CDB_16, CDB_COMPARE, CDB_UNMAP } from "#wire/scsi/cdb";
import { Asc, Op, SamStatus, SenseKey } from "#wire/scsi/codes";
import type { SimProcess } from "../env/sim-process.ts";
import type { History, Ticks } from "../oracle/history.ts";
import { conflicts, type PrModel, type PrState } from "../oracle/pr-model.ts";
import { Violation } from "../violation.ts";
import { Host, type Target } from "./host.ts";
import {
  type Answer,
  type Command,
  type CommandAttribute,
  type Flight,
  type InitiatorSettings,
  SimInitiator,
} from "./iscsi-initiator.ts";
import type { WriteLedger } from "./write-ledger.ts";

/** A unit's volume. */
export const nameOfUnit = (lun: number): string => `v${lun}`;

/** A unit attention that may be told, and from some tick on must be. */
export interface Attention {
  readonly asc: number;
  /** Commands sent after this tick hear of it. */
  sure: number;
  /** What raises it has not been answered: it may come at any time. */
  isOpen: boolean;
  /** While it was open a command heard what may have been it, or a reset that may have made it moot: it need not come. */
  isInDoubt: boolean;
  /** A command has ended well that should have heard it: then one of these has, or it is lost. */
  suspects: Set<Run> | undefined;
  /** The session that it was raised for. */
  readonly session: number;
}
/**
 * What raises an attention was sent on a session that is over: it may still come as long as commands run that it ends, of
 * any host; and those are over when each host has a new session.
 */
export interface Orphan {
  readonly attention: Attention;
  readonly waitsFor: Set<IscsiPort>;
}
/** What a new nexus is greeted with: SAM-5 §5.14, "power on" and "I_T nexus loss". */
const GREETINGS: readonly number[] = [Asc.POWER_ON_OR_RESET, Asc.NEXUS_LOSS];
const NEVER = Number.POSITIVE_INFINITY;
const AGAIN_MS = 5;
const isReset = (asc: number): boolean => asc >> 8 === Asc.POWER_ON_OR_RESET >> 8;

/** What all hosts know of one unit. */
export interface Shared {
  readonly lun: number;
  readonly ticks: Ticks;
  readonly stamps: { next: number };
  readonly history: History;
  readonly reservations: PrModel;
  readonly ledger: WriteLedger;
  /** Commands in flight, of all hosts: whatever the reservations may become while they are. */
  readonly runs: Set<{ readonly states: Set<PrState> }>;
}

interface Spec {
  readonly what: string;
  readonly cdb: Uint8Array;
  readonly attribute: CommandAttribute;
  readonly at: number;
  readonly outLength: number;
  readonly inLength: number;
  /** What a reservation has to say to it. */
  readonly access: "read" | "write" | "none";
  /** Of a write's data. */
  readonly stamp: number;
}

/** A host: its initiator, and what it has of each unit. */
export class IscsiHost {
  readonly index: number;
  readonly process: SimProcess;
  readonly initiator: SimInitiator;
  readonly units: readonly IscsiPort[];

  constructor(
    index: number,
    process: SimProcess,
    settings: InitiatorSettings,
    shape: { size: number; blockSize: number },
    units: readonly Shared[],
  ) {
    this.index = index;
    this.process = process;
    this.initiator = new SimInitiator(process, settings, {
      onLogin: () => {
        for (const unit of this.units) unit.onLogin();
      },
      onSession: () => {
        for (const unit of this.units) unit.onSession();
      },
      onEnded: (flights) => {
        for (const { command } of flights) if (command instanceof Run) command.port.onEnded(command);
      },
    });
    this.units = units.map((shared) => new IscsiPort(index, process, this.initiator, shape, shared));
  }

  /** What it has not been told the end of. */
  get inFlight(): number {
    return this.units.reduce((sum, { host }) => sum + host.inFlight, this.initiator.inFlight);
  }

  /** The server is dead: everything that was asked has happened by now or never. */
  serverDied(): void {
    this.initiator.serverDied();
    for (const unit of this.units) unit.serverDied();
  }
}

/** A command until it is answered for good: those that hear a unit attention, or "busy", are sent again. */
class Run implements Command {
  readonly port: IscsiPort;
  readonly spec: Spec;
  readonly lun: number;
  readonly cdb: Uint8Array;
  readonly attribute: CommandAttribute;
  readonly at: number;
  readonly outLength: number;
  readonly inLength: number;
  readonly states = new Set<PrState>();
  sentTick = 0;
  readonly done: (answer: Answer) => void;

  constructor(port: IscsiPort, spec: Spec, done: (answer: Answer) => void) {
    this.port = port;
    this.spec = spec;
    this.lun = port.lun;
    this.cdb = spec.cdb;
    this.attribute = spec.attribute;
    this.at = spec.at;
    this.outLength = spec.outLength;
    this.inLength = spec.inLength;
    this.done = done;
  }

  onSent(flight: Flight): void {
    this.port.sent(this, flight);
  }
  onAnswer(answer: Answer): void {
    this.port.answered(this, answer);
  }
}

/** What a host has of one unit. */
export class IscsiPort implements BlockDevice {
  readonly index: number;
  readonly lun: number;
  readonly process: SimProcess;
  readonly initiator: SimInitiator;
  readonly host: Host;
  readonly target: Target;
  readonly size: number;
  readonly blockSize: number;
  readonly preferredBlockSize = 4096;
  readonly readOnly = false;
  readonly uuid = "0".repeat(32);
  /** Of the next operation. */
  attribute: CommandAttribute = "simple";
  readonly #shared: Shared;
  #attentions: Attention[] = [];
  #orphans: Orphan[] = [];
  /** Commands that were told to come again, and have not gone yet. */
  readonly #resting = new Set<Run>();

  constructor(
    index: number,
    process: SimProcess,
    initiator: SimInitiator,
    shape: { size: number; blockSize: number },
    shared: Shared,
  ) {
    this.index = index;
    this.lun = shared.lun;
    this.initiator = initiator;
    this.process = process;
    this.size = shape.size;
    this.blockSize = shape.blockSize;
    this.#shared = shared;
    this.host = new Host(process, shared.ticks, shared.stamps, (status, io) => {
      if (status === "conflict") return "refused";
      if (status === "away") return "unknown";
      throw new Violation(`${io.kind} ${io.block} + ${io.count} is answered with "${status}" for no reason`);
    });
    this.target = {
      name: `${nameOfUnit(shared.lun)} by host ${index}`,
      device: this,
      history: shared.history,
      frozen: undefined,
    };
  }

  watch(_watcher: DeviceWatcher): () => void {
    return () => {};
  }

  /* --------------------------------------------------------------------- unit attentions */

  /** A login begins. */
  onLogin(): void {
    this.#attentions = this.#attentions.filter(({ isOpen }) => isOpen);
  }

  /** A session stands: it is greeted. */
  onSession(): void {
    for (const { attention, waitsFor } of this.#orphans.splice(0)) {
      waitsFor.delete(this);
      if (waitsFor.size === 0) attention.isOpen = false;
    }
    const sure = this.#attentions.some(({ asc }) => isReset(asc)) ? NEVER : this.#shared.ticks.next();
    this.#attentions.unshift({
      asc: Asc.POWER_ON_OR_RESET,
      sure,
      isOpen: false,
      isInDoubt: false,
      suspects: undefined,
      session: this.initiator.session,
    });
  }

  /** The target has said that it has given up this command. */
  onEnded(run: Run): void {
    this.#shared.ledger.over(run.spec.stamp, "its target has given it up");
  }

  /** Something is asked that will tell this host `asc`. */
  expect(asc: number): Attention {
    const attention = {
      asc,
      sure: NEVER,
      isOpen: true,
      isInDoubt: false,
      suspects: undefined,
      session: this.initiator.session,
    };
    // A reset makes whatever waited moot; when it is not certain yet, then that is not either.
    if (isReset(asc)) for (const other of this.#attentions) other.sure = NEVER;
    this.#attentions.push(attention);
    return attention;
  }

  /** It is answered: from now on the host must hear it. With `isCertain` false it may never have been raised. */
  settle(attention: Attention, isCertain: boolean): void {
    attention.isOpen = false;
    const at = this.#attentions.indexOf(attention);
    if (at < 0 || !isCertain || this.initiator.state !== "up" || attention.session !== this.initiator.session) return;
    const isMoot = this.#attentions.some(
      (other) => other !== attention && (isReset(other.asc) || other.asc === attention.asc),
    );
    if (!isMoot && !attention.isInDoubt) attention.sure = this.#shared.ticks.next();
  }

  /** A session of this port is one that `orphan` waits for. */
  orphan(orphan: Orphan): void {
    this.#orphans.push(orphan);
  }

  /** A command has ended: no attention may have waited for it, unless another command in flight has heard it. */
  #judgeAttentions(run: Run): void {
    for (const attention of this.#attentions) {
      if (attention.sure === NEVER) continue;
      attention.suspects?.delete(run);
      if (attention.sure < run.sentTick) {
        const others = [...this.#shared.runs].filter(
          (other): other is Run => other instanceof Run && other.port === this,
        );
        attention.suspects ??= new Set(others);
      }
      if (attention.suspects?.size === 0)
        throw new Violation(`${run.spec.what} is done, and ${attention.asc.toString(16)} was never told`);
    }
  }

  #hear(asc: number, what: string): void {
    const isIt = (one: Attention): boolean =>
      one.asc === asc || (one.asc === Asc.POWER_ON_OR_RESET && GREETINGS.includes(asc));
    const found = this.#attentions.find((one) => isIt(one) && one.sure !== NEVER) ?? this.#attentions.find(isIt);
    if (found === undefined) throw new Violation(`${what} hears of ${asc.toString(16)}, which nobody has raised`);
    this.#attentions.splice(this.#attentions.indexOf(found), 1);
    // Several causes can be told as one, and a reset ends what waited before it (SAM-5 §5.14): whatever has not been
    // answered yet may have been among that.
    for (const other of this.#attentions)
      if (other.isOpen && (isIt(other) || asc === Asc.BUS_DEVICE_RESET)) other.isInDoubt = true;
  }

  /* --------------------------------------------------------------------------- commands */

  run(spec: Spec, done: (answer: Answer) => void): void {
    this.initiator.submit(new Run(this, spec, done));
  }

  sent(run: Run, flight: Flight): void {
    const { ticks, reservations, runs, ledger } = this.#shared;
    run.sentTick = ticks.next();
    run.states.clear();
    for (const state of reservations.possible) run.states.add(state);
    runs.add(run);
    if (run.spec.stamp !== 0)
      ledger.sent(run.spec.stamp, `${this.index}/${flight.session}`, flight.cmdSn, run.attribute);
  }

  answered(run: Run, answer: Answer): void {
    const { what, access } = run.spec;
    this.#shared.runs.delete(run);
    const { world } = this.process;
    if (answer.kind === "unknown") {
      // It may have heard of anything.
      for (const attention of this.#attentions) attention.sure = NEVER;
      return run.done(answer);
    }
    const { status, key, asc } = answer;
    if (world.onLine !== undefined)
      world.say(this.process, `${what}: status ${status.toString(16)} ${key.toString(16)}/${asc.toString(16)}`);
    if (status === SamStatus.BUSY || status === SamStatus.TASK_SET_FULL) return this.#again(run);
    if (status === SamStatus.CHECK_CONDITION && key === SenseKey.UNIT_ATTENTION) {
      for (const { suspects } of this.#attentions) suspects?.delete(run);
      this.#hear(asc, what);
      return this.#again(run);
    }
    this.#judgeAttentions(run);
    if (access !== "none") {
      const isConflict = status === SamStatus.RESERVATION_CONFLICT;
      const isRight = [...run.states].some((state) => conflicts(state, this.index, access) === isConflict);
      if (!isRight)
        throw new Violation(
          `${what} ${isConflict ? "is refused" : "passes"}; reservations: ${this.#shared.reservations.describe()}`,
        );
    }
    run.done(answer);
  }

  #again(run: Run): void {
    this.#resting.add(run);
    this.process.plan(AGAIN_MS, () => {
      if (this.#resting.delete(run)) this.initiator.submit(run);
    });
  }

  /** The server is dead: what was told to come again does not. */
  serverDied(): void {
    const resting = [...this.#resting];
    this.#resting.clear();
    for (const run of resting) run.onAnswer({ kind: "unknown" });
  }

  /* ------------------------------------------------------------------- the block device */

  submit(op: BlockOp): void {
    const spec = this.#specOf(op);
    this.run(spec, (answer) => {
      op.status = this.#statusOf(answer, op);
      if (spec.at !== op.at && spec.at !== 0) this.process.memory.free(spec.at);
      op.done(op);
    });
  }

  #statusOf(answer: Answer, op: BlockOp): Status {
    if (answer.kind === "unknown") return "away";
    if (answer.status === SamStatus.GOOD) return "ok";
    if (answer.status === SamStatus.RESERVATION_CONFLICT) return "conflict";
    if (answer.status === SamStatus.CHECK_CONDITION && answer.key === SenseKey.MISCOMPARE) {
      op.result = answer.info;
      return "miscompare";
    }
    throw new Violation(
      `${op.kind} ends with status ${answer.status.toString(16)}, sense ${answer.key.toString(16)}/${answer.asc.toString(16)}`,
    );
  }

  #specOf(op: BlockOp): Spec {
    const FUA = 0x08;
    const UNMAP = 0x08;
    const NDOB = 0x01;
    const cdb = new Uint8Array(16);
    const view = new DataView(cdb.buffer);
    const block = op.offset / this.blockSize;
    const count = op.length / this.blockSize;
    writeU64(view, CDB_16.lba, block);
    view.setUint32(CDB_16.length, count);
    const base = { cdb, attribute: this.attribute, at: op.at, outLength: 0, inLength: 0, stamp: 0 };
    const what = `${op.kind} ${block} + ${count}`;
    switch (op.kind) {
      case "read":
        cdb[0] = Op.READ_16;
        return { ...base, what, access: "read", inLength: op.length };
      case "write":
        cdb[0] = Op.WRITE_16;
        cdb[CDB_16.flags] = op.fua ? FUA : 0;
        return {
          ...base,
          what,
          access: "write",
          outLength: op.length,
          stamp: this.process.memory.view.getInt32(op.at, true),
        };
      case "flush":
        cdb.fill(0);
        cdb[0] = Op.SYNCHRONIZE_CACHE_16;
        return { ...base, what, access: "write" };
      case "zero":
        cdb[0] = Op.WRITE_SAME_16;
        cdb[CDB_16.flags] = NDOB | (op.noHole ? 0 : UNMAP);
        return { ...base, what, access: "write" };
      case "compare-write":
        cdb.fill(0, CDB_COMPARE.lba + 8);
        cdb[0] = Op.COMPARE_AND_WRITE;
        cdb[CDB_COMPARE.flags] = op.fua ? FUA : 0;
        cdb[CDB_COMPARE.length] = count;
        return { ...base, what, access: "write", outLength: 2 * op.length };
      default: {
        // UNMAP, with one descriptor: SBC-3 §5.28.
        const LIST_BYTES = 24;
        const at = this.process.memory.allocate(LIST_BYTES);
        const list = new DataView(this.process.memory.bytes.buffer, at, LIST_BYTES);
        list.setUint16(0, LIST_BYTES - 2);
        list.setUint16(2, LIST_BYTES - 8);
        list.setUint32(4, 0);
        writeU64(list, 8, block);
        list.setUint32(16, count);
        list.setUint32(20, 0);
        cdb.fill(0);
        cdb[0] = Op.UNMAP;
        view.setUint16(CDB_UNMAP.length, LIST_BYTES);
        return { ...base, what, access: "write", at, outLength: LIST_BYTES };
      }
    }
  }
}
