/** CHAP, RFC 7143 §12.1.3: the target challenges the initiator, and, if asked, answers a challenge itself. */
import { formatBinary, parseBinary, parseNumber } from "#wire/iscsi/text";

/** Digests come from outside: this layer has no cryptography of its own. */
export type Hash = (algorithm: HashName, bytes: Uint8Array) => Uint8Array;
export type HashName = "md5" | "sha1" | "sha256" | "sha3-256";

export interface ChapSecret {
  readonly user: string;
  readonly secret: string;
}

/** IANA "PPP Authentication Algorithms"; 6 to 8 from RFC 7143 §12.1.3 and its registry. */
const ALGORITHMS: ReadonlyMap<number, { readonly hash: HashName; readonly bytes: number }> = new Map([
  [5, { hash: "md5", bytes: 16 }],
  [6, { hash: "sha1", bytes: 20 }],
  [7, { hash: "sha256", bytes: 32 }],
  [8, { hash: "sha3-256", bytes: 32 }],
]);
const CHALLENGE_BYTES_MAX = 1024;

export type ChapResult =
  /** Keys to answer with; more is to come. */
  | { readonly kind: "more"; readonly keys: readonly (readonly [string, string])[] }
  | { readonly kind: "proven"; readonly keys: readonly (readonly [string, string])[] }
  | { readonly kind: "refused"; readonly why: string };
const refused = (why: string): ChapResult => ({ kind: "refused", why });

/** One authentication. It says why it refuses for the log, and not to the peer. */
export class Chap {
  readonly #hash: Hash;
  readonly #random: (to: Uint8Array) => void;
  readonly #expected: ChapSecret;
  readonly #mutual: ChapSecret | undefined;
  #algorithm: { readonly hash: HashName; readonly bytes: number } | undefined;
  #identifier = 0;
  #challenge = new Uint8Array(0);

  constructor(hash: Hash, random: (to: Uint8Array) => void, expected: ChapSecret, mutual: ChapSecret | undefined) {
    this.#hash = hash;
    this.#random = random;
    this.#expected = expected;
    this.#mutual = mutual;
  }

  /** Takes the keys of one login request. */
  take(keys: ReadonlyMap<string, string>): ChapResult {
    return this.#algorithm === undefined ? this.#challengeFor(keys) : this.#judge(keys, this.#algorithm);
  }

  #challengeFor(keys: ReadonlyMap<string, string>): ChapResult {
    const offered = keys.get("CHAP_A");
    if (offered === undefined) return refused("no CHAP_A");
    for (const one of offered.split(",")) {
      const number = parseNumber(one);
      const algorithm = number === undefined ? undefined : ALGORITHMS.get(number);
      if (algorithm === undefined) continue;
      this.#algorithm = algorithm;
      const drawn = new Uint8Array(1 + algorithm.bytes);
      this.#random(drawn);
      this.#identifier = drawn[0]!;
      this.#challenge = drawn.slice(1);
      return {
        kind: "more",
        keys: [
          ["CHAP_A", one],
          ["CHAP_I", String(this.#identifier)],
          ["CHAP_C", formatBinary(this.#challenge)],
        ],
      };
    }
    return refused(`no algorithm in common (CHAP_A=${offered})`);
  }

  #judge(
    keys: ReadonlyMap<string, string>,
    algorithm: { readonly hash: HashName; readonly bytes: number },
  ): ChapResult {
    const name = keys.get("CHAP_N");
    const given = keys.get("CHAP_R");
    if (name === undefined || given === undefined) return refused("CHAP_N or CHAP_R is missing");
    const response = parseBinary(given, algorithm.bytes);
    if (response === undefined || response.length !== algorithm.bytes) return refused("CHAP_R is malformed");
    const expected = this.#respond(algorithm.hash, this.#identifier, this.#expected.secret, this.#challenge);
    // The name is compared last: whoever has the wrong name and whoever has the wrong secret look alike.
    if (!isEqual(response, expected) || name !== asWire(this.#expected.user))
      return refused(`wrong CHAP user or secret (CHAP_N=${name})`);

    const identifier = keys.get("CHAP_I");
    const challenge = keys.get("CHAP_C");
    if (identifier === undefined && challenge === undefined) return { kind: "proven", keys: [] };
    const number = identifier === undefined ? undefined : parseNumber(identifier);
    const bytes = challenge === undefined ? undefined : parseBinary(challenge, CHALLENGE_BYTES_MAX);
    if (number === undefined || number > 0xff || bytes === undefined) return refused("CHAP_I or CHAP_C is malformed");
    if (this.#mutual === undefined)
      return refused("the initiator wants us to authenticate, but has no mutual secret here");
    // §12.1.3: our own challenge, reflected, would have us compute the answer for an impostor.
    if (isEqual(bytes, this.#challenge)) return refused("CHAP_C is our own challenge");
    const answer = this.#respond(algorithm.hash, number, this.#mutual.secret, bytes);
    return {
      kind: "proven",
      keys: [
        ["CHAP_N", asWire(this.#mutual.user)],
        ["CHAP_R", formatBinary(answer)],
      ],
    };
  }

  #respond(hash: HashName, identifier: number, secret: string, challenge: Uint8Array): Uint8Array {
    const key = UTF8.encode(secret);
    const bytes = new Uint8Array(1 + key.length + challenge.length);
    bytes[0] = identifier;
    bytes.set(key, 1);
    bytes.set(challenge, 1 + key.length);
    return this.#hash(hash, bytes);
  }
}

const UTF8 = new TextEncoder();
/** A name as text keys carry it: one character for each byte of its UTF-8. */
const asWire = (name: string): string => String.fromCharCode(...UTF8.encode(name));

/** Takes the same time wherever the two differ. */
function isEqual(a: Uint8Array, b: Uint8Array): boolean {
  if (a.length !== b.length) return false;
  let difference = 0;
  for (let at = 0; at < a.length; at++) difference |= a[at]! ^ b[at]!;
  return difference === 0;
}
