/**
 * NBD URIs: where a server listens, which export is meant, and what TLS has to prove (NetworkBlockDevice, doc/uri.md;
 * `tls-certificates` and `tls-psk-file` are libnbd's additions). Text in, facts out: no file is opened here. A
 * parameter that is not understood is refused, as the document asks, for what it should have switched on would be
 * missing in silence.
 */
import { Refusal } from "#base/refusal";
import { NBD_PORT, STRING_BYTES_MAX } from "#wire/nbd/codes";

/** What `sun_path` of a Unix socket's address holds, less the final NUL. */
const SOCKET_PATH_BYTES_MAX = 107;

export interface NbdUri {
  readonly address: { readonly host: string; readonly port: number } | { readonly path: string };
  /** "" means the server's default export. */
  readonly exportName: string;
  /** Undefined for `nbd` and `nbd+unix`; otherwise TLS is a must, and a server that has none is refused. */
  readonly tls: NbdUriTls | undefined;
}

export interface NbdUriTls {
  /** How the two sides prove who they are. Taken from `tls-type`, or from which of the files is given. */
  readonly type: "x509" | "psk";
  /** The identity of the pre-shared key: the user in the authority. */
  readonly user: string | undefined;
  /** A directory with `ca-cert.pem` and perhaps `client-cert.pem` and `client-key.pem`. */
  readonly certificates: string | undefined;
  /** A file with lines of `user:hex-key`, as GnuTLS' psktool writes. */
  readonly pskFile: string | undefined;
  /** The name that the server's certificate must have; undefined on a Unix socket where none was given. */
  readonly hostname: string | undefined;
  readonly verifyPeer: boolean;
}

const SCHEMES = {
  nbd: { unix: false, tls: false },
  nbds: { unix: false, tls: true },
  "nbd+unix": { unix: true, tls: false },
  "nbds+unix": { unix: true, tls: true },
} as const;

/** RFC 3986, appendix B: scheme, authority, path, query, fragment. (`URL` refuses a user without a host.) */
const URI = /^([^:/?#]+):(?:\/\/([^/?#]*))?([^?#]*)(?:\?([^#]*))?(?:#(.*))?$/;
const AUTHORITY = /^(?:([^@]*)@)?(\[[^\]]*\]|[^:@[\]]*)(?::(\d{0,5}))?$/;

const TLS_KEYS = ["tls-type", "tls-hostname", "tls-verify-peer", "tls-certificates", "tls-psk-file"] as const;
type Key = "socket" | (typeof TLS_KEYS)[number];
const KEYS: readonly string[] = ["socket", ...TLS_KEYS];

/** Reads a URI. Throws a `Refusal` ("bad-request", or "unsupported" for anonymous TLS) that says what is wrong in it. */
export function parseNbdUri(text: string): NbdUri {
  const refuse = (why: string): never => {
    throw new Refusal("bad-request", `"${text}" is not an NBD URI: ${why}`, HINT);
  };
  const [, schemeName = "", authority, path = "", search = "", fragment] =
    URI.exec(text) ?? refuse("it does not parse");
  const scheme = Object.hasOwn(SCHEMES, schemeName.toLowerCase())
    ? SCHEMES[schemeName.toLowerCase() as keyof typeof SCHEMES]
    : refuse(`the scheme is "${schemeName}" (there are ${Object.keys(SCHEMES).join(", ")})`);
  if (authority === undefined) return refuse(`"//" must follow the scheme`);
  if (fragment !== undefined) refuse('it has a fragment ("#…"); write "#" as %23');
  if (/[^\x21-\x7e]|["<>\\^`{|}]/.test(text)) refuse("it has characters that must be percent-encoded");
  const [, user, hostText = "", portText] =
    AUTHORITY.exec(authority) ?? refuse(`"${authority}" is not [user@]host[:port]`);

  const decode = (part: string): string => {
    try {
      return decodeURIComponent(part);
    } catch {
      return refuse(`"${part}" is not percent-encoded UTF-8`);
    }
  };
  const query = new Map<Key, string>();
  // Not URLSearchParams: in a URI a "+" is a plus sign (RFC 3986), and only in a web form it is a space.
  for (const pair of search.split("&")) {
    if (pair === "") continue;
    const equals = pair.indexOf("=");
    const key = decode(equals < 0 ? pair : pair.slice(0, equals));
    if (!KEYS.includes(key)) refuse(`the parameter "${key}" is not known (there are ${KEYS.join(", ")})`);
    if (query.has(key as Key)) refuse(`"${key}" is given twice`);
    query.set(key as Key, equals < 0 ? "" : decode(pair.slice(equals + 1)));
  }

  const exportName = decode(path.replace(/^\//, ""));
  if (exportName.includes("\0")) refuse("an export name has no NUL in it");
  if (new TextEncoder().encode(exportName).length > STRING_BYTES_MAX)
    refuse(`the export name is longer than ${STRING_BYTES_MAX} bytes`);

  let address: NbdUri["address"];
  if (scheme.unix) {
    const socket = query.get("socket") || refuse('"socket=PATH" is missing');
    if (hostText !== "" || portText !== undefined) refuse("a Unix socket has no host");
    // A NUL in front means Linux' abstract names; anywhere else, it would cut the path short.
    if (socket.includes("\0", 1)) refuse("the socket's path has a NUL in it");
    if (new TextEncoder().encode(socket).length > SOCKET_PATH_BYTES_MAX)
      refuse(`the socket's path is longer than ${SOCKET_PATH_BYTES_MAX} bytes`);
    address = { path: socket };
  } else {
    if (query.has("socket")) refuse(`"socket" needs the scheme ${scheme.tls ? "nbds" : "nbd"}+unix`);
    const host = decode(hostText).replace(/^\[(.*)\]$/, "$1") || "localhost";
    const port = portText === undefined || portText === "" ? NBD_PORT : Number(portText);
    if (port === 0 || port > 65535) refuse(`there is no port ${port}`);
    address = { host, port };
  }

  if (user?.includes(":")) refuse("it carries a password; NBD has none, use tls-psk-file");
  if (!scheme.tls) {
    const key = TLS_KEYS.find((key) => query.has(key));
    if (key !== undefined) refuse(`"${key}" needs the scheme nbds${scheme.unix ? "+unix" : ""}`);
    if (user !== undefined) refuse(`a user needs the scheme nbds${scheme.unix ? "+unix" : ""}`);
    return { address, exportName, tls: undefined };
  }

  const type = query.get("tls-type") ?? (query.has("tls-psk-file") ? "psk" : "x509");
  if (type === "anon")
    throw new Refusal("unsupported", "Anonymous TLS proves nothing and is not supported", "Use tls-type=x509 or psk.");
  if (type !== "x509" && type !== "psk") return refuse(`tls-type=${type} (there are x509 and psk)`);
  const verify = query.get("tls-verify-peer") ?? "1";
  if (verify !== "0" && verify !== "1") refuse(`tls-verify-peer=${verify} (0 or 1)`);
  if (type === "psk" && !query.has("tls-psk-file")) refuse("tls-type=psk needs tls-psk-file=FILE");
  if (type === "x509" && query.has("tls-psk-file")) refuse("tls-psk-file needs tls-type=psk");
  if (type === "psk" && query.has("tls-certificates")) refuse("tls-certificates needs tls-type=x509");
  return {
    address,
    exportName,
    tls: {
      type,
      user: user === undefined || user === "" ? undefined : decode(user),
      certificates: query.get("tls-certificates"),
      pskFile: query.get("tls-psk-file"),
      hostname: query.get("tls-hostname") ?? ("host" in address ? address.host : undefined),
      verifyPeer: verify === "1",
    },
  };
}

/** The URI of an export without TLS, for messages and for other programs. */
export function formatNbdUri(address: NbdUri["address"], exportName: string): string {
  const name = encodeURIComponent(exportName).replace(/%40/g, "@").replace(/%2F/g, "/");
  if ("path" in address) return `nbd+unix:///${name}?socket=${encodeURIComponent(address.path).replace(/%2F/g, "/")}`;
  const host = address.host.includes(":") ? `[${address.host}]` : address.host;
  return `nbd://${host}${address.port === NBD_PORT ? "" : `:${address.port}`}/${name}`;
}

const HINT = "Examples: nbd://127.0.0.1:10809/db, nbds://user@host/db?tls-psk-file=FILE, nbd+unix:///db?socket=PATH";
