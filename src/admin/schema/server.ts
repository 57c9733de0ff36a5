/** The server itself: status, self-check, statistics, settings, events, metrics. */
import { z } from "zod";
import { bytes, moment, route } from "./route.ts";

export const Problem = z
  .object({
    severity: z.enum(["warning", "error"]),
    /** Stays the same as long as the problem is the same; for alerts. */
    code: z.string(),
    message: z.string(),
    hint: z.string().optional(),
    since: moment,
  })
  .meta({ id: "Problem" });

export const FrontStatus = z
  .object({
    name: z.string().describe("nbd, scp, iscsi"),
    address: z.string(),
    uri: z.string().describe("What a host types, with NAME in place of the volume."),
    tls: z.enum(["off", "offered", "required"]),
  })
  .meta({ id: "Front" });

export const LaneStatus = z
  .object({
    index: z.int(),
    state: z.enum(["starting", "running", "dead"]),
    env: z.enum(["uring", "node"]),
    sets: z.int(),
    connections: z.int(),
    memory: z.object({ used: bytes, peak: bytes, size: bytes }),
    cache: z
      .object({ used: bytes, size: bytes, hits: z.int(), misses: z.int() })
      .describe("Blocks that were read lately, kept in memory; hits and misses count blocks since the lane began."),
    restarts: z.int(),
  })
  .meta({ id: "Lane" });

export const SpaceStatus = z
  .object({
    level: z.enum(["ok", "soft", "hard"]),
    used: bytes,
    capacity: bytes.describe("The file system, or what --capacity allows."),
    available: bytes,
    limited: z.boolean().describe("The capacity is that of --capacity, and not the file system's."),
    softPercent: z.number(),
    hardPercent: z.number(),
  })
  .meta({ id: "ServerSpace" });

export const ServerStatus = z
  .object({
    state: z.enum(["starting", "ready", "draining"]),
    version: z.string(),
    node: z.string(),
    pid: z.int(),
    uuid: z.string(),
    data: z.string(),
    started: moment,
    uptimeSeconds: z.number(),
    env: z.object({ name: z.enum(["uring", "node"]), reason: z.string() }),
    volumes: z.int(),
    snapshots: z.int(),
    fronts: z.array(FrontStatus),
    lanes: z.array(LaneStatus),
    space: SpaceStatus,
    problems: z.array(Problem),
  })
  .meta({ id: "ServerStatus" });

export const Check = z
  .object({
    name: z.string(),
    result: z.enum(["ok", "note", "warning", "error"]),
    message: z.string(),
    hint: z.string().optional(),
  })
  .meta({ id: "Check" });

export const OperationStatistics = z
  .object({
    count: z.int(),
    bytes,
    seconds: z.number().describe("Of all operations together."),
    buckets: z
      .array(z.tuple([z.int(), z.int()]))
      .describe(
        "[index, count] of the logarithmic buckets that are not empty; src/base/histogram.ts says where each begins.",
      ),
  })
  .meta({ id: "OperationStatistics" });

export const FrontStatistics = z
  .object({
    volume: z.string(),
    front: z.string(),
    connections: z.int(),
    operations: z.record(z.string(), OperationStatistics),
    errors: z.record(z.string(), z.int()),
  })
  .meta({ id: "FrontStatistics" });

export const Connection = z
  .object({
    front: z.string(),
    lane: z.int(),
    peer: z.string(),
    export: z.string().describe("Volume or snapshot."),
    since: moment,
    requests: z.int().describe("Since it was made."),
  })
  .meta({ id: "Connection" });

export const serverRoutes = {
  "GET /health": route({
    summary: "Whether the server answers and takes I/O; 503 while it starts or drains",
    reply: z.object({ state: z.enum(["starting", "ready", "draining"]) }),
  }),
  "GET /v1/status": route({ summary: "The server at a glance", reply: ServerStatus }),
  "GET /v1/doctor": route({
    summary: "The self-check of the server and of the machine it runs on",
    reply: z.object({ checks: z.array(Check) }),
  }),
  "GET /v1/settings": route({
    summary: "The settings that are in force",
    reply: z.record(z.string(), z.unknown()),
  }),
  "GET /v1/statistics": route({
    summary: "Counters of every volume and front since the server started",
    reply: z.object({ at: moment, volumes: z.array(FrontStatistics) }),
  }),
  "GET /v1/connections": route({ summary: "Who is connected", reply: z.array(Connection) }),
  "POST /v1/lanes/{index}/restart": route({
    summary: "End a lane as a mistake in it would, and replace it; its hosts reconnect",
    params: z.object({ index: z.string().regex(/^\d+$/) }),
    body: z.strictObject({
      force: z.boolean().default(false).meta({ description: "End its thread from outside, for a lane that hangs" }),
    }),
    reply: z.object({}),
    status: 202,
  }),
  "GET /v1/events": route({
    summary: "Events as they happen (server-sent events); Last-Event-ID resumes",
    reply: z.string(),
    contentType: "text/event-stream",
  }),
  "GET /metrics": route({
    summary: "Counters, gauges and latency histograms for Prometheus",
    reply: z.string(),
    contentType: "text/plain; version=0.0.4",
  }),
  "GET /openapi.json": route({ summary: "This document", reply: z.record(z.string(), z.unknown()) }),
};
