/** Hosts and grants: who may use what, and how they show who they are. */
import { z } from "zod";
import { bytes, Nothing, route } from "./route.ts";

const Access = z.enum(["read-only", "read-write"]);
const Range = z.strictObject({ offset: bytes, length: bytes });

export const Grant = z
  .object({
    device: z.string().describe("A volume, a snapshot volume@snapshot, or a partition."),
    host: z.string(),
    unit: z.int().describe("The unit number, which is the LUN of iSCSI."),
    access: Access,
    range: Range.optional(),
  })
  .meta({ id: "Grant" });

export const Host = z
  .object({
    name: z.string(),
    addresses: z.array(z.string()),
    iqns: z.array(z.string()),
    tlsNames: z.array(z.string()),
    hasSecret: z.boolean(),
    requireSecret: z.boolean(),
    requireTls: z.boolean(),
    chapUser: z.string().nullable(),
    mutualChapUser: z.string().nullable(),
    dataSocketsMax: z.int().nullable(),
    dataPorts: z.array(z.object({ address: z.string(), port: z.int(), socketsMax: z.int() })),
    grants: z.array(Grant),
  })
  .meta({ id: "Host" });

const Chap = z.strictObject({ user: z.string().min(1).max(255), secret: z.string().min(1).max(255) });
const Given = {
  addresses: z.array(z.string()).optional(),
  iqns: z.array(z.string()).optional(),
  tlsNames: z.array(z.string()).optional(),
  chap: Chap.optional(),
  mutualChap: Chap.optional(),
  requireSecret: z.boolean().optional().describe("Refuse SCP version 1, which proves nothing but an address."),
  requireTls: z.boolean().optional().describe("Refuse SCP without TLS."),
  dataSocketsMax: z.int().optional(),
};
const Named = z.object({ name: z.string() });

export const Limits = z
  .object({ partitionsMax: z.int().min(1).max(16384), unitsPerHostMax: z.int().min(1).max(16384) })
  .meta({ id: "Limits" });

export const hostRoutes = {
  "GET /v1/hosts": route({ summary: "All hosts with their grants", reply: z.array(Host) }),
  "POST /v1/hosts": route({
    summary: "Make a host known",
    body: z.strictObject({ name: z.string(), ...Given }),
    reply: Host,
    status: 201,
  }),
  "GET /v1/hosts/{name}": route({ summary: "One host", params: Named, reply: Host }),
  "PATCH /v1/hosts/{name}": route({
    summary: "Change how a host shows who it is; its sessions start again",
    params: Named,
    body: z.strictObject(Given),
    reply: Host,
  }),
  "DELETE /v1/hosts/{name}": route({
    summary: "Forget a host and its grants; its sessions end",
    params: Named,
    reply: Nothing,
  }),
  "POST /v1/hosts/{name}/secret": route({
    summary: "The secret with which a host proves itself (SCP version 2); made when there is none yet",
    params: Named,
    body: z.strictObject({ renew: z.boolean().default(false) }),
    reply: z.object({ host: z.string(), secret: z.string() }),
  }),
  "POST /v1/grants": route({
    summary: "Give a host a volume, a snapshot or a partition as a unit",
    body: z.strictObject({
      device: z.string(),
      host: z.string(),
      access: Access.default("read-write"),
      unit: z.int().optional(),
      range: Range.optional(),
    }),
    reply: Grant,
    status: 201,
  }),
  "DELETE /v1/grants/{device}/{host}": route({
    summary: "Take a unit away from a host, at once",
    params: z.object({ device: z.string(), host: z.string() }),
    reply: Nothing,
  }),
  "GET /v1/limits": route({ summary: "Limits of partitions and units", reply: Limits }),
  "PATCH /v1/limits": route({
    summary: "Raise or lower limits; what is there already stays",
    body: Limits.partial().strict(),
    reply: Limits,
  }),
};
