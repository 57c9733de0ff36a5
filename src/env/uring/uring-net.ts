/** Sockets in the ring. Making and naming them are short system calls; accept, connect, receive and send are the ring's. */
import { lookup } from "node:dns";
import { unlinkSync } from "node:fs";
import { Socket } from "node:net";
import type { Effect } from "#base/task";
import type { Address, Alarm, Clock, DialOptions, Handover, Line, Listener, Net, NetError, Peer, Tls } from "../env.ts";
import { isNetError } from "../env.ts";
import { codeOf, netError } from "../faults.ts";
import { openDatagrams } from "../node/node-datagrams.ts";
import { NodeLine, READ_AHEAD_BYTES } from "../node/node-line.ts";
import { replaceStale } from "../node/node-net.ts";
import { secureSocket } from "../node/node-tls.ts";
import {
  AF,
  ERRNO,
  IP_BIND_ADDRESS_NO_PORT,
  IPPROTO,
  IPV6_V6ONLY,
  OP,
  SO,
  SOCK_CLOEXEC,
  SOCK_STREAM,
  SOCKADDR_BYTES,
  SOL_SOCKET,
  TCP_NODELAY,
} from "./abi.ts";
import type { UringCore } from "./core.ts";
import { systemError } from "./native.ts";
import type { Request } from "./ring.ts";
import { decodeName, encodeHost, encodePath, type SocketName } from "./sockaddr.ts";
import { UringLine } from "./uring-line.ts";

/** Connections that wait to be accepted. */
const BACKLOG = 511;
/** When accepting fails for want of descriptors or memory, it is tried again after this. */
const ACCEPT_PAUSE_MS = 50;

export class UringNet implements Net {
  readonly datagrams = openDatagrams;
  readonly handover: Handover = {
    detach: (line) => (line instanceof UringLine ? { fd: line.detach(), peer: line.peer } : undefined),
    adopt: (fd, peer) => new UringLine(this.#core, fd, peer),
  };
  readonly #core: UringCore;
  readonly #clock: Clock;

  constructor(core: UringCore, clock: Clock) {
    this.#core = core;
    this.#clock = clock;
  }

  listen(at: Address, accept: (line: Line) => void): Effect<Listener | NetError> {
    return (resume) => {
      const open = (fd: number, unlinkPath?: string, isOurs = true): void => {
        const onAccepted = (accepted: number, peer: Peer) => accept(this.handover.adopt(accepted, peer));
        resume(new UringListener(this.#core, this.#clock, { fd, isOurs, unlinkPath }, onAccepted));
      };
      const refuse = (error: unknown): void => resume(netError(error));
      const listenAt = (name: SocketName, retry: boolean): void => {
        try {
          open(this.#openListener(name), "path" in at ? at.path : undefined);
        } catch (error) {
          if (retry && "path" in at && codeOf(error) === "EADDRINUSE")
            replaceStale(at.path, () => listenAt(name, false), refuse);
          else refuse(error);
        }
      };
      if ("fd" in at) {
        const { native } = this.#core;
        if (native.getOption(at.fd, SOL_SOCKET, SO.ACCEPTCONN) !== 1)
          return resume({ fault: "bad-address", detail: `descriptor ${at.fd} is not a listening socket` });
        // The ring waits by itself; a descriptor that does not block would make it give up instead.
        native.setBlocking(at.fd, true);
        // It was given to the process, which may listen on it again.
        open(at.fd, undefined, false);
      } else if ("path" in at) {
        const name = encodePath(at.path);
        if (name === undefined) resume({ fault: "bad-address", detail: `"${at.path}" is too long for a Unix socket` });
        else listenAt(name, true);
      } else {
        this.#resolve(at.host, at.port, (names) => (isNetError(names) ? resume(names) : listenAt(names[0]!, false)));
      }
    };
  }

  dial(to: Address, options: DialOptions = {}): Effect<Line | NetError> {
    return (resume) => {
      if ("fd" in to) return resume({ fault: "bad-address", detail: "a listening socket cannot be dialled" });
      const dial = new Dial(this.#core, this.#clock, options, (result) => {
        resume(isNetError(result) ? result : this.handover.adopt(result.fd, result.peer));
      });
      if ("path" in to) {
        const name = encodePath(to.path);
        if (name === undefined) resume({ fault: "bad-address", detail: `"${to.path}" is too long for a Unix socket` });
        else dial.start([name]);
      } else {
        this.#resolve(to.host, to.port, (names) => (isNetError(names) ? dial.fail(names) : dial.start(names)));
      }
    };
  }

  secure(line: Line, tls: Tls): Effect<Line | NetError> {
    return (resume) => {
      if (!(line instanceof UringLine)) return resume({ fault: "unsupported", detail: "not a line of this Env" });
      // TLS is Node's; from here on the socket lives in its loop.
      const { turn, memory } = this.#core;
      const socket = new Socket({ fd: line.detach(), allowHalfOpen: true, highWaterMark: READ_AHEAD_BYTES } as object);
      turn.guests++;
      socket.once("close", () => turn.guests--);
      secureSocket(
        socket,
        tls,
      )((secured) =>
        resume(isNetError(secured) ? secured : new NodeLine(memory, secured.socket, secured.name, socket)),
      );
    };
  }

  /** @throws like Node's own calls: an error with a code. */
  #openListener(name: SocketName): number {
    const { native } = this.#core;
    const fd = native.socket(name.domain, SOCK_STREAM | SOCK_CLOEXEC);
    if (fd < 0) throw systemError("socket", -fd);
    // What is set on a listener, its connections have.
    if (name.domain !== AF.UNIX) {
      native.setOption(fd, SOL_SOCKET, SO.REUSEADDR, 1);
      native.setOption(fd, SOL_SOCKET, SO.KEEPALIVE, 1);
      native.setOption(fd, IPPROTO.TCP, TCP_NODELAY, 1);
    }
    // "::" is for everybody, as in Node.
    if (name.domain === AF.INET6) native.setOption(fd, IPPROTO.IPV6, IPV6_V6ONLY, 0);
    let call = "bind";
    let result = native.bind(fd, name.bytes, name.length);
    if (result === 0) {
      call = "listen";
      result = native.listen(fd, BACKLOG);
    }
    if (result === 0) return fd;
    native.close(fd);
    throw systemError(call, -result);
  }

  #resolve(host: string, port: number, done: (names: SocketName[] | NetError) => void): void {
    const name = encodeHost(host, port);
    if (!Number.isInteger(port) || port < 0 || port > 65535) {
      done({ fault: "bad-address", detail: `${port} is not a port` });
    } else if (name !== undefined) {
      done([name]);
    } else {
      lookup(host, { all: true }, (error, found) => {
        const names = (found ?? []).flatMap(({ address }) => encodeHost(address, port) ?? []);
        done(error ? netError(error) : names);
      });
    }
  }
}

class UringListener implements Listener, Request {
  readonly address: Address;
  index = 0;
  readonly #core: UringCore;
  readonly #fd: number;
  readonly #isOurs: boolean;
  readonly #unlinkPath: string | undefined;
  readonly #accepted: (fd: number, peer: Peer) => void;
  readonly #retry: Alarm;
  /** Where the kernel writes who came, and how long that is. Pinned by this reference. */
  readonly #name = Buffer.allocUnsafeSlow(SOCKADDR_BYTES + 4);
  readonly #nameAt: number;
  #accepting = false;
  #closed = false;

  constructor(
    core: UringCore,
    clock: Clock,
    { fd, isOurs, unlinkPath }: { fd: number; isOurs: boolean; unlinkPath: string | undefined },
    accepted: (fd: number, peer: Peer) => void,
  ) {
    this.#core = core;
    this.#fd = fd;
    this.#isOurs = isOurs;
    if (isOurs) core.remains.add(fd);
    this.#unlinkPath = unlinkPath;
    this.#accepted = accepted;
    this.#nameAt = core.native.address(this.#name);
    const own = ownName(core, fd);
    this.address = own.host === "" ? { path: own.path } : { host: own.host, port: own.port };
    this.#retry = clock.alarm(() => this.#accept());
    core.ring.register(this);
    this.#accept();
  }

  complete(result: number): void {
    this.#accepting = false;
    if (this.#closed) {
      if (result >= 0) this.#core.native.close(result);
      this.#release();
    } else if (result >= 0) {
      const { host, port } = decodeName(this.#name, this.#name.readUInt32LE(SOCKADDR_BYTES));
      const own = ownName(this.#core, result);
      const peer = { host, port, localHost: own.host, localPort: own.port, tlsName: "" };
      this.#accept();
      this.#accepted(result, peer);
    } else if (result === -ERRNO.EINTR || result === -ERRNO.EAGAIN || result === -ERRNO.ECONNABORTED) {
      this.#accept();
    } else {
      this.#retry.at = performance.now() + ACCEPT_PAUSE_MS;
    }
  }

  close(): void {
    if (this.#closed) return;
    this.#closed = true;
    this.#retry.at = Infinity;
    if (this.#unlinkPath !== undefined) {
      try {
        unlinkSync(this.#unlinkPath);
      } catch {
        // Somebody else has removed it.
      }
    }
    if (this.#accepting) {
      this.#core.ring.cancel(this);
      this.#core.turn.kick();
    } else this.#release();
  }

  #accept(): void {
    if (this.#closed) return;
    this.#accepting = true;
    this.#name.writeUInt32LE(SOCKADDR_BYTES, SOCKADDR_BYTES);
    const { ring, turn } = this.#core;
    // The position is the address of the name's length.
    ring.prepare(this, OP.ACCEPT, this.#fd, this.#nameAt, 0, this.#nameAt + SOCKADDR_BYTES, SOCK_CLOEXEC);
    turn.kick();
  }

  #release(): void {
    if (this.#isOurs) this.#core.closeFd(this.#fd);
    this.#core.ring.release(this);
  }
}

/** One dial: the addresses of a name, tried one after the other within one time. */
class Dial implements Request {
  index = 0;
  readonly #core: UringCore;
  readonly #options: DialOptions;
  readonly #done: (result: { fd: number; peer: Peer } | NetError) => void;
  readonly #alarm: Alarm;
  #names: SocketName[] = [];
  #name: SocketName | undefined;
  #fd = -1;
  #timedOut = false;
  #finished = false;

  constructor(
    core: UringCore,
    clock: Clock,
    options: DialOptions,
    done: (result: { fd: number; peer: Peer } | NetError) => void,
  ) {
    this.#core = core;
    this.#options = options;
    this.#done = done;
    core.ring.register(this);
    this.#alarm = clock.alarm(() => this.#onTimeout());
    if (options.timeoutMs !== undefined) this.#alarm.at = clock.now() + options.timeoutMs;
  }

  start(names: SocketName[]): void {
    if (this.#finished) return;
    this.#names = names;
    this.#next({ fault: "bad-address", detail: "the name has no address" });
  }

  fail(error: NetError): void {
    if (!this.#finished) this.#finish(error);
  }

  complete(result: number): void {
    if (result === 0) {
      const fd = this.#fd;
      const { host, port } = decodeName(this.#name!.bytes, this.#name!.length);
      const own = ownName(this.#core, fd);
      this.#finish({ fd, peer: { host, port, localHost: own.host, localPort: own.port, tlsName: "" } });
      return;
    }
    this.#core.closeFd(this.#fd);
    this.#fd = -1;
    if (this.#timedOut) this.#finish(this.#timeout());
    else this.#next(netError(systemError("connect", -result)));
  }

  #next(last: NetError): void {
    const { native, ring, turn } = this.#core;
    for (this.#name = this.#names.shift(); this.#name !== undefined; this.#name = this.#names.shift()) {
      const { domain, bytes, length } = this.#name;
      const fd = native.socket(domain, SOCK_STREAM | SOCK_CLOEXEC);
      const refused = fd < 0 ? netError(systemError("socket", -fd)) : this.#prepareSocket(fd, this.#name);
      if (refused === undefined) {
        this.#fd = fd;
        this.#core.remains.add(fd);
        ring.prepare(this, OP.CONNECT, fd, native.address(bytes), 0, length, 0);
        turn.kick();
        return;
      }
      if (fd >= 0) native.close(fd);
      last = refused;
    }
    this.#finish(last);
  }

  #prepareSocket(fd: number, to: SocketName): NetError | undefined {
    const { native } = this.#core;
    if (to.domain === AF.UNIX) return undefined;
    native.setOption(fd, SOL_SOCKET, SO.KEEPALIVE, 1);
    native.setOption(fd, IPPROTO.TCP, TCP_NODELAY, 1);
    const { localHost, localPort } = this.#options;
    if (localHost === undefined && localPort === undefined) return undefined;
    const from = encodeHost(localHost ?? (to.domain === AF.INET ? "0.0.0.0" : "::"), localPort ?? 0);
    if (from === undefined || from.domain !== to.domain)
      return { fault: "bad-address", detail: `${localHost} cannot be the source of a connection to this address` };
    // A port is chosen when it is known where to: many more connections fit.
    if (localPort === undefined) native.setOption(fd, 0, IP_BIND_ADDRESS_NO_PORT, 1);
    else native.setOption(fd, SOL_SOCKET, SO.REUSEADDR, 1);
    const result = native.bind(fd, from.bytes, from.length);
    return result < 0 ? netError(systemError("bind", -result)) : undefined;
  }

  #onTimeout(): void {
    if (this.#finished) return;
    this.#timedOut = true;
    if (this.#fd >= 0) {
      this.#core.ring.cancel(this);
      this.#core.turn.kick();
    } else this.#finish(this.#timeout());
  }

  #timeout(): NetError {
    return { fault: "timeout", detail: `no answer within ${this.#options.timeoutMs} ms` };
  }

  #finish(result: { fd: number; peer: Peer } | NetError): void {
    this.#finished = true;
    this.#alarm.at = Infinity;
    this.#core.ring.release(this);
    this.#done(result);
  }
}

function ownName(core: UringCore, fd: number): { host: string; port: number; path: string } {
  const bytes = new Uint8Array(SOCKADDR_BYTES);
  return decodeName(bytes, core.native.ownName(fd, bytes));
}
