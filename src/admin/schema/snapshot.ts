/** Snapshots: frozen states of volumes; clones and rollbacks start from them. */
import { z } from "zod";
import { bytes, moment, Nothing, route } from "./route.ts";
import { Space, Volume } from "./volume.ts";

export const Snapshot = z
  .object({
    name: z.string().describe("volume@snapshot"),
    volume: z.string(),
    uuid: z.string(),
    size: bytes,
    created: moment,
    clones: z.array(z.string()).describe("Volumes that were cloned from it."),
    connections: z.int(),
    space: Space,
    uris: z.array(z.string()),
  })
  .meta({ id: "Snapshot" });

const Named = z.object({ name: z.string() });

export const snapshotRoutes = {
  "GET /v1/snapshots": route({
    summary: "All snapshots, or those of one volume, oldest first",
    query: z.strictObject({ volume: z.string().optional() }),
    reply: z.array(Snapshot),
  }),
  "POST /v1/snapshots": route({
    summary: "Freeze a volume's state under the name volume@snapshot",
    body: z.strictObject({ name: z.string() }),
    reply: Snapshot,
    status: 201,
  }),
  "GET /v1/snapshots/{name}": route({ summary: "One snapshot", params: Named, reply: Snapshot }),
  "DELETE /v1/snapshots/{name}": route({
    summary: "Delete a snapshot, anywhere in the tree",
    params: Named,
    reply: Nothing,
  }),
  "POST /v1/snapshots/{name}/clone": route({
    summary: "Make a volume that begins as this snapshot and shares its data",
    params: Named,
    body: z.strictObject({ name: z.string() }),
    reply: Volume,
    status: 201,
  }),
  "POST /v1/snapshots/{name}/rollback": route({
    summary: "Give a volume the content of one of its snapshots; what it held is lost",
    params: Named,
    body: z.strictObject({}),
    reply: Volume,
  }),
};
