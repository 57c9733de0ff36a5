/** The admin API over its Unix socket, without the cost of starting a command: for what is measured in milliseconds. */
import { Agent, request } from "node:http";
import { join } from "node:path";

const agent = new Agent({ keepAlive: true, maxSockets: 4 });

/** One call; rejects when there is no server or the status is not a success. */
export function call<T>(
  data: string,
  method: "GET" | "POST" | "PATCH" | "DELETE",
  path: string,
  body?: object,
): Promise<T> {
  return new Promise((resolve, reject) => {
    const text = body === undefined ? undefined : JSON.stringify(body);
    const headers =
      text === undefined ? {} : { "content-type": "application/json", "content-length": Buffer.byteLength(text) };
    const sent = request({ agent, socketPath: join(data, "ashlar.sock"), method, path, headers }, (reply) => {
      const parts: Buffer[] = [];
      reply.on("data", (part: Buffer) => parts.push(part));
      reply.on("error", reject);
      reply.on("end", () => {
        const said = Buffer.concat(parts).toString();
        const isJson = reply.headers["content-type"]?.startsWith("application/json") === true && said !== "";
        if (reply.statusCode! >= 300) reject(new Error(`${method} ${path}: ${reply.statusCode} ${said}`));
        else resolve((isJson ? JSON.parse(said) : said) as T);
      });
    });
    sent.on("error", reject);
    sent.end(text);
  });
}

/** Milliseconds that something takes. */
export async function timed(work: () => Promise<unknown>): Promise<number> {
  const start = performance.now();
  await work();
  return performance.now() - start;
}
