/**
 * One SCSI command from its arrival to its status: a slot that its transport owns and uses again and again. The device
 * server fills in the outcome; what it needs in between (position, count, operation) lives here too, so that a command
 * allocates nothing.
 */
import type { Memory } from "#base/memory";
import { type BlockDevice, BlockOp } from "#device/device";
import { CDB_BYTES } from "#wire/scsi/cdb";
import { SamStatus } from "#wire/scsi/codes";
import { SENSE_BYTES_MAX, Sense } from "#wire/scsi/sense";
import type { Nexus } from "./nexus.ts";
import type { DeviceServer } from "./server.ts";
import type { TaskSet } from "./task-set.ts";
import type { LogicalUnit } from "./unit.ts";

/** SAM-5 §8.6. ACA is not supported: its attribute is refused by the transport. */
export type TaskAttribute = "simple" | "ordered" | "head-of-queue";

export type TaskStage =
  /** Free: nobody's. */
  | "idle"
  /** In the task set, behind others. */
  | "dormant"
  /** For memory, for data from the initiator, or for something in the background: it can be given up at once. */
  | "waiting"
  | "executing"
  /** Its outcome is the transport's, which gives it back with `release`. */
  | "done";

/** What comes next for a task. Steps are plain functions, made once. */
export type Step = (task: ScsiTask) => void;

export interface TaskTransport {
  /** Collects `task.outLength` bytes into memory at `task.at`, then calls `server.collected(task)`. */
  collect(task: ScsiTask): void;
  /** The outcome is in `task`; it is given back with `server.release(task)` once it has been sent. */
  finish(task: ScsiTask): void;
}

export class ScsiTask {
  readonly server: DeviceServer;
  readonly transport: TaskTransport;
  readonly cdb = new DataView(new ArrayBuffer(CDB_BYTES));
  attribute: TaskAttribute = "simple";
  nexus!: Nexus;
  unit: LogicalUnit | undefined = undefined;
  /** The unit as this nexus' host may see it. */
  device: BlockDevice | undefined = undefined;
  /** Bytes that the initiator is ready to send, and to receive. */
  outMax = 0;
  inMax = 0;

  stage: TaskStage = "idle";
  /** Set by task management: its outcome is not to be told. */
  aborted = false;

  /** The data buffer in memory and its size; 0 when there is none. */
  at = 0;
  capacity = 0;
  /** Data-out that the command wants: at most `outMax`. */
  outLength = 0;
  /** Data-in that is ready, at `at`: at most `inMax`. */
  inLength = 0;
  /** Bytes that the command would have moved, had the initiator allowed it: for the residual. */
  total = 0;

  status: number = SamStatus.GOOD;
  readonly sense = new Sense();
  readonly senseBytes = new DataView(new ArrayBuffer(SENSE_BYTES_MAX));
  senseLength = 0;

  /** What the command's steps keep between them. Bytes. */
  position = 0;
  remaining = 0;
  cursor = 0;
  scratch = 0;
  scratchLength = 0;
  readonly op: BlockOp;
  next: Step | undefined = undefined;
  /** For commands that are rare enough to allocate: their parsed parameters. */
  extra: unknown = undefined;
  /** Of the task set: which one it is in, its neighbours there, and its order of arrival. */
  taskSet: TaskSet | undefined = undefined;
  previousInSet: ScsiTask | undefined = undefined;
  nextInSet: ScsiTask | undefined = undefined;
  order = 0;

  constructor(server: DeviceServer, transport: TaskTransport) {
    this.server = server;
    this.transport = transport;
    // An aborted command stops at the end of the operation that it was in.
    this.op = new BlockOp(() => (this.aborted ? server.end(this) : this.next!(this)));
  }

  get opcode(): number {
    return this.cdb.getUint8(0);
  }

  /** A byte of the CDB. */
  byte(at: number): number {
    return this.cdb.getUint8(at);
  }

  freeBuffers(memory: Memory): void {
    if (this.at !== 0) memory.free(this.at);
    if (this.scratch !== 0) memory.free(this.scratch);
    this.at = 0;
    this.capacity = 0;
    this.scratch = 0;
    this.scratchLength = 0;
  }

  reset(): void {
    this.unit = undefined;
    this.device = undefined;
    this.attribute = "simple";
    this.outMax = 0;
    this.inMax = 0;
    this.stage = "idle";
    this.aborted = false;
    this.outLength = 0;
    this.inLength = 0;
    this.total = 0;
    this.status = SamStatus.GOOD;
    this.senseLength = 0;
    this.extra = undefined;
    this.op.extents = undefined;
  }
}
