/**
 * One contract per route: what comes in, what goes out, and a sentence for the document. The server validates with it,
 * the OpenAPI document is printed from it, and the command line and the library take their types from it (`import type`,
 * so that a command does not load the validator).
 */
import { z } from "zod";

export interface RouteShape {
  readonly summary: string;
  /** Names in braces of the path; all are strings. */
  readonly params?: z.ZodObject;
  readonly query?: z.ZodObject;
  /** A JSON object; absent means that the route takes no body. */
  readonly body?: z.ZodObject;
  readonly reply: z.ZodType;
  /** HTTP status of success, 200 unless said otherwise. */
  readonly status?: number;
  /** What the reply is, when it is not JSON. */
  readonly contentType?: string;
}

/** "METHOD /path/{param}" to contract. */
export type Routes = Record<string, RouteShape>;

export const route = <const Shape extends RouteShape>(shape: Shape): Shape => shape;

type Parsed<T> = T extends z.ZodType ? z.output<T> : undefined;
type Written<T> = T extends z.ZodType ? z.input<T> : undefined;

/** What a handler is given, after validation and with defaults filled in. */
export interface Given<R extends RouteShape> {
  readonly params: Parsed<R["params"]>;
  readonly query: Parsed<R["query"]>;
  readonly body: Parsed<R["body"]>;
}
/** What a client writes. */
export interface Call<R extends RouteShape> {
  readonly params: Written<R["params"]>;
  readonly query: Written<R["query"]>;
  readonly body: Written<R["body"]>;
}
export type Reply<R extends RouteShape> = z.output<R["reply"]>;

/** The answer to everything that is refused. `code` is one of `docs/cli.md`'s table. */
export const ErrorReply = z
  .object({
    error: z.object({ code: z.string(), message: z.string(), hint: z.string().optional() }),
  })
  .meta({ id: "Error", description: "Why a request was refused, and what to do about it." });

/** Bytes, exact. */
export const bytes = z.int().nonnegative();
/** A moment as RFC 3339 text in UTC. */
export const moment = z.iso.datetime();
export const Nothing = z.object({});
