/** The process behind `ashlar attach`: it tells its parent what it has attached, and stays until it is detached. */
import { makeLog } from "#admin/log";
import { Attachment, type AttachOptions } from "#attach/attachment";
import { Refusal } from "#base/refusal";
import { MIB } from "#base/units";
import { chooseEnv } from "#env/choose";
import { makeEnv } from "#env/make-env";

const MEMORY_BYTES = 256 * MIB;

/** @param told what came of it, once; a string is why it did not work */
export async function attach(
  options: AttachOptions,
  env: "auto" | "node" | "uring",
  told: (answer: object) => void,
): Promise<void> {
  const log = makeLog((process.env["ASHLAR_LOG"] as "info" | undefined) ?? "warn", "auto");
  const lane = makeEnv(chooseEnv(env).kind, { memoryBytes: MEMORY_BYTES, log });
  try {
    const attachment = await Attachment.open(lane, log, options, () => process.exit(0));
    const stop = (): void => void attachment.close();
    process.on("SIGTERM", stop);
    process.on("SIGINT", stop);
    told({ attached: { ...attachment.facts, undo: undefined } });
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    const { code, message, hint } = error;
    told({ refused: { code, message, hint } });
    process.exit(1);
  }
}
