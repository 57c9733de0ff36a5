/**
 * A line over a stream of Node (plain or TLS socket). Node reads ahead by at most `READ_AHEAD_BYTES`; beyond that, not
 * calling `receive` stops the other side. Received bytes are copied into the lane's memory once.
 */
import type { Socket } from "node:net";
import type { Memory, Pieces } from "#base/memory";
import type { Millis } from "#base/units";
import type { Ear, Line, LineEnd, Peer } from "../env.ts";
import { codeOf, isReset } from "../faults.ts";

export const READ_AHEAD_BYTES = 128 * 1024;

export class NodeLine implements Line {
  ear!: Ear;
  readonly peer: Peer;
  readonly socket: Socket;
  /** The socket that has the connection: with TLS, the one below. */
  readonly #carrier: Socket;
  readonly #memory: Memory;
  #at = 0;
  /** Bytes asked for; 0 when nothing is being received. */
  #length = 0;
  #restAt = 0;
  #restLength = 0;
  #ended = false;
  #detached = false;
  /** Set by `close`: from then on only `onClosed` is told. */
  #closing = false;
  #end: LineEnd = "broken";

  constructor(memory: Memory, socket: Socket, tlsName = "", carrier = socket) {
    this.#memory = memory;
    this.socket = socket;
    this.#carrier = carrier;
    this.peer = peerOf(socket, tlsName);
    socket.on("readable", this.#deliver);
    socket.on("end", this.#onEnd);
    socket.on("error", this.#onError);
    socket.on("close", this.#onClose);
  }

  receive(at: number, length: number, restAt = 0, restLength = 0): void {
    this.#at = at;
    this.#length = length;
    this.#restAt = restAt;
    this.#restLength = restLength;
    process.nextTick(this.#deliver);
  }

  send(pieces: Pieces): void {
    const { count } = pieces;
    if (count === 0) {
      process.nextTick(this.#onSent);
      return;
    }
    this.socket.cork();
    for (let piece = 0; piece < count; piece++) {
      const view = this.#memory.slice(pieces.at[piece]!, pieces.length[piece]!);
      if (piece < count - 1) this.socket.write(view);
      else this.socket.write(view, this.#onSent);
    }
    this.socket.uncork();
  }

  keepAlive(idleMs: Millis): void {
    this.socket.setKeepAlive(true, idleMs);
  }

  close(): void {
    if (this.#closing) return;
    this.#closing = true;
    this.#end = "stopped";
    this.socket.destroy();
  }

  abort(): void {
    // A Unix socket's bytes are with the other side as soon as they are sent, and Node has no reset for it.
    if (!this.#closing && this.peer.host !== "") this.#carrier.resetAndDestroy();
    this.close();
  }

  /** Lets go of the socket, with what it has read ahead, for somebody else to continue it. */
  detach(): Socket {
    this.#detached = true;
    this.socket.off("readable", this.#deliver);
    this.socket.off("end", this.#onEnd);
    this.socket.off("close", this.#onClose);
    return this.socket;
  }

  readonly #deliver = (): void => {
    if (this.#length === 0 || this.#closing || this.#detached) return;
    const count = Math.min(this.#length + this.#restLength, this.socket.readableLength);
    if (count > 0) {
      const bytes = this.socket.read(count) as Uint8Array;
      const { bytes: memory } = this.#memory;
      if (count <= this.#length) memory.set(bytes, this.#at);
      else {
        memory.set(bytes.subarray(0, this.#length), this.#at);
        memory.set(bytes.subarray(this.#length), this.#restAt);
      }
      this.#tell(count);
    } else if (this.#ended) {
      this.#tell(0);
    } else {
      // An empty read makes the stream notice its end.
      this.socket.read();
    }
  };

  #tell(count: number): void {
    this.#length = 0;
    this.ear.onReceived(count);
  }

  readonly #onEnd = (): void => {
    this.#ended = true;
    if (this.#length > 0 && !this.#closing) this.#tell(0);
  };

  readonly #onSent = (error?: Error | null): void => {
    // Node reports success for a write that it cancels because the stream has been destroyed.
    if (!error && !this.#closing && !this.socket.destroyed) this.ear.onSent();
  };

  readonly #onError = (error: Error): void => {
    if (!this.#closing) this.#end = isReset(codeOf(error)) ? "reset" : "broken";
  };

  readonly #onClose = (): void => {
    this.#closing = true;
    this.ear.onClosed(this.#end);
  };
}

function peerOf(socket: Socket, tlsName: string): Peer {
  return {
    host: plainHost(socket.remoteAddress),
    port: socket.remotePort ?? 0,
    localHost: plainHost(socket.localAddress),
    localPort: socket.localPort ?? 0,
    tlsName,
  };
}

/** An IPv4 address on an IPv6 socket as what it is. */
function plainHost(host = ""): string {
  return host.startsWith("::ffff:") && host.includes(".") ? host.slice(7) : host;
}
