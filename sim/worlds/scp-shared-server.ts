/**
 * The server of a world with several SCP hosts: the engine, drives with partitions, the protection table and the SCP
 * front. What a control plane would keep on disk (rights, and which partitions there are) survives its deaths here.
 */
import { DRIVES_EMPTY, type DrivesState, type PartitionRecord, SECTOR_BYTES } from "#base/drives";
import { newHostRecord, RIGHTS_EMPTY } from "#base/rights";
import { perform, type Task } from "#base/task";
import { KIB, MIB } from "#base/units";
import type { BlockDevice } from "#device/device";
import { DiskOp, type File, isDiskFault, isNetError } from "#env/env";
import { DriveSet } from "#store/drive-set";
import { DirectoryStore } from "#store/segment-store";
import { VersionSet } from "#store/version-set";
import { ProtectionTable } from "#target/protection";
import { SCP_FRONT_DEFAULTS, ScpFront } from "#target/scp-front";
import { POWER_CUTS } from "../env/power-cuts.ts";
import type { SimNode } from "../env/sim-node.ts";
import type { SimProcess } from "../env/sim-process.ts";
import { History, type Ticks } from "../oracle/history.ts";
import { Violation } from "../violation.ts";

export type Right = "read-write" | "read-only" | "none";

/** How a device is made. Bytes; sizes of partitions that are zeroed first are whole MiB. */
export type DeviceSetup =
  | { readonly kind: "volume"; readonly size: number; readonly blockSize: number }
  | { readonly kind: "partition"; readonly size: number; readonly isZeroed: boolean; readonly isSplit: boolean };

export const SCP_PORT = 10_001;
export const hostName = (index: number): string => `host${index}`;
export const secretOf = (index: number): Uint8Array => new Uint8Array(32).fill(0x50 + index);

const SET = "/data/set";
const MAPS = "/data/maps";
const DRIVES = ["/data/drive0", "/data/drive1"] as const;
const DRIVE_BYTES = 16 * MIB;
const OLD_BYTES = 64 * KIB;

/** A unit that hosts share: the same number for all of them. */
export class SharedDevice {
  readonly unit: number;
  readonly name: string;
  readonly setup: DeviceSetup;
  readonly blockSize: number;
  history: History;
  size: number;
  uuid = "";
  /** It is being deleted and made anew: nobody knows what is there. */
  isReplaced = false;
  /** What each host may do with it, and how often that has changed. */
  readonly rights: Right[];
  readonly epochs: number[];
  /** How often each host has lost its right, and the units that it gave up late, when it had been given another right. */
  readonly withdrawals: number[];
  readonly givenUp: Set<BlockDevice>[];

  constructor(unit: number, setup: DeviceSetup, ticks: Ticks, rights: readonly Right[]) {
    this.unit = unit;
    this.name = `d${unit}`;
    this.setup = setup;
    this.blockSize = setup.kind === "volume" ? setup.blockSize : SECTOR_BYTES;
    this.size = setup.size;
    this.history = new History(ticks);
    this.rights = [...rights];
    this.epochs = rights.map(() => 0);
    this.withdrawals = rights.map(() => 0);
    this.givenUp = rights.map(() => new Set());
  }

  /** Something has changed for everybody. */
  touch(): void {
    for (let host = 0; host < this.epochs.length; host++) this.epochs[host]!++;
  }
}

export interface ServerOptions {
  readonly segmentBlocks: number;
  readonly checkpointBytes: number;
  readonly versions: number;
  /** How many of the networks hosts are told of. */
  readonly networks: number;
}

export class SharedServer {
  readonly node: SimNode;
  readonly devices: readonly SharedDevice[];
  process: SimProcess | undefined;
  isServing = false;
  readonly #options: ServerOptions;
  readonly #ticks: Ticks;
  readonly #hosts: readonly SimNode[];
  readonly #shown = new Map<string, BlockDevice>();
  readonly #watchers = new Set<(name: string) => void>();
  #drives: DrivesState;
  #generation = 1;
  #nextUuid = 1;
  readonly #nextSector = DRIVES.map(() => 0);
  #set: VersionSet | undefined;
  #driveSet: DriveSet | undefined;
  #table: ProtectionTable | undefined;

  constructor(
    node: SimNode,
    hosts: readonly SimNode[],
    devices: readonly SharedDevice[],
    options: ServerOptions,
    ticks: Ticks,
  ) {
    this.node = node;
    this.devices = devices;
    this.#hosts = hosts;
    this.#options = options;
    this.#ticks = ticks;
    this.#drives = {
      ...DRIVES_EMPTY,
      drives: DRIVES.map((path, index) => ({ name: `drive${index}`, path, sectors: DRIVE_BYTES / SECTOR_BYTES })),
    };
  }

  /** Nothing that was written is lost as long as the machine runs. */
  get run(): number {
    return 1 + this.node.powerCuts;
  }

  /** The device itself, as it is on the server now. */
  find(name: string): BlockDevice | undefined {
    return this.#set?.versions.get(name) ?? this.#driveSet?.devices.get(name);
  }

  /* ---------------------------------------------------------------------------- life */

  /** What an operator has done before the world begins. */
  *create(): Task<void> {
    const process = this.node.start("server");
    const { disk } = process;
    for (const directory of ["/data", MAPS]) yield* perform(disk.makeDirectory(directory));
    const files: File[] = [];
    for (const path of DRIVES) {
      const file = yield* perform(disk.open(path, "create"));
      if (isDiskFault(file)) throw new Error(`a drive cannot be made: ${file}`);
      yield* perform(disk.truncate(file, DRIVE_BYTES));
      files.push(file);
    }
    const store = new DirectoryStore(process, SET);
    yield* store.make();
    const set = yield* VersionSet.create(process, store, this.#options);
    for (const { name, setup } of this.devices)
      if (setup.kind === "volume") yield* set.createVolume({ name, size: setup.size, blockSize: setup.blockSize });
      else {
        this.#addPartition(name, setup);
        if (setup.isZeroed) yield* this.#leaveOldData(process, name, files);
      }
    for (const file of files) yield* perform(disk.close(file));
    yield* set.close();
    yield* perform(disk.syncDirectory("/data"));
    yield* perform(disk.syncDirectory("/"));
    // All of it has long been on the disk when the world begins.
    this.node.losePower(POWER_CUTS.allKept);
  }

  /** Comes up, as far as serving. Throws what the product throws. */
  *start(process: SimProcess): Task<void> {
    this.process = process;
    this.isServing = false;
    this.#watchers.clear();
    this.#shown.clear();
    const probe = (state: string, on: boolean): void => {
      process.probe(state, on);
      if (on) process.world.onState?.(state);
    };
    probe("start", true);
    const set = yield* VersionSet.open(process, new DirectoryStore(process, SET), { ...this.#options, probe });
    this.#set = set;
    const drives = new DriveSet(process);
    this.#driveSet = drives;
    yield* drives.load(this.#drives, MAPS);
    for (const device of this.devices) yield* this.#recognise(device, set);
    for (const { name } of this.devices) this.#tell(name);
    const directory = {
      find: (name: string) => this.#shown.get(name),
      names: () => this.devices.map(({ name }) => name),
      watch: (changed: (name: string) => void) => {
        this.#watchers.add(changed);
        return () => this.#watchers.delete(changed);
      },
    };
    this.#table = new ProtectionTable(directory);
    this.#loadRights();
    const front = new ScpFront(process, this.#table, {
      ...SCP_FRONT_DEFAULTS,
      anySourcePort: true,
      versions: this.#options.versions,
      serverId: new Uint8Array(16).fill(0xa5),
      run: this.run,
      stallMs: 5_000,
      networks: this.node.addresses.slice(0, this.#options.networks),
    });
    const at = yield* front.listen({ host: "0.0.0.0", port: SCP_PORT });
    if (isNetError(at)) throw new Error(`the front cannot listen: ${at.fault}`);
    probe("start", false);
    this.isServing = true;
  }

  /** The process is dead. */
  died(): void {
    this.isServing = false;
    this.process = undefined;
    this.#set = undefined;
    this.#driveSet = undefined;
    this.#table = undefined;
  }

  /** After a start: every device is there, as it was or as it was about to be. */
  *#recognise(device: SharedDevice, set: VersionSet): Task<void> {
    let found = this.find(device.name);
    if (found === undefined && device.isReplaced && device.setup.kind === "volume") {
      yield* set.createVolume(this.#volumeOf(device));
      found = this.find(device.name);
    }
    if (found === undefined) throw new Violation(`${device.name} is not there any more`);
    if (device.uuid === "") device.uuid = found.uuid;
    if (found.uuid !== device.uuid) {
      if (!device.isReplaced) throw new Violation(`${device.name} is another one`);
      this.#becameNew(device, found);
    }
    device.isReplaced = false;
    if (found.size !== device.size && found.size !== this.#growing.get(device))
      throw new Violation(`${device.name} has ${found.size} bytes, not ${device.size}`);
    device.size = found.size;
    this.#growing.delete(device);
  }
  /** Sizes that devices are being given. */
  readonly #growing = new Map<SharedDevice, number>();

  #becameNew(device: SharedDevice, found: BlockDevice): void {
    device.uuid = found.uuid;
    device.size = device.setup.size;
    device.history = new History(this.#ticks);
    device.touch();
  }

  /* -------------------------------------------------------------------------- changes */

  setRight(device: SharedDevice, host: number, right: Right): void {
    if (device.rights[host] === right) return;
    device.rights[host] = right;
    device.epochs[host]!++;
    if (right === "none") device.withdrawals[host]!++;
    this.#loadRights();
  }

  /** Makes a device larger, by whole MiB where it is a partition. */
  *grow(device: SharedDevice, blocks: number): Task<void> {
    const { name, setup } = device;
    if (setup.kind === "volume") {
      const size = device.size + blocks * device.blockSize;
      this.#growing.set(device, size);
      yield* this.#set!.resize(name, size);
      device.size = size;
    } else {
      if (!this.#hasRoom()) return;
      const record = this.#drives.partitions.find((one) => one.name === name)!;
      const size = device.size + MIB;
      this.#growing.set(device, size);
      this.#keepPartition({ ...record, ranges: [...record.ranges, this.#takeRange(device.unit % 2, MIB)] });
      yield* this.#driveSet!.load(this.#drives, MAPS);
      device.size = size;
    }
    this.#growing.delete(device);
    this.#tell(name);
  }

  /** Deletes a device under its hosts' hands, and makes another one with its name and number; a partition on the same ranges. */
  *replace(device: SharedDevice): Task<void> {
    const { name, setup } = device;
    if (setup.kind === "partition" && !setup.isZeroed) return;
    device.isReplaced = true;
    device.touch();
    if (setup.kind === "volume") {
      yield* this.#set!.remove(name, { force: true });
      this.#tell(name);
      yield* this.#set!.createVolume(this.#volumeOf(device));
    } else {
      const old = this.#drives.partitions.find((one) => one.name === name)!;
      const size = setup.size / SECTOR_BYTES;
      let left = size;
      const ranges = old.ranges.flatMap((range) => {
        const take = Math.min(left, range.last - range.first + 1);
        left -= take;
        return take === 0 ? [] : [{ ...range, last: range.first + take - 1 }];
      });
      this.#keepPartition({ ...old, uuid: this.#newUuid(), ranges });
      yield* this.#driveSet!.load(this.#drives, MAPS);
    }
    this.#becameNew(device, this.find(name)!);
    device.isReplaced = false;
    this.#tell(name);
  }

  /** From now on, what is there now is what hosts see. */
  #tell(name: string): void {
    const device = this.find(name);
    if (device === undefined) this.#shown.delete(name);
    else this.#shown.set(name, device);
    for (const watcher of [...this.#watchers]) watcher(name);
  }

  #volumeOf({ name, setup, blockSize }: SharedDevice) {
    return { name, size: setup.size, blockSize };
  }

  #loadRights(): void {
    const hosts = this.#hosts.map((node, index) => ({
      ...newHostRecord(hostName(index)),
      addresses: node.addresses,
      secret: [...secretOf(index)].map((byte) => byte.toString(16).padStart(2, "0")).join(""),
    }));
    const grants = this.devices.flatMap(({ name, unit, rights }) =>
      rights.flatMap((access, index) =>
        access === "none" ? [] : [{ host: hostName(index), device: name, unit, access, range: undefined }],
      ),
    );
    this.#table?.load({ ...RIGHTS_EMPTY, generation: ++this.#generation, hosts, grants });
  }

  /* ------------------------------------------------------------------------ partitions */

  #addPartition(name: string, { size, isZeroed, isSplit }: DeviceSetup & { readonly kind: "partition" }): void {
    const ranges = isSplit
      ? [this.#takeRange(0, size / 2), this.#takeRange(1, size / 2)]
      : [this.#takeRange(this.#drives.partitions.length % 2, size)];
    this.#keepPartition({ name, uuid: this.#newUuid(), ranges, zero: isZeroed, created: 0 });
  }

  /** Somebody else's data, where a partition begins that is to be zeroed before it is seen. */
  *#leaveOldData({ disk, memory }: SimProcess, name: string, files: readonly File[]): Task<void> {
    const { ranges } = this.#drives.partitions.find((one) => one.name === name)!;
    const at = memory.allocate(OLD_BYTES);
    memory.bytes.fill(0xee, at, at + OLD_BYTES);
    for (const { drive, first } of ranges)
      yield* perform<DiskOp>((resume) => {
        const op = new DiskOp(resume);
        op.kind = "write";
        op.file = files[Number(drive.at(-1))]!;
        op.position = first * SECTOR_BYTES;
        op.at = at;
        op.length = OLD_BYTES;
        disk.submit(op);
      });
    memory.free(at);
  }

  #hasRoom(): boolean {
    return this.#nextSector.every((sector) => sector * SECTOR_BYTES + MIB <= DRIVE_BYTES);
  }

  /** Space that no partition has had before. */
  #takeRange(drive: number, bytes: number) {
    const first = this.#nextSector[drive]!;
    this.#nextSector[drive] = first + bytes / SECTOR_BYTES;
    return { drive: `drive${drive}`, first, last: first + bytes / SECTOR_BYTES - 1 };
  }

  #keepPartition(record: PartitionRecord): void {
    const others = this.#drives.partitions.filter(({ name }) => name !== record.name);
    this.#drives = { ...this.#drives, generation: ++this.#generation, partitions: [...others, record] };
  }

  #newUuid(): string {
    return (this.#nextUuid++).toString(16).padStart(32, "0");
  }
}
