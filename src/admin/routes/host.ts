import { randomBytes } from "node:crypto";
import { Refusal } from "#base/refusal";
import type { GrantRecord, HostRecord } from "#base/rights";
import type { Handlers } from "../http.ts";
import { addHost, changeHost, grant, hostOf, removeHost, revoke, setSecret } from "../rights-edits.ts";
import type { ApiReply } from "../schema/api.ts";
import type { hostRoutes } from "../schema/host.ts";
import type { Server } from "../server.ts";

const SECRET_BYTES = 32;

export function hostHandlers(server: Server): Handlers<typeof hostRoutes> {
  const { rights, events } = server;
  const described = (name: string) => describeHost(server, hostOf(rights.state, name));
  const say = (type: string, message: string, data: object): void => {
    server.log.info(data, message);
    events.add(type, message, data);
  };
  return {
    "GET /v1/hosts": () => rights.state.hosts.map((host) => describeHost(server, host)),
    "POST /v1/hosts": async ({ body: { name, ...given } }) => {
      await rights.change((state) => addHost(state, name, given));
      say("host-added", `Host "${name}" added`, { host: name });
      return described(name);
    },
    "GET /v1/hosts/{name}": ({ params }) => described(params.name),
    "PATCH /v1/hosts/{name}": async ({ params, body }) => {
      await rights.change((state) => changeHost(state, params.name, body));
      say("host-changed", `Host "${params.name}" changed`, { host: params.name });
      return described(params.name);
    },
    "DELETE /v1/hosts/{name}": async ({ params }) => {
      await rights.change((state) => removeHost(state, params.name));
      say("host-removed", `Host "${params.name}" removed`, { host: params.name });
      return {};
    },
    "POST /v1/hosts/{name}/secret": async ({ params: { name }, body }) => {
      const present = hostOf(rights.state, name).secret;
      if (present !== undefined && !body.renew) return { host: name, secret: present };
      const secret = randomBytes(SECRET_BYTES).toString("hex");
      await rights.change((state) => setSecret(state, name, secret));
      say("host-changed", `Host "${name}" has a new secret`, { host: name });
      return { host: name, secret };
    },
    "POST /v1/grants": async ({ body }) => {
      const readOnly = await mustBeReadOnly(server, body.device);
      const access = readOnly ? "read-only" : body.access;
      await rights.change((state) => grant(state, { ...body, access, unit: body.unit }));
      const made = rights.state.grants.find((one) => one.host === body.host && one.device === body.device)!;
      const { device, host, unit } = made;
      say("granted", `"${device}" granted to "${host}" as unit ${unit}`, { device, host, unit, access });
      return describeGrant(made);
    },
    "DELETE /v1/grants/{device}/{host}": async ({ params: { device, host } }) => {
      await rights.change((state) => revoke(state, device, host));
      say("revoked", `"${device}" taken away from "${host}"`, { device, host });
      return {};
    },
    "GET /v1/limits": () => ({ ...rights.state.limits }),
    "PATCH /v1/limits": async ({ body }) => {
      await rights.change((state) => ({
        ...state,
        limits: {
          partitionsMax: body.partitionsMax ?? state.limits.partitionsMax,
          unitsPerHostMax: body.unitsPerHostMax ?? state.limits.unitsPerHostMax,
        },
      }));
      return { ...rights.state.limits };
    },
  };
}

/** Whether a device exists, and can only be read. @throws Refusal not-found */
async function mustBeReadOnly(server: Server, device: string): Promise<boolean> {
  if (server.drives.partition(device) !== undefined) return false;
  if (device.includes("@")) {
    await server.registry.find("snapshot", device);
    return true;
  }
  try {
    await server.registry.find("volume", device);
  } catch (error) {
    if (!(error instanceof Refusal) || error.code !== "not-found") throw error;
    throw new Refusal(
      "not-found",
      `There is no volume, snapshot or partition "${device}"`,
      "`ashlar volume ls` and `ashlar partition ls` show what there is.",
    );
  }
  return false;
}

function describeHost(server: Server, host: HostRecord): ApiReply<"GET /v1/hosts/{name}"> {
  const grants = server.rights.state.grants.filter((one) => one.host === host.name);
  return {
    name: host.name,
    addresses: [...host.addresses],
    iqns: [...host.iqns],
    tlsNames: [...host.tlsNames],
    hasSecret: host.secret !== undefined,
    requireSecret: host.requireSecret,
    requireTls: host.requireTls === true,
    chapUser: host.chap?.user ?? null,
    mutualChapUser: host.mutualChap?.user ?? null,
    dataSocketsMax: host.dataSocketsMax ?? null,
    dataPorts: [...host.dataPorts],
    grants: grants.sort((a, b) => a.unit - b.unit).map(describeGrant),
  };
}

function describeGrant({ device, host, unit, access, range }: GrantRecord): ApiReply<"POST /v1/grants"> {
  return { device, host, unit, access, ...(range === undefined ? {} : { range }) };
}
