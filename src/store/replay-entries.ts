/** The entries of a group, read back from its head. */
import { readU64 } from "#base/layout";
import type { Task } from "#base/task";
import { BLOCK_BYTES } from "#base/units";
import type { Env, File } from "#env/env";
import { ENTRY, EntryKind, GROUP, HEAD_BLOCKS_MAX } from "./format.ts";
import type { FoundGroup } from "./replay.ts";
import { transfer } from "./segment-store.ts";

/** An entry as it stands in a head. `dataIndex` is the first of its data blocks within the group's. */
export interface FoundEntry {
  kind: EntryKind;
  version: number;
  block: number;
  count: number;
  fromSegment: number;
  fromBlock: number;
  dataIndex: number;
  control: Uint8Array | undefined;
}

/** Visits the entries of a group in order. The object given is used again for the next one. */
export function* readEntries(
  env: Env,
  file: File,
  found: FoundGroup,
  visit: (entry: FoundEntry) => void,
): Task<boolean> {
  const { memory, disk } = env;
  const { head } = found;
  const at = memory.allocate(HEAD_BLOCKS_MAX * BLOCK_BYTES);
  if (at === 0) throw new Error("no memory to read a group's head");
  const length = head.headBlocks * BLOCK_BYTES;
  const fault = yield* transfer(disk, "read", file, found.block * BLOCK_BYTES, at, length);
  if (fault === undefined) decodeEntries(memory.view, memory.bytes, at, found, visit);
  memory.free(at);
  return fault === undefined;
}

export function decodeEntries(
  view: DataView,
  bytes: Uint8Array,
  at: number,
  found: FoundGroup,
  visit: (entry: FoundEntry) => void,
): void {
  const { head } = found;
  const controlAt = at + GROUP.byteLength + head.entries * ENTRY.byteLength + head.dataBlocks * 4;
  let dataIndex = 0;
  const entry: FoundEntry = {
    kind: EntryKind.DATA,
    version: 0,
    block: 0,
    count: 0,
    fromSegment: 0,
    fromBlock: 0,
    dataIndex: 0,
    control: undefined,
  };
  for (let each = 0; each < head.entries; each++) {
    const from = at + GROUP.byteLength + each * ENTRY.byteLength;
    entry.kind = view.getUint32(from + ENTRY.kind) as EntryKind;
    entry.version = view.getUint32(from + ENTRY.version);
    entry.block = readU64(view, from + ENTRY.block);
    entry.count = view.getUint32(from + ENTRY.count);
    entry.fromSegment = readU64(view, from + ENTRY.fromSegment);
    entry.fromBlock = view.getUint32(from + ENTRY.fromBlock);
    entry.dataIndex = dataIndex;
    entry.control =
      entry.kind === EntryKind.CONTROL ? bytes.slice(controlAt, controlAt + head.controlBytes) : undefined;
    visit(entry);
    if (entry.kind === EntryKind.DATA || entry.kind === EntryKind.MOVE) dataIndex += entry.count;
  }
}
