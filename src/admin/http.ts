/**
 * The admin API over `node:http`: routes with contracts, validation, refusals as JSON, streams. A framework would cost
 * a fifth of the start-up time and of the idle memory that the product is allowed; this is all that is needed of one.
 *
 * The contracts, and with them the validator, are loaded when something comes in that must be validated: a server that
 * is only started and looked at does without.
 */
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { z } from "zod";
import { REFUSALS, Refusal } from "#base/refusal";
import type { Given, Reply, RouteShape, Routes } from "./schema/route.ts";

const BODY_BYTES_MAX = 1 << 20;
/** A request that has not come whole after this time is dropped. */
const REQUEST_MS_MAX = 30_000;

/** An answer that is not JSON: text of the route's content type, or a stream that the handler writes by itself. */
export class RawReply {
  readonly write: (response: ServerResponse, request: IncomingMessage) => void;
  constructor(write: (response: ServerResponse, request: IncomingMessage) => void) {
    this.write = write;
  }
}
/** A JSON answer with another status than the route's own. */
export class StatusReply {
  readonly status: number;
  readonly body: object;
  constructor(status: number, body: object) {
    this.status = status;
    this.body = body;
  }
}

export type Handler<R extends RouteShape> = (
  given: Given<R>,
) => Reply<R> | RawReply | StatusReply | Promise<Reply<R> | RawReply | StatusReply>;
export type Handlers<All extends Routes> = { readonly [Name in keyof All]: Handler<All[Name]> };

/** Decides whether a request may be answered at all; throws a Refusal when not. */
export type Gatekeeper = (request: IncomingMessage) => void;

interface Entry {
  readonly method: string;
  readonly pattern: RegExp;
  readonly names: readonly string[];
  readonly name: string;
  readonly handler: (given: Given<RouteShape>) => unknown;
}

export function makeHttpServer<All extends Routes>(
  handlers: Handlers<All>,
  contracts: () => Promise<All>,
  gatekeeper: Gatekeeper,
  failed: (error: unknown) => void,
): Server {
  const entries: Entry[] = Object.keys(handlers).map((name) => {
    const [method = "", path = ""] = name.split(" ");
    const names = [...path.matchAll(/\{(\w+)\}/g)].map((match) => match[1]!);
    const pattern = new RegExp(`^${path.replaceAll(".", "\\.").replace(/\{\w+\}/g, "([^/]+)")}$`);
    return { method, pattern, names, name, handler: handlers[name] as Entry["handler"] };
  });
  return createServer({ requestTimeout: REQUEST_MS_MAX, keepAliveTimeout: 5_000 }, (request, response) => {
    answer(entries, contracts, gatekeeper, request, response).catch((error: unknown) => {
      if (!(error instanceof Refusal)) failed(error);
      refuse(response, error);
    });
  });
}

async function answer(
  entries: readonly Entry[],
  contracts: () => Promise<Routes>,
  gatekeeper: Gatekeeper,
  request: IncomingMessage,
  response: ServerResponse,
): Promise<void> {
  gatekeeper(request);
  const url = new URL(request.url ?? "/", "http://ashlar");
  const matching = entries.filter(({ pattern }) => pattern.test(url.pathname));
  if (matching.length === 0)
    throw new Refusal("not-found", `There is no ${url.pathname} here`, "GET /openapi.json lists every route.");
  const entry = matching.find(({ method }) => method === (request.method === "HEAD" ? "GET" : request.method));
  if (entry === undefined) {
    const allowed = matching.map(({ method }) => method).join(", ");
    response.setHeader("allow", allowed);
    throw new Refusal("bad-request", `${url.pathname} does not take ${request.method}`, `It takes ${allowed}.`);
  }
  const { name, pattern, names } = entry;
  const values = pattern.exec(url.pathname)!.slice(1);
  const params = Object.fromEntries(names.map((key, index) => [key, decode(values[index]!)]));
  const query = Object.fromEntries(url.searchParams);
  const plain = entry.method === "GET" && names.length === 0 && url.search === "";
  const shape: RouteShape | undefined = plain ? undefined : (await contracts())[name];
  const given = {
    params: shape?.params && validate(shape.params, params, "path"),
    query: shape === undefined ? {} : shape.query && validate(shape.query, query, "query"),
    body: shape?.body && validate(shape.body, await readBody(request), "body"),
  };
  const reply = await entry.handler(given as Given<RouteShape>);
  if (reply instanceof RawReply) reply.write(response, request);
  else if (reply instanceof StatusReply) send(response, reply.status, reply.body);
  else send(response, shape?.status ?? 200, reply);
}

function decode(text: string): string {
  try {
    return decodeURIComponent(text);
  } catch {
    throw new Refusal("bad-request", `"${text}" is not an encoded path`, "Encode names as in encodeURIComponent.");
  }
}

function validate(schema: z.ZodObject, value: unknown, where: string): unknown {
  const result = schema.safeParse(value);
  if (result.success) return result.data;
  const issues = result.error.issues.map(({ path, message }) => `${[where, ...path].join(".")}: ${message}`);
  throw new Refusal("bad-request", issues.join("; "), "GET /openapi.json describes what is expected.");
}

async function readBody(request: IncomingMessage): Promise<unknown> {
  // A web page can make a browser send forms and plain text anywhere, but not JSON: that asks for leave first.
  const type = request.headers["content-type"]?.split(";")[0]?.trim().toLowerCase();
  const chunks: Buffer[] = [];
  let length = 0;
  for await (const chunk of request as AsyncIterable<Buffer>) {
    length += chunk.length;
    if (length > BODY_BYTES_MAX)
      throw new Refusal(
        "bad-request",
        `The body is larger than ${BODY_BYTES_MAX} bytes`,
        "No request needs that much.",
      );
    chunks.push(chunk);
  }
  if (length === 0) return {};
  if (type !== "application/json")
    throw new Refusal("bad-request", "The body is not declared as JSON", "Send content-type: application/json.");
  try {
    return JSON.parse(Buffer.concat(chunks).toString("utf8"));
  } catch (error) {
    throw new Refusal("bad-request", `The body is not JSON: ${(error as Error).message}`, "Send one JSON object.");
  }
}

function send(response: ServerResponse, status: number, body: unknown): void {
  const text = `${JSON.stringify(body)}\n`;
  response.writeHead(status, {
    "content-type": "application/json; charset=utf-8",
    "content-length": Buffer.byteLength(text),
    "cache-control": "no-store",
  });
  response.end(text);
}

function refuse(response: ServerResponse, error: unknown): void {
  if (response.headersSent) {
    response.destroy();
    return;
  }
  // The rest of a body that was refused unread would be taken for the next request.
  response.setHeader("connection", "close");
  if (error instanceof Refusal) {
    const { code, message, hint } = error;
    send(response, REFUSALS[code].http, { error: { code, message, hint } });
  } else {
    const message = "The server failed at this request; its log says where";
    send(response, 500, { error: { code: "internal", message, hint: "Please report it with the log." } });
  }
}
