/** Two network namespaces, and a link between them that is late and narrow (bench/link.ts). Needs root. */
import { execFileSync } from "node:child_process";
import { fileURLToPath } from "node:url";
import { Program } from "#test/support/program";

const LINK = fileURLToPath(new URL("link.js", import.meta.url));

export interface Shape {
  /** What a packet and its answer take longer than without the link. */
  readonly roundTripMs: number;
  readonly bytesPerSecond: number;
  /** Whether all sockets together have that rate, each way, or each of them. */
  readonly share: "shared" | "per-socket";
}

export class ShapedLink {
  readonly server = `ash-ls${process.pid % 100000}`;
  readonly host = `ash-lh${process.pid % 100000}`;
  readonly serverAddress = "10.94.1.1";
  readonly hostAddress = "10.94.1.2";
  readonly #shape: Shape;
  #program: Program | undefined;

  private constructor(shape: Shape) {
    this.#shape = shape;
  }

  static async make(shape: Shape): Promise<ShapedLink> {
    const link = new ShapedLink(shape);
    for (const namespace of [link.server, link.host]) {
      execFileSync("ip", ["netns", "add", namespace]);
      execFileSync("ip", ["-n", namespace, "link", "set", "lo", "up"]);
    }
    const { roundTripMs, bytesPerSecond, share } = shape;
    link.#program = new Program(process.execPath, [
      ...[LINK, link.server, link.serverAddress, link.host, link.hostAddress],
      ...[String(roundTripMs), String(bytesPerSecond), share],
    ]);
    const program = link.#program;
    await program.until("up", () => program.output.includes("up"));
    return link;
  }

  get shape(): Shape {
    return this.#shape;
  }

  async remove(): Promise<void> {
    await this.#program?.stop("SIGKILL");
    for (const namespace of [this.server, this.host]) execFileSync("ip", ["netns", "del", namespace]);
  }
}
