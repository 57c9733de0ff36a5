/** Sockets by node:net. */

import { unlink } from "node:fs";
import { connect, createServer, type ListenOptions, type NetConnectOpts, type Server, type Socket } from "node:net";
import type { Memory } from "#base/memory";
import type { Effect } from "#base/task";
import type { Address, DialOptions, Line, Listener, Net, NetError, Tls } from "../env.ts";
import { isNetError } from "../env.ts";
import { codeOf, netError } from "../faults.ts";
import { openDatagrams } from "./node-datagrams.ts";
import { NodeLine, READ_AHEAD_BYTES } from "./node-line.ts";
import { secureSocket } from "./node-tls.ts";

/** Connections that wait to be accepted. */
const BACKLOG = 511;

export class NodeNet implements Net {
  readonly datagrams = openDatagrams;
  readonly #memory: Memory;

  constructor(memory: Memory) {
    this.#memory = memory;
  }

  listen(at: Address, accept: (line: Line) => void): Effect<Listener | NetError> {
    return (resume) => {
      const listen = (retry: boolean): void => {
        const server = createServer(
          { allowHalfOpen: true, noDelay: true, keepAlive: true, highWaterMark: READ_AHEAD_BYTES },
          (socket) => accept(new NodeLine(this.#memory, socket)),
        );
        server.once("error", (error) => {
          if (retry && "path" in at && codeOf(error) === "EADDRINUSE")
            replaceStale(at.path, () => listen(false), refuse);
          else refuse(error);
        });
        server.once("listening", () => {
          server.removeAllListeners("error");
          // Out of file descriptors, for one: the connection is lost, and the listener goes on.
          server.on("error", () => {});
          resume(new NodeListener(server, at));
        });
        try {
          server.listen({ ...at, backlog: BACKLOG } as ListenOptions);
        } catch (error) {
          refuse(error);
        }
      };
      const refuse = (error: unknown): void => resume(netError(error));
      listen(true);
    };
  }

  dial(to: Address, options: DialOptions = {}): Effect<Line | NetError> {
    return (resume) => {
      if ("fd" in to) return resume({ fault: "bad-address", detail: "a listening socket cannot be dialled" });
      let socket: Socket;
      try {
        socket = connect({
          ...to,
          allowHalfOpen: true,
          noDelay: true,
          keepAlive: true,
          highWaterMark: READ_AHEAD_BYTES,
          ...(options.localHost !== undefined && { localAddress: options.localHost }),
          ...(options.localPort !== undefined && { localPort: options.localPort }),
        } as unknown as NetConnectOpts);
      } catch (error) {
        return resume(netError(error));
      }
      let timer: NodeJS.Timeout | undefined;
      const finish = (result: Line | NetError): void => {
        clearTimeout(timer);
        socket.off("error", onError);
        if (isNetError(result)) socket.on("error", () => {}).destroy();
        resume(result);
      };
      const onError = (error: Error): void => finish(netError(error));
      socket.once("error", onError);
      socket.once("connect", () => finish(new NodeLine(this.#memory, socket)));
      if (options.timeoutMs !== undefined)
        timer = setTimeout(
          () => finish({ fault: "timeout", detail: `no answer within ${options.timeoutMs} ms` }),
          options.timeoutMs,
        );
    };
  }

  secure(line: Line, tls: Tls): Effect<Line | NetError> {
    return (resume) => {
      if (!(line instanceof NodeLine)) return resume({ fault: "unsupported", detail: "not a line of this Env" });
      const carrier = line.detach();
      secureSocket(
        carrier,
        tls,
      )((secured) => {
        if (isNetError(secured)) resume(secured);
        else resume(new NodeLine(this.#memory, secured.socket, secured.name, carrier));
      });
    };
  }
}

class NodeListener implements Listener {
  readonly address: Address;
  readonly #server: Server;

  constructor(server: Server, asked: Address) {
    this.#server = server;
    const found = server.address();
    if (typeof found === "string") this.address = { path: found };
    else if (found === null) this.address = asked;
    else this.address = { host: found.address, port: found.port };
  }

  close(): void {
    // Lines that were accepted go on.
    if (this.#server.listening) this.#server.close();
  }
}

/** Removes a Unix socket that a server which is no more has left behind; if somebody still answers on it, it is in use. */
export function replaceStale(path: string, retry: () => void, refuse: (error: unknown) => void): void {
  const inUse = Object.assign(new Error(`another process listens on ${path}`), { code: "EADDRINUSE" });
  const probe = connect({ path });
  probe.once("connect", () => {
    probe.destroy();
    refuse(inUse);
  });
  probe.once("error", (error) => {
    if (codeOf(error) !== "ECONNREFUSED") return refuse(inUse);
    unlink(path, (failed) => (failed ? refuse(failed) : retry()));
  });
}
