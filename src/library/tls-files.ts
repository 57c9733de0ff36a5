/** What an NBD URI says about TLS, with the files it names read: from paths to PEM texts and keys. */
import { readFile } from "node:fs/promises";
import { userInfo } from "node:os";
import { join } from "node:path";
import { Refusal } from "#base/refusal";
import type { Tls } from "#env/env";
import type { NbdUriTls } from "#proto/nbd/uri";

/** The material of a client. Throws a `Refusal` that names the file. */
export async function clientTls(wish: NbdUriTls): Promise<Tls> {
  const name = wish.hostname === undefined ? {} : { serverName: wish.hostname };
  if (wish.type === "psk") {
    const keys = parsePskFile(await text(wish.pskFile!), wish.pskFile!);
    const user = wish.user ?? (keys.size === 1 ? [...keys.keys()][0]! : userInfo().username);
    const key = keys.get(user);
    if (key === undefined)
      throw new Refusal("bad-request", `${wish.pskFile} has no key for "${user}"`, "Name the user: nbds://USER@host/…");
    return { role: "client", psk: new Map([[user, key]]), ...name };
  }
  const verify = wish.verifyPeer ? {} : { verifyPeer: false };
  // Without a directory, the certificate authorities that Node knows vouch for the server.
  if (wish.certificates === undefined) return { role: "client", ...name, ...verify };
  const [ca, cert, key] = await Promise.all(
    ["ca-cert.pem", "client-cert.pem", "client-key.pem"].map((file) => textIfThere(join(wish.certificates!, file))),
  );
  if (ca === undefined && wish.verifyPeer)
    throw new Refusal("not-found", `There is no ca-cert.pem in ${wish.certificates}`, "It says whom to trust.");
  if ((cert === undefined) !== (key === undefined))
    throw new Refusal("not-found", `${wish.certificates} has only one of client-cert.pem and client-key.pem`);
  return {
    role: "client",
    ...name,
    ...verify,
    ...(ca !== undefined && { ca }),
    ...(cert !== undefined && { cert }),
    ...(key !== undefined && { key }),
  };
}

/** The material of a server: a directory with `server-cert.pem`, `server-key.pem`, `ca-cert.pem`; or keys; or both. */
export async function serverTls(from: { readonly certificates?: string; readonly pskFile?: string }): Promise<Tls> {
  const psk = from.pskFile === undefined ? undefined : parsePskFile(await text(from.pskFile), from.pskFile);
  if (from.certificates === undefined) {
    if (psk === undefined) throw new Refusal("bad-request", "TLS needs certificates or a file of keys");
    return { role: "server", psk };
  }
  const [cert, key, ca] = await Promise.all([
    text(join(from.certificates, "server-cert.pem")),
    text(join(from.certificates, "server-key.pem")),
    textIfThere(join(from.certificates, "ca-cert.pem")),
  ]);
  return { role: "server", cert, key, ...(ca !== undefined && { ca }), ...(psk !== undefined && { psk }) };
}

/** Lines of `user:hex-key`, as GnuTLS' psktool writes them. Empty lines and lines with "#" in front do not count. */
export function parsePskFile(content: string, path: string): Map<string, Uint8Array> {
  const keys = new Map<string, Uint8Array>();
  for (const [index, line] of content.split("\n").entries()) {
    if (line.trim() === "" || line.startsWith("#")) continue;
    const [, user, hex] = /^([^:]+):((?:[0-9a-fA-F]{2})+)\s*$/.exec(line) ?? [];
    if (user === undefined || hex === undefined)
      throw new Refusal("bad-request", `${path}, line ${index + 1}, is not "user:hex-key"`);
    keys.set(user, Uint8Array.from(Buffer.from(hex, "hex")));
  }
  if (keys.size === 0) throw new Refusal("bad-request", `${path} has no keys in it`);
  return keys;
}

async function text(path: string): Promise<string> {
  const found = await textIfThere(path);
  if (found === undefined) throw new Refusal("not-found", `There is no file ${path}`);
  return found;
}

async function textIfThere(path: string): Promise<string | undefined> {
  try {
    return await readFile(path, "utf8");
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === "ENOENT") return undefined;
    throw new Refusal("not-allowed", `${path} cannot be read: ${(error as Error).message}`);
  }
}
