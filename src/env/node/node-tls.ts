/**
 * TLS on a connected socket. TLS 1.2 and 1.3, certificates and pre-shared keys. The suites are named one by one:
 * Node's default list has none with PSK for 1.2, and OpenSSL's PSK callback can only do SHA-256 suites in 1.3.
 *
 * During the handshake the streams must not be half-open: a peer that leaves would never be noticed.
 */
import { isIP, type Socket } from "node:net";
import type { CommonConnectionOptions, ConnectionOptions, SecureContextOptions, TLSSocket } from "node:tls";
import type { Effect } from "#base/task";
import type { NetError, Tls } from "../env.ts";
import { READ_AHEAD_BYTES } from "./node-line.ts";

/** A handshake that takes longer has failed. */
const HANDSHAKE_MS_MAX = 10_000;

const SUITES_PSK = [
  "TLS_AES_128_GCM_SHA256",
  "TLS_CHACHA20_POLY1305_SHA256",
  "ECDHE-PSK-CHACHA20-POLY1305",
  "ECDHE-PSK-AES128-CBC-SHA256",
  "DHE-PSK-AES128-GCM-SHA256",
  "DHE-PSK-CHACHA20-POLY1305",
  "PSK-AES128-GCM-SHA256",
];
const SUITES_CERT = [
  "TLS_AES_128_GCM_SHA256",
  "TLS_AES_256_GCM_SHA384",
  "TLS_CHACHA20_POLY1305_SHA256",
  "ECDHE-ECDSA-AES128-GCM-SHA256",
  "ECDHE-RSA-AES128-GCM-SHA256",
  "ECDHE-ECDSA-AES256-GCM-SHA384",
  "ECDHE-RSA-AES256-GCM-SHA384",
  "ECDHE-ECDSA-CHACHA20-POLY1305",
  "ECDHE-RSA-CHACHA20-POLY1305",
];

/** Node's TLS, when the first connection wants it: a lane without any is there sooner, and smaller. */
const nodeTls = () => process.getBuiltinModule("node:tls");

export interface Secured {
  readonly socket: TLSSocket;
  /** PSK identity, or the common name in the other side's certificate, or "". */
  readonly name: string;
}

export function secureSocket(socket: Socket, tls: Tls): Effect<Secured | NetError> {
  return (resume) => {
    let settled = false;
    const settle = (result: Secured | NetError): void => {
      if (settled) return;
      settled = true;
      socket.off("close", onClose);
      resume(result);
    };
    const fail = (error: unknown): void => {
      socket.destroy();
      const detail = error instanceof Error ? error.message : String(error);
      settle({ fault: "tls-failed", detail });
    };
    const onClose = (): void => fail("the connection was closed during the handshake");
    socket.on("close", onClose);
    // The TLS stream inherits it.
    socket.allowHalfOpen = false;
    // Until TLS has taken over, and after it has let go.
    socket.on("error", () => {});
    try {
      if (tls.role === "server") acceptTls(socket, tls, settle, fail);
      else connectTls(socket, tls, settle, fail);
    } catch (error) {
      // Bad PEM, a key that does not fit.
      fail(error);
    }
  };
}

type Settle = (secured: Secured) => void;
type Fail = (error: unknown) => void;

function acceptTls(socket: Socket, tls: Tls, settle: Settle, fail: Fail): void {
  let identity = "";
  // A server that listens nowhere: it checks clients' certificates as documented, and one of its own per connection
  // can tell which identity belongs to which.
  const server = nodeTls().createServer({
    ...contextOf(tls),
    handshakeTimeout: HANDSHAKE_MS_MAX,
    requestCert: tls.ca !== undefined,
    rejectUnauthorized: tls.ca !== undefined,
    ...(tls.psk && {
      pskCallback: (_socket: TLSSocket, offered: string) => {
        const key = tls.psk!.get(offered);
        if (key === undefined) return null;
        identity = offered;
        return key;
      },
    }),
  });
  server.once("secureConnection", (secure) => {
    secure.allowHalfOpen = true;
    settle({ socket: secure, name: identity || nameOf(secure) });
  });
  server.once("tlsClientError", fail);
  server.emit("connection", socket);
}

function connectTls(socket: Socket, tls: Tls, settle: Settle, fail: Fail): void {
  const first = tls.psk?.entries().next().value;
  const options = {
    ...contextOf(tls),
    socket,
    highWaterMark: READ_AHEAD_BYTES,
    // An address is checked like a name, but not sent as one (RFC 6066 §3).
    ...(tls.serverName !== undefined &&
      (isIP(tls.serverName) === 0 ? { servername: tls.serverName } : { host: tls.serverName })),
    ...(tls.verifyPeer === false && { rejectUnauthorized: false }),
    ...(first && {
      pskCallback: () => ({ identity: first[0], psk: first[1] }),
      // A server that proves that it has the key shows no certificate.
      checkServerIdentity: () => undefined,
    }),
  };
  const secure = nodeTls().connect(options as ConnectionOptions);
  const timer = setTimeout(() => secure.destroy(new Error("the TLS handshake took too long")), HANDSHAKE_MS_MAX);
  const onError = (error: Error): void => {
    clearTimeout(timer);
    fail(error);
  };
  secure.once("error", onError);
  secure.once("close", onError);
  secure.once("secureConnect", () => {
    clearTimeout(timer);
    secure.off("error", onError);
    secure.off("close", onError);
    secure.allowHalfOpen = true;
    settle({ socket: secure, name: first?.[0] ?? nameOf(secure) });
  });
}

function contextOf(tls: Tls): SecureContextOptions & CommonConnectionOptions {
  const suites = [...(tls.psk ? SUITES_PSK : []), ...(tls.cert !== undefined || !tls.psk ? SUITES_CERT : [])];
  return {
    minVersion: "TLSv1.2",
    // A PSK works with SHA-256 suites only: those go first, and a list with PSK has no SHA-384 one of TLS 1.3.
    ciphers: [...new Set(suites)].filter((name) => !(tls.psk && name === "TLS_AES_256_GCM_SHA384")).join(":"),
    ...(tls.cert !== undefined && { cert: tls.cert }),
    ...(tls.key !== undefined && { key: tls.key }),
    ...(tls.ca !== undefined && { ca: tls.ca }),
  };
}

function nameOf(socket: TLSSocket): string {
  const name: unknown = socket.getPeerCertificate()?.subject?.CN;
  return typeof name === "string" ? name : "";
}
