/** Events as server-sent events (WHATWG HTML, "Server-sent events"): `Last-Event-ID` says where to go on. */
import type { IncomingMessage, ServerResponse } from "node:http";
import type { Events, ServerEvent } from "./events.ts";

/** A comment now and then, so that both sides notice a connection that has gone. */
const KEEP_ALIVE_MS = 15_000;
/** A reader that lets this much pile up is cut off; it may come back with its last id. */
const BACKLOG_BYTES_MAX = 1 << 20;

export function eventStream(events: Events, request: IncomingMessage, response: ServerResponse): void {
  response.writeHead(200, { "content-type": "text/event-stream; charset=utf-8", "cache-control": "no-store" });
  const resumed = Number(request.headers["last-event-id"] ?? Number.NaN);
  response.write(": Ashlar events\n\n");
  const write = (event: ServerEvent): void => {
    response.write(`id: ${event.id}\nevent: ${event.type}\ndata: ${JSON.stringify(event)}\n\n`);
    if (response.writableLength > BACKLOG_BYTES_MAX) response.destroy();
  };
  if (Number.isInteger(resumed)) for (const event of events.after(resumed)) write(event);
  const stop = events.watch(write);
  const timer = setInterval(() => response.write(":\n\n"), KEEP_ALIVE_MS);
  timer.unref();
  response.on("close", () => {
    stop();
    clearInterval(timer);
  });
}
