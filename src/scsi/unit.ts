/**
 * A logical unit: one volume as SCSI sees it, shared by all nexuses. It keeps what is the unit's and not a command's:
 * the task set, mode parameters, the state of the medium, a sanitize that goes on, and who is to be told of changes.
 */
import type { Bytes } from "#base/units";
import type { BlockDevice } from "#device/device";
import { AccessState, Asc } from "#wire/scsi/codes";
import { euiOf, naaOf } from "#wire/scsi/identity";
import type { BlockLimits } from "#wire/scsi/inquiry";
import { ModeState } from "#wire/scsi/mode";
import { CopyHistory } from "./copy-history.ts";
import type { Nexus, PortGroup } from "./nexus.ts";
import type { Reservations } from "./reservations.ts";
import type { Sanitize } from "./sanitize.ts";
import type { ScsiTask } from "./task.ts";
import { TaskSet } from "./task-set.ts";

/** The most data that one command moves; larger ones are refused. Reported in VPD page B0h. */
export const TRANSFER_BYTES_MAX: Bytes = 8 * 1024 * 1024;
/** The most that WRITE ATOMIC writes, where the device promises at least that. */
export const ATOMIC_BYTES_MAX: Bytes = 1024 * 1024;
/** The most that COMPARE AND WRITE compares: its block count is one byte; and what every device can do at once. */
export const COMPARE_BLOCKS_MAX = 255;
export const COMPARE_BYTES_MAX: Bytes = 60 * 1024;
/** The most blocks that WRITE SAME writes: what its short form can say, in whole blocks of the engine. */
export const WRITE_SAME_BLOCKS_MAX = 0xfff8;
export const UNMAP_DESCRIPTORS_MAX = 256;
export const UNMAP_BYTES_MAX: Bytes = 512 * 1024 * 1024;

/** How much space there is for a thin unit, in bytes. */
export interface Provisioning {
  available(): Bytes;
  used(): Bytes;
  /** What is available when hosts are to be told that space gets short, unless they have said otherwise. */
  soft(): Bytes;
}
/** The threshold of thin provisioning is counted in 2^this blocks. SBC-3 §6.6.6. */
export const THRESHOLD_EXPONENT = 11;

export interface UnitOptions {
  readonly removable?: boolean;
  /** False for partitions in place: then UNMAP and its like are not offered. */
  readonly thin?: boolean;
  readonly provisioning?: Provisioning;
  /** At what rate SANITIZE overwrites, in bytes per second, so that it leaves something for the other units. */
  readonly sanitizeRate?: Bytes;
}
export const SANITIZE_RATE_DEFAULT: Bytes = 128 * 1024 * 1024;

export class LogicalUnit {
  // What every command looks at stands first, so that it lies in one or two lines of the processor's cache.
  readonly tasks = new TaskSet();
  /** The device itself, for its shape; commands reach it through their host's guard. */
  readonly device: BlockDevice;
  readonly reservations: Reservations;
  /** Access states that a host has set, by target port group; undefined while none has. The others are optimized. SPC-4 §5.15. */
  access: Map<PortGroup, number> | undefined = undefined;
  sanitize: Sanitize | undefined = undefined;
  /** The last sanitize failed: nothing is read or written until another one is done, or, if "unrestricted", given up. */
  sanitizeFailed: "restricted" | "unrestricted" | undefined = undefined;
  /** Of the medium of a removable unit. */
  loaded = true;
  readonly removable: boolean;
  readonly thin: boolean;
  readonly provisioning: Provisioning | undefined;
  readonly sanitizeRate: Bytes;
  readonly mode = new ModeState();
  /** Nexuses that may see the unit now. */
  readonly nexuses = new Set<Nexus>();
  /** Nexuses that prevent the removal of the medium. */
  readonly preventing = new Set<Nexus>();
  /** Copies that RECEIVE COPY RESULTS can ask for. */
  readonly copies = new CopyHistory();
  readonly #unwatch: () => void;

  constructor(device: BlockDevice, reservations: Reservations, options: UnitOptions = {}) {
    this.device = device;
    this.reservations = reservations;
    this.removable = options.removable ?? false;
    this.thin = options.thin ?? true;
    this.provisioning = options.provisioning;
    this.sanitizeRate = options.sanitizeRate ?? SANITIZE_RATE_DEFAULT;
    this.#unwatch = device.watch((change) => {
      if (change === "resized") this.tell(Asc.CAPACITY_CHANGED);
      if (change === "read-only") this.tell(Asc.INQUIRY_DATA_CHANGED);
    });
  }

  get blockSize(): number {
    return this.device.blockSize;
  }
  get naa(): string {
    return naaOf(this.device.uuid);
  }
  get eui(): string {
    return euiOf(this.device.uuid);
  }

  /** Bytes that a write in whole preferred blocks is done whole or not at all, after a crash too; 0 when the device promises nothing. */
  get atomicMax(): Bytes {
    return Math.min(ATOMIC_BYTES_MAX, this.device.atomicWriteBytes ?? 0);
  }

  limits(): BlockLimits {
    const blocks = (bytes: Bytes): number => Math.floor(bytes / this.blockSize);
    const granularity = Math.max(1, blocks(this.device.preferredBlockSize));
    return {
      optimalGranularity: granularity,
      transferMax: blocks(TRANSFER_BYTES_MAX),
      transferOptimal: blocks(TRANSFER_BYTES_MAX / 8),
      compareMax: Math.min(COMPARE_BLOCKS_MAX, blocks(COMPARE_BYTES_MAX)),
      unmapMax: this.thin ? blocks(UNMAP_BYTES_MAX) : 0,
      unmapDescriptorsMax: this.thin ? UNMAP_DESCRIPTORS_MAX : 0,
      unmapGranularity: this.thin ? granularity : 0,
      writeSameMax: WRITE_SAME_BLOCKS_MAX,
      atomicMax: blocks(this.atomicMax),
      atomicGranularity: this.atomicMax > 0 && granularity > 1 ? granularity : 0,
    };
  }

  /** Raises a unit attention for every nexus but `except`. */
  tell(asc: number, except?: Nexus): void {
    for (const nexus of this.nexuses) if (nexus !== except) nexus.addAttention(this, asc);
  }

  /** Raises a unit attention for the nexus of that name, if it is logged in. */
  tellNamed(name: string, asc: number): void {
    for (const nexus of this.nexuses) if (nexus.name === name) nexus.addAttention(this, asc);
  }

  /** How the unit is reached through a target port group. */
  accessOf(group: PortGroup): number {
    return this.access?.get(group) ?? AccessState.OPTIMIZED;
  }

  get #thresholdSetBytes(): Bytes {
    return this.blockSize * 2 ** THRESHOLD_EXPONENT;
  }
  /** Where the server has the threshold, in threshold sets of available space; undefined when there is none. */
  get thresholdDefault(): number | undefined {
    if (this.provisioning === undefined) return undefined;
    return Math.min(Math.floor(this.provisioning.soft() / this.#thresholdSetBytes), 0xffff_ffff);
  }
  /** The available space has changed: hosts are told when it has come to the threshold. SBC-3 §4.7.3.8. */
  spaceChanged(before: Bytes, now: Bytes): void {
    const { mode, thresholdDefault } = this;
    if (thresholdDefault === undefined || !mode.thresholdOn || !mode.reportsThreshold || mode.exceptionsOff) return;
    const threshold = (mode.threshold ?? thresholdDefault) * this.#thresholdSetBytes;
    if (before > threshold && now <= threshold) this.tell(Asc.THIN_SOFT_THRESHOLD);
  }

  join(nexus: Nexus): void {
    this.nexuses.add(nexus);
  }

  /** SAM-5 §6.3.4: the loss of a nexus. Its tasks are the transport's to end. */
  leave(nexus: Nexus): void {
    if (!this.nexuses.delete(nexus)) return;
    this.preventing.delete(nexus);
    this.reservations.dropLegacy(nexus.name);
    nexus.forget(this);
  }

  /** Tasks of the unit that answer to `which`. */
  tasksOf(which: (task: ScsiTask) => boolean): ScsiTask[] {
    return [...this.tasks].filter(which);
  }

  close(): void {
    this.#unwatch();
    this.sanitize?.stop();
  }
}
