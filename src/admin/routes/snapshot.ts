import type { Handlers } from "../http.ts";
import type { Found } from "../registry.ts";
import type { ApiReply } from "../schema/api.ts";
import type { snapshotRoutes } from "../schema/snapshot.ts";
import type { Server } from "../server.ts";
import { describeVolume, originOf } from "./volume.ts";

type Snapshot = ApiReply<"GET /v1/snapshots/{name}">;

export function snapshotHandlers(server: Server): Handlers<typeof snapshotRoutes> {
  const { registry } = server;
  return {
    "GET /v1/snapshots": async ({ query: { volume } }) => {
      if (volume !== undefined) await registry.find("volume", volume);
      const found = await registry.list("snapshot");
      return found
        .map((one) => describeSnapshot(server, one))
        .filter((snapshot) => volume === undefined || snapshot.volume === volume)
        .sort((a, b) => (a.volume === b.volume ? Date.parse(a.created) - Date.parse(b.created) : 0));
    },
    "POST /v1/snapshots": async ({ body }) => describeSnapshot(server, await registry.snapshot(body.name)),
    "GET /v1/snapshots/{name}": async ({ params }) =>
      describeSnapshot(server, await registry.find("snapshot", params.name)),
    "DELETE /v1/snapshots/{name}": async ({ params }) => {
      server.refuseWhenGranted(params.name, false);
      await registry.removeSnapshot(params.name);
      return {};
    },
    "POST /v1/snapshots/{name}/clone": async ({ params, body }) => {
      server.refuseWhenFull();
      server.refusePartitionName(body.name);
      return describeVolume(server, await registry.clone(params.name, body.name));
    },
    "POST /v1/snapshots/{name}/rollback": async ({ params }) =>
      describeVolume(server, await registry.rollback(params.name)),
  };
}

function describeSnapshot(server: Server, { set, version }: Found): Snapshot {
  return {
    name: version.name,
    volume: version.name.slice(0, version.name.indexOf("@")),
    uuid: version.uuid,
    size: version.size,
    created: new Date(version.created).toISOString(),
    clones: set.versions
      .filter((one) => one.kind === "volume" && originOf(set.versions, one) === version.name)
      .map(({ name }) => name),
    connections: version.connections,
    space: { ...version.space, reclaimable: set.space.reclaimable },
    uris: server.urisOf(version.name),
  };
}
