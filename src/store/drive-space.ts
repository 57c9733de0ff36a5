/**
 * Which sectors of the drives are free (partition 0 of WO 02/15018), and which of them a new partition gets: best fit,
 * and ranges over several drives when no single free range is long enough. Pure.
 */
import { type DrivesState, rangeSectors, type SectorRange } from "#base/drives";

/** New ranges begin and end at multiples of this, so that a 4 KiB block never lies across two ranges. */
export const ALIGN_SECTORS = 8;

/** The free ranges of a drive, or of all, by drive and then by place. */
export function freeRanges(state: DrivesState, drive?: string): SectorRange[] {
  const free: SectorRange[] = [];
  for (const { name, sectors } of state.drives) {
    if (drive !== undefined && name !== drive) continue;
    const used = state.partitions
      .flatMap(({ ranges }) => ranges)
      .filter((range) => range.drive === name)
      .sort((a, b) => a.first - b.first);
    let at = 0;
    for (const range of used) {
      if (range.first > at) free.push({ drive: name, first: at, last: range.first - 1 });
      at = Math.max(at, range.last + 1);
    }
    if (at < sectors) free.push({ drive: name, first: at, last: sectors - 1 });
  }
  return free;
}

/**
 * Ranges of `sectors` in all (a multiple of ALIGN_SECTORS), or undefined when there is not as much. The smallest free
 * range that holds it is taken; if there is none, the largest ones first, so that there are few pieces.
 */
export function allocate(
  state: DrivesState,
  sectors: number,
  options: { drive?: string | undefined; after?: SectorRange | undefined } = {},
): SectorRange[] | undefined {
  const free = freeRanges(state, options.drive)
    .map(aligned)
    .filter((range) => rangeSectors(range) > 0);
  const { after } = options;
  const next = after && free.find((range) => range.drive === after.drive && range.first === after.last + 1);
  if (next !== undefined && rangeSectors(next) >= sectors) return [cut(next, sectors)];
  const fitting = free.filter((range) => rangeSectors(range) >= sectors);
  const best = fitting.sort((a, b) => rangeSectors(a) - rangeSectors(b) || a.first - b.first)[0];
  if (best !== undefined) return [cut(best, sectors)];
  const ranges: SectorRange[] = [];
  let left = sectors;
  for (const range of free.sort((a, b) => rangeSectors(b) - rangeSectors(a))) {
    if (left === 0) break;
    const taken = cut(range, Math.min(left, rangeSectors(range)));
    ranges.push(taken);
    left -= rangeSectors(taken);
  }
  return left === 0 ? ranges : undefined;
}

function aligned({ drive, first, last }: SectorRange): SectorRange {
  const from = Math.ceil(first / ALIGN_SECTORS) * ALIGN_SECTORS;
  const end = Math.floor((last + 1) / ALIGN_SECTORS) * ALIGN_SECTORS;
  return { drive, first: from, last: Math.max(end, from) - 1 };
}

const cut = ({ drive, first }: SectorRange, sectors: number): SectorRange => ({
  drive,
  first,
  last: first + sectors - 1,
});

/** Joins ranges that follow each other without a gap. */
export function joined(ranges: readonly SectorRange[]): SectorRange[] {
  const result: SectorRange[] = [];
  for (const range of ranges) {
    const last = result.at(-1);
    if (last !== undefined && last.drive === range.drive && last.last + 1 === range.first)
      result[result.length - 1] = { ...last, last: range.last };
    else result.push(range);
  }
  return result;
}

/** The first two ranges that have sectors in common. */
export function overlap(ranges: readonly SectorRange[]): readonly [SectorRange, SectorRange] | undefined {
  const sorted = [...ranges].sort((a, b) => (a.drive < b.drive ? -1 : a.drive > b.drive ? 1 : a.first - b.first));
  for (let i = 1; i < sorted.length; i++) {
    const [before, range] = [sorted[i - 1]!, sorted[i]!];
    if (before.drive === range.drive && range.first <= before.last) return [before, range];
  }
  return undefined;
}
