/**
 * The program behind `ShapedLink`: one end of a link in each of two network namespaces (two tun devices), and between
 * them every packet waits as it would on a long or slow line. It is what `tc netem delay` and `tc fq maxrate` do, for
 * kernels that have neither. One thread that sleeps in ppoll(2): a turn of Node's loop would be too coarse for it.
 *
 *   node link.js NAMESPACE ADDRESS NAMESPACE ADDRESS ROUND_TRIP_MS BYTES_PER_SECOND shared|per-socket
 */
import { execFileSync } from "node:child_process";
import { openSync, writeSync } from "node:fs";
import { koffi } from "#env/libc";

/** <linux/if_tun.h>, <sched.h>, <poll.h> */
const TUNSETIFF = 0x400454ca;
const TUNSETOFFLOAD = 0x400454d0;
const IFF_TUN = 0x0001;
const IFF_NO_PI = 0x1000;
const IFF_VNET_HDR = 0x4000;
const IFREQ_BYTES = 40;
const IFREQ_FLAGS = 16;
/** Checksums and the cutting of large TCP packets are left undone, as between two virtual machines. */
const OFFLOAD_CSUM_TSO4_TSO6 = 7;
const CLONE_NEWNET = 0x4000_0000;
const POLLIN = 1;
const VNET_HEADER_BYTES = 10;
const PACKET_BYTES_MAX = 65536 + VNET_HEADER_BYTES;
/** What a flow may have waiting; more is dropped, as by any queue. */
const QUEUE_BYTES_MAX = 8 * 1024 * 1024;
const TCP = 6;

const native = koffi();
if ("missing" in native) throw new Error(native.missing);
const libc = native.load("libc.so.6");
const setns = libc.func("int setns(int, int)");
const ioctl = libc.func("int ioctl(int, unsigned long, _Inout_ uint8_t *)");
const ioctlValue = libc.func("int ioctl(int, unsigned long, unsigned long)");
const read = libc.func("intptr_t read(int, _Out_ uint8_t *, size_t)");
const write = libc.func("intptr_t write(int, _In_ uint8_t *, size_t)");
const ppoll = libc.func("int ppoll(_Inout_ uint8_t *, unsigned long, _In_ uint8_t *, uint8_t *)");

const [nsA, addressA, nsB, addressB, roundTripMs, bytesPerSecond, share] = process.argv.slice(2) as [
  string,
  string,
  string,
  string,
  string,
  string,
  string,
];
const oneWayMs = Number(roundTripMs) / 2;
const bytesPerMs = Number(bytesPerSecond) / 1000;

function openEnd(namespace: string, address: string): number {
  if (setns(openSync(`/var/run/netns/${namespace}`, "r"), CLONE_NEWNET) !== 0)
    throw new Error(`cannot enter the namespace ${namespace}`);
  // With O_NONBLOCK, so that a read finds out that there is no more.
  const fd = openSync("/dev/net/tun", 0o4002);
  const request = Buffer.alloc(IFREQ_BYTES);
  request.write("shaped");
  request.writeUInt16LE(IFF_TUN | IFF_NO_PI | IFF_VNET_HDR, IFREQ_FLAGS);
  if (ioctl(fd, TUNSETIFF, request) !== 0) throw new Error("cannot make a tun device");
  if (ioctlValue(fd, TUNSETOFFLOAD, OFFLOAD_CSUM_TSO4_TSO6) !== 0) throw new Error("the tun device has no offload");
  execFileSync("ip", ["-n", namespace, "addr", "add", `${address}/24`, "dev", "shaped"]);
  execFileSync("ip", ["-n", namespace, "link", "set", "shaped", "up"]);
  return fd;
}

interface Packet {
  readonly bytes: Buffer;
  length: number;
  dueMs: number;
}
/** Packets that wait for one line, in order. */
class Flow {
  readonly packets: Packet[] = [];
  waiting = 0;
  freeAtMs = 0;
}

const spare: Packet[] = [];

class Direction {
  readonly #from: number;
  readonly #to: number;
  readonly #flows = new Map<number, Flow>();

  constructor(from: number, to: number) {
    this.#from = from;
    this.#to = to;
  }

  /** Takes in what has been sent. */
  receive(): void {
    for (;;) {
      const packet = spare.pop() ?? { bytes: Buffer.allocUnsafeSlow(PACKET_BYTES_MAX), length: 0, dueMs: 0 };
      packet.length = Number(read(this.#from, packet.bytes, PACKET_BYTES_MAX));
      if (packet.length <= VNET_HEADER_BYTES) {
        spare.push(packet);
        return;
      }
      const now = performance.now();
      const flow = this.#flowOf(packet.bytes);
      if (flow.waiting > QUEUE_BYTES_MAX) {
        spare.push(packet);
        continue;
      }
      flow.freeAtMs = Math.max(flow.freeAtMs, now) + packet.length / bytesPerMs;
      flow.waiting += packet.length;
      packet.dueMs = flow.freeAtMs + oneWayMs;
      flow.packets.push(packet);
    }
  }

  /** Delivers what is due; when the next packet is. */
  deliver(now: number): number {
    let next = Number.POSITIVE_INFINITY;
    for (const flow of this.#flows.values()) {
      while (flow.packets.length > 0 && flow.packets[0]!.dueMs <= now) {
        const packet = flow.packets.shift()!;
        flow.waiting -= packet.length;
        write(this.#to, packet.bytes, packet.length);
        spare.push(packet);
      }
      if (flow.packets.length > 0) next = Math.min(next, flow.packets[0]!.dueMs);
    }
    return next;
  }

  /** One for all, or one for each TCP connection. */
  #flowOf(bytes: Buffer): Flow {
    const ip = VNET_HEADER_BYTES;
    const isTcp = bytes[ip]! >> 4 === 4 && bytes[ip + 9] === TCP;
    const key = share === "per-socket" && isTcp ? bytes.readUInt32BE(ip + (bytes[ip]! & 15) * 4) : 0;
    let flow = this.#flows.get(key);
    if (flow === undefined) {
      flow = new Flow();
      this.#flows.set(key, flow);
    }
    return flow;
  }
}

const a = openEnd(nsA, addressA);
const b = openEnd(nsB, addressB);
const directions = [new Direction(a, b), new Direction(b, a)] as const;
writeSync(1, "up\n");

const polled = Buffer.alloc(16);
const timeout = Buffer.alloc(16);
for (;;) {
  const now = performance.now();
  const next = Math.min(directions[0].deliver(now), directions[1].deliver(now));
  polled.writeInt32LE(a, 0);
  polled.writeInt16LE(POLLIN, 4);
  polled.writeInt32LE(b, 8);
  polled.writeInt16LE(POLLIN, 12);
  const sleepMs = Math.min(Math.max(0, next - performance.now()), 1000);
  timeout.writeBigInt64LE(0n, 0);
  timeout.writeBigInt64LE(BigInt(Math.floor(sleepMs * 1e6)), 8);
  if (sleepMs >= 1000) {
    timeout.writeBigInt64LE(1n, 0);
    timeout.writeBigInt64LE(0n, 8);
  }
  ppoll(polled, 2, timeout, null);
  directions[0].receive();
  directions[1].receive();
}
