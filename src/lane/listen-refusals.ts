/** Why a front cannot listen, as the control plane says it. */
import type { RefusalCode } from "#base/refusal";
import type { NetFault } from "#env/env";

export const LISTEN_REFUSALS: Readonly<Record<NetFault, RefusalCode>> = {
  refused: "unreachable",
  unreachable: "unreachable",
  timeout: "timeout",
  "in-use": "in-use",
  denied: "not-allowed",
  "bad-address": "bad-request",
  "tls-failed": "bad-request",
  unsupported: "unsupported",
  broken: "storage-failed",
};
export const LISTEN_HINTS: Readonly<Partial<Record<NetFault, string>>> = {
  "in-use": "Another program listens there. Give another address, or stop it.",
  denied: "Ports below 1024 need root or CAP_NET_BIND_SERVICE; a Unix socket needs a directory you may write.",
  "bad-address": "Give an address of this machine.",
};
