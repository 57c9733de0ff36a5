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
          ["portals", portals.map(({ address, groupTag }) => `${address},${groupTag}`).join(" ")],
        ]),
      );
    });

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
