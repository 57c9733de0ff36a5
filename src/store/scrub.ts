/** Scrub: reads everything that is mapped against its checksums, and names what is damaged. */
import { Refusal } from "#base/refusal";
import { perform, type Task } from "#base/task";
import { BLOCK_BYTES, type Bytes } from "#base/units";
import { LEAF_BLOCKS } from "./map.ts";
import type { Version } from "./version.ts";
import type { VersionSet } from "./version-set.ts";

const STEP_BLOCKS = 256;

export interface ScrubProgress {
  readonly version: string;
  readonly bytesDone: Bytes;
  readonly bytesTotal: Bytes;
}

export interface ScrubReport {
  /** Bytes read and compared; what versions share is read once. */
  readonly bytes: Bytes;
  readonly damaged: readonly { readonly version: string; readonly offset: Bytes; readonly length: Bytes }[];
}

/** `progress` may throw, to end it. Throws a Refusal when there is no memory for it. */
export function* scrub(
  set: VersionSet,
  versions: readonly Version[],
  progress: (state: ScrubProgress) => void,
): Task<ScrubReport> {
  const { env } = set;
  const at = env.memory.allocate(STEP_BLOCKS * BLOCK_BYTES);
  if (at === 0)
    throw new Refusal("in-use", "There is no memory for a scrub at the moment", "Try again under less load.");
  try {
    return yield* scrubWith(set, versions, progress, at);
  } finally {
    env.memory.free(at);
  }
}

function* scrubWith(
  set: VersionSet,
  versions: readonly Version[],
  progress: (state: ScrubProgress) => void,
  at: number,
): Task<ScrubReport> {
  const { env } = set;
  const damaged: { version: string; offset: Bytes; length: Bytes }[] = [];
  const bytesTotal = versions.reduce((sum, version) => sum + version.node.map.mapped * BLOCK_BYTES, 0);
  let bytes = 0;
  let bytesDone = 0;
  const scrubbed = new Set<Version>();
  for (const version of versions) {
    const { node } = version;
    const blocks = Math.ceil(node.size / BLOCK_BYTES);
    const parent = [...scrubbed].find((other) => other.node === node.ancestor);
    for (let block = 0; block < blocks && !version.gone; ) {
      node.map.find(block, blocks - block);
      if (node.map.location === 0) {
        block += node.map.length;
        continue;
      }
      const leaf = Math.floor(block / LEAF_BLOCKS);
      if (parent !== undefined && parent.node.map.leafAt(leaf) === node.map.leafAt(leaf)) {
        block = (leaf + 1) * LEAF_BLOCKS;
        continue;
      }
      const count = Math.min(STEP_BLOCKS, blocks - block, (leaf + 1) * LEAF_BLOCKS - block);
      const { status } = yield* version.readWhole(block, count, at, true);
      if (status !== "ok")
        for (let each = 0; each < count; each++) {
          const one = yield* version.readWhole(block + each, 1, at, true);
          if (one.status === "ok") continue;
          const last = damaged[damaged.length - 1];
          const offset = (block + each) * BLOCK_BYTES;
          if (last?.version === version.name && last.offset + last.length === offset) last.length += BLOCK_BYTES;
          else damaged.push({ version: version.name, offset, length: BLOCK_BYTES });
        }
      for (let from = block; from < block + count; ) {
        node.map.find(from, block + count - from);
        if (node.map.location !== 0) bytes += node.map.length * BLOCK_BYTES;
        from += node.map.length;
      }
      block += count;
      progress({ version: version.name, bytesDone: bytesDone + bytes, bytesTotal });
      // Hosts come first: one step per turn of the lane.
      yield* perform<void>((resume) => {
        env.clock.alarm(() => resume()).at = env.clock.now();
      });
    }
    scrubbed.add(version);
    bytesDone = bytes;
  }
  return { bytes, damaged };
}
