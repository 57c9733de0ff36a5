/** Makes a real Env. Apart from the choice, which the control plane makes without loading either of them. */
import { NodeEnv, type RealEnvOptions } from "./node/node-env.ts";
import { UringEnv } from "./uring/uring-env.ts";

/** The Env of a choice (`chooseEnv`). It belongs to the thread that makes it. */
export function makeEnv(kind: "node" | "uring", options: RealEnvOptions): NodeEnv | UringEnv {
  return kind === "uring" ? new UringEnv(options) : new NodeEnv(options);
}
