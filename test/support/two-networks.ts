/**
 * Two network namespaces with two veth pairs between them: a server's and a host's machine on two networks. A network
 * is cut by losing every packet of it, or by taking the server's end down.
 */
import { execFileSync } from "node:child_process";
import type { Scope } from "./temp.ts";

export class TwoNetworks {
  readonly server: string;
  readonly host: string;
  readonly #links: string[] = [];

  constructor(scope: Scope) {
    const id = `${process.pid % 100000}`;
    this.server = `ash-s${id}`;
    this.host = `ash-h${id}`;
    scope.after(() => this.#remove());
    this.#remove();
    ip("netns", "add", this.server);
    ip("netns", "add", this.host);
    for (const network of [1, 2]) {
      const [a, b] = [`as${network}-${id}`, `ah${network}-${id}`];
      this.#links.push(a);
      ip("link", "add", a, "netns", this.server, "type", "veth", "peer", "name", b, "netns", this.host);
      ip("-n", this.server, "addr", "add", `${this.serverAddress(network)}/24`, "dev", a);
      ip("-n", this.host, "addr", "add", `10.93.${network}.2/24`, "dev", b);
      ip("-n", this.server, "link", "set", a, "up");
      ip("-n", this.host, "link", "set", b, "up");
    }
    for (const namespace of [this.server, this.host]) ip("-n", namespace, "link", "set", "lo", "up");
  }

  serverAddress(network: number): string {
    return `10.93.${network}.1`;
  }
  hostAddress(network: number): string {
    return `10.93.${network}.2`;
  }

  /** A command line to run in one of the namespaces. */
  inside(namespace: string, ...command: readonly string[]): [string, ...string[]] {
    return ["ip", "netns", "exec", namespace, ...command];
  }

  /** Both ends send to an address of nobody: every packet is lost, and nobody is told. */
  cut(network: number): void {
    for (const [namespace, device, other] of this.#ends(network))
      ip("-n", namespace, "neigh", "replace", other, "lladdr", "02:00:00:00:00:99", "dev", device, "nud", "permanent");
  }
  heal(network: number): void {
    for (const [namespace, device, other] of this.#ends(network))
      ip("-n", namespace, "neigh", "del", other, "dev", device);
  }
  down(network: number): void {
    ip("-n", this.server, "link", "set", this.#links[network - 1]!, "down");
  }
  up(network: number): void {
    ip("-n", this.server, "link", "set", this.#links[network - 1]!, "up");
  }

  #ends(network: number): (readonly [namespace: string, device: string, other: string])[] {
    const device = this.#links[network - 1]!;
    return [
      [this.server, device, this.hostAddress(network)],
      [this.host, device.replace("as", "ah"), this.serverAddress(network)],
    ];
  }

  #remove(): void {
    for (const namespace of [this.server, this.host])
      try {
        execFileSync("ip", ["netns", "del", namespace], { stdio: "ignore" });
      } catch {
        // There was none.
      }
  }
}

function ip(...args: readonly string[]): void {
  execFileSync("ip", [...args]);
}
