/**
 * Drives and partitions as plain data: what the control plane keeps (`DATA/drives.json`) and hands to the lane that
 * does their I/O. Ranges are in sectors of 512 bytes, the first and the last one inclusive, as WO 02/15018 has them.
 */
import type { Bytes } from "./units.ts";

export const SECTOR_BYTES = 512;
/** The size of a partition is a multiple of this, and of the larger one when it is zeroed before its first access. */
export const PARTITION_SIZE_MULTIPLE = 4096;
export const ZERO_SIZE_MULTIPLE = 1024 * 1024;

export interface DrivesState {
  readonly format: 1;
  /** Goes up with every change. */
  readonly generation: number;
  readonly drives: readonly DriveRecord[];
  readonly partitions: readonly PartitionRecord[];
}

/** A raw file or a block device that was given to the server as a whole. */
export interface DriveRecord {
  readonly name: string;
  readonly path: string;
  readonly sectors: number;
}

export interface PartitionRecord {
  readonly name: string;
  /** 32 hex digits: what hosts know the device by. */
  readonly uuid: string;
  /** In the order in which they make up the partition. */
  readonly ranges: readonly SectorRange[];
  /** What the drive held there before is never shown: every part is zeroed before its first access. */
  readonly zero: boolean;
  /** Milliseconds since 1970. */
  readonly created: number;
}

export interface SectorRange {
  readonly drive: string;
  readonly first: number;
  readonly last: number;
}

export const DRIVES_EMPTY: DrivesState = { format: 1, generation: 0, drives: [], partitions: [] };

export const rangeSectors = ({ first, last }: SectorRange): number => last - first + 1;
export const partitionBytes = ({ ranges }: Pick<PartitionRecord, "ranges">): Bytes =>
  ranges.reduce((sum, range) => sum + rangeSectors(range), 0) * SECTOR_BYTES;
