import { formatAddress, nbdUri } from "../address.ts";
import { eventStream } from "../event-stream.ts";
import { type Handlers, RawReply, StatusReply } from "../http.ts";
import type { ApiReply } from "../schema/api.ts";
import type { Routes } from "../schema/route.ts";
import type { serverRoutes } from "../schema/server.ts";
import type { Server } from "../server.ts";
import { settingsShown } from "../settings.ts";

/** @param contracts every route there is, for the document. */
export function serverHandlers(server: Server, contracts: () => Promise<Routes>): Handlers<typeof serverRoutes> {
  let document: Record<string, unknown> | undefined;
  return {
    "GET /health": () => new StatusReply(server.state === "ready" ? 200 : 503, { state: server.state }),
    "GET /v1/status": () => statusOf(server),
    "GET /v1/doctor": async () => {
      const { checksOf } = await import("../doctor.ts");
      return { checks: await checksOf(server) };
    },
    "GET /v1/settings": () => settingsShown(server.settings),
    "GET /v1/statistics": () => statisticsOf(server),
    "GET /v1/connections": async () => {
      const answers = await server.lanes.ask("connections", undefined);
      return answers.flatMap(({ lane, reply }) =>
        reply.map((one) => ({ ...one, lane, since: new Date(one.since).toISOString() })),
      );
    },
    "POST /v1/lanes/{index}/restart": ({ params, body }) => {
      server.restartLane(Number(params.index), body.force);
      return {};
    },
    "GET /v1/events": () => new RawReply((response, request) => eventStream(server.events, request, response)),
    "GET /metrics": async () => {
      const { metricsOf } = await import("../metrics.ts");
      const text = await metricsOf(server);
      return new RawReply((response) => {
        response.writeHead(200, { "content-type": "text/plain; version=0.0.4; charset=utf-8" });
        response.end(text);
      });
    },
    "GET /openapi.json": async () => {
      const { openApiOf } = await import("../openapi.ts");
      document ??= openApiOf(await contracts(), server.version);
      return document;
    },
  };
}

async function statusOf(server: Server): Promise<ApiReply<"GET /v1/status">> {
  const { settings, space, registry } = server;
  return {
    state: server.state,
    version: server.version,
    node: process.version,
    pid: process.pid,
    uuid: server.directory.uuid,
    data: server.directory.path,
    started: server.started.toISOString(),
    uptimeSeconds: Math.round((Date.now() - server.started.getTime()) / 100) / 10,
    env: server.env,
    volumes: registry.count("volume"),
    snapshots: registry.count("snapshot"),
    fronts: server.fronts.map(({ name, address, tls }) => ({
      name,
      address: formatAddress(address),
      uri: name === "nbd" ? nbdUri(address, "NAME", tls !== "off") : formatAddress(address),
      tls,
    })),
    lanes: await server.laneStatus(),
    space: { ...space, softPercent: settings.softPercent, hardPercent: settings.hardPercent },
    problems: server.problems.list(),
  };
}

async function statisticsOf(server: Server): Promise<ApiReply<"GET /v1/statistics">> {
  const answers = await server.lanes.ask("meters", undefined);
  const volumes = answers.flatMap(({ reply }) => reply);
  return {
    at: new Date().toISOString(),
    volumes: volumes.map(({ volume, front, connections, operations, errors }) => ({
      volume,
      front,
      connections,
      operations: Object.fromEntries(
        Object.entries(operations).map(([kind, { count, bytes, sum, counts }]) => [
          kind,
          { count, bytes, seconds: sum / 1000, buckets: notEmpty(counts) },
        ]),
      ),
      errors: { ...errors },
    })),
  };
}

function notEmpty(counts: Float64Array): [number, number][] {
  const found: [number, number][] = [];
  for (const [index, count] of counts.entries()) if (count > 0) found.push([index, count]);
  return found;
}
