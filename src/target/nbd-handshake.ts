/**
 * One NBD connection from its acceptance to the end of the handshake: drives a `Negotiation` over a line. It either
 * sends or receives, never both, so that the line is quiet when TLS begins or when another lane takes it over; and
 * it has a small buffer of its own for each way, whatever lengths the client claims.
 */
import type { Pieces } from "#base/memory";
import type { Millis } from "#base/units";
import type { Ear, Env, Line, NetError, Tls } from "#env/env";
import { type Agreement, type Doorkeeper, Negotiation, type Offer, type OfferRefusal } from "#proto/nbd/negotiation";
import type { ServerReply } from "#wire/nbd/handshake";
import { type ExportPeer, type ExportTable, isExportRefusal } from "./exports.ts";
import { peerName } from "./nbd-connection.ts";
import { type ConnectionEnd, RECEIVE_BYTES_SMALL } from "./nbd-home.ts";

/** How the buffer is shared out between what is received and what is sent. Bytes. */
const RECEIVE_BYTES = 2048;
const SEND_BYTES = RECEIVE_BYTES_SMALL - RECEIVE_BYTES;

export interface HandshakeOptions {
  readonly tls: "off" | "allow" | "require";
  readonly identity: Omit<Tls, "role"> | undefined;
  readonly blockSizesRequired: boolean;
  readonly maximumPayload: number;
}

export interface HandshakeHome {
  readonly env: Env;
  readonly exports: ExportTable;
  readonly options: HandshakeOptions;
  readonly draining: boolean;
  takePieces(): Pieces;
  givePieces(pieces: Pieces): void;
  /** `unread` bytes at the beginning of the buffer at `bufferAt`, which is the new owner's now, came after the handshake. */
  onAgreed(handshake: NbdHandshake, line: Line, agreement: Agreement, bufferAt: number, unread: number): void;
  onHandshakeEnded(handshake: NbdHandshake, end: ConnectionEnd): void;
}

export class NbdHandshake implements Ear, Doorkeeper {
  readonly #home: HandshakeHome;
  readonly #env: Env;
  readonly #negotiation: Negotiation;
  #pieces: Pieces | undefined;
  readonly #bufferAt: number;
  #line: Line;
  #peer: ExportPeer;
  /** Received bytes that the negotiation has not taken. */
  #start = 0;
  #end = 0;
  /** What is still to be sent; the first of it from `outputFrom` on. */
  #output: Uint8Array[] = [];
  #outputFrom = 0;
  #options = 0;
  #busy: "receiving" | "sending" | "securing" | undefined;
  #ending: ConnectionEnd | undefined;
  #over = false;
  /** When the client last got something done. */
  movedAt: Millis;
  readonly since: Millis;

  /** @param bufferAt memory of RECEIVE_BYTES_SMALL, which goes on to the connection, or is freed at the end. */
  constructor(home: HandshakeHome, line: Line, bufferAt: number) {
    this.#home = home;
    this.#env = home.env;
    this.#line = line;
    this.#bufferAt = bufferAt;
    this.#peer = exportPeer(line, false);
    this.movedAt = this.since = home.env.clock.now();
    line.ear = this;
    this.#negotiation = new Negotiation(this);
  }

  get peer(): string {
    return peerName(this.#line);
  }
  /** The line is under TLS. */
  get secure(): boolean {
    return this.#peer.secure;
  }
  get securing(): boolean {
    return this.#busy === "securing";
  }

  start(): void {
    this.#go();
  }

  end(why: ConnectionEnd["why"], detail: string): void {
    this.#ending ??= { why, detail };
    // While TLS begins, the line belongs to the Env; it is closed as soon as it comes back.
    if (this.#busy !== "securing") this.#line.close();
  }

  /* ---------------------------------------------------------------- the doorkeeper's part */

  get tls(): "off" | "allow" | "require" {
    return this.#home.options.tls;
  }
  get blockSizesRequired(): boolean {
    return this.#home.options.blockSizesRequired;
  }
  get maximumPayload(): number {
    return this.#home.options.maximumPayload;
  }
  get draining(): boolean {
    return this.#home.draining;
  }
  list(): Iterable<ServerReply> {
    return this.#home.exports.list(this.#peer);
  }
  find(name: string): Offer | OfferRefusal {
    const found = this.#home.exports.find(name, this.#peer);
    if (isExportRefusal(found)) return found;
    const { size, blockSize, preferredBlockSize } = found.shape;
    const { description, readOnly } = found;
    return { name: found.name, description, readOnly, size, blockSize, preferredBlockSize };
  }

  /* -------------------------------------------------------------------------- the line */

  onReceived(count: number): void {
    this.#busy = undefined;
    if (this.#ending !== undefined) return;
    if (count === 0) {
      this.end("lost", "the client went during the handshake");
      return;
    }
    this.#end += count;
    this.#go();
  }

  onSent(): void {
    this.#busy = undefined;
    this.#givePieces();
    this.movedAt = this.#env.clock.now();
    if (this.#ending === undefined) this.#go();
  }

  onClosed(): void {
    if (this.#over) return;
    this.#over = true;
    this.#givePieces();
    this.#env.memory.free(this.#bufferAt);
    this.#home.onHandshakeEnded(this, this.#ending ?? { why: "lost", detail: "the line broke during the handshake" });
  }

  /** Does whatever comes next: first what is to be said goes out, then TLS or the end, else the client speaks. */
  #go(): void {
    const negotiation = this.#negotiation;
    for (;;) {
      this.#output.push(...negotiation.takeOutput());
      if (this.#output.length > 0 || negotiation.stage !== "reading" || this.#start === this.#end) break;
      this.#start += negotiation.feed(this.#env.memory.slice(this.#bufferAt + this.#start, this.#end - this.#start));
      if (negotiation.options > this.#options) {
        this.#options = negotiation.options;
        this.movedAt = this.#env.clock.now();
      }
    }
    if (this.#output.length > 0) this.#send();
    else if (negotiation.stage === "securing") this.#secure();
    else if (negotiation.stage === "over") this.#finish();
    else this.#receive();
  }

  #receive(): void {
    this.#start = this.#end = 0;
    this.#busy = "receiving";
    this.#line.receive(this.#bufferAt, RECEIVE_BYTES);
  }

  #send(): void {
    const sendAt = this.#bufferAt + RECEIVE_BYTES;
    const { bytes } = this.#env.memory;
    let count = 0;
    let used = 0;
    while (used < this.#output.length && count < SEND_BYTES) {
      const rest = this.#output[used]!.subarray(this.#outputFrom, this.#outputFrom + SEND_BYTES - count);
      bytes.set(rest, sendAt + count);
      count += rest.length;
      this.#outputFrom += rest.length;
      if (this.#outputFrom < this.#output[used]!.length) break;
      this.#outputFrom = 0;
      used++;
    }
    this.#output = this.#output.slice(used);
    this.#pieces = this.#home.takePieces();
    this.#pieces.add(sendAt, count);
    this.#busy = "sending";
    this.#line.send(this.#pieces);
  }

  #givePieces(): void {
    if (this.#pieces !== undefined) this.#home.givePieces(this.#pieces);
    this.#pieces = undefined;
  }

  #secure(): void {
    if (this.#start < this.#end) {
      // Whoever put it there without TLS must not have it taken for what the client says under TLS.
      this.end("violated", "the client sent something between STARTTLS and TLS");
      return;
    }
    this.#busy = "securing";
    const resume = (line: Line | NetError): void => {
      this.#busy = undefined;
      if ("fault" in line) {
        this.#over = true;
        this.#env.memory.free(this.#bufferAt);
        this.#home.onHandshakeEnded(this, this.#ending ?? { why: "refused", detail: `TLS failed: ${line.detail}` });
        return;
      }
      this.#line = line;
      line.ear = this;
      this.#peer = exportPeer(line, true);
      if (this.#ending !== undefined) {
        line.close();
        return;
      }
      this.movedAt = this.#env.clock.now();
      this.#negotiation.secured();
      this.#go();
    };
    this.#env.net.secure(this.#line, { ...this.#home.options.identity, role: "server" })((line) => resume(line));
  }

  #finish(): void {
    const outcome = this.#negotiation.outcome!;
    if (outcome.kind === "ended") {
      this.end(outcome.why, outcome.detail);
      return;
    }
    const unread = this.#end - this.#start;
    const { bytes } = this.#env.memory;
    bytes.copyWithin(this.#bufferAt, this.#bufferAt + this.#start, this.#bufferAt + this.#end);
    this.#over = true;
    this.#home.onAgreed(this, this.#line, outcome.agreement, this.#bufferAt, unread);
  }
}

export function exportPeer(line: Line, secure: boolean): ExportPeer {
  const { host, port, localHost, localPort, tlsName } = line.peer;
  return { front: "nbd", host, port, localHost, localPort, tlsName, secure };
}
