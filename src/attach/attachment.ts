/**
 * An attachment: this machine's side of an SCP server, for as long as the process runs. Its units are exports of an NBD
 * front on a Unix socket, and from there disks; a control socket beside it answers `ashlar paths` and `ashlar detach`.
 */

import { existsSync, rmSync, writeFileSync } from "node:fs";
import { createServer, type Server, type Socket } from "node:net";
import { join, resolve } from "node:path";
import { Refusal } from "#base/refusal";
import { promiseOf } from "#base/task";
import { type Env, isNetError, type Log } from "#env/env";
import { connectScp, type ScpConnection, type ScpConnectOptions } from "#library/connect-scp";
import { OpenExportTable } from "#target/exports";
import { NbdFront } from "#target/nbd-front";
import { attachFuse, attachKernel, attachLoop, quote, Undo } from "./programs.ts";
import { type AttachmentFacts, makeFolder, writeFacts } from "./run-folder.ts";

export interface AttachOptions extends Omit<ScpConnectOptions, "env" | "memoryBytes" | "log"> {
  readonly unit: number | undefined;
  readonly socket: string | undefined;
  readonly device: string | undefined;
  readonly fuse: string | undefined;
  readonly loop: boolean;
}

/** One line of JSON each way on the control socket. */
export type ControlRequest =
  | { readonly do: "paths" }
  | { readonly do: "detach" }
  | { readonly do: "add-network" | "remove-network"; readonly server: string };

export class Attachment {
  readonly facts: AttachmentFacts;
  readonly #connection: ScpConnection;
  readonly #front: NbdFront;
  readonly #undo: Undo;
  readonly #control: Server;
  readonly #folder: string;
  readonly #onEnd: () => void;
  #closing: Promise<void> | undefined;

  private constructor(parts: {
    facts: AttachmentFacts;
    connection: ScpConnection;
    front: NbdFront;
    undo: Undo;
    folder: string;
    onEnd: () => void;
  }) {
    this.facts = parts.facts;
    this.#connection = parts.connection;
    this.#front = parts.front;
    this.#undo = parts.undo;
    this.#folder = parts.folder;
    this.#onEnd = parts.onEnd;
    this.#control = createServer((socket) => this.#serveControl(socket));
  }

  /** @throws Refusal */
  static async open(env: Env, log: Log, options: AttachOptions, onEnd: () => void): Promise<Attachment> {
    const wantsDisk = options.device !== undefined || options.fuse !== undefined || options.loop;
    const connection = await connectScp({ ...options, env, log });
    const undo = new Undo();
    const id = `${process.pid}`;
    const folder = makeFolder(id);
    undo.add(`rm -rf ${quote(folder)}`);
    try {
      if (connection.units.length === 0) connection.find(options.unit ?? 0);
      const table = new OpenExportTable();
      const name = offer(connection, table, options.unit, wantsDisk);
      const socket = resolve(options.socket ?? join(folder, "nbd.sock"));
      if (existsSync(socket)) throw new Refusal("exists", `${socket} exists`, "Remove it, or choose another path.");
      const front = new NbdFront(env, table);
      const at = await promiseOf(front.listen({ path: socket }));
      if (isNetError(at)) throw new Refusal("unreachable", `Cannot listen on ${socket}: ${at.detail}`);
      undo.add(`rm -f ${quote(socket)}`);
      const { device, fuse } = await makeDisk(socket, name, folder, options, undo);
      const facts: AttachmentFacts = {
        id,
        pid: process.pid,
        servers: options.servers,
        host: options.host,
        unit: options.unit,
        socket,
        device,
        fuse,
        undo: undo.commands,
      };
      const attachment = new Attachment({ facts, connection, front, undo, folder, onEnd });
      await attachment.#listenForControl();
      writeFacts(facts);
      return attachment;
    } catch (error) {
      await undo.run();
      await connection.close();
      throw error;
    }
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    // The disk goes first, so that nobody sees its errors; then what it was made of.
    await this.#undo.run();
    this.#control.close();
    await new Promise<void>((done) => this.#front.drain()(done));
    await this.#connection.close();
    rmSync(this.#folder, { recursive: true, force: true });
    this.#onEnd();
  }

  #listenForControl(): Promise<void> {
    return new Promise((done, failed) => {
      this.#control.once("error", failed);
      this.#control.listen(join(this.#folder, "control.sock"), done);
    });
  }

  #serveControl(socket: Socket): void {
    let text = "";
    socket.setEncoding("utf8");
    socket.on("error", () => {});
    socket.on("data", (chunk: string) => {
      text += chunk;
      if (text.length > CONTROL_BYTES_MAX) socket.destroy();
      const end = text.indexOf("\n");
      if (end < 0) return;
      const line = text.slice(0, end);
      text = "";
      void this.#answer(line).then((answer) => socket.end(`${JSON.stringify(answer)}\n`));
    });
  }

  async #answer(line: string): Promise<object> {
    let request: ControlRequest;
    try {
      request = JSON.parse(line) as ControlRequest;
    } catch {
      return { error: "not JSON" };
    }
    try {
      switch (request.do) {
        case "paths":
          return this.#describe();
        case "add-network":
          this.#connection.addNetwork(request.server);
          return {};
        case "remove-network":
          this.#connection.removeNetwork(request.server);
          return {};
        case "detach":
          await this.close();
          return {};
        default:
          return { error: "unknown request" };
      }
    } catch (error) {
      return { error: (error as Error).message };
    }
  }

  #describe(): object {
    const { facts } = this;
    return {
      ...facts,
      undo: undefined,
      units: this.#connection.units.map(({ number, name, size, readOnly }) => ({ number, name, size, readOnly })),
      connections: this.#front.figures.connected,
      paths: this.#connection.paths,
    };
  }
}

const CONTROL_BYTES_MAX = 65536;

/** Puts units into the table: the one asked for, or all; the only one also under the empty name. */
function offer(connection: ScpConnection, table: OpenExportTable, unit: number | undefined, one: boolean): string {
  if (unit !== undefined) {
    const device = connection.find(unit);
    table.add("", device).add(device.name, device);
    return "";
  }
  const { units } = connection;
  const first = units[0]!;
  if (units.length === 1) {
    table.add("", first).add(first.name, first);
    return "";
  }
  if (one)
    throw new Refusal(
      "bad-request",
      `There are ${units.length} units: ${units.map((each) => `${each.number} (${each.name})`).join(", ")}`,
      "Choose one with --unit.",
    );
  for (const device of units) table.add(device.name, device);
  return first.name;
}

async function makeDisk(
  socket: string,
  name: string,
  folder: string,
  options: AttachOptions,
  undo: Undo,
): Promise<{ device: string | undefined; fuse: string | undefined }> {
  if (options.device !== undefined) {
    await attachKernel(socket, name, options.device, undo);
    return { device: options.device, fuse: undefined };
  }
  if (options.fuse === undefined && !options.loop) return { device: undefined, fuse: undefined };
  const file = resolve(options.fuse ?? join(folder, "disk"));
  if (!existsSync(file)) {
    writeFileSync(file, "");
    undo.add(`rm -f ${quote(file)}`);
  }
  await attachFuse(socket, name, file, undo);
  const device = options.loop ? await attachLoop(file, undo) : undefined;
  return { device, fuse: file };
}
