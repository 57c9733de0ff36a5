/** The OpenAPI 3.1 document, printed from the routes' contracts. */
import { z } from "zod";
import { REFUSALS } from "#base/refusal";
import { ErrorReply, type RouteShape, type Routes } from "./schema/route.ts";

export function openApiOf(routes: Routes, version: string): Record<string, unknown> {
  const schemas: Record<string, unknown> = {};
  const paths: Record<string, Record<string, unknown>> = {};
  const schemaOf = (type: z.ZodType, io: "input" | "output") => hoist(type, io, schemas);
  const error = schemaOf(ErrorReply, "output");
  for (const [name, shape] of Object.entries(routes)) {
    const [method = "", path = ""] = name.split(" ");
    paths[path] ??= {};
    paths[path][method.toLowerCase()] = {
      operationId: operationId(method, path),
      summary: shape.summary,
      parameters: [...parametersOf(shape.params, "path", schemaOf), ...parametersOf(shape.query, "query", schemaOf)],
      ...(shape.body === undefined
        ? {}
        : {
            requestBody: { required: true, content: { "application/json": { schema: schemaOf(shape.body, "input") } } },
          }),
      responses: { [String(shape.status ?? 200)]: replyOf(shape, schemaOf), default: errorReply(error) },
    };
  }
  return {
    openapi: "3.1.0",
    info: {
      title: "Ashlar admin API",
      version,
      description:
        "Served on the Unix socket DIR/ashlar.sock, and on TCP where asked for. Every refusal is an Error with one of " +
        `these codes: ${Object.entries(REFUSALS)
          .map(([code, { http }]) => `${code} (${http})`)
          .join(", ")}.`,
      license: { name: "Apache-2.0", identifier: "Apache-2.0" },
    },
    servers: [
      { url: "http://localhost", description: "curl --unix-socket DIR/ashlar.sock http://localhost/v1/status" },
    ],
    paths,
    components: { schemas },
  };
}

type SchemaOf = (type: z.ZodType, io: "input" | "output") => unknown;

function replyOf(shape: RouteShape, schemaOf: SchemaOf): object {
  const schema = schemaOf(shape.reply, "output");
  return { description: "Done", content: { [shape.contentType ?? "application/json"]: { schema } } };
}

const errorReply = (schema: unknown): object => ({
  description: "Refused: the code says why, the hint what to do",
  content: { "application/json": { schema } },
});

function parametersOf(type: z.ZodObject | undefined, where: "path" | "query", schemaOf: SchemaOf): object[] {
  if (type === undefined) return [];
  return Object.entries(type.shape).map(([name, schema]) => ({
    name,
    in: where,
    required: where === "path" || !(schema as z.ZodType).safeParse(undefined).success,
    schema: schemaOf(schema as z.ZodType, "input"),
  }));
}

/** JSON schema of a type, with everything that has an id moved to `components`. */
function hoist(type: z.ZodType, io: "input" | "output", schemas: Record<string, unknown>): unknown {
  const json = z.toJSONSchema(type, { io, unrepresentable: "any", target: "draft-2020-12" }) as Record<string, unknown>;
  const { $defs: definitions = {}, $schema: _dialect, ...rest } = json;
  for (const [id, definition] of Object.entries(definitions as Record<string, Record<string, unknown>>)) {
    const { id: _id, ...plain } = definition;
    schemas[id] = relink(plain);
  }
  const { id, ...plain } = rest;
  if (typeof id !== "string") return relink(plain);
  schemas[id] = relink(plain);
  return { $ref: `#/components/schemas/${id}` };
}

function relink(value: unknown): unknown {
  if (Array.isArray(value)) return value.map(relink);
  if (typeof value !== "object" || value === null) return value;
  return Object.fromEntries(
    Object.entries(value).map(([key, inner]) => [
      key,
      key === "$ref" && typeof inner === "string" ? inner.replace("#/$defs/", "#/components/schemas/") : relink(inner),
    ]),
  );
}

/** "POST /v1/snapshots/{name}/clone" is "postSnapshotsNameClone". */
function operationId(method: string, path: string): string {
  const words = path
    .replace(/^\/v1/, "")
    .split(/[^A-Za-z0-9]+/)
    .filter((word) => word !== "");
  return method.toLowerCase() + words.map((word) => word[0]!.toUpperCase() + word.slice(1)).join("");
}
