/** The ground of an Env on this machine, and what only such an Env can be asked. */
import { mkdtempSync, rmSync } from "node:fs";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { promiseOf } from "#base/task";
import { MIB } from "#base/units";
import type { Env, Log } from "#env/env";
import type { Ground } from "./env-ground.ts";

export const SILENT: Log = { debug() {}, info() {}, warn() {}, error() {} };

export type RealEnv = Env & { close(): void };

export function realGround(makeEnv: (options: { memoryBytes: number; log: Log }) => RealEnv): Ground {
  const folder = mkdtempSync(join(tmpdir(), "ashlar-env-"));
  const env = makeEnv({ memoryBytes: 64 * MIB, log: SILENT });
  return {
    env,
    folder,
    address: { host: "127.0.0.1", port: 0 },
    run: promiseOf,
    close: async () => {
      env.close();
      rmSync(folder, { recursive: true });
    },
  };
}
