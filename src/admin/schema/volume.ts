/** Volumes: disks of a fixed size, sparse. */
import { z } from "zod";
import { bytes, moment, Nothing, route } from "./route.ts";

export const Space = z
  .object({
    provisioned: bytes.describe("What hosts see: the size of the volume."),
    mapped: bytes.describe("Blocks that hold data, own and inherited."),
    exclusive: bytes.describe("Data that only this version has: freed when it is deleted."),
    shared: bytes.describe("Data that other versions of the set have too."),
    reclaimable: bytes.describe("Dead data in the log of the whole version set, which cleaning gives back."),
  })
  .meta({ id: "Space" });

export const Volume = z
  .object({
    name: z.string(),
    uuid: z.string().describe("Names the volume for ever, on every path and protocol: 32 hex digits."),
    size: bytes,
    blockSize: z.int(),
    state: z.enum(["online", "read-only", "opening", "failed", "closed"]),
    /** In words, when the state is not "online". */
    reason: z.string().optional(),
    created: moment,
    origin: z.string().nullable().describe("The snapshot of another volume that it was cloned from."),
    set: z.string().describe("The version set, as in DIR/sets/<uuid>."),
    lane: z.int().nullable(),
    snapshots: z.int(),
    connections: z.int(),
    space: Space,
    uris: z.array(z.string()).describe("Where hosts find it."),
  })
  .meta({ id: "Volume" });

const Named = z.object({ name: z.string() });

export const volumeRoutes = {
  "GET /v1/volumes": route({ summary: "All volumes, by name", reply: z.array(Volume) }),
  "POST /v1/volumes": route({
    summary: "Make a volume",
    body: z.strictObject({
      name: z.string(),
      size: bytes.positive().describe("Bytes; a multiple of the block size."),
      blockSize: z.union([z.literal(512), z.literal(4096)]).default(512),
    }),
    reply: Volume,
    status: 201,
  }),
  "GET /v1/volumes/{name}": route({ summary: "One volume", params: Named, reply: Volume }),
  "PATCH /v1/volumes/{name}": route({
    summary: "Grow a volume, online (a shrink is refused), or give it another name while no host uses it",
    params: Named,
    body: z.strictObject({ size: bytes.positive().optional(), name: z.string().optional() }),
    reply: Volume,
  }),
  "DELETE /v1/volumes/{name}": route({
    summary: "Delete a volume; with `force` also when hosts use it or snapshots hang on it",
    params: Named,
    query: z.strictObject({ force: z.stringbool().default(false) }),
    reply: Nothing,
  }),
};
