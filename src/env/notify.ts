/** Tells systemd what becomes of a service (sd_notify(3)): a datagram on a Unix socket, which Node cannot send. */
import { koffi } from "./libc.ts";

const AF_UNIX = 1;
const SOCK_DGRAM = 2;
const SOCK_CLOEXEC = 0o2000000;
/** struct sockaddr_un: the family, and at most 108 bytes of a path. */
const FAMILY_BYTES = 2;
const PATH_BYTES_MAX = 108;

/** Sends `state` ("READY=1") where NOTIFY_SOCKET says. Without it, or without native code, nothing happens. */
export function notifyServiceManager(state: string): void {
  const path = process.env["NOTIFY_SOCKET"];
  const native = koffi();
  if (path === undefined || path === "" || "missing" in native) return;
  const name = Buffer.from(path);
  // A name in the abstract namespace is written with @ for its leading zero.
  if (path.startsWith("@")) name[0] = 0;
  if (name.length > PATH_BYTES_MAX) return;
  const address = Buffer.alloc(FAMILY_BYTES + name.length);
  address.writeUInt16LE(AF_UNIX);
  name.copy(address, FAMILY_BYTES);
  const libc = native.load("libc.so.6");
  const socket = libc.func("int socket(int, int, int)") as (domain: number, type: number, protocol: number) => number;
  const sendTo = libc.func("ssize_t sendto(int, void *, size_t, int, void *, uint32_t)");
  const close = libc.func("int close(int)");
  const fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
  if (fd < 0) return;
  const message = Buffer.from(state);
  sendTo(fd, message, message.length, 0, address, address.length);
  close(fd);
}
