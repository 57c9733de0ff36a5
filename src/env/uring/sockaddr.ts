/** Socket addresses as the kernel has them (struct sockaddr_in, sockaddr_in6, sockaddr_un). */
import { isIPv4, isIPv6, SocketAddress } from "node:net";
import { AF, SOCKADDR_BYTES } from "./abi.ts";

/** Where things lie in them; ports and IP addresses are big-endian, the family is not. */
const FAMILY = 0;
const PORT = 2;
const IPV4 = 4;
const IPV4_BYTES = 16;
const IPV6 = 8;
const IPV6_SCOPE = 24;
const IPV6_BYTES = 28;
const PATH = 2;
/** The longest path of a Unix socket, with its final zero. */
const PATH_BYTES_MAX = 108;

export interface SocketName {
  readonly domain: number;
  /** Of fixed place, so that the kernel may read it. */
  readonly bytes: Uint8Array;
  readonly length: number;
}

/** The address of a numeric host, or undefined when it is none. */
export function encodeHost(host: string, port: number): SocketName | undefined {
  const bytes = Buffer.allocUnsafeSlow(SOCKADDR_BYTES).fill(0);
  if (isIPv4(host)) {
    bytes.writeUInt16LE(AF.INET, FAMILY);
    bytes.writeUInt16BE(port, PORT);
    bytes.set(host.split(".").map(Number), IPV4);
    return { domain: AF.INET, bytes, length: IPV4_BYTES };
  }
  if (!isIPv6(host)) return undefined;
  const [address, scope] = host.split("%") as [string, string | undefined];
  bytes.writeUInt16LE(AF.INET6, FAMILY);
  bytes.writeUInt16BE(port, PORT);
  bytes.set(parseIpv6(address), IPV6);
  if (scope !== undefined) bytes.writeUInt32LE(Number(scope) || 0, IPV6_SCOPE);
  return { domain: AF.INET6, bytes, length: IPV6_BYTES };
}

export function encodePath(path: string): SocketName | undefined {
  const text = Buffer.from(path);
  if (text.length === 0 || text.length >= PATH_BYTES_MAX) return undefined;
  const bytes = Buffer.allocUnsafeSlow(SOCKADDR_BYTES).fill(0);
  bytes.writeUInt16LE(AF.UNIX, FAMILY);
  bytes.set(text, PATH);
  return { domain: AF.UNIX, bytes, length: PATH + text.length + 1 };
}

/** The host in numbers and the port; of a Unix socket, its path as `path`. IPv4 on an IPv6 socket is told as IPv4. */
export function decodeName(bytes: Uint8Array, length: number): { host: string; port: number; path: string } {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const family = length >= 2 ? view.getUint16(FAMILY, true) : 0;
  if (family === AF.INET) {
    return { host: bytes.subarray(IPV4, IPV4 + 4).join("."), port: view.getUint16(PORT), path: "" };
  }
  if (family === AF.INET6) return { host: formatIpv6(bytes), port: view.getUint16(PORT), path: "" };
  const end = bytes.indexOf(0, PATH);
  const path = new TextDecoder().decode(bytes.subarray(PATH, Math.min(end < 0 ? length : end, length)));
  return { host: "", port: 0, path };
}

/** Sixteen bytes of an address that is known to be one. */
function parseIpv6(text: string): Uint8Array {
  // An IPv4 address at the end stands for two words.
  const plain = text.replace(/(\d+)\.(\d+)\.(\d+)\.(\d+)$/, (_all, a, b, c, d) => {
    const word = (high: string, low: string): string => (Number(high) * 256 + Number(low)).toString(16);
    return `${word(a, b)}:${word(c, d)}`;
  });
  const [head = "", tail] = plain.split("::") as [string, string | undefined];
  const first = head === "" ? [] : head.split(":");
  const last = tail === undefined || tail === "" ? [] : tail.split(":");
  const words = [...first, ...Array<string>(8 - first.length - last.length).fill("0"), ...last];
  return Uint8Array.from(words.flatMap((word) => [Number.parseInt(word, 16) >>> 8, Number.parseInt(word, 16) & 0xff]));
}

function formatIpv6(bytes: Uint8Array): string {
  const words: string[] = [];
  for (let at = IPV6; at < IPV6 + 16; at += 2) words.push(((bytes[at]! << 8) | bytes[at + 1]!).toString(16));
  const host = new SocketAddress({ address: words.join(":"), family: "ipv6" }).address;
  return host.startsWith("::ffff:") && host.includes(".") ? host.slice(7) : host;
}
