/** The command line's end of the admin API: typed by the routes' contracts, without loading the validator. */
import { request as httpRequest, type IncomingMessage } from "node:http";
import type { Api, ApiCall, ApiReply } from "#admin/schema/api";
import { socketPath } from "#admin/socket-path";
import { REFUSALS, Refusal, type RefusalCode } from "#base/refusal";

/** Where the API is: a data directory's socket, or a URL with a token. */
export type ApiAddress = { readonly data: string } | { readonly url: URL; readonly token: string | undefined };

type Defined<T> = { [Key in keyof T as T[Key] extends undefined ? never : Key]: T[Key] };
export type CallOptions<Route extends keyof Api> = Defined<ApiCall<Route>>;

/** Answers later than this are not waited for; a call that may take longer says so. */
const ANSWER_MS_MAX = 120_000;

export class ApiClient {
  readonly address: ApiAddress;

  constructor(address: ApiAddress) {
    this.address = address;
  }

  /** @throws Refusal as the server says, or unreachable */
  async call<Route extends keyof Api>(route: Route, options: CallOptions<Route>): Promise<ApiReply<Route>> {
    const response = await this.send(route, options);
    const chunks: Buffer[] = [];
    for await (const chunk of response) chunks.push(chunk as Buffer);
    const text = Buffer.concat(chunks).toString("utf8");
    const json = response.headers["content-type"]?.startsWith("application/json") === true;
    return (json ? JSON.parse(text) : text) as ApiReply<Route>;
  }

  /** The response itself, for streams; refusals are thrown. */
  async send<Route extends keyof Api>(route: Route, options: CallOptions<Route>): Promise<IncomingMessage> {
    const {
      params = {},
      query = {},
      body,
    } = options as {
      params?: Record<string, string>;
      query?: Record<string, string | number | boolean | undefined>;
      body?: object;
    };
    const [method = "GET", pattern = ""] = route.split(" ");
    const path = pattern.replace(/\{(\w+)\}/g, (_, name: string) => encodeURIComponent(params[name] ?? ""));
    const given = Object.entries(query).filter(([, value]) => value !== undefined);
    const search = new URLSearchParams(
      given.map(([name, value]): [string, string] => [name, String(value)]),
    ).toString();
    const text = body === undefined ? undefined : JSON.stringify(body);
    const response = await this.#exchange(method, search === "" ? path : `${path}?${search}`, text);
    if ((response.statusCode ?? 500) < 400 || route === "GET /health") return response;
    throw await refusalOf(response);
  }

  #exchange(method: string, path: string, body: string | undefined): Promise<IncomingMessage> {
    const { address } = this;
    const headers = {
      ...(body === undefined ? {} : { "content-type": "application/json", "content-length": Buffer.byteLength(body) }),
      ...("url" in address && address.token !== undefined ? { authorization: `Bearer ${address.token}` } : {}),
    };
    const socket = "data" in address ? socketPath(address.data) : undefined;
    return new Promise<IncomingMessage>((resolve, reject) => {
      const where =
        "url" in address ? { host: address.url.hostname, port: address.url.port || 80 } : { socketPath: socket!.path };
      const request = httpRequest({ ...where, method, path, headers, timeout: ANSWER_MS_MAX, agent: false }, resolve);
      request.on("timeout", () => request.destroy(new Error("no answer in time")));
      request.on("error", (error: NodeJS.ErrnoException) => reject(unreachable(address, error)));
      request.end(body);
    }).finally(() => socket?.close());
  }
}

async function refusalOf(response: IncomingMessage): Promise<Refusal> {
  const chunks: Buffer[] = [];
  for await (const chunk of response) chunks.push(chunk as Buffer);
  try {
    const { error } = JSON.parse(Buffer.concat(chunks).toString("utf8")) as {
      error: { code: string; message: string; hint?: string };
    };
    const code = error.code in REFUSALS ? (error.code as RefusalCode) : "internal";
    return new Refusal(code, error.message, error.hint);
  } catch {
    return new Refusal("unreachable", `What answers is no Ashlar server (status ${response.statusCode})`);
  }
}

function unreachable(address: ApiAddress, error: NodeJS.ErrnoException): Refusal {
  if ("url" in address) return new Refusal("unreachable", `No server answers at ${address.url.href}: ${error.message}`);
  const { data } = address;
  if (error.code === "EACCES")
    return new Refusal(
      "not-allowed",
      `No permission for the server of ${data}`,
      "Be the user that runs it, or root (`sudo`).",
    );
  if (error.code === "ENOENT" || error.code === "ECONNREFUSED" || error.code === "ENOTDIR")
    return new Refusal(
      "unreachable",
      `No server runs on ${data}`,
      `Start one with \`ashlar serve --data ${data}\`, or name another directory with --data DIR.`,
    );
  return new Refusal("unreachable", `The server of ${data} does not answer: ${error.message}`, "See its log.");
}
