/** The whole admin API: every noun's routes together. A new noun adds one line here and one in `../handlers.ts`. */
import { driveRoutes } from "./drive.ts";
import { hostRoutes } from "./host.ts";
import { jobRoutes } from "./job.ts";
import type { Call, Reply } from "./route.ts";
import { serverRoutes } from "./server.ts";
import { snapshotRoutes } from "./snapshot.ts";
import { targetRoutes } from "./target.ts";
import { volumeRoutes } from "./volume.ts";

export const api = {
  ...serverRoutes,
  ...volumeRoutes,
  ...snapshotRoutes,
  ...jobRoutes,
  ...hostRoutes,
  ...driveRoutes,
  ...targetRoutes,
};

export type Api = typeof api;
export type ApiCall<Route extends keyof Api> = Call<Api[Route]>;
export type ApiReply<Route extends keyof Api> = Reply<Api[Route]>;
