/**
 * Two network namespaces, and a link between them that is late and narrow. Needs root. It is a veth pair with `tc netem`
 * where the kernel has that; where it has not, or where each socket is to have a rate of its own, bench/link.ts.
 */
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

/** Packets that may be under way at once, so that netem drops none for want of room. */
const NETEM_LIMIT = 100_000;
const VETH = "ash-link";

export class ShapedLink {
  readonly server = `ash-ls${process.pid % 100000}`;
  readonly host = `ash-lh${process.pid % 100000}`;
  readonly serverAddress = "10.94.1.1";
  readonly hostAddress = "10.94.1.2";
  readonly #shape: Shape;
  #program: Program | undefined;
  /** What shapes it, for the record. */
  means: "tc netem" | "bench/link.ts" = "bench/link.ts";

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
    if (share === "shared" && link.#tryNetem()) {
      link.means = "tc netem";
      return link;
    }
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

  /** A veth pair, each end of which delays by half a round trip. False, and nothing is left, where there is no netem. */
  #tryNetem(): boolean {
    const { roundTripMs, bytesPerSecond } = this.#shape;
    const ends = [
      [this.server, this.serverAddress],
      [this.host, this.hostAddress],
    ] as const;
    const ip = (...args: string[]) => execFileSync("ip", args, { stdio: "ignore" });
    try {
      ip("link", "add", VETH, "netns", this.server, "type", "veth", "peer", "name", VETH, "netns", this.host);
      for (const [namespace, address] of ends) {
        ip("-n", namespace, "addr", "add", `${address}/24`, "dev", VETH);
        ip("-n", namespace, "link", "set", VETH, "up");
        const shape = ["delay", `${(roundTripMs * 1000) / 2}us`, "rate", `${bytesPerSecond * 8}bit`];
        const netem = ["qdisc", "add", "dev", VETH, "root", "netem", ...shape, "limit", `${NETEM_LIMIT}`];
        execFileSync("tc", ["-n", namespace, ...netem], { stdio: "ignore" });
      }
      return true;
    } catch {
      try {
        ip("-n", this.server, "link", "del", VETH);
      } catch {
        // It was not made.
      }
      return false;
    }
  }

  async remove(): Promise<void> {
    await this.#program?.stop("SIGKILL");
    for (const namespace of [this.server, this.host]) execFileSync("ip", ["netns", "del", namespace]);
  }
}
