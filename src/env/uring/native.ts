/**
 * The C library's calls that the io_uring Env is made of, and memory that the kernel may write to. Raw addresses exist
 * in this folder only. All calls are synchronous and short; what can take long is an operation of the ring.
 */
import { getSystemErrorName } from "node:util";
import { koffi } from "../libc.ts";
import { SO, SOL_SOCKET } from "./abi.ts";

/** A mapping, until `unmap`. Using its bytes after that would end the process: owners drop their views first. */
export interface Mapping {
  readonly at: number;
  readonly bytes: ArrayBuffer;
  unmap(): void;
}

export interface Native {
  /** The result, or minus the error number, as the kernel gives it. */
  setup(entries: number, params: Uint8Array): number;
  enter(ring: number, submit: number, wait: number, flags: number, arg: number, argBytes: number): number;
  /** pwritev(2): a gathered write, done when it returns. */
  write(fd: number, iovecs: number, count: number, position: number): number;
  /** pread(2): what there is at once of so many bytes, or all of them. */
  read(fd: number, at: number, length: number, position: number): number;
  /** fdatasync(2). */
  sync(fd: number): number;
  register(ring: number, what: number, arg: Uint8Array, count: number): number;
  map(fd: number, length: number, offset: number): Mapping;
  /** munmap(2), for what another thread has left. */
  unmap(at: number, length: number): void;
  /** Where the first byte of a fixed buffer lies. It must be referenced for as long as the kernel may use it. */
  address(of: Uint8Array): number;
  socket(domain: number, type: number): number;
  bind(fd: number, address: Uint8Array, length: number): number;
  listen(fd: number, backlog: number): number;
  setOption(fd: number, level: number, option: number, value: number): number;
  getOption(fd: number, level: number, option: number): number;
  /** close(2) is going to drop what was not sent yet, and to reset the connection. */
  resetOnClose(fd: number): number;
  /** Both fill `address` and return the length they have filled. */
  ownName(fd: number, address: Uint8Array): number;
  peerName(fd: number, address: Uint8Array): number;
  /** Makes operations wait, or not. */
  setBlocking(fd: number, blocking: boolean): number;
  eventfd(): number;
  /** Two connected stream sockets. */
  pair(): [number, number];
  /** Ends both directions of a socket, or a listener, at once. */
  shutdown(fd: number): number;
  close(fd: number): number;
  /** madvise(2): asks for huge pages from `at` on. A hint: where the kernel has none, nothing changes. */
  preferHugePages(at: number, length: number): number;
  /** How often this thread has lost the processor while it wanted it. */
  preemptions(): number;
}

/** struct rusage: two times, then fourteen words, of which `ru_nivcsw` is the last. */
const RUSAGE_NIVCSW = 136;
const RUSAGE_BYTES = 144;

let native: Native | { readonly missing: string } | undefined;

/** The calls, or why they are not to be had on this machine. */
export function loadNative(): Native | { readonly missing: string } {
  native ??= load();
  return native;
}

function load(): Native | { readonly missing: string } {
  if (process.platform !== "linux") return { missing: `io_uring is Linux's, and this is ${process.platform}` };
  if (new Uint8Array(Uint32Array.of(1).buffer)[0] !== 1) return { missing: "this machine is big-endian" };
  const ffi = koffi();
  if ("missing" in ffi) return ffi;
  const libc = ffi.load("libc.so.6");
  /** Failing calls answer minus the error number. */
  const checked =
    <Args extends unknown[]>(call: (...args: Args) => number) =>
    (...args: Args): number => {
      const result = call(...args);
      return result < 0 ? -ffi.errno() : result;
    };
  // `syscall` takes variable arguments; on the ABIs that Linux has, six integers are passed the same way.
  const setup = libc.func("long syscall(long, uint32_t, _Inout_ uint8_t *)");
  const enter = libc.func("long syscall(long, uint32_t, uint32_t, uint32_t, uint32_t, intptr_t, size_t)");
  const pwritev = libc.func("intptr_t pwritev(int, intptr_t, int, int64_t)");
  const pread = libc.func("intptr_t pread(int, intptr_t, size_t, int64_t)");
  const register = libc.func("long syscall(long, uint32_t, uint32_t, _Inout_ uint8_t *, uint32_t)");
  const socket = libc.func("int socket(int, int, int)");
  const mmap = libc.func("intptr_t mmap(intptr_t, size_t, int, int, int, int64_t)");
  const munmap = libc.func("int munmap(intptr_t, size_t)");
  const getsockopt = libc.func("int getsockopt(int, int, int, _Inout_ uint8_t *, _Inout_ uint32_t *)");
  const setsockopt = libc.func("int setsockopt(int, int, int, _In_ uint8_t *, uint32_t)");
  const fcntl = libc.func("int fcntl(int, int, int)");
  const madvise = libc.func("int madvise(intptr_t, size_t, int)");
  const socketpair = libc.func("int socketpair(int, int, int, _Out_ int32_t *)");
  const eventfd = libc.func("int eventfd(uint32_t, int)");
  const shutdown = libc.func("int shutdown(int, int)");
  const getrusage = libc.func("int getrusage(int, _Inout_ uint8_t *)");
  const usage = new Uint8Array(RUSAGE_BYTES);
  const usageView = new DataView(usage.buffer);
  const names = (call: string) => {
    const get = libc.func(`int ${call}(int, _Inout_ uint8_t *, _Inout_ uint32_t *)`);
    return (fd: number, address: Uint8Array): number => {
      const length = Uint32Array.of(address.length);
      return get(fd, address, length) < 0 ? -ffi.errno() : length[0]!;
    };
  };
  return {
    setup: checked((entries: number, params: Uint8Array) => setup(425, entries, params)),
    enter: (ring, submit, wait, flags, arg, argBytes) => {
      const result = enter(426, ring, submit, wait, flags, arg, argBytes);
      return result < 0 ? -ffi.errno() : result;
    },
    write: (fd, iovecs, count, position) => {
      const result = pwritev(fd, iovecs, count, position);
      return result < 0 ? -ffi.errno() : result;
    },
    read: (fd, at, length, position) => {
      const result = pread(fd, at, length, position);
      return result < 0 ? -ffi.errno() : result;
    },
    sync: checked(libc.func("int fdatasync(int)")),
    register: checked((ring: number, what: number, arg: Uint8Array, count: number) =>
      register(427, ring, what, arg, count),
    ),
    map: (fd, length, offset) => {
      // PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE
      const at = mmap(0, length, 3, 0x8001, fd, offset);
      if (at === -1) throw new Error(`mmap: ${errorName(ffi.errno())}`);
      return { at, bytes: ffi.view(BigInt(at), length), unmap: () => void munmap(at, length) };
    },
    unmap: (at, length) => void munmap(at, length),
    address: (of) => Number(ffi.address(of)),
    socket: checked((domain: number, type: number) => socket(domain, type, 0)),
    bind: checked(libc.func("int bind(int, _In_ uint8_t *, uint32_t)")),
    listen: checked(libc.func("int listen(int, int)")),
    setOption: checked((fd: number, level: number, option: number, value: number) =>
      setsockopt(fd, level, option, new Uint8Array(Int32Array.of(value).buffer), 4),
    ),
    getOption: (fd, level, option) => {
      const value = new Uint8Array(4);
      const failed = getsockopt(fd, level, option, value, Uint32Array.of(4)) < 0;
      return failed ? -ffi.errno() : new DataView(value.buffer).getInt32(0, true);
    },
    // struct linger: l_onoff, l_linger
    resetOnClose: checked((fd: number) =>
      setsockopt(fd, SOL_SOCKET, SO.LINGER, new Uint8Array(Int32Array.of(1, 0).buffer), 8),
    ),
    ownName: names("getsockname"),
    peerName: names("getpeername"),
    preferHugePages: (at, length) => {
      // MADV_HUGEPAGE
      return madvise(at, length, 14) < 0 ? -ffi.errno() : 0;
    },
    setBlocking: (fd, blocking) => {
      // F_GETFL, F_SETFL, O_NONBLOCK
      const flags = fcntl(fd, 3, 0);
      const wanted = blocking ? flags & ~0o4000 : flags | 0o4000;
      return flags < 0 || fcntl(fd, 4, wanted) < 0 ? -ffi.errno() : 0;
    },
    // EFD_CLOEXEC
    eventfd: checked(() => eventfd(0, 0o2000000)),
    pair: () => {
      const fds = new Int32Array(2);
      // AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC
      if (socketpair(1, 1 | 0o2000000, 0, fds) < 0) throw new Error(`socketpair: ${errorName(ffi.errno())}`);
      return [fds[0]!, fds[1]!];
    },
    preemptions: () => {
      // RUSAGE_THREAD
      getrusage(1, usage);
      return usageView.getInt32(RUSAGE_NIVCSW, true);
    },
    shutdown: (fd) => shutdown(fd, 2),
    close: checked(libc.func("int close(int)")),
  };
}

/** "EAGAIN" for 11. */
export function errorName(errno: number): string {
  return getSystemErrorName(-errno);
}

/** As Node's own errors: a code and a message. */
export function systemError(call: string, errno: number): Error {
  const code = errorName(errno);
  return Object.assign(new Error(`${call} ${code}`), { code });
}
