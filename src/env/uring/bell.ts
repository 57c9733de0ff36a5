/**
 * Wakes Node's loop when a ring has completions. The kernel can signal an eventfd for a ring, but Node cannot watch an
 * eventfd. So a second, tiny ring waits for the eventfd and then sends one byte down a socket pair, whose other end is
 * an ordinary socket of Node. Nothing runs and no thread waits while the lane sleeps, and what wakes Node otherwise
 * (message ports, timers, other sockets) wakes it as always.
 */
import { readdirSync, readFileSync, readlinkSync } from "node:fs";
import { Socket } from "node:net";
import { MSG_NOSIGNAL, OP, SQE_IO_LINK } from "./abi.ts";
import { loadNative } from "./native.ts";
import type { Remains } from "./remains.ts";
import { type Request, Ring } from "./ring.ts";

/** The epoll descriptor that watches `fd`, by what the kernel tells about each of them. */
function findLoop(fd: number): number {
  const watched = new RegExp(`^tfd:\\s+${fd} `, "m");
  try {
    for (const name of readdirSync("/proc/self/fd"))
      if (
        readlinkOf(name) === "anon_inode:[eventpoll]" &&
        watched.test(readFileSync(`/proc/self/fdinfo/${name}`, "utf8"))
      )
        return Number(name);
  } catch {
    // No /proc: the lane waits for shorter times instead.
  }
  return -1;
}

function readlinkOf(fd: string): string {
  try {
    return readlinkSync(`/proc/self/fd/${fd}`);
  } catch {
    // Closed meanwhile, by another thread.
    return "";
  }
}

export class Bell {
  readonly #ring: Ring;
  readonly #remains: Remains;
  readonly #eventfd: number;
  readonly #far: number;
  readonly #socket: Socket;
  /** Eight bytes for the eventfd's count, and the byte that is sent. Pinned by this reference. */
  readonly #bytes = Buffer.allocUnsafeSlow(16).fill(0);
  readonly #bytesAt: number;
  readonly #read: Request = { index: 0, complete() {} };
  readonly #send: Request = { index: 0, complete() {} };
  readonly #near: number;
  #loopFd: number | undefined;
  #armed = false;
  #keepsAlive = false;

  /** @param woken called in a turn of Node's loop of its own. */
  constructor(watched: Ring, remains: Remains, woken: () => void) {
    const native = loadNative();
    if ("missing" in native) throw new Error(native.missing);
    this.#bytesAt = native.address(this.#bytes);
    this.#remains = remains;
    this.#ring = new Ring({ entries: 4, completions: 8, defer: false }, remains);
    this.#eventfd = native.eventfd();
    remains.add(this.#eventfd);
    watched.registerEventfd(this.#eventfd);
    this.#ring.register(this.#read);
    this.#ring.register(this.#send);
    const [near, far] = native.pair();
    this.#far = far;
    remains.add(far);
    const ring = (): boolean => {
      this.#ring.reap();
      this.#armed = false;
      woken();
      return true;
    };
    // Node's types know `onread` only for outgoing connections: a buffer of ours instead of a new one for each read.
    const options = { fd: near, writable: false, onread: { buffer: Buffer.alloc(64), callback: ring } };
    this.#socket = new Socket(options as object).unref();
    this.#near = near;
  }

  /**
   * Node's own epoll descriptor, which tells when Node's loop has something to do; -1 when it is not to be found.
   * Node watches a new socket from its next round on: do not ask before that.
   */
  get loopFd(): number {
    this.#loopFd ??= findLoop(this.#near);
    return this.#loopFd;
  }

  /**
   * Makes the bell ring with the eventfd's next signal, or at once if there was one.
   * @param keepAlive whether the process must not end while it waits.
   */
  arm(keepAlive: boolean): void {
    if (this.#keepsAlive !== keepAlive) {
      this.#keepsAlive = keepAlive;
      if (keepAlive) this.#socket.ref();
      else this.#socket.unref();
    }
    if (this.#armed) return;
    this.#armed = true;
    this.#ring.prepare(this.#read, OP.READ, this.#eventfd, this.#bytesAt, 8, 0, 0, SQE_IO_LINK);
    this.#ring.prepare(this.#send, OP.SEND, this.#far, this.#bytesAt + 8, 1, 0, MSG_NOSIGNAL);
    this.#ring.enter(0, 0);
  }

  close(): void {
    this.#ring.close();
    this.#socket.destroy();
    const native = loadNative();
    if ("missing" in native) return;
    for (const fd of [this.#far, this.#eventfd]) {
      this.#remains.remove(fd);
      native.close(fd);
    }
  }
}
