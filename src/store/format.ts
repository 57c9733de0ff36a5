/**
 * What the log looks like on a disk. All numbers are big-endian; everything starts at a multiple of 4 KiB.
 *
 * A segment is SEGMENT_BLOCKS blocks: block 0 its header, then groups one after another, and when it is full a summary
 * in its last blocks. A group is a head of one or more blocks (header, entries, checksums of the data blocks, control
 * record) and then its data blocks. `docs/design/engine.md` tells what each field is for.
 */
import { layout, readU64, writeU64 } from "#base/layout";
import { BLOCK_BYTES } from "#base/units";

/** Raised with every change that an older program would misread. 1: the first. */
export const STORE_FORMAT = 1;

/** Block numbers within a segment take 13 bits of a location, whatever size segments are given. */
export const SLOT_BLOCKS = 8192;

export const SEGMENT_MAGIC = 0x41534547; // "ASEG"
export const GROUP_MAGIC = 0x41475250; // "AGRP"
export const SUMMARY_MAGIC = 0x4153554d; // "ASUM"
export const CHECKPOINT_MAGIC = 0x41434b50; // "ACKP"
export const CHUNK_MAGIC = 0x4143484b; // "ACHK"

/** The checksum covers what follows it, to the end of the block. `firstGroup` is the number of the segment's first group. */
export const SEGMENT_HEADER = layout({
  magic: 4,
  checksum: 4,
  format: 4,
  blocks: 4,
  segment: 8,
  firstGroup: 8,
  uuid: 16,
});

/** The checksum covers what follows it, to the end of the head. */
export const GROUP = layout({
  magic: 4,
  checksum: 4,
  segment: 8,
  group: 8,
  /** The last group known to be on stable storage when this one was written. */
  synced: 8,
  headBlocks: 4,
  dataBlocks: 4,
  entries: 4,
  controlBytes: 4,
  /** Where in its segment it lies: a disk that writes elsewhere than it says must not make it look at home there. */
  block: 4,
});

/** `from…` is where the data of a move was. */
export const ENTRY = layout({ kind: 4, version: 4, block: 8, count: 4, fromBlock: 4, fromSegment: 8 });
export const EntryKind = {
  /** `count` data blocks of this group belong to `version` at `block`. */
  DATA: 1,
  /** Nothing is mapped in the range any more. */
  CLEAR: 2,
  /** `count` data blocks of this group are a copy of what was at `from`, in all versions that had it there. */
  MOVE: 3,
  /** The control record of this group takes effect here. */
  CONTROL: 4,
  /**
   * `version` has from `block` on what another version (`fromBlock` is its number) has from block `fromSegment` on at
   * this point of the log: the same locations, and holes.
   */
  COPY: 5,
} as const;
export type EntryKind = (typeof EntryKind)[keyof typeof EntryKind];

/** A head, then the checksums: four bytes per block of the segment. */
export const SUMMARY = layout({ magic: 4, checksum: 4, segment: 8, usedBlocks: 4, reserved: 12 });

/** Blocks at a segment's end that are kept free for its summary. */
export function summaryBlocks(segmentBlocks: number): number {
  return Math.ceil((SUMMARY.byteLength + segmentBlocks * 4) / BLOCK_BYTES);
}

/** Bytes of a group's head, before rounding up to blocks. */
export function headBytes(entries: number, dataBlocks: number, controlBytes: number): number {
  return GROUP.byteLength + entries * ENTRY.byteLength + dataBlocks * 4 + controlBytes;
}

export const headBlocksFor = (bytes: number): number => Math.ceil(bytes / BLOCK_BYTES);

/** No group's head is longer than this; a longer one is damage. */
export const HEAD_BLOCKS_MAX = 16;
/** Data blocks of one group at most: 4 MiB, which is also what one append writes at most. */
export const GROUP_BLOCKS_MAX = 1000;
/** A write of up to so many blocks is never cut: 1 MiB, in one group and thus whole or absent after a crash. */
export const ATOMIC_BLOCKS_MAX = 256;
export const CONTROL_BYTES_MAX = 16 * 1024;

export interface GroupHead {
  segment: number;
  group: number;
  synced: number;
  headBlocks: number;
  dataBlocks: number;
  entries: number;
  controlBytes: number;
  block: number;
}

/**
 * Reads a group's header at `at`, if it belongs to that block of that segment and its shape makes sense there; its
 * checksum is for the caller, who has the whole head.
 */
export function decodeGroup(
  from: DataView,
  at: number,
  segment: number,
  block: number,
  blocksLeft: number,
): GroupHead | undefined {
  if (from.getUint32(at + GROUP.magic) !== GROUP_MAGIC) return undefined;
  const head: GroupHead = {
    segment: readU64(from, at + GROUP.segment),
    group: readU64(from, at + GROUP.group),
    synced: readU64(from, at + GROUP.synced),
    headBlocks: from.getUint32(at + GROUP.headBlocks),
    dataBlocks: from.getUint32(at + GROUP.dataBlocks),
    entries: from.getUint32(at + GROUP.entries),
    controlBytes: from.getUint32(at + GROUP.controlBytes),
    block: from.getUint32(at + GROUP.block),
  };
  if (head.segment !== segment || head.block !== block || head.headBlocks === 0 || head.headBlocks > HEAD_BLOCKS_MAX)
    return undefined;
  if (head.headBlocks + head.dataBlocks > blocksLeft) return undefined;
  const bytes = headBytes(head.entries, head.dataBlocks, head.controlBytes);
  return headBlocksFor(bytes) === head.headBlocks ? head : undefined;
}

export function encodeGroup(to: DataView, at: number, head: GroupHead): void {
  to.setUint32(at + GROUP.magic, GROUP_MAGIC);
  to.setUint32(at + GROUP.checksum, 0);
  writeU64(to, at + GROUP.segment, head.segment);
  writeU64(to, at + GROUP.group, head.group);
  writeU64(to, at + GROUP.synced, head.synced);
  to.setUint32(at + GROUP.headBlocks, head.headBlocks);
  to.setUint32(at + GROUP.dataBlocks, head.dataBlocks);
  to.setUint32(at + GROUP.entries, head.entries);
  to.setUint32(at + GROUP.controlBytes, head.controlBytes);
  to.setUint32(at + GROUP.block, head.block);
}

/** What a checksum field covers: from behind it to the end of the structure. */
export const COVERED_FROM = 8;
