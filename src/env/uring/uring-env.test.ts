import { envContract } from "#test/contract/env";
import { envPeersContract } from "#test/contract/env-peers";
import { realGround } from "#test/contract/env-real";
import { UringEnv } from "./uring-env.ts";

const make = () => realGround((options) => new UringEnv(options));

envContract("uring", { unix: true, allocate: true }, make);
envPeersContract("uring", make);
