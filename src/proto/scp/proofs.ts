/**
 * How the two sides of version 2 prove that they know the host's secret: docs/protocols/scp.md, "Proof". All that both
 * have said so far goes into every MAC, so that whoever changes a bit on the way (takes version 2 off the offer, say)
 * is found out.
 */
import { hmacSha256 } from "#base/sha256";
import type { Challenge, Proof } from "#wire/scp/config";
import { HOST_NAME_BYTES } from "#wire/scp/config";

export interface Transcript {
  /** What the server's Z_GET_VERSION offered, and its 32-bit random number. */
  readonly versions: number;
  readonly random: number;
  readonly challenge: Challenge;
  readonly proof: Omit<Proof, "mac">;
}

export interface SessionKeys {
  /** The host's proof, and the key of everything after it. */
  readonly hostMac: Uint8Array;
  readonly key: Uint8Array;
}

export function sessionKeys(secret: Uint8Array, transcript: Transcript): SessionKeys {
  const said = transcriptBytes(transcript);
  return { hostMac: hmacSha256(secret, text("scp2 host"), said), key: hmacSha256(secret, text("scp2 key"), said) };
}

/** The server's proof, of the session that it opened. */
export const serverMac = (key: Uint8Array, session: number): Uint8Array =>
  hmacSha256(key, text("scp2 server"), words(session));

/** A data socket's hello. `serial` is used once in a session. */
export const helloMac = (key: Uint8Array, session: number, serial: number, random: number): Uint8Array =>
  hmacSha256(key, text("scp2 hello"), words(session, serial, random));
export const helloAnswerMac = (key: Uint8Array, session: number, serial: number): Uint8Array =>
  hmacSha256(key, text("scp2 welcome"), words(session, serial));

function transcriptBytes({ versions, random, challenge, proof }: Transcript): Uint8Array {
  const name = new Uint8Array(HOST_NAME_BYTES);
  name.set(text(proof.hostName).subarray(0, HOST_NAME_BYTES));
  const parts = [
    words(versions, random, challenge.capabilities, challenge.depth, challenge.dataMax),
    challenge.serverId,
    challenge.serverNonce,
    words(proof.capabilities),
    proof.instance,
    proof.hostNonce,
    name,
  ];
  const all = new Uint8Array(parts.reduce((sum, part) => sum + part.length, 0));
  let at = 0;
  for (const part of parts) {
    all.set(part, at);
    at += part.length;
  }
  return all;
}

function words(...values: readonly number[]): Uint8Array {
  const bytes = new Uint8Array(4 * values.length);
  const view = new DataView(bytes.buffer);
  values.forEach((value, i) => {
    view.setUint32(4 * i, value);
  });
  return bytes;
}

function text(value: string): Uint8Array {
  return Uint8Array.from(value, (letter) => letter.charCodeAt(0));
}

/** A host's secret as it is kept and typed: 64 hex digits. Undefined when it is none. */
export function parseSecret(hex: string): Uint8Array | undefined {
  const plain = hex.trim();
  if (!/^[0-9a-f]{64}$/i.test(plain)) return undefined;
  return Uint8Array.from({ length: 32 }, (_, i) => Number.parseInt(plain.slice(2 * i, 2 * i + 2), 16));
}
