/** Jobs: what takes longer than a request. Today that is a scrub. */
import { z } from "zod";
import { bytes, moment, Nothing, route } from "./route.ts";

export const Damage = z
  .object({
    version: z.string(),
    offset: bytes,
    length: bytes,
    reason: z.string(),
  })
  .meta({ id: "Damage" });

export const Job = z
  .object({
    id: z.string(),
    kind: z.literal("scrub"),
    /** What was asked for: a volume, or "" for all of them. */
    volume: z.string(),
    state: z.enum(["running", "done", "failed", "cancelled"]),
    started: moment,
    ended: moment.nullable(),
    doneBytes: bytes,
    totalBytes: bytes,
    damage: z.array(Damage),
    error: z.string().optional(),
  })
  .meta({ id: "Job" });

const Identified = z.object({ id: z.string() });

export const jobRoutes = {
  "POST /v1/scrub": route({
    summary: "Read every live block of a volume, or of all, against its checksum",
    body: z.strictObject({ volume: z.string().optional() }),
    reply: Job,
    status: 202,
  }),
  "GET /v1/jobs": route({ summary: "Jobs that run, and the last that ended", reply: z.array(Job) }),
  "GET /v1/jobs/{id}": route({
    summary: "One job; `wait` answers when it ends or after so many seconds",
    params: Identified,
    query: z.strictObject({ wait: z.coerce.number().min(0).max(60).default(0) }),
    reply: Job,
  }),
  "DELETE /v1/jobs/{id}": route({ summary: "Cancel a job", params: Identified, reply: Nothing }),
};
