import { Refusal } from "#base/refusal";
import type { HostRecord } from "#base/rights";
import type { IscsiFacts, ReservationFacts } from "#lane/messages";
import type { Handlers } from "../http.ts";
import type { ApiReply } from "../schema/api.ts";
import type { targetRoutes } from "../schema/target.ts";
import { LISTENING_LANE, type Server } from "../server.ts";
import { removeRedirect, resetPortal, setPortal, setRedirect } from "../target-edits.ts";

type Reservation = ApiReply<"GET /v1/reservations">[number];
type Finding = ApiReply<"GET /v1/hosts/{name}/explain">["findings"][number];

export function targetHandlers(server: Server): Handlers<typeof targetRoutes> {
  return {
    "GET /v1/target": async () => {
      const { iqn, portals } = await iscsi(server);
      const said = new Map(server.rights.state.target.portals.map((one) => [one.address, one]));
      return {
        iqn,
        portals: portals.map((portal) => ({
          ...portal,
          networks: [...(said.get(portal.address)?.networks ?? [])],
          advertise: said.get(portal.address)?.advertise ?? null,
        })),
      };
    },
    "PUT /v1/target/portals/{portal}": async ({ params, body }) => {
      await server.rights.change((state) => setPortal(state, params.portal, body));
      return {};
    },
    "DELETE /v1/target/portals/{portal}": async ({ params }) => {
      await server.rights.change((state) => resetPortal(state, params.portal));
      return {};
    },
    "GET /v1/target/redirects": () => server.rights.state.target.redirects.map((one) => ({ ...one })),
    "PUT /v1/target/redirects/{host}": async ({ params: { host }, body }) => {
      await server.rights.change((state) => setRedirect(state, { host, ...body }));
      const made = server.rights.state.target.redirects.find((one) => one.host === host)!;
      server.log.info({ ...made }, "A host is sent elsewhere at its next iSCSI login");
      return { ...made };
    },
    "DELETE /v1/target/redirects/{host}": async ({ params }) => {
      await server.rights.change((state) => removeRedirect(state, params.host));
      return {};
    },
    "GET /v1/sessions": async () => {
      if (server.settings.fronts["iscsi"] === undefined) return [];
      return (await iscsi(server)).sessions.map((one) => ({
        ...one,
        since: new Date(one.since).toISOString(),
        connections: [...one.connections],
        units: [...one.units],
      }));
    },
    "DELETE /v1/sessions/{session}": async ({ params }) => {
      await iscsi(server);
      const session = Number(params.session);
      const given = { name: "iscsi", session };
      if (!(await server.lanes.call(LISTENING_LANE, "front.end-session", given)))
        throw new Refusal("not-found", `There is no session ${params.session}`, "`ashlar sessions` lists them.");
      return {};
    },
    "GET /v1/hosts/{name}/explain": ({ params }) => explain(server, params.name),
    "GET /v1/reservations": () => reservations(server),
    "DELETE /v1/reservations/{volume}": async ({ params }) => {
      const known = [...versions(server)].find(([, name]) => name === params.volume)?.[0];
      const uuid = known ?? (await reservations(server)).find((one) => one.volume === params.volume)?.uuid;
      if (uuid === undefined) throw new Refusal("not-found", `There is no volume "${params.volume}"`);
      // The lane that does it tells the others.
      const hurt = [...(await server.lanes.call(LISTENING_LANE, "reservations.clear", { uuid }))];
      server.log.warn({ volume: params.volume, hurt }, "Reservations cleared by the operator");
      return { volume: params.volume, hurt };
    },
  };
}

async function iscsi(server: Server): Promise<IscsiFacts> {
  if (server.settings.fronts["iscsi"] === undefined)
    throw new Refusal("not-found", "The server has no iSCSI target", "Start it with `ashlar serve --iscsi ADDR:PORT`.");
  return (await server.lanes.call(LISTENING_LANE, "front.facts", { name: "iscsi" })) as IscsiFacts;
}

/** Every volume and snapshot: UUID to name. */
function versions(server: Server): Map<string, string> {
  return new Map(server.registry.sets().flatMap((set) => set.versions.map(({ uuid, name }) => [uuid, name] as const)));
}

const initiatorOf = (port: string): string => port.replace(/,i,0x[0-9a-f]+$/, "");
const hostOf = (hosts: readonly HostRecord[], port: string): string | null =>
  hosts.find(({ iqns }) => iqns.some((iqn) => iqn.toLowerCase() === initiatorOf(port)))?.name ?? null;

async function reservations(server: Server): Promise<Reservation[]> {
  const answers = await server.lanes.ask("reservations", undefined);
  const names = versions(server);
  const { hosts } = server.rights.state;
  const seen = new Map<string, ReservationFacts>();
  for (const { reply } of answers) for (const one of reply) seen.set(one.uuid, one);
  return [...seen.values()].map((one) => {
    const uuid = one.uuid.split(" ")[0]!;
    return {
      volume: names.get(uuid) ?? uuid,
      uuid,
      type: one.type ?? null,
      persists: one.persists,
      generation: one.generation,
      holders: [...one.holders],
      registrants: one.registrants.map((registrant) => ({ ...registrant, host: hostOf(hosts, registrant.initiator) })),
    };
  });
}

/** What an operator would look up by hand: credentials, grants, refused logins, and who has reserved what. */
async function explain(server: Server, name: string): Promise<ApiReply<"GET /v1/hosts/{name}/explain">> {
  const { hosts, grants } = server.rights.state;
  const host = hosts.find((one) => one.name === name);
  if (host === undefined) throw new Refusal("not-found", `There is no host "${name}"`, "`ashlar host ls` lists them.");
  const findings: Finding[] = [];
  const say = (severity: Finding["severity"], text: string): void => void findings.push({ severity, text });
  const own = grants.filter((grant) => grant.host === name);
  if (own.length === 0) say("warning", "It has no grants: a login shows it no units. Give it one with `ashlar grant`.");
  const elsewhere = server.rights.state.target.redirects.find((one) => one.host === name);
  if (elsewhere !== undefined)
    say(
      "warning",
      `Its iSCSI logins are sent to ${elsewhere.address}. \`ashlar target redirect rm ${name}\` ends that.`,
    );
  if (server.settings.fronts["iscsi"] === undefined) say("info", "The server has no iSCSI target (`--iscsi`).");
  else {
    const facts = await iscsi(server);
    if (host.iqns.length === 0)
      say(
        "warning",
        "It has no iSCSI initiator name, so that every iSCSI login of it is refused: `ashlar host set --iqn`.",
      );
    const refusals = facts.refusals.filter((one) => one.host === name || host.iqns.includes(one.initiator));
    for (const one of refusals.slice(-5))
      say("error", `A login from ${one.peer} was refused at ${new Date(one.at).toISOString()}: ${one.why}`);
    const strangers = facts.refusals.filter((one) => one.host === undefined && !host.iqns.includes(one.initiator));
    const stranger = strangers.at(-1);
    if (stranger !== undefined && facts.sessions.every((session) => session.host !== name))
      say(
        "info",
        `The last login of an unknown initiator: ${stranger.initiator} from ${stranger.peer}: ${stranger.why}`,
      );
    const sessions = facts.sessions.filter((session) => session.host === name);
    say("info", sessions.length === 0 ? "It is not logged in by iSCSI." : `It has ${sessions.length} iSCSI sessions.`);
  }
  for (const one of await reservations(server)) {
    const grant = own.find(({ device }) => device === one.volume);
    if (grant === undefined || one.type === null) continue;
    const isHolder = one.holders.some((holder) => hostOf(hosts, holder) === name);
    if (!isHolder)
      say(
        "error",
        `"${one.volume}" (unit ${grant.unit}) is reserved by ${one.holders.join(", ")} (${one.type}): commands of others end in a reservation conflict. \`ashlar reservations clear ${one.volume}\` ends that.`,
      );
  }
  for (const grant of own)
    if (grant.access === "read-only")
      say("info", `"${grant.device}" (unit ${grant.unit}) is granted read-only: writes are refused.`);
  const order = { error: 0, warning: 1, info: 2 };
  findings.sort((a, b) => order[a.severity] - order[b.severity]);
  return { host: name, findings };
}
