/** Numeric addresses and networks (CIDR), IPv4 and IPv6 (RFC 4291 §2.2, RFC 4632 §3.1), as plain text and bytes. */

const IPV4_BYTES = 4;
const IPV6_GROUPS = 8;

/** The 4 or 16 bytes of a numeric address; IPv4 in IPv6 notation is IPv4, zones are dropped. Undefined: it is none. */
export function addressBytes(text: string): readonly number[] | undefined {
  const plain = text.toLowerCase().replace(/%.*$/, "");
  if (!plain.includes(":")) return ipv4Bytes(plain);
  // The last four bytes may be written as IPv4.
  const tail = /^(.*:)([^:]*\.[^:]*)$/.exec(plain);
  const low = tail === null ? [] : ipv4Bytes(tail[2]!);
  if (low === undefined) return undefined;
  const groups = tail === null ? plain : `${tail[1]}${hex(low, 0)}:${hex(low, 2)}`;
  const halves = groups.split("::");
  if (halves.length > 2) return undefined;
  const [head, rest] = halves.map((half) => (half === "" ? [] : half.split(":")));
  const missing = IPV6_GROUPS - head!.length - (rest?.length ?? 0);
  if (rest === undefined ? missing !== 0 : missing < 1) return undefined;
  const all = [...head!, ...Array.from({ length: missing }, () => "0"), ...(rest ?? [])];
  if (!all.every((group) => /^[0-9a-f]{1,4}$/.test(group))) return undefined;
  const bytes = all.flatMap((group) => {
    const value = Number.parseInt(group, 16);
    return [value >> 8, value & 0xff];
  });
  const isMapped = bytes.slice(0, 10).every((byte) => byte === 0) && bytes[10] === 0xff && bytes[11] === 0xff;
  return isMapped ? bytes.slice(12) : bytes;
}

const hex = (bytes: readonly number[], at: number): string => (bytes[at]! * 256 + bytes[at + 1]!).toString(16);

function ipv4Bytes(text: string): number[] | undefined {
  const parts = text.split(".");
  if (parts.length !== IPV4_BYTES || !parts.every((part) => /^\d{1,3}$/.test(part) && Number(part) < 256))
    return undefined;
  return parts.map(Number);
}

export interface Network {
  readonly bytes: readonly number[];
  readonly prefix: number;
}

/** `10.1.0.0/16`, `fd00::/8`, or one address. Undefined: it is none. */
export function parseNetwork(text: string): Network | undefined {
  const [address, prefix, ...more] = text.split("/") as [string, string | undefined];
  const bytes = addressBytes(address);
  if (bytes === undefined || more.length > 0 || address.includes("%")) return undefined;
  const bits = bytes.length * 8;
  if (prefix === undefined) return { bytes, prefix: bits };
  return /^\d{1,3}$/.test(prefix) && Number(prefix) <= bits ? { bytes, prefix: Number(prefix) } : undefined;
}

/** Whether a numeric address lies in a network. */
export function isInNetwork(address: string, network: Network): boolean {
  const bytes = addressBytes(address);
  if (bytes === undefined || bytes.length !== network.bytes.length) return false;
  for (let bit = 0; bit < network.prefix; bit += 8) {
    const mask = 0xff & (0xff00 >> Math.min(8, network.prefix - bit));
    const index = bit / 8;
    if (((bytes[index]! ^ network.bytes[index]!) & mask) !== 0) return false;
  }
  return true;
}
