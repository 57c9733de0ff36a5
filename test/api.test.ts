/** The admin API as other programs use it: contracts, refusals, metrics, events, the OpenAPI document, TCP. */
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { type IncomingMessage, request } from "node:http";
import { join } from "node:path";
import { suite, test } from "node:test";
import { api } from "#admin/schema/api";
import type { RouteShape } from "#admin/schema/route";
import { REFUSALS } from "#base/refusal";
import { run } from "./support/program.ts";
import { Server } from "./support/server.ts";
import { freePort, tempFolder } from "./support/temp.ts";

interface Answer {
  readonly status: number;
  readonly headers: IncomingMessage["headers"];
  readonly text: string;
  // biome-ignore lint/suspicious/noExplicitAny: tests look into it and fail where it is not as they expect
  readonly json: any;
}
type Where = { readonly socketPath: string } | { readonly host: string; readonly port: number };

function ask(
  where: Where,
  method: string,
  path: string,
  body?: string | object,
  headers: object = {},
): Promise<Answer> {
  const text = typeof body === "object" ? JSON.stringify(body) : body;
  const type = typeof body === "object" ? { "content-type": "application/json" } : {};
  return new Promise((resolve, reject) => {
    const sent = request({ ...where, method, path, headers: { ...type, ...headers }, agent: false }, (response) => {
      let got = "";
      response.on("data", (chunk: Buffer) => (got += chunk.toString()));
      response.on("end", () => {
        const isJson = response.headers["content-type"]?.startsWith("application/json") === true;
        resolve({
          status: response.statusCode!,
          headers: response.headers,
          text: got,
          json: isJson ? JSON.parse(got) : undefined,
        });
      });
    });
    sent.on("error", reject);
    sent.end(text);
  });
}
const socketOf = (server: Server): Where => ({ socketPath: join(server.data, "ashlar.sock") });

suite("the admin API", () => {
  test("answers every route in the shape of its contract", async (t) => {
    const server = await Server.start(t, { args: ["--iscsi", "127.0.0.1:0"] });
    const at = socketOf(server);
    await ask(at, "POST", "/v1/volumes", { name: "db", size: 64 << 20 });
    await ask(at, "POST", "/v1/snapshots", { name: "db@a" });
    await run("nbdinfo", [server.uri("db")]);
    const routes: Readonly<Record<string, RouteShape>> = api;
    for (const [name, shape] of Object.entries(routes)) {
      const [method = "", path = ""] = name.split(" ");
      if (method !== "GET" || path.includes("{") || path === "/v1/events") continue;
      const answer = await ask(at, method, path);
      assert.equal(answer.status, 200, `${name}: ${answer.text}`);
      if (shape.contentType === undefined) {
        const checked = shape.reply.safeParse(answer.json);
        assert.ok(checked.success, `${name}: ${checked.error?.message}`);
      }
      // Such a route is answered without the validator: its contract must have nothing to fill in.
      assert.deepEqual(shape.query?.parse({}) ?? {}, {}, `${name} has defaults in its query`);
    }
    for (const path of ["/v1/volumes/db", "/v1/snapshots/db%40a"])
      assert.equal((await ask(at, "GET", path)).status, 200);
  });

  test("refuses what is wrong with a code, and names every bad field", async (t) => {
    const server = await Server.start(t);
    const at = socketOf(server);
    const cases: [
      method: string,
      path: string,
      body: string | object | undefined,
      code: keyof typeof REFUSALS,
      words: RegExp,
    ][] = [
      ["GET", "/nowhere", undefined, "not-found", /nowhere/],
      ["PUT", "/v1/volumes", {}, "bad-request", /does not take PUT/],
      ["GET", "/v1/volumes/%zz", undefined, "bad-request", /encoded/],
      ["GET", "/v1/volumes/nothing", undefined, "not-found", /nothing/],
      ["POST", "/v1/volumes", {}, "bad-request", /body\.name.*body\.size/],
      ["POST", "/v1/volumes", { name: "db", size: "10G" }, "bad-request", /body\.size/],
      ["POST", "/v1/volumes", { name: "db", size: 4096, colour: "red" }, "bad-request", /colour/],
      ["POST", "/v1/volumes", { name: "db", size: -1 }, "bad-request", /body\.size/],
      ["POST", "/v1/volumes", { name: "../db", size: 4096 }, "bad-request", /name of a volume/],
      ["POST", "/v1/volumes", '{"name":', "bad-request", /not declared as JSON/],
      ["POST", "/v1/snapshots", { name: "db" }, "bad-request", /VOLUME@SNAPSHOT|name of a snapshot/],
      ["DELETE", "/v1/volumes/db?force=maybe", undefined, "bad-request", /query\.force/],
      ["GET", "/v1/jobs/7", undefined, "not-found", /job/],
    ];
    for (const [method, path, body, code, words] of cases) {
      const { status, json } = await ask(at, method, path, body);
      assert.equal(json.error.code, code, `${method} ${path}: ${JSON.stringify(json)}`);
      assert.equal(status, REFUSALS[code].http);
      assert.match(json.error.message + (json.error.hint ?? ""), words);
    }
    const json = { "content-type": "application/json" };
    assert.equal((await ask(at, "POST", "/v1/volumes", '{"name":', json)).json.error.code, "bad-request");
    assert.equal((await ask(at, "POST", "/v1/volumes", " ".repeat(2 << 20), json)).status, 400);
    assert.equal((await ask(at, "GET", "/health")).json.state, "ready");
  });

  test("serves an OpenAPI document that holds together", async (t) => {
    const server = await Server.start(t);
    const { json: document } = await ask(socketOf(server), "GET", "/openapi.json");
    assert.equal(document.openapi, "3.1.0");
    const ids = new Set<string>();
    for (const name of Object.keys(api)) {
      const [method = "", path = ""] = name.split(" ");
      const operation = document.paths[path][method.toLowerCase()];
      assert.ok(!ids.has(operation.operationId), `${operation.operationId} is there twice`);
      ids.add(operation.operationId);
      assert.ok(operation.summary.length > 0);
      assert.ok(operation.responses.default);
      const inPath = [...path.matchAll(/\{(\w+)\}/g)].map((match) => match[1]);
      const named = operation.parameters.filter((one: { in: string }) => one.in === "path");
      assert.deepEqual(
        named.map((one: { name: string }) => one.name),
        inPath,
      );
    }
    const text = JSON.stringify(document);
    for (const [, reference] of text.matchAll(/"\$ref":"([^"]+)"/g)) {
      const id = reference!.replace("#/components/schemas/", "");
      assert.ok(document.components.schemas[id] !== undefined, `${reference} leads nowhere`);
    }
    assert.ok(!text.includes("$defs"));
  });

  test("serves metrics in Prometheus' format, with what was done", async (t) => {
    const server = await Server.start(t);
    const at = socketOf(server);
    await ask(at, "POST", "/v1/volumes", { name: "db", size: 64 << 20 });
    const image = join(tempFolder(t), "image");
    writeFileSync(image, Buffer.alloc(1 << 20, 7));
    await run("nbdcopy", ["--flush", image, server.uri("db")]);
    const { text, headers } = await ask(at, "GET", "/metrics");
    assert.match(headers["content-type"]!, /^text\/plain; version=0\.0\.4/);
    const kinds = new Map<string, string>();
    const seen = new Set<string>();
    const line = /^([a-z_]+)(?:\{((?:[a-z_]+="(?:[^"\\]|\\.)*",?)*)\})? (-?[0-9.e+-]+|\+Inf|NaN)$/;
    for (const row of text.trimEnd().split("\n")) {
      const type = /^# TYPE (\S+) (\S+)$/.exec(row);
      if (type !== null) kinds.set(type[1]!, type[2]!);
      if (row.startsWith("#")) continue;
      const match = line.exec(row);
      assert.ok(match, `not a sample: ${row}`);
      const family = match[1]!.replace(/_(bucket|sum|count)$/, "");
      assert.ok(kinds.has(match[1]!) || kinds.get(family) === "histogram", `${match[1]} has no type`);
      assert.ok(!seen.has(row.slice(0, row.lastIndexOf(" "))), `twice: ${row}`);
      seen.add(row.slice(0, row.lastIndexOf(" ")));
    }
    const value = (sample: string) =>
      Number(
        text
          .split("\n")
          .find((row) => row.startsWith(`${sample} `))
          ?.split(" ")[1],
      );
    const labels = 'volume="db",front="nbd",op="write"';
    const count = value(`ashlar_operation_duration_seconds_count{${labels}}`);
    assert.ok(count > 0);
    assert.equal(value(`ashlar_operation_duration_seconds_bucket{${labels},le="+Inf"}`), count);
    assert.ok(value(`ashlar_operation_duration_seconds_sum{${labels}}`) < 60, "seconds, not milliseconds");
    assert.equal(value(`ashlar_operation_bytes_total{${labels}}`), 1 << 20);
    assert.equal(value('ashlar_volume_mapped_bytes{volume="db"}'), 1 << 20);
  });

  test("tells events as they happen, and those that were missed", async (t) => {
    const server = await Server.start(t);
    const at = socketOf(server);
    const read = (headers: object, until: (text: string) => boolean): Promise<string> =>
      new Promise((resolve, reject) => {
        const sent = request({ ...at, path: "/v1/events", headers: { ...headers }, agent: false }, (response) => {
          assert.match(response.headers["content-type"]!, /^text\/event-stream/);
          let text = "";
          response.on("data", (chunk: Buffer) => {
            text += chunk.toString();
            if (!until(text)) return;
            sent.destroy();
            resolve(text);
          });
        });
        sent.on("error", (error) => (sent.destroyed ? undefined : reject(error)));
        sent.end();
      });
    const stream = read({}, (text) => text.includes("volume-removed"));
    await ask(at, "POST", "/v1/volumes", { name: "db", size: 4096 });
    await ask(at, "DELETE", "/v1/volumes/db");
    const text = await stream;
    assert.match(text, /id: \d+\nevent: volume-created\ndata: \{.*"volume":"db".*\}\n\n/);
    const first = Number(/id: (\d+)\nevent: volume-created/.exec(text)?.[1]);
    const missed = await read({ "last-event-id": String(first) }, (got) => got.includes("volume-removed"));
    assert.ok(!missed.includes("volume-created"));
  });

  test("over TCP takes no token on loopback, no foreign pages, and elsewhere one of the file", async (t) => {
    const port = await freePort();
    const tokens = join(tempFolder(t), "tokens");
    writeFileSync(tokens, "# for the tests\nsesame\n", { mode: 0o600 });
    const open = await Server.start(t, { args: ["--http", `127.0.0.1:${port}`] });
    const at = { host: "127.0.0.1", port };
    assert.equal((await ask(at, "GET", "/v1/status")).status, 200);
    assert.equal((await ask(at, "GET", "/v1/status", undefined, { host: "evil.example" })).status, 403);
    assert.equal((await ask(at, "GET", "/v1/status", undefined, { origin: "http://evil.example" })).status, 403);
    assert.match(await open.ashlar("--api", `http://127.0.0.1:${port}`, "status"), /ready/);
    await open.stop();
    const port2 = await freePort();
    await Server.start(t, { args: ["--http", `127.0.0.1:${port2}`, "--http-token-file", tokens] });
    const at2 = { host: "127.0.0.1", port: port2 };
    assert.equal((await ask(at2, "GET", "/v1/status")).status, 403);
    assert.equal((await ask(at2, "GET", "/v1/status", undefined, { authorization: "Bearer sesame" })).status, 200);
    assert.equal((await ask(at2, "GET", "/v1/status", undefined, { authorization: "Bearer open" })).status, 403);
  });

  test("a hundred changes at once leave what each of them was answered", async (t) => {
    const server = await Server.start(t);
    const at = socketOf(server);
    const names = Array.from({ length: 20 }, (_, index) => `v${index % 10}`);
    const made = await Promise.all(names.map((name) => ask(at, "POST", "/v1/volumes", { name, size: 1 << 20 })));
    assert.equal(made.filter(({ status }) => status === 201).length, 10);
    assert.equal(made.filter(({ status }) => status === 409).length, 10);
    const taken = await Promise.all(
      names.map((name, index) => ask(at, "POST", "/v1/snapshots", { name: `${name}@s${index}` })),
    );
    assert.ok(taken.every(({ status }) => status === 201));
    const clones = await Promise.all(
      names.map((name, index) => ask(at, "POST", `/v1/snapshots/${name}%40s${index}/clone`, { name: `c${index % 5}` })),
    );
    assert.equal(clones.filter(({ status }) => status === 201).length, 5);
    assert.equal((await ask(at, "GET", "/v1/volumes")).json.length, 15);
    assert.equal((await ask(at, "GET", "/v1/snapshots")).json.length, 20);
  });
});
