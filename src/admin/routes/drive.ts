import { type PartitionRecord, partitionBytes, SECTOR_BYTES } from "#base/drives";
import { Refusal } from "#base/refusal";
import type { RightsState } from "#base/rights";
import type { DriveSetFacts } from "#store/drive-set";
import { freeRanges } from "#store/drive-space";
import {
  checkPlace,
  createPartition,
  driveOf,
  freeBytes,
  inspectDrive,
  partitionOf,
  placePartition,
  removeDrive,
  removePartition,
  resizePartition,
} from "../drives.ts";
import type { Handlers } from "../http.ts";
import { at, formatNsuConf, type NsuHost, type NsuHostText, type NsuUnitText, parseNsuConf } from "../nsu-conf.ts";
import { addHost, changeHost, forgetDevice, grant } from "../rights-edits.ts";
import type { ApiReply } from "../schema/api.ts";
import type { driveRoutes } from "../schema/drive.ts";
import type { Server } from "../server.ts";

export function driveHandlers(server: Server): Handlers<typeof driveRoutes> {
  const { drives, rights } = server;
  const say = (type: string, message: string, data: object): void => {
    server.log.info(data, message);
    server.events.add(type, message, data);
  };
  const partition = async (name: string) => describePartition(server, await server.driveFacts(), name);
  return {
    "GET /v1/drives": async () => {
      const facts = await server.driveFacts();
      return drives.state.drives.map(({ name }) => describeDrive(server, facts, name));
    },
    "POST /v1/drives": async ({ body: { name, path } }) => {
      await drives.change((state) => ({ ...state, drives: [...state.drives, inspectDrive(state, name, path)] }));
      say("drive-added", `Drive "${name}" added`, { drive: name, path });
      return describeDrive(server, await server.driveFacts(), name);
    },
    "DELETE /v1/drives/{name}": async ({ params: { name } }) => {
      await drives.change((state) => removeDrive(state, name));
      say("drive-removed", `Drive "${name}" taken back`, { drive: name });
      return {};
    },
    "GET /v1/partitions": async () => {
      const facts = await server.driveFacts();
      return {
        free: freeBytes(drives.state),
        freeRanges: freeRanges(drives.state).map((range) => ({ ...range })),
        partitions: drives.state.partitions.map(({ name }) => describePartition(server, facts, name)),
      };
    },
    "POST /v1/partitions": async ({ body: { name, size, drive, zero } }) => {
      server.refuseVolumeName(name);
      await drives.change((state) => createPartition(state, rights.state.limits, { name, size, drive, zero }));
      say("partition-created", `Partition "${name}" made`, { partition: name, size });
      return partition(name);
    },
    "PATCH /v1/partitions/{name}": async ({ params: { name }, body: { size } }) => {
      await drives.change((state) => resizePartition(state, name, size));
      say("partition-resized", `Partition "${name}" now has ${size} bytes`, { partition: name, size });
      return partition(name);
    },
    "DELETE /v1/partitions/{name}": async ({ params: { name } }) => {
      partitionOf(drives.state, name);
      const revoked = rights.state.grants.filter(({ device }) => device === name).map(({ host }) => host);
      // Rights first: no host begins anything on space that is about to be somebody else's.
      await rights.change((state) => forgetDevice(state, name));
      await drives.change((state) => removePartition(state, name));
      say("partition-removed", `Partition "${name}" deleted`, { partition: name, revoked });
      return { revoked };
    },
    "GET /v1/nsu": () => ({ text: exportNsu(server) }),
    "POST /v1/nsu": ({ body: { text } }) => importNsu(server, parseNsuConf(text)),
  };
}

function describeDrive(server: Server, facts: DriveSetFacts, name: string): ApiReply<"POST /v1/drives"> {
  const { state } = server.drives;
  const { path, sectors } = driveOf(state, name);
  const reason = facts.drives.find((one) => one.name === name)?.fault;
  return {
    name,
    path,
    size: sectors * SECTOR_BYTES,
    free: freeBytes(state, name),
    state: reason === undefined ? "online" : "failed",
    ...(reason === undefined ? {} : { reason }),
    partitions: state.partitions
      .filter(({ ranges }) => ranges.some(({ drive }) => drive === name))
      .map((one) => one.name),
  };
}

function describePartition(server: Server, facts: DriveSetFacts, name: string): ApiReply<"POST /v1/partitions"> {
  const record: PartitionRecord = partitionOf(server.drives.state, name);
  const fact = facts.partitions.find((one) => one.name === name);
  return {
    number: 1 + server.drives.state.partitions.indexOf(record),
    name,
    uuid: record.uuid,
    size: partitionBytes(record),
    ranges: record.ranges.map((range) => ({ ...range })),
    zero: record.zero,
    zeroLeft: fact?.zeroLeft ?? 0,
    state: fact?.online === true ? "online" : "away",
    created: new Date(record.created).toISOString(),
    hosts: server.rights.state.grants
      .filter(({ device }) => device === name)
      .map(({ host, unit, access }) => ({ host, unit, access })),
  };
}

function exportNsu({ rights, drives }: Server): string {
  const remarks: string[] = [];
  const hosts: NsuHostText[] = [];
  for (const host of rights.state.hosts) {
    const grants = rights.state.grants.filter((one) => one.host === host.name).sort((a, b) => a.unit - b.unit);
    const units: NsuUnitText[] = [];
    for (const { device, access, range, unit } of grants) {
      const partition = drives.partition(device);
      if (partition === undefined) remarks.push(`"${device}" of ${host.name} is a volume and has no LBA`);
      else if (range !== undefined) remarks.push(`"${device}" is granted to ${host.name} in part only`);
      else {
        const number = unit === units.length ? undefined : unit;
        units.push({ name: device, ranges: [...partition.ranges], access, zero: partition.zero, number });
      }
    }
    if (host.addresses.length === 0) remarks.push(`host "${host.name}" has no address`);
    for (const address of host.addresses) hosts.push({ address, dataPorts: [...host.dataPorts], units });
  }
  return formatNsuConf(hosts, remarks);
}

/** Everything is tried on copies of the state; only when all of it makes sense, it is done. */
async function importNsu({ rights, drives }: Server, hosts: readonly NsuHost[]): Promise<ApiReply<"POST /v1/nsu">> {
  const counts = { hosts: 0, partitions: 0, grants: 0 };
  let layout = drives.state;
  let next: RightsState = rights.state;
  const inLine = <T>(line: number, what: () => T): T => {
    try {
      return what();
    } catch (error) {
      if (error instanceof Refusal) throw at(line, error.message);
      throw error;
    }
  };
  for (const { address, line, dataPorts, units } of hosts) {
    let name = next.hosts.find((one) => one.addresses.includes(address))?.name;
    const ports = dataPorts.length === 0 ? {} : { dataPorts };
    if (name === undefined) {
      name = address.replaceAll(":", ".").replace(/^\.+/, "");
      counts.hosts++;
      const added = name;
      next = inLine(line, () => addHost(next, added, { addresses: [address], ...ports }));
    } else {
      const known = name;
      next = inLine(line, () => changeHost(next, known, ports));
    }
    const host = name;
    for (const unit of units) {
      const there = layout.partitions.find((one) => one.name === unit.name);
      if (there === undefined) {
        for (const [index, range] of unit.ranges.entries())
          inLine(unit.rangeLines[index]!, () => checkPlace(layout, range));
        layout = inLine(unit.line, () => placePartition(layout, next.limits, unit.name, unit.ranges, unit.zero));
        counts.partitions++;
      } else if (JSON.stringify(there.ranges) !== JSON.stringify(unit.ranges))
        throw at(unit.rangeLines[0]!, `partition "${unit.name}" exists, and lies elsewhere`);
      const { access, number } = unit;
      next = inLine(unit.line, () => grant(next, { device: unit.name, host, access, unit: number }));
      counts.grants++;
    }
  }
  if (layout !== drives.state) await drives.change(() => layout);
  await rights.change(() => next);
  return counts;
}
