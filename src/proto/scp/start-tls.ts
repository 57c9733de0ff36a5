/**
 * How a data socket goes on under TLS, or not, as stories: the host asks before its hello, and the server hears by the
 * first message which of the two it is. On the configuration socket, this is part of the configuration protocol.
 */
import { Op } from "#wire/scp/codes";
import { decodeZnReq, ZNREQ, ZnReq } from "#wire/scp/znreq";
import { box, viewBytes } from "./config-server.ts";

export type StartTlsEnd = "start-tls" | "refused";

export function* askForTls(send: (bytes: Uint8Array) => void): Generator<number, StartTlsEnd, DataView> {
  const message = new ZnReq();
  message.op = Op.Z_START_TLS;
  send(box(message).bytes);
  decodeZnReq(message, yield ZNREQ.byteLength, 0);
  return message.op === Op.Z_START_TLS && message.status === 0 ? "start-tls" : "refused";
}

/** Ends with the first message's bytes when that is no wish for TLS. */
export function* hearTlsOrHello(
  send: (bytes: Uint8Array) => void,
): Generator<number, "start-tls" | { readonly hello: Uint8Array }, DataView> {
  const message = new ZnReq();
  const first = yield ZNREQ.byteLength;
  decodeZnReq(message, first, 0);
  if (message.op !== Op.Z_START_TLS) return { hello: viewBytes(first).slice() };
  send(box(message).bytes);
  return "start-tls";
}
