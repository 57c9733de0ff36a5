/**
 * Sizes as people write them. Letters alone and with "iB" are powers of 1024, as in qemu-img and lvcreate; with "B" they
 * are powers of 1000. The number is taken exactly: a fraction must come to whole bytes, and nothing is rounded.
 */
import { Refusal } from "./refusal.ts";
import type { Bytes } from "./units.ts";

const LETTERS = "KMGTP";

/** Bytes of "10G", "10GiB", "1.5T", "500MB", "4096". @throws Refusal bad-request */
export function parseSize(text: string): Bytes {
  const match = /^(\d+)(?:\.(\d+))?\s*(?:([kmgtp])(i?b)?|b)?$/i.exec(text.trim());
  if (match === null) throw badSize(text, "it is not a number with a unit");
  const [, whole = "", fraction = "", letter, suffix] = match;
  const power = letter === undefined ? 0 : LETTERS.indexOf(letter.toUpperCase()) + 1;
  const base = suffix?.toLowerCase() === "b" ? 1000n : 1024n;
  const scale = 10n ** BigInt(fraction.length);
  const bytes = BigInt(whole + fraction) * base ** BigInt(power);
  if (bytes % scale !== 0n) throw badSize(text, "it is not a whole number of bytes");
  if (bytes / scale > BigInt(Number.MAX_SAFE_INTEGER)) throw badSize(text, "it is more than 8 PiB");
  return Number(bytes / scale);
}

function badSize(text: string, reason: string): Refusal {
  return new Refusal(
    "bad-request",
    `"${text}" is not a size: ${reason}`,
    "Write 10G or 10GiB (1024^3), 10GB (1000^3), or bytes.",
  );
}

/** "10 GiB", "1.5 TiB", "512 B": four significant digits at most, the unit as far up as it goes. */
export function formatSize(bytes: Bytes): string {
  let value = bytes;
  let power = 0;
  while (Math.abs(value) >= 1024 && power < LETTERS.length) {
    value /= 1024;
    power++;
  }
  if (power === 0) return `${bytes} B`;
  return `${Number(value.toFixed(value < 10 ? 2 : value < 100 ? 1 : 0))} ${LETTERS[power - 1]}iB`;
}
