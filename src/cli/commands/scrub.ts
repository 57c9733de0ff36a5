/** `ashlar scrub` */
import type { Command } from "commander";
import type { ApiReply } from "#admin/schema/api";
import { REFUSALS } from "#base/refusal";
import { formatSize } from "#base/size";
import { Context } from "../context.ts";
import { paint } from "../output.ts";
import { Progress } from "../progress.ts";

type Job = ApiReply<"GET /v1/jobs/{id}">;

export function addScrubCommand(program: Command): void {
  program
    .command("scrub [volume]")
    .description("read every live block against its checksum; exit status 8 when something is damaged")
    .option("--no-wait", "start it and return")
    .action(async (volume: string | undefined, options: { wait: boolean }, command: Command) => {
      const context = new Context(command);
      const body = volume === undefined ? {} : { volume };
      let job: Job = await context.api.call("POST /v1/scrub", { body });
      if (options.wait) job = await follow(context, job);
      context.show(job, formatJob);
      if (job.state === "failed" || job.damage.length > 0) process.exitCode = REFUSALS.damaged.exit;
    });
}

/** Shows the progress until the job ends; Ctrl-C cancels it. */
async function follow(context: Context, started: Job): Promise<Job> {
  const progress = new Progress("scrub", context.json);
  const { id } = started;
  const cancel = () => void context.api.call("DELETE /v1/jobs/{id}", { params: { id } }).catch(() => {});
  process.once("SIGINT", cancel);
  try {
    for (let job = started; ; ) {
      progress.update(job.doneBytes, job.totalBytes);
      if (job.state !== "running") return job;
      job = await context.api.call("GET /v1/jobs/{id}", { params: { id }, query: { wait: 0.25 } });
    }
  } finally {
    process.off("SIGINT", cancel);
    progress.end();
  }
}

function formatJob({ state, doneBytes, damage, error }: Job): string {
  const read = `${formatSize(doneBytes)} read`;
  const found =
    damage.length === 0
      ? paint("green", "no damage found")
      : paint("red", `${damage.length} damaged ${damage.length === 1 ? "extent" : "extents"}`);
  const lines = damage.map(
    ({ version, offset, length, reason }) => `  ${version}: ${length} bytes at ${offset}: ${reason}`,
  );
  if (state === "running") return "Running; `ashlar events` tells when it ends";
  return [`${state}: ${error ?? `${read}, ${found}`}`, ...lines].join("\n");
}
