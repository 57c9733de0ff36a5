/** Spans of time in milliseconds, on the monotonic clock unless said otherwise. May have a fraction. */
export type Millis = number;

/** Counts of bytes; positions on a disk or in memory. Exact up to 2^53 - 1. */
export type Bytes = number;

export const KIB = 1024;
export const MIB = 1024 * KIB;
export const GIB = 1024 * MIB;
export const TIB = 1024 * GIB;

/** The unit of the map, of checksums and of the log: every physical location is a multiple of it. */
export const BLOCK_BYTES = 4 * KIB;
