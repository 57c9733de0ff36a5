/** Which of the real Envs runs, and why: said in the log at start and by `ashlar doctor`. */
import { Refusal } from "#base/refusal";
import { whyNoUring } from "./uring/ring.ts";

export type EnvWish = "auto" | "node" | "uring";

export interface EnvChoice {
  readonly kind: "node" | "uring";
  /** A sentence. */
  readonly why: string;
}

/** @throws Refusal "unsupported" when `uring` is asked for and not to be had. */
export function chooseEnv(wish: EnvWish): EnvChoice {
  if (wish === "node") return { kind: "node", why: "it was asked for" };
  const missing = whyNoUring();
  if (missing === undefined)
    return { kind: "uring", why: wish === "uring" ? "it was asked for" : "this kernel offers all that it needs" };
  if (wish === "auto") return { kind: "node", why: missing };
  throw new Refusal("unsupported", `io_uring cannot be used: ${missing}`, "Start with --env auto, or --env node.");
}
