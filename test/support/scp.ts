/** An SCP server over devices in memory, hosts of it, and a raw version 1 host that shares no code with ours. */
import net from "node:net";
import { type GrantRecord, type HostRecord, newHostRecord, RIGHTS_EMPTY, type RightsState } from "#base/rights";
import { promiseOf } from "#base/task";
import { MIB } from "#base/units";
import { type BlockDevice, BlockOp, type OpKind } from "#device/device";
import { MemoryDevice } from "#device/memory-device";
import { isNetError, type Log } from "#env/env";
import { NodeEnv } from "#env/node/node-env";
import { SCP_SETTINGS_DEFAULT, ScpHost, type ScpHostOptions, type ScpSettings } from "#initiator/scp-host";
import type { ScpUnit } from "#initiator/scp-unit";
import { ProtectionTable } from "#target/protection";
import { SCP_FRONT_DEFAULTS, ScpFront, type ScpFrontOptions } from "#target/scp-front";

export const SECRET = "5ec7e7".padEnd(64, "0");
export const SECRET_BYTES = Uint8Array.from(SECRET.match(/../g)!, (byte) => Number.parseInt(byte, 16));

const VERBOSE = process.env["SCP_LOG"] !== undefined;
const say = (fields: object, message: string): void => {
  if (VERBOSE) console.error(message, JSON.stringify(fields));
};
export const quiet: Log = { debug: say, info: say, warn: say, error: say };

export const hostRecord = (name: string, more: Partial<HostRecord> = {}): HostRecord => ({
  ...newHostRecord(name),
  ...more,
});
export const grantOf = (host: string, device: string, unit: number, more: Partial<GrantRecord> = {}): GrantRecord => ({
  host,
  device,
  unit,
  access: "read-write",
  range: undefined,
  ...more,
});

export class ScpWorld {
  readonly env = new NodeEnv({ memoryBytes: 128 * MIB, log: quiet });
  readonly devices = new Map<string, BlockDevice>();
  readonly watchers = new Set<(name: string) => void>();
  readonly table: ProtectionTable;
  front!: ScpFront;
  port = 0;
  state: RightsState = RIGHTS_EMPTY;
  readonly hosts: ScpHost[] = [];
  readonly sockets: net.Socket[] = [];

  constructor() {
    this.table = new ProtectionTable({
      find: (name) => this.devices.get(name),
      names: () => this.devices.keys(),
      watch: (changed) => {
        this.watchers.add(changed);
        return () => this.watchers.delete(changed);
      },
    });
  }

  addMemory(name: string, size = 64 * MIB, blockSize: 512 | 4096 = 512): MemoryDevice {
    const device = new MemoryDevice(this.env.memory, size, { blockSize });
    this.devices.set(name, device);
    for (const watcher of this.watchers) watcher(name);
    return device;
  }

  rights(hosts: HostRecord[], grants: GrantRecord[]): void {
    this.state = { ...RIGHTS_EMPTY, generation: this.state.generation + 1, hosts, grants };
    this.table.load(this.state);
  }

  async serve(more: Partial<ScpFrontOptions> = {}): Promise<void> {
    this.front = new ScpFront(this.env, this.table, {
      ...SCP_FRONT_DEFAULTS,
      anySourcePort: true,
      serverId: new Uint8Array(16).fill(7),
      run: 1,
      ...more,
    });
    const address = await promiseOf(this.front.listen({ host: "127.0.0.1", port: this.port }));
    if (isNetError(address)) throw new Error(address.detail);
    if ("port" in address) this.port = address.port;
  }

  /** As a crash would: listeners and connections gone at once. */
  async crash(): Promise<void> {
    const { front } = this;
    front.abort();
    await new Promise<void>((resolve) => front.drain()(resolve));
  }

  host(name: string, more: Partial<ScpHostOptions> = {}, settings: Partial<ScpSettings> = {}): ScpHost {
    const instance = new Uint8Array(16);
    this.env.random.fill(instance);
    const host = new ScpHost(this.env, {
      addresses: [{ host: "127.0.0.1", port: this.port }],
      hostName: name,
      secret: SECRET_BYTES,
      requireSecret: false,
      tls: undefined,
      instance,
      versions: 3,
      dataCrc: true,
      privilegedPort: false,
      settings: { ...SCP_SETTINGS_DEFAULT, ...settings },
      ...more,
    });
    this.hosts.push(host);
    host.start();
    return host;
  }

  /** Waits until the host has unit `number`. */
  async unit(host: ScpHost, number: number): Promise<ScpUnit> {
    await until(() => host.unit(number) !== undefined, `unit ${number}`);
    return host.unit(number)!;
  }

  /** Runs one operation with data in and out. */
  async run(device: BlockDevice, kind: OpKind, offset: number, length: number, data?: Uint8Array): Promise<Ran> {
    const { memory } = this.env;
    const room = Math.max(length, data?.length ?? 0, 512);
    const at = memory.allocate(Math.min(room, 32 * MIB));
    if (data !== undefined) memory.bytes.set(data, at);
    const op = await new Promise<BlockOp>((resolve) => {
      const one = new BlockOp(resolve);
      one.kind = kind;
      one.offset = offset;
      one.length = length;
      one.at = at;
      device.submit(one);
    });
    const bytes = kind === "read" && op.status === "ok" ? memory.slice(at, length).slice() : new Uint8Array(0);
    memory.free(at);
    return { status: op.status, result: op.result, bytes };
  }

  /** A socket of a raw peer. */
  async dial(port = this.port, from = "127.0.0.1"): Promise<RawPeer> {
    const socket = net.connect({ host: "127.0.0.1", port, localAddress: from });
    this.sockets.push(socket);
    return RawPeer.open(socket);
  }

  async close(): Promise<void> {
    for (const host of this.hosts) host.stop();
    for (const socket of this.sockets) socket.destroy();
    this.front?.abort();
    if (this.front !== undefined) await new Promise<void>((resolve) => this.front.drain()(resolve));
    this.env.close();
  }
}

export interface Ran {
  readonly status: string;
  readonly result: number;
  readonly bytes: Uint8Array;
}

export async function until(what: () => boolean, name: string, ms = 10_000): Promise<void> {
  const end = Date.now() + ms;
  while (!what()) {
    if (Date.now() > end) throw new Error(`${name} did not happen in ${ms} ms`);
    await new Promise((resolve) => setTimeout(resolve, 2));
  }
}

/** The other end of a TCP connection, as bytes. */
export class RawPeer {
  readonly socket: net.Socket;
  #bytes = Buffer.alloc(0);
  ended = false;
  #wake: (() => void) | undefined;

  constructor(socket: net.Socket) {
    this.socket = socket;
    socket.on("data", (data) => {
      this.#bytes = Buffer.concat([this.#bytes, data]);
      this.#wake?.();
    });
    const end = (): void => {
      this.ended = true;
      this.#wake?.();
    };
    socket.on("end", end);
    socket.on("close", end);
    socket.on("error", end);
  }

  static open(socket: net.Socket): Promise<RawPeer> {
    return new Promise((resolve, reject) => {
      const peer = new RawPeer(socket);
      socket.once("connect", () => resolve(peer));
      socket.once("error", reject);
    });
  }

  send(bytes: Uint8Array): void {
    this.socket.write(bytes);
  }

  /** Exactly `length` bytes, or fewer when the other side closes first. */
  async read(length: number, ms = 5_000): Promise<Buffer> {
    const end = Date.now() + ms;
    while (this.#bytes.length < length && !this.ended) {
      if (Date.now() > end) throw new Error(`${length} bytes did not come, only ${this.#bytes.length}`);
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
        setTimeout(resolve, 50);
      });
    }
    const bytes = this.#bytes.subarray(0, length);
    this.#bytes = this.#bytes.subarray(bytes.length);
    return Buffer.from(bytes);
  }

  async closed(ms = 5_000): Promise<void> {
    await until(() => this.ended, "the close", ms);
  }
}

/** A `znreq_t` by hand: words by index (0 zn_type … 15 zn_marker), the rest zero. */
export function znreq(words: Record<number, number>): Buffer {
  const bytes = Buffer.alloc(512);
  bytes.writeUInt32BE(1, 0);
  bytes.writeUInt32BE(1, 4);
  for (const [index, value] of Object.entries(words)) bytes.writeUInt32BE(value >>> 0, 4 * Number(index));
  return bytes;
}
export const word = (message: Buffer, index: number): number => message.readUInt32BE(4 * index);
/** Indexes of `znreq_t`'s fields. */
export const ZN = { type: 0, version: 1, zlun: 3, op: 7, flags: 8, status: 10, size: 12, lbaHi: 13, lba: 14 } as const;

/** A version 1 host by hand, configured: what the text's steps (1) to (11) give. */
export interface RawHost {
  readonly config: RawPeer;
  readonly random: number;
  readonly sizes: number[];
  readonly port: number;
  readonly max: number;
}

export async function rawConfigure(world: ScpWorld, from = "127.0.0.1"): Promise<RawHost> {
  const config = await world.dial(world.port, from);
  const greeting = await config.read(512);
  const random = word(greeting, ZN.size);
  config.send(znreq({ [ZN.op]: 0x1005, [ZN.size]: ~random }));
  const verdict = await config.read(512);
  if (verdict.length < 512 || word(verdict, ZN.status) !== 0) throw new Error("the server refused");
  config.send(znreq({ [ZN.op]: 0x1007 }));
  const count = word(await config.read(512), ZN.size);
  const list = await config.read(8 * count);
  const sizes = Array.from({ length: count }, (_, i) => Number(list.readBigUInt64BE(8 * i)));
  config.send(znreq({ [ZN.op]: 0x1008 }));
  const ports = word(await config.read(512), ZN.size);
  const entries = await config.read(28 * ports);
  return { config, random, sizes, port: entries.readUInt32BE(20), max: entries.readUInt32BE(24) };
}

export async function rawData(world: ScpWorld, host: RawHost, from = "127.0.0.1"): Promise<RawPeer> {
  const data = await world.dial(host.port, from);
  data.send(znreq({ [ZN.size]: host.random }));
  const answer = await data.read(512);
  if (answer.length < 512 || word(answer, ZN.status) !== 0) throw new Error("the hello was refused");
  return data;
}
