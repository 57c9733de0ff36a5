/** Why a server could not be joined, for a person; and which of the reasons may pass by themselves. */
import { Refusal, type RefusalCode } from "#base/refusal";
import { formatNbdUri } from "#proto/nbd/uri";
import type { DialFailure, NbdTarget } from "./nbd-dial.ts";

type Fault = DialFailure["fault"];

const TABLE: Record<Fault, readonly [RefusalCode, passes: boolean, hint?: string]> = {
  refused: ["unreachable", true, "Is the server running, and is the address right?"],
  unreachable: ["unreachable", true],
  timeout: ["timeout", true],
  silent: ["timeout", true, "Does an NBD server listen there?"],
  closed: ["unreachable", true],
  broken: ["unreachable", true],
  "in-use": ["unreachable", true],
  "no-memory": ["full", true],
  "shutting-down": ["unreachable", true],
  "unknown-export": ["not-found", true, "nbdinfo --list shows the exports of a server."],
  denied: ["not-allowed", false],
  "bad-address": ["bad-request", false],
  "tls-failed": ["not-allowed", false, "Do the certificates or keys of both sides belong together?"],
  "tls-required": ["not-allowed", false, "Use nbds:// with tls-psk-file=FILE or tls-certificates=DIR."],
  "tls-unsupported": ["unsupported", false, "Use nbd:// if the network can be trusted."],
  unsupported: ["unsupported", false],
  "not-nbd": ["unsupported", false, "Is the port right?"],
  "old-style": ["unsupported", false],
  violated: ["unsupported", false],
};

/** Whether trying again later makes sense. */
export const mayPass = (failure: DialFailure): boolean => TABLE[failure.fault][1];

export function refusalOf(target: Pick<NbdTarget, "address" | "exportName">, failure: DialFailure): Refusal {
  const [code, , hint] = TABLE[failure.fault];
  const where = "fd" in target.address ? `fd ${target.address.fd}` : formatNbdUri(target.address, target.exportName);
  return new Refusal(code, `Cannot connect to ${where}: ${failure.detail} (${failure.fault})`, hint);
}
