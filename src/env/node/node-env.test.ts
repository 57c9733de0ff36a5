import { envContract } from "#test/contract/env";
import { envPeersContract } from "#test/contract/env-peers";
import { realGround } from "#test/contract/env-real";
import { NodeEnv } from "./node-env.ts";

const make = () => realGround((options) => new NodeEnv(options));

envContract("node", { unix: true, allocate: true }, make);
envPeersContract("node", make);
