import type { VersionFacts } from "#lane/messages";
import type { Handlers } from "../http.ts";
import type { Found } from "../registry.ts";
import type { ApiReply } from "../schema/api.ts";
import type { volumeRoutes } from "../schema/volume.ts";
import type { Server } from "../server.ts";

type Volume = ApiReply<"GET /v1/volumes/{name}">;

export function volumeHandlers(server: Server): Handlers<typeof volumeRoutes> {
  const { registry } = server;
  return {
    "GET /v1/volumes": async () => (await registry.list("volume")).map((found) => describeVolume(server, found)),
    "POST /v1/volumes": async ({ body: { name, size, blockSize } }) => {
      server.refuseWhenFull();
      server.refusePartitionName(name);
      return describeVolume(server, await registry.createVolume(name, size, blockSize));
    },
    "GET /v1/volumes/{name}": async ({ params }) => describeVolume(server, await registry.find("volume", params.name)),
    "PATCH /v1/volumes/{name}": async ({ params, body: { size, name } }) => {
      if (name !== undefined) server.refuseWhenGranted(params.name, false);
      if (size !== undefined) await registry.resize(params.name, size);
      if (name !== undefined) await registry.rename(params.name, name);
      return describeVolume(server, await registry.find("volume", name ?? params.name));
    },
    "DELETE /v1/volumes/{name}": async ({ params, query }) => {
      server.refuseWhenGranted(params.name, query.force);
      await registry.removeVolume(params.name, query.force);
      await server.forgetGrants(params.name);
      return {};
    },
  };
}

export function describeVolume(server: Server, { set, version }: Found): Volume {
  return {
    name: version.name,
    uuid: version.uuid,
    size: version.size,
    blockSize: version.blockSize,
    state: set.state,
    ...(set.reason === undefined ? {} : { reason: set.reason }),
    created: new Date(version.created).toISOString(),
    origin: originOf(set.versions, version) ?? null,
    set: set.uuid,
    lane: set.state === "online" || set.state === "read-only" ? set.lane : null,
    snapshots: set.versions.filter(({ name }) => name.startsWith(`${version.name}@`)).length,
    connections: version.connections,
    space: { ...version.space, reclaimable: set.space.reclaimable },
    uris: server.urisOf(version.name),
  };
}

/** The snapshot of another volume that it descends from; its own snapshots are its past and no origin. */
export function originOf(versions: readonly VersionFacts[], { name, parent }: VersionFacts): string | undefined {
  let origin = parent;
  while (origin?.startsWith(`${name}@`) === true) origin = versions.find((version) => version.name === origin)?.parent;
  return origin;
}
