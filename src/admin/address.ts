/** Addresses as operators write them: `ADDR:PORT`, `[IPv6]:PORT`, `unix:PATH`, `fd:N`, `off`. */
import { resolve } from "node:path";
import { Refusal } from "#base/refusal";
import type { Address } from "#env/env";
import { describeSocket } from "./activation.ts";

/** @throws Refusal bad-request */
export function parseAddress(text: string, portDefault?: number): Address | undefined {
  if (text === "off") return undefined;
  if (text.startsWith("unix:")) {
    const path = text.slice("unix:".length);
    if (path !== "") return { path: resolve(path) };
  } else if (/^fd:\d+$/.test(text)) {
    return { fd: Number(text.slice(3)) };
  } else {
    const match = /^(?:\[([0-9a-f:.%]+)\]|([^:[\]]*))(?::(\d{1,5}))?$/i.exec(text);
    const host = match?.[1] ?? match?.[2] ?? "";
    const port = match?.[3] === undefined ? portDefault : Number(match[3]);
    if (match !== null && port !== undefined && port <= 65535)
      return { host: host === "" || host === "*" ? "0.0.0.0" : host, port };
  }
  throw new Refusal(
    "bad-request",
    `"${text}" is not an address`,
    "Write ADDR:PORT, [IPv6]:PORT, unix:PATH, fd:N (a socket from systemd), or off.",
  );
}

export function formatAddress(address: Address): string {
  if ("path" in address) return `unix:${address.path}`;
  if ("fd" in address) return `fd:${address.fd}`;
  return address.host.includes(":") ? `[${address.host}]:${address.port}` : `${address.host}:${address.port}`;
}

/** Whether only this machine can reach it. */
export function isPrivate(address: Address): boolean {
  if ("path" in address) return true;
  if ("fd" in address) {
    const found = describeSocket(address.fd);
    return found !== undefined && isPrivate(found);
  }
  return address.host === "localhost" || address.host === "::1" || /^127(\.\d{1,3}){3}$/.test(address.host);
}

/** What a host types to reach a volume; `name` may stay a placeholder. */
export function nbdUri(address: Address, name: string, tls: boolean): string {
  const scheme = tls ? "nbds" : "nbd";
  if ("path" in address) return `${scheme}+unix:///${name}?socket=${address.path}`;
  if ("fd" in address) {
    const found = describeSocket(address.fd);
    return found === undefined ? `${scheme}://HOST/${name}` : nbdUri(found, name, tls);
  }
  const host = address.host === "0.0.0.0" || address.host === "::" ? "HOST" : address.host;
  return `${scheme}://${formatAddress({ host, port: address.port })}/${name}`;
}
