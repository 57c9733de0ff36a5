/**
 * Random operations on a device, many at a time, against a copy in memory: every read must be what the copy says.
 * Operations that are in flight together do not overlap, since their order would be nobody's promise.
 */
import assert from "node:assert/strict";
import type { DeviceHandle } from "#library/handle";
import type { Chance } from "./random.ts";

export interface DifferentialOptions {
  readonly operations: number;
  /** In flight together. */
  readonly workers: number;
  readonly lengthMax: number;
  /** What is trimmed reads as zeroes; otherwise it may read as anything until it is written again. */
  readonly trimReadsZero: boolean;
  readonly canTrim?: boolean;
  readonly canZero?: boolean;
  /** Happens after every so many operations, while others are in flight. */
  readonly disturb?: { readonly every: number; readonly by: () => void | Promise<void> };
}

export async function differential(
  device: DeviceHandle,
  chance: Chance,
  options: DifferentialOptions,
): Promise<Buffer> {
  const { lengthMax, trimReadsZero, canTrim = true, canZero = true } = options;
  const { size } = device;
  const copy = Buffer.from(await device.read(0, size));
  const unknown = new Uint8Array(size);
  const flying = new Set<{ start: number; end: number }>();
  let left = options.operations;

  const range = (): { start: number; end: number } => {
    for (;;) {
      const length = 1 + chance.below(lengthMax);
      // Sectors, blocks and odd bytes; near each other, so that they meet.
      const grain = [1, 512, 4096][chance.below(3)]!;
      const start = Math.floor(chance.below(size - length) / grain) * grain;
      const end = Math.min(start + Math.max(grain, Math.floor(length / grain) * grain), size);
      // A read-modify-write touches whole blocks, but gives back what it did not change: neighbours may fly.
      if (![...flying].some((other) => other.start < end && start < other.end)) return { start, end };
    }
  };
  const verify = (bytes: Uint8Array, start: number): void => {
    for (let index = 0; index < bytes.length; index++)
      if (bytes[index] !== copy[start + index] && unknown[start + index] === 0)
        assert.fail(`byte ${start + index} is ${bytes[index]}, and must be ${copy[start + index]}`);
  };
  const worker = async (): Promise<void> => {
    while (left-- > 0) {
      if (options.disturb !== undefined && left % options.disturb.every === 0) await options.disturb.by();
      const own = range();
      const { start, end } = own;
      flying.add(own);
      const kind = chance.below(10);
      if (kind < 4) {
        const data = new Uint8Array(end - start).fill(chance.below(256));
        await device.write(start, data, { fua: chance.below(8) === 0 });
        copy.set(data, start);
        unknown.fill(0, start, end);
      } else if (kind < 5 && canZero) {
        await device.zero(start, end - start, { noHole: chance.below(2) === 0 });
        copy.fill(0, start, end);
        unknown.fill(0, start, end);
      } else if (kind < 6 && canTrim) {
        await device.trim(start, end - start);
        const from = Math.ceil(start / device.grainBytes) * device.grainBytes;
        const to = Math.floor(end / device.grainBytes) * device.grainBytes;
        if (to > from && trimReadsZero) {
          copy.fill(0, from, to);
          unknown.fill(0, from, to);
        } else if (to > from) unknown.fill(1, from, to);
      } else if (kind < 7) {
        await device.flush();
      } else verify(await device.read(start, end - start), start);
      flying.delete(own);
    }
  };
  await Promise.all(Array.from({ length: options.workers }, worker));
  await device.flush();
  verify(await device.read(0, size), 0);
  // What is said to be zero reads as zeroes.
  for (const { offset, length, zero } of await device.status())
    if (zero)
      for (let at = offset; at < offset + length; at++)
        assert.ok(unknown[at] === 1 || copy[at] === 0, `byte ${at} is said to be zero`);
  return copy;
}
