/** Datagrams over node:dgram, for both real Envs: few and small, so outside of the lane's memory. */
import { createSocket } from "node:dgram";
import { isIPv6 } from "node:net";
import type { Effect } from "#base/task";
import type { DatagramAddress, Datagrams, NetError } from "../env.ts";
import { netError } from "../faults.ts";

export function openDatagrams(
  at: DatagramAddress,
  heard: (bytes: Uint8Array, from: DatagramAddress) => void,
): Effect<Datagrams | NetError> {
  return (resume) => {
    const socket = createSocket({ type: isIPv6(at.host) ? "udp6" : "udp4", reuseAddr: true });
    const refuse = (error: Error): void => {
      socket.close();
      resume(netError(error));
    };
    socket.once("error", refuse);
    socket.bind({ port: at.port, address: at.host }, () => {
      socket.off("error", refuse);
      // A datagram that could not be sent is a datagram that was lost.
      socket.on("error", () => {});
      socket.setBroadcast(true);
      socket.unref();
      socket.on("message", (bytes, { address, port }) => heard(bytes, { host: address, port }));
      const { address, port } = socket.address();
      let closed = false;
      resume({
        address: { host: address, port },
        send: (bytes, to) => {
          if (!closed) socket.send(bytes, to.port, to.host, () => {});
        },
        close: () => {
          if (!closed) socket.close();
          closed = true;
        },
      });
    });
  };
}
