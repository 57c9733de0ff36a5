/** Where each field of a packed header starts, and how long the whole of it is. */
export type Layout<Widths extends Record<string, number>> = { readonly [Field in keyof Widths]: number } & {
  readonly byteLength: number;
};

/** Lays fields out one after another: their offsets are added up by the machine, and not by hand. Widths in bytes. */
export function layout<const Widths extends Record<string, number>>(widths: Widths): Layout<Widths> {
  const at: Record<string, number> = {};
  let byteLength = 0;
  for (const [field, width] of Object.entries(widths)) {
    at[field] = byteLength;
    byteLength += width;
  }
  return Object.freeze({ ...at, byteLength }) as Layout<Widths>;
}

/** Reads 64 bits, big-endian, as a number. It is exact up to 2^53 - 1, and above that it is at least 2^53. */
export function readU64(from: DataView, at: number): number {
  return from.getUint32(at) * 0x1_0000_0000 + from.getUint32(at + 4);
}

/** Writes a whole number below 2^53 as 64 bits, big-endian. */
export function writeU64(to: DataView, at: number, value: number): void {
  to.setUint32(at, Math.floor(value / 0x1_0000_0000));
  to.setUint32(at + 4, value >>> 0);
}
