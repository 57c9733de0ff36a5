/**
 * An iSCSI target on its own: the front over volumes in RAM and Node's Env, without an engine, a control plane or a
 * data directory. As a program (`node dist/test/support/iscsi-rig.js`) it prints its port, and serves until its input
 * ends.
 */
import { createHash } from "node:crypto";
import { type GrantRecord, type HostRecord, RIGHTS_EMPTY, type RightsState } from "#base/rights";
import { promiseOf } from "#base/task";
import { MIB } from "#base/units";
import type { BlockDevice } from "#device/device";
import { MemoryDevice } from "#device/memory-device";
import { isNetError } from "#env/env";
import { NodeEnv } from "#env/node/node-env";
import type { ChapSecret, Hash } from "#proto/iscsi/chap";
import { ReservationBook } from "#scsi/reservation-store";
import type { UnitOptions } from "#scsi/unit";
import { IscsiFront, type IscsiFrontOptions } from "#target/iscsi-front";
import { type DeviceDirectory, ProtectionTable } from "#target/protection";

export const TARGET = "iqn.2024-01.org.ashlar:rig";
/** The two names of iscsi-test-cu, and those of the other clients. */
export const INITIATORS = [
  "iqn.2007-10.com.github:sahlberg:libiscsi:iscsi-test",
  "iqn.2007-10.com.github:sahlberg:libiscsi:iscsi-test-2",
  "iqn.2024-01.test.guest:1",
];
export const nodeHash: Hash = (algorithm, bytes) => createHash(algorithm).update(bytes).digest();

export interface RigVolume {
  readonly name: string;
  readonly size: number;
  readonly blockSize?: 512 | 4096;
  readonly readOnly?: boolean;
  readonly options?: UnitOptions;
}
export interface RigOptions {
  readonly volumes: readonly RigVolume[];
  readonly initiators?: readonly string[];
  readonly chap?: ChapSecret;
  readonly mutualChap?: ChapSecret;
  readonly memory?: number;
  readonly front?: Partial<IscsiFrontOptions>;
}

export class Devices implements DeviceDirectory {
  readonly map = new Map<string, BlockDevice>();
  readonly #watchers = new Set<(name: string) => void>();
  find(name: string): BlockDevice | undefined {
    return this.map.get(name);
  }
  names(): Iterable<string> {
    return this.map.keys();
  }
  watch(changed: (name: string) => void): () => void {
    this.#watchers.add(changed);
    return () => this.#watchers.delete(changed);
  }
}

export function rights(options: RigOptions): RightsState {
  const host: HostRecord = {
    name: "tester",
    addresses: [],
    secret: undefined,
    requireSecret: false,
    requireTls: false,
    tlsNames: [],
    iqns: options.initiators ?? INITIATORS,
    chap: options.chap,
    mutualChap: options.mutualChap,
    units: {},
    dataSocketsMax: undefined,
    dataPorts: [],
  };
  const grants = options.volumes.map(
    (volume, unit): GrantRecord => ({
      host: "tester",
      device: volume.name,
      unit,
      access: volume.readOnly === true ? "read-only" : "read-write",
      range: undefined,
    }),
  );
  return { ...RIGHTS_EMPTY, generation: 1, hosts: [host], grants };
}

export async function startRig(options: RigOptions, address = "127.0.0.1", port = 0) {
  const loud = process.env["RIG_LOG"] !== undefined;
  const say = (fields: object, message: string): void => {
    if (loud) process.stderr.write(`${message} ${JSON.stringify(fields)}\n`);
  };
  const log = { debug: say, info: say, warn: say, error: say };
  const env = new NodeEnv({ memoryBytes: options.memory ?? 128 * MIB, log });
  const devices = new Devices();
  options.volumes.forEach((volume, index) => {
    const uuid = `00000000000040008000${(index + 1).toString(16).padStart(12, "0")}`;
    devices.map.set(
      volume.name,
      new MemoryDevice(env.memory, volume.size, { blockSize: volume.blockSize ?? 512, uuid }),
    );
  });
  const table = new ProtectionTable(devices);
  table.load(rights(options));
  const book = new ReservationBook();
  const byName = new Map(options.volumes.map((volume) => [volume.name, volume.options ?? {}]));
  const front = new IscsiFront(env, table, devices, book, {
    targetName: TARGET,
    hash: nodeHash,
    unitOptions: (device) => byName.get(device) ?? {},
    ...options.front,
  });
  const where = await promiseOf(front.listen({ host: address, port }));
  if (isNetError(where) || !("port" in where)) throw new Error("cannot listen");
  const stop = (): Promise<void> => new Promise((resolve) => front.drain()(resolve));
  return { env, devices, table, book, front, port: where.port, stop };
}

if (process.argv[1]?.endsWith("iscsi-rig.js")) {
  const options = JSON.parse(process.argv[2] ?? '{"volumes":[{"name":"disk","size":134217728}]}') as RigOptions;
  const rig = await startRig(options, "127.0.0.1", Number(process.argv[3] ?? 0));
  process.stdout.write(`${rig.port}\n`);
  process.stdin.resume();
  process.stdin.on("end", () => void rig.stop().then(() => process.exit(0)));
}
