/** What an Env on this machine must do with other programs' sockets: half-closed lines, resets, TLS, descriptors. */
import assert from "node:assert/strict";
import { execFileSync } from "node:child_process";
import { once } from "node:events";
import { mkdtempSync, readFileSync, rmSync } from "node:fs";
import net from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, describe, test } from "node:test";
import koffi from "koffi";
import { perform, promiseOf, type Task } from "#base/task";
import { isNetError, type Line, type Listener, type NetError, type Tls } from "#env/env";
import { connected, type Ground, good, Porter, pause, Talk } from "./env-ground.ts";

const portOf = (listener: Listener): number => ("port" in listener.address ? listener.address.port : 0);

/** How /proc/net/tcp names the near end of a connection of 127.0.0.1 with itself. */
const tcpPair = (near: number, far: number): string =>
  [near, far].map((port) => `0100007F:${port.toString(16).toUpperCase().padStart(4, "0")}`).join(" ");

/** A stream of Node's as the other side. */
function* dialled(ground: Ground) {
  const porter = new Porter(ground.env);
  const listener = good(yield* perform(ground.env.net.listen(ground.address, porter.accept)));
  const port = portOf(listener);
  const socket = net.connect({ port, host: "127.0.0.1", allowHalfOpen: true });
  socket.on("error", () => {});
  const talk = yield* perform(porter.next());
  return { socket, talk, listener };
}

export function envPeersContract(name: string, make: () => Ground): void {
  const claim = (title: string, body: (ground: Ground) => Task<void>): void => {
    test(title, async () => {
      const ground = make();
      await promiseOf(body(ground));
      assert.equal(ground.env.memory.used, 0, "memory was not given back");
      await ground.close();
    });
  };

  describe(`${name}: peers`, () => {
    claim("who has finished sending can still be answered", function* (ground) {
      const { socket, talk, listener } = yield* dialled(ground);
      socket.end("question");
      assert.equal(yield* talk.hearAll(8), "question");
      assert.equal(yield* perform(talk.receive()), 0);
      yield* talk.say("answer");
      let text = "";
      socket.on("data", (data) => {
        text += data;
      });
      yield* talk.close();
      yield* perform((resume) => once(socket, "end").then(resume));
      assert.equal(text, "answer");
      socket.destroy();
      listener.close();
    });

    claim("a reset is told as one, while receiving and while sending", function* (ground) {
      const { env } = ground;
      const { socket, talk, listener } = yield* dialled(ground);
      talk.receive()(() => {});
      yield* perform(pause(env, 2));
      socket.resetAndDestroy();
      assert.equal(yield* perform(talk.closed()), "reset");

      const porter = new Porter(env);
      const other = good(yield* perform(env.net.listen(ground.address, porter.accept)));
      const peer = net.connect({ port: portOf(other), host: "127.0.0.1" });
      peer.on("error", () => {});
      const sender = yield* perform(porter.next());
      const at = env.memory.allocate(2 ** 20);
      sender.pieces.clear();
      for (let i = 0; i < 512; i++) sender.pieces.add(at + ((i + 1) % 2) * 2 ** 19, 2 ** 19);
      sender.sendPieces()(() => {});
      yield* perform(pause(env, 5));
      peer.resetAndDestroy();
      assert.equal(yield* perform(sender.closed()), "reset");
      assert.deepEqual(sender.heard, ["closed reset"]);
      env.memory.free(at);
      listener.close();
      other.close();
    });

    claim("a line that is aborted does not go on sending", function* (ground) {
      const { env } = ground;
      const { socket, talk, listener } = yield* dialled(ground);
      // More than the kernel takes: the rest waits on this machine, and a line that is closed has it delivered later.
      socket.pause();
      const length = 2 ** 20;
      const at = env.memory.allocate(length);
      talk.pieces.clear();
      talk.pieces.add(at, length);
      for (let i = 1; i < 32; i++) talk.pieces.add(at, length);
      talk.sendPieces()(() => {});
      yield* perform(pause(env, 20));
      const isInKernel = () =>
        readFileSync("/proc/net/tcp", "utf8").includes(tcpPair(portOf(listener), socket.localPort!));
      assert.ok(isInKernel());
      talk.line.abort();
      assert.equal(yield* perform(talk.closed()), "stopped");
      assert.ok(!isInKernel(), "the kernel still has something to send");
      env.memory.free(at);
      socket.destroy();
      listener.close();
    });

    claim("a listening socket that was handed to the process is used", function* (ground) {
      const { fd, port } = listeningSocket();
      const porter = new Porter(ground.env);
      const listener = good(yield* perform(ground.env.net.listen({ fd }, porter.accept)));
      assert.deepEqual(listener.address, { host: "127.0.0.1", port });
      const near = new Talk(ground.env, good(yield* perform(ground.env.net.dial(listener.address))));
      const far = yield* perform(porter.next());
      yield* near.close();
      yield* far.close();
      listener.close();
      yield* perform(pause(ground.env, 5));
      const missing = yield* perform(ground.env.net.listen({ fd: 999 }, () => {}));
      assert.ok(isNetError(missing) && missing.fault === "bad-address", JSON.stringify(missing));
    });

    claim("a dial comes from the address it is told to", function* (ground) {
      const { env } = ground;
      const porter = new Porter(env);
      const listener = good(yield* perform(env.net.listen(ground.address, porter.accept)));
      const near = new Talk(env, good(yield* perform(env.net.dial(listener.address, { localHost: "127.0.0.9" }))));
      const far = yield* perform(porter.next());
      assert.equal(far.line.peer.host, "127.0.0.9");
      yield* near.close();
      yield* far.close();
      const wrong = yield* perform(env.net.dial(listener.address, { localHost: "192.0.2.7" }));
      assert.ok(isNetError(wrong), JSON.stringify(wrong));
      listener.close();
    });

    claim("names are resolved, and unknown ones are refused", function* (ground) {
      const { env } = ground;
      const porter = new Porter(env);
      const listener = good(yield* perform(env.net.listen({ host: "localhost", port: 0 }, porter.accept)));
      const port = portOf(listener);
      const near = new Talk(env, good(yield* perform(env.net.dial({ host: "localhost", port }))));
      const far = yield* perform(porter.next());
      yield* near.close();
      yield* far.close();
      listener.close();
      const none = yield* perform(env.net.dial({ host: "no-such-host.invalid", port: 1 }));
      assert.ok(isNetError(none) && ["bad-address", "unreachable"].includes(none.fault), JSON.stringify(none));
      const noPlace = yield* perform(env.net.listen({ host: "192.0.2.7", port: 0 }, () => {}));
      assert.ok(isNetError(noPlace) && noPlace.fault === "bad-address", JSON.stringify(noPlace));
    });
  });

  describe(`${name}: TLS`, () => {
    const folder = mkdtempSync(join(tmpdir(), "ashlar-tls-"));
    after(() => rmSync(folder, { recursive: true }));
    const pem = (file: string): string => readFileSync(join(folder, file), "utf8");
    makeCertificates(folder);
    const psk = new Map([["alice", Uint8Array.from({ length: 32 }, (_, i) => i)]]);
    const wrongPsk = new Map([["alice", new Uint8Array(32)]]);
    const server: Tls = { role: "server", cert: pem("server.pem"), key: pem("server.key") };
    const client: Tls = { role: "client", ca: pem("ca.pem"), serverName: "volumes.test" };
    const shown = { cert: pem("client.pem"), key: pem("client.key") };

    /** Both ends of a line after the handshake, each a line or why not. */
    function* secured(ground: Ground, forServer: Tls, forClient: Tls) {
      const { near, far, listener } = yield* connected(ground);
      listener.close();
      const { env } = ground;
      const both = yield* perform((resume: (value: (Line | NetError)[]) => void) => {
        const results: (Line | NetError)[] = [];
        const settle = (index: number) => (result: Line | NetError) => {
          results[index] = result;
          if (results[0] && results[1]) resume(results);
        };
        env.net.secure(far.line, forServer)(settle(0));
        env.net.secure(near.line, forClient)(settle(1));
      });
      env.memory.free(near.buffer);
      env.memory.free(far.buffer);
      return both;
    }
    const works = (title: string, forServer: Tls, forClient: Tls, serverSees: string, clientSees: string): void =>
      claim(title, function* (ground) {
        const [atServer, atClient] = yield* secured(ground, forServer, forClient);
        const far = new Talk(ground.env, good(atServer!));
        const near = new Talk(ground.env, good(atClient!));
        assert.equal(far.line.peer.tlsName, serverSees);
        assert.equal(near.line.peer.tlsName, clientSees);
        const text = "secret ".repeat(20_000);
        const at = ground.env.memory.allocate(text.length);
        ground.env.memory.bytes.set(new TextEncoder().encode(text), at);
        near.pieces.clear();
        near.pieces.add(at, text.length);
        let sent = false;
        near.sendPieces()((done) => {
          sent = done;
        });
        assert.equal(yield* far.hearAll(text.length), text);
        yield* far.say("understood");
        assert.equal(yield* near.hearAll(10), "understood");
        assert.equal(sent, true);
        ground.env.memory.free(at);
        yield* near.close();
        assert.equal(yield* perform(far.receive()), 0);
        yield* far.close();
      });
    const fails = (title: string, forServer: Tls, forClient: Tls, says: RegExp): void =>
      claim(title, function* (ground) {
        const results = yield* secured(ground, forServer, forClient);
        let faults = 0;
        for (const result of results) {
          if (isNetError(result)) {
            assert.equal(result.fault, "tls-failed");
            if (says.test(result.detail)) faults++;
            continue;
          }
          // TLS 1.3: a client is done before the server has judged its certificate; then the line ends.
          const talk = new Talk(ground.env, result);
          assert.ok((yield* perform(talk.receive())) <= 0);
          yield* talk.close();
        }
        assert.ok(faults > 0, JSON.stringify(results.map((result) => ("fault" in result ? result.detail : "a line"))));
      });

    works("a server with a certificate", server, client, "", "volumes.test");
    works(
      "a server that asks clients for certificates",
      { ...server, ca: pem("ca.pem") },
      { ...client, ...shown },
      "host-7",
      "volumes.test",
    );
    works("a pre-shared key", { role: "server", psk }, { role: "client", psk }, "alice", "alice");
    works("both on offer, the key taken", { ...server, psk }, { role: "client", psk }, "alice", "alice");
    works("both on offer, the certificate taken", { ...server, psk }, client, "", "volumes.test");
    fails("a server whose name is another", server, { ...client, serverName: "other.test" }, /other\.test/);
    fails("a certificate that nobody known has signed", server, { role: "client", serverName: "volumes.test" }, /./);
    fails("a client without the certificate asked for", { ...server, ca: pem("ca.pem") }, client, /./);
    fails("a wrong key", { role: "server", psk }, { role: "client", psk: wrongPsk }, /./);
    fails("an unknown identity", { role: "server", psk: new Map() }, { role: "client", psk }, /./);

    claim("a line under TLS that is aborted is reset", function* (ground) {
      const [atServer, atClient] = yield* secured(ground, server, client);
      const far = new Talk(ground.env, good(atServer!));
      const near = new Talk(ground.env, good(atClient!));
      far.receive()(() => {});
      yield* perform(pause(ground.env, 5));
      near.line.abort();
      assert.equal(yield* perform(near.closed()), "stopped");
      assert.equal(yield* perform(far.closed()), "reset");
    });

    claim("a PEM that is none is a fault and not an exception", function* (ground) {
      const [atServer, atClient] = yield* secured(ground, { ...server, cert: "none" }, client);
      for (const result of [atServer!, atClient!]) assert.ok(isNetError(result) && result.fault === "tls-failed");
    });
  });
}

/** A listening socket on 127.0.0.1 as a service manager hands it over: a bare descriptor. */
function listeningSocket(): { fd: number; port: number } {
  const libc = koffi.load("libc.so.6");
  const address = new Uint8Array(16);
  new DataView(address.buffer).setUint16(0, 2, true);
  address.set([127, 0, 0, 1], 4);
  const fd: number = libc.func("int socket(int, int, int)")(2, 1, 0);
  assert.equal(libc.func("int bind(int, const void *, uint32_t)")(fd, address, 16), 0);
  assert.equal(libc.func("int listen(int, int)")(fd, 16), 0);
  assert.equal(libc.func("int getsockname(int, _Inout_ void *, _Inout_ void *)")(fd, address, Uint32Array.of(16)), 0);
  return { fd, port: new DataView(address.buffer).getUint16(2) };
}

/** An authority, a server "volumes.test" and a client "host-7". */
function makeCertificates(folder: string): void {
  const openssl = (...args: string[]): void => {
    execFileSync("openssl", args, { cwd: folder, stdio: "pipe" });
  };
  const key = (file: string): string[] => [
    "-newkey",
    "ec",
    "-pkeyopt",
    "ec_paramgen_curve:P-256",
    "-nodes",
    "-keyout",
    file,
  ];
  openssl("req", "-x509", ...key("ca.key"), "-out", "ca.pem", "-days", "2", "-subj", "/CN=authority");
  for (const [file, name] of [
    ["server", "volumes.test"],
    ["client", "host-7"],
  ])
    openssl(
      ...["req", "-x509", "-CA", "ca.pem", "-CAkey", "ca.key", ...key(`${file}.key`), "-out", `${file}.pem`],
      ...["-days", "2", "-subj", `/CN=${name}`, "-addext", `subjectAltName=DNS:${name}`],
      ...["-addext", "basicConstraints=critical,CA:FALSE"],
    );
}
