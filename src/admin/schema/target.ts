/** The iSCSI target, its sessions, why something is refused, and reservations. */
import { z } from "zod";
import { moment, Nothing, route } from "./route.ts";

export const Target = z
  .object({
    iqn: z.string(),
    portals: z.array(
      z.object({
        address: z.string(),
        groupTag: z.int(),
        /** Initiators of these are told of it; empty: all that can reach it. */
        networks: z.array(z.string()),
        /** What they are told instead of its address. */
        advertise: z.string().nullable(),
      }),
    ),
  })
  .meta({ id: "Target" });

export const Redirect = z
  .object({ host: z.string(), address: z.string(), permanent: z.boolean() })
  .meta({ id: "Redirect" });

export const Session = z
  .object({
    session: z.int(),
    host: z.string(),
    initiator: z.string(),
    isid: z.string(),
    kind: z.enum(["normal", "discovery"]),
    since: moment,
    connections: z.array(z.string()),
    units: z.array(z.int()),
    commands: z.int(),
    headerDigest: z.boolean(),
    dataDigest: z.boolean(),
    errorRecoveryLevel: z.int(),
  })
  .meta({ id: "Session" });

export const Reservation = z
  .object({
    /** The volume's name; its UUID when there is no such volume any more. */
    volume: z.string(),
    uuid: z.string(),
    /** Null when initiators have only registered. */
    type: z.string().nullable(),
    /** Survives a restart of the server. */
    persists: z.boolean(),
    generation: z.int(),
    holders: z.array(z.string()),
    registrants: z.array(
      z.object({ initiator: z.string(), target: z.string(), key: z.string(), host: z.string().nullable() }),
    ),
  })
  .meta({ id: "Reservation" });

export const Explanation = z
  .object({
    host: z.string(),
    /** Sentences, the gravest first. */
    findings: z.array(z.object({ severity: z.enum(["error", "warning", "info"]), text: z.string() })),
  })
  .meta({ id: "Explanation" });

const OfVolume = z.object({ volume: z.string() });

export const targetRoutes = {
  "GET /v1/target": route({ summary: "The iSCSI target: its name, and where it listens", reply: Target }),
  "PUT /v1/target/portals/{portal}": route({
    summary: "Say of a portal which group it is in, which networks are told of it, and as what; for new logins",
    params: z.object({ portal: z.string() }),
    body: z.object({
      groupTag: z.int().optional(),
      networks: z.array(z.string()).optional(),
      advertise: z.string().optional(),
    }),
    reply: Nothing,
  }),
  "DELETE /v1/target/portals/{portal}": route({
    summary: "Forget what was said of a portal",
    params: z.object({ portal: z.string() }),
    reply: Nothing,
  }),
  "GET /v1/target/redirects": route({ summary: "Hosts that are sent elsewhere", reply: z.array(Redirect) }),
  "PUT /v1/target/redirects/{host}": route({
    summary: "Send a host elsewhere from its next login on",
    params: z.object({ host: z.string() }),
    body: z.object({ address: z.string(), permanent: z.boolean().default(false) }),
    reply: Redirect,
  }),
  "DELETE /v1/target/redirects/{host}": route({
    summary: "Let a host log in here again",
    params: z.object({ host: z.string() }),
    reply: Nothing,
  }),
  "GET /v1/sessions": route({ summary: "iSCSI sessions", reply: z.array(Session) }),
  "DELETE /v1/sessions/{session}": route({
    summary: "End an iSCSI session; the initiator will come back if it may",
    params: z.object({ session: z.string() }),
    reply: Nothing,
  }),
  "GET /v1/hosts/{name}/explain": route({
    summary: "Why a login or a command of a host is refused, in words",
    params: z.object({ name: z.string() }),
    reply: Explanation,
  }),
  "GET /v1/reservations": route({ summary: "What is reserved, and by whom", reply: z.array(Reservation) }),
  "DELETE /v1/reservations/{volume}": route({
    summary: "Drop all reservations and registrations of a volume; the reply names those who held them",
    params: OfVolume,
    reply: z.object({ volume: z.string(), hurt: z.array(z.string()) }),
  }),
};
