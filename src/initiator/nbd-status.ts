/** What a server says about a range in two contexts, as one list of extents. */
import { ExtentFlag, type Extents } from "#device/device";
import type { Descriptors } from "#proto/nbd/client-replies";

/** The flags of `base:allocation` and of `ExtentFlag` are the same two bits; the document reserves the others. */
const FLAGS = ExtentFlag.HOLE | ExtentFlag.ZERO;

/** Lays both lists over each other, up to where the shorter one ends. At least one was said, with one descriptor. */
export function mergeContexts(allocation: Descriptors, depth: Descriptors, into: Extents): void {
  into.clear();
  let allocationIndex = 0;
  let depthIndex = 0;
  let allocationLeft = allocation.said ? allocation.length[0]! : Infinity;
  let depthLeft = depth.said ? depth.length[0]! : Infinity;
  for (;;) {
    const length = Math.min(allocationLeft, depthLeft);
    const flags = allocation.said ? allocation.flags[allocationIndex]! & FLAGS : 0;
    // Without depths, what takes space is taken for the device's own.
    const from = depth.said ? depth.flags[depthIndex]! : (flags & ExtentFlag.HOLE) === 0 ? 1 : 0;
    if (!into.add(length, flags, from)) return;
    allocationLeft -= length;
    depthLeft -= length;
    if (allocationLeft === 0) {
      if (++allocationIndex === allocation.count) return;
      allocationLeft = allocation.length[allocationIndex]!;
    }
    if (depthLeft === 0) {
      if (++depthIndex === depth.count) return;
      depthLeft = depth.length[depthIndex]!;
    }
  }
}
