/**
 * The admin API on its sockets: the Unix socket in the data directory, whose permissions are the credential, and TCP
 * where asked for.
 */
import { timingSafeEqual } from "node:crypto";
import { rmSync } from "node:fs";
import type { Server as HttpServer, IncomingMessage } from "node:http";
import { isIP } from "node:net";
import { Refusal } from "#base/refusal";
import { formatAddress, isPrivate } from "./address.ts";
import { type Gatekeeper, type Handlers, makeHttpServer } from "./http.ts";
import { driveHandlers } from "./routes/drive.ts";
import { hostHandlers } from "./routes/host.ts";
import { jobHandlers } from "./routes/job.ts";
import { serverHandlers } from "./routes/server.ts";
import { snapshotHandlers } from "./routes/snapshot.ts";
import { targetHandlers } from "./routes/target.ts";
import { volumeHandlers } from "./routes/volume.ts";
import type { Api } from "./schema/api.ts";
import { ADMIN_SOCKET, type Server } from "./server.ts";
import { readSecret } from "./settings.ts";
import { socketPath } from "./socket-path.ts";

const contracts = async (): Promise<Api> => (await import("./schema/api.ts")).api;

/** Listens everywhere the settings say. @throws Refusal in-use, not-allowed */
export async function startApi(server: Server): Promise<HttpServer[]> {
  const handlers: Handlers<Api> = {
    ...serverHandlers(server, contracts),
    ...volumeHandlers(server),
    ...snapshotHandlers(server),
    ...jobHandlers(server),
    ...hostHandlers(server),
    ...driveHandlers(server),
    ...targetHandlers(server),
  };
  const failed = (error: unknown) =>
    server.log.error({ error: String((error as Error).stack ?? error) }, "The admin API failed");
  const make = (gatekeeper: Gatekeeper) => makeHttpServer(handlers, contracts, gatekeeper, failed);
  const servers = [make(() => {})];
  const { path, close } = socketPath(server.directory.path, ADMIN_SOCKET);
  // We hold the directory's lock, so a socket that lies there belongs to nobody any more.
  rmSync(path, { force: true });
  const umask = process.umask(0o177);
  const listening = listen(servers[0]!, { path });
  process.umask(umask);
  await listening;
  servers[0]!.on("close", close);
  const { http, httpTokenFile } = server.settings;
  if (http !== undefined) {
    const tokens = httpTokenFile === undefined ? undefined : readTokens(httpTokenFile);
    const tcp = make((request) => checkTcp(request, tokens, isPrivate(http)));
    await listen(tcp, http);
    const address = tcp.address() as { address: string; port: number };
    server.log.info({ address: formatAddress({ host: address.address, port: address.port }) }, "Admin API on TCP");
    servers.push(tcp);
  }
  return servers;
}

function listen(server: HttpServer, at: { path: string } | { host: string; port: number }): Promise<void> {
  return new Promise((resolve, reject) => {
    server.once("error", (error: NodeJS.ErrnoException) => {
      const where = formatAddress(at);
      const [code, why] =
        error.code === "EADDRINUSE"
          ? (["in-use", "another program listens there"] as const)
          : error.code === "EACCES"
            ? (["not-allowed", "no permission"] as const)
            : (["bad-request", error.message] as const);
      reject(new Refusal(code, `The admin API cannot listen on ${where}: ${why}`, "Give another address with --http."));
    });
    server.listen(at, resolve);
  });
}

/**
 * Who may speak HTTP over TCP: the holder of a token, or on loopback without tokens anyone, but not a web page of
 * somebody else that makes a browser of this machine ask (a foreign Host or Origin).
 */
function checkTcp(request: IncomingMessage, tokens: readonly Buffer[] | undefined, loopback: boolean): void {
  const { host = "", origin, authorization = "" } = request.headers;
  const name = host.replace(/:\d+$/, "").replace(/^\[|\]$/g, "");
  if (loopback && name !== "localhost" && isIP(name) === 0)
    throw new Refusal("not-allowed", `Host "${host}" is not this machine`, "Use 127.0.0.1 or localhost.");
  if (origin !== undefined && origin !== `http://${host}`)
    throw new Refusal("not-allowed", `A page of ${origin} may not use the admin API`, "Use `ashlar`, or curl.");
  if (tokens === undefined) return;
  const shown = Buffer.from(authorization.replace(/^Bearer /i, ""));
  if (!tokens.some((token) => token.length === shown.length && timingSafeEqual(token, shown)))
    throw new Refusal("not-allowed", "No token, or not a valid one", "Send authorization: Bearer TOKEN.");
}

function readTokens(path: string): Buffer[] {
  const lines = readSecret(path, true).split("\n");
  const tokens = lines.map((line) => line.trim()).filter((line) => line !== "" && !line.startsWith("#"));
  if (tokens.length === 0) throw new Refusal("bad-request", `${path} holds no token`, "Write one token per line.");
  return tokens.map((token) => Buffer.from(token));
}
