/** Drives and partitions: raw files and block devices, exported in slices, thick and in place. */
import { z } from "zod";
import { bytes, moment, Nothing, route } from "./route.ts";

export const Drive = z
  .object({
    name: z.string(),
    path: z.string(),
    size: bytes,
    free: bytes,
    state: z.enum(["online", "failed"]),
    reason: z.string().optional(),
    partitions: z.array(z.string()),
  })
  .meta({ id: "Drive" });

const Place = z.object({ drive: z.string(), first: z.int(), last: z.int() });
export const Partition = z
  .object({
    number: z.int().describe("Partition 0 is the free space of the drives; it is not listed."),
    name: z.string(),
    uuid: z.string(),
    size: bytes,
    ranges: z.array(Place).describe("Sectors of 512 bytes, the last one inclusive."),
    zero: z.boolean(),
    zeroLeft: bytes.describe("Bytes that will be zeroed before they are accessed."),
    state: z.enum(["online", "away"]),
    created: moment,
    hosts: z.array(z.object({ host: z.string(), unit: z.int(), access: z.string() })),
  })
  .meta({ id: "Partition" });

const Named = z.object({ name: z.string() });

export const driveRoutes = {
  "GET /v1/drives": route({ summary: "All drives", reply: z.array(Drive) }),
  "POST /v1/drives": route({
    summary: "Give the server a raw file or a block device as a whole; nothing is written to it",
    body: z.strictObject({ name: z.string(), path: z.string() }),
    reply: Drive,
    status: 201,
  }),
  "DELETE /v1/drives/{name}": route({
    summary: "Take a drive without partitions back",
    params: Named,
    reply: Nothing,
  }),
  "GET /v1/partitions": route({
    summary: "All partitions, and the free space",
    reply: z.object({
      free: bytes,
      freeRanges: z.array(Place).describe("Where partition 0, the free space, lies."),
      partitions: z.array(Partition),
    }),
  }),
  "POST /v1/partitions": route({
    summary: "Make a partition: best fit, over several drives if need be",
    body: z.strictObject({
      name: z.string(),
      size: bytes,
      drive: z.string().optional(),
      zero: z.boolean().default(false).describe("Zero every part of it before its first access."),
    }),
    reply: Partition,
    status: 201,
  }),
  "PATCH /v1/partitions/{name}": route({
    summary: "Grow a partition while hosts use it",
    params: Named,
    body: z.strictObject({ size: bytes }),
    reply: Partition,
  }),
  "DELETE /v1/partitions/{name}": route({
    summary: "Delete a partition and its grants; its space is free when this is answered",
    params: Named,
    reply: z.object({ revoked: z.array(z.string()).describe("Hosts that had it.") }),
  }),
  "GET /v1/nsu": route({
    summary: "Hosts with addresses, and their partitions, in the syntax of nsu.conf",
    reply: z.object({ text: z.string() }),
  }),
  "POST /v1/nsu": route({
    summary: "Make hosts, partitions and grants as an nsu.conf says; all of it or nothing",
    body: z.strictObject({ text: z.string() }),
    reply: z.object({ hosts: z.int(), partitions: z.int(), grants: z.int() }),
  }),
};
