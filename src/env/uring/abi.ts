/**
 * What we use of Linux's io_uring (include/uapi/linux/io_uring.h), of its sockets, and of the structures of both, for
 * 64-bit little-endian machines. Names are the kernel's.
 */
import { layout } from "#base/layout";

/** System call numbers, the same on every architecture (asm-generic/unistd.h). */
export const SYS = { io_uring_setup: 425, io_uring_enter: 426, io_uring_register: 427 } as const;

export const SETUP = {
  CQSIZE: 1 << 3,
  CLAMP: 1 << 4,
  /** 5.18 */
  SUBMIT_ALL: 1 << 7,
  /** 5.19 */
  COOP_TASKRUN: 1 << 8,
  /** 5.19 */
  TASKRUN_FLAG: 1 << 9,
  /** 6.0 */
  SINGLE_ISSUER: 1 << 12,
  /** 6.1 */
  DEFER_TASKRUN: 1 << 13,
} as const;

export const FEAT = {
  SINGLE_MMAP: 1 << 0,
  NODROP: 1 << 1,
  SUBMIT_STABLE: 1 << 2,
  FAST_POLL: 1 << 5,
  EXT_ARG: 1 << 8,
} as const;

export const ENTER = { GETEVENTS: 1 << 0, EXT_ARG: 1 << 3 } as const;

export const REGISTER = { EVENTFD: 4, PROBE: 8 } as const;

export const OP = {
  NOP: 0,
  READV: 1,
  WRITEV: 2,
  FSYNC: 3,
  POLL_ADD: 6,
  SENDMSG: 9,
  TIMEOUT: 11,
  ACCEPT: 13,
  ASYNC_CANCEL: 14,
  CONNECT: 16,
  FALLOCATE: 17,
  CLOSE: 19,
  READ: 22,
  WRITE: 23,
  MADVISE: 25,
  SEND: 26,
  RECV: 27,
} as const;
export type Op = (typeof OP)[keyof typeof OP];

export const SQE_IO_LINK = 1 << 2;
export const FSYNC_DATASYNC = 1;
/** madvise(2). */
export const ADVICE = { POPULATE_WRITE: 23 } as const;
export const POLLIN = 1;
/** Flags of a submission queue: CQ_OVERFLOW, TASKRUN. */
export const SQ_WORK = (1 << 1) | (1 << 2);
/** Flag of a completion queue: no eventfd notifications for now. */
export const CQ_EVENTFD_DISABLED = 1;
export const OFFSETS = { SQ_RING: 0, SQES: 0x1000_0000 } as const;

/** struct io_uring_params; `sq…` and `cq…` are where in the mapping the counters lie. */
export const PARAMS = layout({
  sq_entries: 4,
  cq_entries: 4,
  flags: 4,
  sq_thread_cpu: 4,
  sq_thread_idle: 4,
  features: 4,
  wq_fd: 4,
  resv: 12,
  sq_head: 4,
  sq_tail: 4,
  sq_ring_mask: 4,
  sq_ring_entries: 4,
  sq_flags: 4,
  sq_dropped: 4,
  sq_array: 4,
  sq_resv: 12,
  cq_head: 4,
  cq_tail: 4,
  cq_ring_mask: 4,
  cq_ring_entries: 4,
  cq_overflow: 4,
  cqes: 4,
  cq_flags: 4,
  cq_resv: 12,
});

/** struct io_uring_sqe, in words of 32 bits. */
export const SQE_WORDS = 16;
/** struct io_uring_cqe, in words: user_data, its upper half, res, flags. */
export const CQE_WORDS = 4;

/** struct io_uring_probe and its entries: which operations the kernel has. */
export const PROBE_HEAD_BYTES = 16;
export const PROBE_OP_BYTES = 8;
export const PROBE_SUPPORTED = 1;
export const PROBE_OPS_MAX = 256;

/** struct io_uring_getevents_arg: signal mask, its size, padding, and where the timespec is. */
export const GETEVENTS_ARG = layout({ sigmask: 8, sigmask_sz: 4, pad: 4, ts: 8 });
export const TIMESPEC = layout({ tv_sec: 8, tv_nsec: 8 });

/** struct msghdr; all of it is 64-bit words. */
export const MSGHDR = layout({ name: 8, namelen: 8, iov: 8, iovlen: 8, control: 8, controllen: 8, flags: 8 });
export const IOVEC_BYTES = 16;

export const AF = { UNIX: 1, INET: 2, INET6: 10 } as const;
export const SOCK_STREAM = 1;
export const SOCK_CLOEXEC = 0o2000000;
export const SOL_SOCKET = 1;
export const SO = { REUSEADDR: 2, ERROR: 4, KEEPALIVE: 9, LINGER: 13, ACCEPTCONN: 30, DOMAIN: 39 } as const;
export const IPPROTO = { TCP: 6, IPV6: 41 } as const;
export const TCP_NODELAY = 1;
/** Seconds before the first probe and between probes, and how many go unanswered. */
export const TCP_KEEP = { IDLE: 4, INTERVAL: 5, COUNT: 6 } as const;
export const IPV6_V6ONLY = 26;
export const IP_BIND_ADDRESS_NO_PORT = 24;
export const MSG_NOSIGNAL = 0x4000;
/** For sends: the kernel goes on after a short one by itself (5.19). */
export const MSG_WAITALL = 0x100;
/** struct sockaddr_storage. */
export const SOCKADDR_BYTES = 128;

/** Error numbers that mean something to us by themselves; all others are told by name. */
export const ERRNO = { EINTR: 4, EAGAIN: 11, EINVAL: 22, ETIME: 62, ECONNABORTED: 103, ECANCELED: 125 } as const;
