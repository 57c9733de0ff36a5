import type { Handlers } from "../http.ts";
import type { Job } from "../jobs.ts";
import type { ApiReply } from "../schema/api.ts";
import type { jobRoutes } from "../schema/job.ts";
import type { Server } from "../server.ts";

export function jobHandlers({ jobs }: Server): Handlers<typeof jobRoutes> {
  return {
    "POST /v1/scrub": async ({ body }) => describeJob(await jobs.scrub(body.volume)),
    "GET /v1/jobs": () => jobs.list().map(describeJob),
    "GET /v1/jobs/{id}": async ({ params, query }) => {
      const job = jobs.find(params.id);
      if (query.wait > 0 && job.state === "running") await within(job.whenEnded, query.wait * 1000);
      return describeJob(job);
    },
    "DELETE /v1/jobs/{id}": ({ params }) => {
      jobs.cancel(params.id);
      return {};
    },
  };
}

function describeJob(job: Job): ApiReply<"GET /v1/jobs/{id}"> {
  const { id, kind, volume, state, started, ended, error, parts } = job;
  return {
    id,
    kind,
    volume,
    state,
    started: started.toISOString(),
    ended: ended?.toISOString() ?? null,
    doneBytes: parts.reduce((sum, { facts }) => sum + facts.doneBytes, 0),
    totalBytes: parts.reduce((sum, { facts }) => sum + facts.totalBytes, 0),
    damage: parts.flatMap(({ facts }) => facts.damage),
    ...(error === undefined ? {} : { error }),
  };
}

async function within(what: Promise<void>, timeoutMs: number): Promise<void> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<void>((resolve) => {
    timer = setTimeout(resolve, timeoutMs);
  });
  await Promise.race([what, late]);
  clearTimeout(timer);
}
