/** `ashlar target show`, `sessions`, `reservations`, `explain` */
import type { Command } from "commander";
import type { ApiReply } from "#admin/schema/api";
import { Context } from "../context.ts";
import { facts, paint, table } from "../output.ts";

export function addTargetCommands(program: Command): void {
  const target = program.command("target").description("the iSCSI target");
  target
    .command("show")
    .description("its name, and where it listens")
    .action(async (_options: object, command: Command) => {
      const context = new Context(command);
      context.show(await context.api.call("GET /v1/target", {}), ({ iqn, portals }) =>
        facts([
          ["iqn", iqn],
          ["portals", portals.map(formatPortal).join("\n")],
        ]),
      );
    });
  addPortalCommands(
    target.command("portal").description("which portals are told to whom, and in which group they are"),
  );
  addRedirectCommands(target.command("redirect").description("hosts that are sent elsewhere when they log in"));

  const sessions = program.command("sessions").description("iSCSI sessions");
  sessions
    .command("ls", { isDefault: true })
    .description("list them")
    .action(async (_options: object, command: Command) => {
      const context = new Context(command);
      context.show(await context.api.call("GET /v1/sessions", {}), formatSessions);
    });
  sessions
    .command("end <session>")
    .description("end one; the initiator comes back if it may")
    .action(async (session: string, _options: object, command: Command) => {
      const context = new Context(command);
      await context.api.call("DELETE /v1/sessions/{session}", { params: { session } });
      context.show({ ended: session }, () => `session ${session}: ended`);
    });

  const reservations = program.command("reservations").description("who has reserved which volume");
  reservations
    .command("ls", { isDefault: true })
    .description("list reservations and registrations")
    .action(async (_options: object, command: Command) => {
      const context = new Context(command);
      context.show(await context.api.call("GET /v1/reservations", {}), formatReservations);
    });
  reservations
    .command("clear <volume>")
    .description("drop all of them on a volume, and say whom that hurts")
    .action(async (volume: string, _options: object, command: Command) => {
      const context = new Context(command);
      const cleared = await context.api.call("DELETE /v1/reservations/{volume}", { params: { volume } });
      context.show(cleared, ({ hurt }) =>
        hurt.length === 0
          ? `${volume}: nothing was reserved`
          : `${volume}: cleared; these lost their reservations or registrations: ${hurt.join(", ")}`,
      );
    });

  program
    .command("explain <host>")
    .description("why a login or a command of a host is refused, in words")
    .action(async (name: string, _options: object, command: Command) => {
      const context = new Context(command);
      context.show(await context.api.call("GET /v1/hosts/{name}/explain", { params: { name } }), formatExplanation);
    });
}

interface PortalOptions {
  readonly group?: string;
  readonly network?: string[];
  readonly advertise?: string;
}
function addPortalCommands(portal: Command): void {
  const collect = (value: string, before: string[] | undefined): string[] => [...(before ?? []), value];
  portal
    .command("set <portal>")
    .description("for new logins; what is not given stays as it is")
    .option("--group <tag>", "its portal group: 1 to 65535")
    .option("--network <cidr>", "only initiators of this network are told of it; may be repeated", collect)
    .option("--advertise <addr:port>", "what they are told instead of its address")
    .action(async (name: string, { group, network, advertise }: PortalOptions, command: Command) => {
      const context = new Context(command);
      const body = {
        ...(group === undefined ? {} : { groupTag: Number(group) }),
        ...(network === undefined ? {} : { networks: network }),
        ...(advertise === undefined ? {} : { advertise }),
      };
      await context.api.call("PUT /v1/target/portals/{portal}", { params: { portal: name }, body });
      context.show({ portal: name, ...body }, () => `portal ${name}: set`);
    });
  portal
    .command("reset <portal>")
    .description("group 1 again, told to all that can reach it")
    .action(async (name: string, _options: object, command: Command) => {
      const context = new Context(command);
      await context.api.call("DELETE /v1/target/portals/{portal}", { params: { portal: name } });
      context.show({ reset: name }, () => `portal ${name}: reset`);
    });
}

function addRedirectCommands(redirect: Command): void {
  redirect
    .command("ls", { isDefault: true })
    .description("list them")
    .action(async (_options: object, command: Command) => {
      const context = new Context(command);
      context.show(await context.api.call("GET /v1/target/redirects", {}), (all) =>
        all.length === 0 ? "Nobody is sent elsewhere" : all.map(formatRedirect).join("\n"),
      );
    });
  redirect
    .command("set <host> <address>")
    .description("send a host elsewhere from its next login on")
    .option("--permanent", 'say "moved permanently" rather than "temporarily"')
    .action(async (host: string, address: string, options: { permanent?: boolean }, command: Command) => {
      const context = new Context(command);
      const body = { address, permanent: options.permanent ?? false };
      context.show(
        await context.api.call("PUT /v1/target/redirects/{host}", { params: { host }, body }),
        (made) => `${formatRedirect(made)}; \`ashlar sessions end\` makes those log in again that are there`,
      );
    });
  redirect
    .command("rm <host>")
    .description("let it log in here again")
    .action(async (host: string, _options: object, command: Command) => {
      const context = new Context(command);
      await context.api.call("DELETE /v1/target/redirects/{host}", { params: { host } });
      context.show({ removed: host }, () => `${host}: logs in here again`);
    });
}

const formatRedirect = ({ host, address, permanent }: ApiReply<"GET /v1/target/redirects">[number]): string =>
  `${host}: sent to ${address} ${permanent ? "for ever" : "for the time being"}`;

function formatPortal({
  address,
  groupTag,
  networks,
  advertise,
}: ApiReply<"GET /v1/target">["portals"][number]): string {
  const told = advertise === null ? "" : ` as ${advertise}`;
  return `${address},${groupTag}${told}${networks.length === 0 ? "" : ` to ${networks.join(" ")}`}`;
}

function formatSessions(sessions: ApiReply<"GET /v1/sessions">): string {
  if (sessions.length === 0) return "Nobody is logged in by iSCSI";
  return table(sessions, [
    { title: "session", of: ({ session }) => String(session) },
    { title: "host", of: ({ host }) => host || "-" },
    { title: "initiator", of: ({ initiator }) => initiator },
    { title: "isid", of: ({ isid }) => isid },
    { title: "kind", of: ({ kind }) => kind },
    { title: "units", of: ({ units }) => units.join(",") },
    { title: "from", of: ({ connections }) => connections.join(" ") },
    { title: "commands", of: ({ commands }) => String(commands) },
  ]);
}

function formatReservations(all: ApiReply<"GET /v1/reservations">): string {
  if (all.length === 0) return "Nothing is reserved";
  return table(all, [
    { title: "volume", of: ({ volume }) => volume },
    { title: "type", of: ({ type }) => type ?? "registrations only" },
    { title: "holders", of: ({ holders }) => holders.join(" ") || "-" },
    {
      title: "registered",
      of: ({ registrants }) => registrants.map(({ initiator, key }) => `${initiator}=0x${key}`).join(" ") || "-",
    },
    { title: "persists", of: ({ persists }) => (persists ? "yes" : "no") },
  ]);
}

function formatExplanation({ findings }: ApiReply<"GET /v1/hosts/{name}/explain">): string {
  const COLOURS = { error: "red", warning: "yellow", info: "dim" } as const;
  return findings.map(({ severity, text }) => `${paint(COLOURS[severity], severity)}: ${text}`).join("\n");
}
