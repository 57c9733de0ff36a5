/** A line in the ring: received into and sent from the lane's memory without a copy of ours. */
import type { Pieces } from "#base/memory";
import type { Millis } from "#base/units";
import type { Ear, Line, LineEnd, Peer } from "../env.ts";
import { isReset } from "../faults.ts";
import { ERRNO, IPPROTO, MSG_NOSIGNAL, MSG_WAITALL, OP, SO, SOL_SOCKET, TCP_KEEP } from "./abi.ts";
import type { UringCore } from "./core.ts";
import { Flow } from "./gathering.ts";
import { errorName } from "./native.ts";
import type { Request } from "./ring.ts";

/** Sends go on after a short one in the kernel; where it does not know that (before 5.19), we do. */
const SEND_FLAGS = MSG_NOSIGNAL | MSG_WAITALL;

export class UringLine implements Line {
  ear!: Ear;
  readonly peer: Peer;
  readonly #core: UringCore;
  readonly #receive: Request;
  readonly #send: Request;
  #fd: number;
  #receiving = false;
  /** A receive has been asked for, and has not begun. */
  #asked = false;
  /** What receives have brought, and whether the next one is to be held back. */
  readonly #flow = new Flow();
  #holds = false;
  #sending = false;
  #at = 0;
  #length = 0;
  #restAt = 0;
  #restLength = 0;
  #pieces!: Pieces;
  #sent = 0;
  /** Once set, only `onClosed` will be told, when nothing is in flight any more. */
  #closing = false;
  #end: LineEnd = "stopped";

  constructor(core: UringCore, fd: number, peer: Peer) {
    this.#core = core;
    this.#fd = fd;
    this.peer = peer;
    this.#receive = { index: 0, complete: (result) => this.#onReceived(result) };
    this.#send = { index: 0, complete: (result) => this.#onSent(result) };
    core.remains.add(fd);
    core.ring.register(this.#receive);
    core.ring.register(this.#send);
  }

  receive(at: number, length: number, restAt = 0, restLength = 0): void {
    this.#at = at;
    this.#length = length;
    this.#restAt = restAt;
    this.#restLength = restLength;
    this.#asked = true;
    if (this.#holds) this.#core.gate.hold(this);
    else this.#core.gate.next(this);
    this.#holds = false;
    this.#core.turn.kick();
  }

  gather(requests: number): void {
    this.#holds = this.#core.gate.choose(this.#flow, requests);
  }

  /** Of `Gate`: the receive begins. */
  goOn(): void {
    this.#asked = false;
    this.#submitReceive();
  }

  send(pieces: Pieces): void {
    this.#pieces = pieces;
    this.#sent = 0;
    this.#submitSend();
  }

  keepAlive(idleMs: Millis): void {
    if (this.#closing || this.peer.host === "") return;
    const { native } = this.#core;
    native.setOption(this.#fd, SOL_SOCKET, SO.KEEPALIVE, 1);
    native.setOption(this.#fd, IPPROTO.TCP, TCP_KEEP.IDLE, Math.ceil(idleMs / 1000));
    // As Node does it.
    native.setOption(this.#fd, IPPROTO.TCP, TCP_KEEP.INTERVAL, 1);
    native.setOption(this.#fd, IPPROTO.TCP, TCP_KEEP.COUNT, 10);
  }

  close(): void {
    this.#finish("stopped");
  }

  abort(): void {
    if (!this.#closing) this.#core.native.resetOnClose(this.#fd);
    this.close();
  }

  /** Lets go of the socket, for somebody else to continue it; nothing may be in flight. The line is told no more. */
  detach(): number {
    if (this.#receiving || this.#asked || this.#sending || this.#closing)
      throw new Error("a line in use cannot be handed over");
    this.#release();
    this.#core.remains.remove(this.#fd);
    return this.#fd;
  }

  #submitReceive(): void {
    if (this.#closing) return;
    this.#receiving = true;
    const { ring, base, turn } = this.#core;
    if (this.#restLength === 0) {
      ring.prepare(this.#receive, OP.RECV, this.#fd, base + this.#at, this.#length, 0, 0);
    } else {
      // Not RECVMSG: the kernel writes to a message when it is done, and the arena's are other ones' by then.
      const first = ring.takeIovecs(2);
      ring.setIovec(first, base + this.#at, this.#length);
      ring.setIovec(first + 1, base + this.#restAt, this.#restLength);
      ring.prepare(this.#receive, OP.READV, this.#fd, ring.iovecAddress(first), 2, 0, 0);
    }
    turn.kick();
  }

  #submitSend(): void {
    if (this.#closing) return;
    this.#sending = true;
    const { ring, base, turn } = this.#core;
    const pieces = this.#pieces;
    if (pieces.total === 0) {
      ring.prepare(this.#send, OP.NOP, -1, 0, 0, 0, 0);
    } else if (pieces.count === 1) {
      const address = base + pieces.at[0]! + this.#sent;
      ring.prepare(this.#send, OP.SEND, this.#fd, address, pieces.total - this.#sent, 0, SEND_FLAGS);
    } else {
      const first = ring.takeIovecs(pieces.count);
      const count = this.#core.fillIovecs(first, pieces, this.#sent);
      ring.prepare(this.#send, OP.SENDMSG, this.#fd, ring.makeMessage(first, count), 1, 0, SEND_FLAGS);
    }
    turn.kick();
  }

  #onReceived(result: number): void {
    this.#receiving = false;
    if (this.#closing) this.#closeIfIdle();
    else if (result >= 0) this.ear.onReceived(result);
    else if (result === -ERRNO.EINTR || result === -ERRNO.EAGAIN) this.#submitReceive();
    else this.#fail(-result);
  }

  #onSent(result: number): void {
    this.#sending = false;
    if (this.#fd < 0) this.#tellClosed();
    else if (this.#closing) this.#closeIfIdle();
    else if (result === -ERRNO.EINTR || result === -ERRNO.EAGAIN) this.#submitSend();
    else if (result < 0) this.#fail(-result);
    else {
      this.#sent += result;
      if (this.#sent < this.#pieces.total) this.#submitSend();
      else this.ear.onSent();
    }
  }

  #fail(errno: number): void {
    this.#finish(isReset(errorName(errno)) ? "reset" : "broken");
  }

  #finish(end: LineEnd): void {
    if (this.#closing) return;
    this.#closing = true;
    this.#end = end;
    const { ring } = this.#core;
    if (this.#receiving) ring.cancel(this.#receive);
    if (this.#sending) ring.cancel(this.#send);
    this.#closeIfIdle();
    this.#core.turn.kick();
  }

  /** The descriptor is closed when no request uses it any more; otherwise a new socket could get its number. */
  #closeIfIdle(): void {
    if (this.#receiving || this.#sending) return;
    this.#sending = true;
    const fd = this.#fd;
    this.#fd = -1;
    this.#core.remains.remove(fd);
    this.#core.ring.prepare(this.#send, OP.CLOSE, fd, 0, 0, 0, 0);
  }

  #tellClosed(): void {
    this.#release();
    this.ear.onClosed(this.#end);
  }

  #release(): void {
    this.#core.ring.release(this.#receive);
    this.#core.ring.release(this.#send);
  }
}
