/** Our NBD client against the servers that there are: nbdkit, qemu-nbd and nbd-server. */
import assert from "node:assert/strict";
import { existsSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, test } from "node:test";
import { Refusal } from "#base/refusal";
import { UringEnv } from "#env/uring/uring-env";
import { type ConnectOptions, connect, list, type RemoteHandle } from "#library/connect";
import { exportFile, importFile } from "#library/copy";
import { logOf, type Told } from "#test/support/client";
import { differential } from "#test/support/differential";
import { Program, run, until } from "#test/support/program";
import { chance } from "#test/support/random";
import { freePort, type Scope, tempFolder } from "#test/support/temp";

const MIB = 1 << 20;
const told: Told[] = [];
const options: ConnectOptions = { log: logOf(told), waitMs: 10_000, memoryBytes: 64 * MIB };

async function opened(scope: Scope, uri: string, more: ConnectOptions = {}): Promise<RemoteHandle> {
  const device = await connect(uri, { ...options, ...more });
  scope.after(() => device.close().catch(() => {}));
  return device;
}

function started(scope: Scope, program: string, args: readonly string[]): Program {
  const server = new Program(program, args);
  scope.after(async () => void (await server.stop("SIGKILL")));
  return server;
}

/** nbdkit on a socket of its own. The server is stopped before the client is closed: so clients close first. */
async function nbdkit(
  scope: Scope,
  args: readonly string[],
  more: ConnectOptions = {},
  uri = "",
): Promise<RemoteHandle> {
  const socket = join(tempFolder(scope), "nbd");
  const server = new Program("nbdkit", ["-f", "--exit-with-parent", "-U", socket, ...args]);
  const device = await connect(uri === "" ? `nbd+unix:///?socket=${socket}` : uri.replace("SOCKET", socket), {
    ...options,
    ...more,
  });
  scope.after(async () => {
    await device.close().catch(() => {});
    await server.stop("SIGKILL");
  });
  return device;
}

describe("nbdkit", () => {
  test("memory: everything at random over four connections", async (context) => {
    const device = await nbdkit(context, ["memory", "4M"]);
    const { features } = device;
    assert.ok(
      features.multiConn && features.fua && features.zero && features.fastZero && features.cache && features.status,
    );
    assert.equal(features.replies, "structured");
    await until("four connections", () => device.figures.connections === 4);
    await differential(
      device,
      chance((line) => context.diagnostic(line)),
      {
        operations: 1_500,
        workers: 24,
        lengthMax: 200_000,
        trimReadsZero: true,
      },
    );
    await device.cache(0, MIB);
  });

  test("memory over io_uring: the same", async (context) => {
    const env = new UringEnv({ memoryBytes: 64 * MIB, log: logOf(told) });
    const device = await nbdkit(context, ["memory", "4M"], { env });
    context.after(() => env.close());
    await differential(
      device,
      chance((line) => context.diagnostic(line)),
      {
        operations: 1_500,
        workers: 24,
        lengthMax: 200_000,
        trimReadsZero: true,
      },
    );
  });

  test("an odd size, and byte by byte", async (context) => {
    const device = await nbdkit(context, ["memory", "1000001"]);
    assert.equal(device.size, 1_000_001);
    await differential(
      device,
      chance((line) => context.diagnostic(line)),
      {
        operations: 400,
        workers: 8,
        lengthMax: 5_000,
        trimReadsZero: true,
      },
    );
  });

  test("the policy of blocks: what is not aligned is refused by the server, and never sent by us", async (context) => {
    const device = await nbdkit(context, [
      "--filter=blocksize-policy",
      "memory",
      "4M",
      "blocksize-error-policy=error",
      "blocksize-minimum=4096",
      "blocksize-preferred=65536",
      "blocksize-maximum=131072",
    ]);
    assert.equal(device.grainBytes, 4096);
    assert.equal(device.preferredBlockSize, 65536);
    await differential(
      device,
      chance((line) => context.diagnostic(line)),
      {
        operations: 500,
        workers: 8,
        lengthMax: 300_000,
        trimReadsZero: true,
      },
    );
  });

  test("a slow server: requests wait together, and answers come in any order", async (context) => {
    const device = await nbdkit(context, ["--filter=delay", "memory", "4M", "rdelay=30ms", "wdelay=10ms"]);
    const begun = performance.now();
    await Promise.all(Array.from({ length: 64 }, (_, index) => device.read(index * 4096, 4096)));
    assert.ok(performance.now() - begun < 64 * 30, "they were waited for one by one");
  });

  test("errors of the server are statuses of ours, and the next request is none the worse", async (context) => {
    const failing = (error: string, ...which: string[]): Promise<RemoteHandle> =>
      nbdkit(context, ["--filter=error", "memory", "4M", `error=${error}`, ...which], { connections: 1 });
    const eio = await failing("EIO", "error-pread-rate=100%");
    await assert.rejects(eio.read(0, 4096), { status: "medium" });
    await eio.write(0, new Uint8Array(4096));
    const full = await failing("ENOSPC", "error-pwrite-rate=100%");
    await assert.rejects(full.write(0, new Uint8Array(4096)), { status: "full" });
    assert.equal((await full.read(0, 4096)).length, 4096);
    const flush = await nbdkit(context, [
      "eval",
      "get_size=echo 1048576",
      "pread=head -c $3 /dev/zero",
      "pwrite=cat >/dev/null",
      "can_write=exit 0",
      "can_flush=exit 0",
      "flush=echo EIO >&2; exit 1",
    ]);
    await flush.write(0, new Uint8Array(4096).fill(1));
    await assert.rejects(flush.flush(), { status: "failed" });
    await assert.rejects(flush.write(0, new Uint8Array(4096)), { status: "failed" });
    const some = await failing("EPERM", "error-rate=20%");
    const ends = await Promise.allSettled(Array.from({ length: 200 }, (_, index) => some.read(index * 4096, 4096)));
    const failures = ends.flatMap((end) => (end.status === "rejected" ? [end.reason.status] : []));
    assert.ok(failures.length > 5 && failures.length < 150 && failures.every((status) => status === "denied"));
  });

  test("without structured replies, zeroes, trim, flush: what is left works", async (context) => {
    const device = await nbdkit(context, [
      "--filter=nozero",
      "--filter=noextents",
      "--no-sr",
      "memory",
      "2M",
      "zeromode=none",
    ]);
    assert.deepEqual([device.features.replies, device.features.status, device.features.zero], ["simple", false, false]);
    await differential(
      device,
      chance((line) => context.diagnostic(line)),
      {
        operations: 400,
        workers: 8,
        lengthMax: 100_000,
        trimReadsZero: true,
      },
    );
  });

  test("read-only exports, lists of exports, and exports that are not there", async (context) => {
    const device = await nbdkit(context, ["-r", "memory", "2M"]);
    assert.ok(device.readOnly);
    await assert.rejects(device.write(0, new Uint8Array(512)), { status: "denied" });
    const socket = join(tempFolder(context), "nbd");
    const uri = (name: string): string => `nbd+unix:///${name}?socket=${socket}`;
    started(context, "nbdkit", [
      "-f",
      "-U",
      socket,
      "--filter=exportname",
      "memory",
      "2M",
      "exportname=a b",
      "exportname=c",
      "exportname-list=explicit",
      "exportname-strict=true",
    ]);
    await until("listening", () =>
      list(uri("")).then(
        () => true,
        () => false,
      ),
    );
    assert.deepEqual(
      (await list(uri(""))).map(({ name }) => name),
      ["a b", "c"],
    );
    assert.equal((await opened(context, uri("a%20b"))).size, 2 * MIB);
    await assert.rejects(connect(uri("d")), (error) => error instanceof Refusal && error.code === "not-found");
  });

  test("killed under load and started again on the same file: nothing that was flushed is lost, nothing is twisted", async (context) => {
    const folder = tempFolder(context);
    const [socket, file] = [join(folder, "nbd"), join(folder, "disk")];
    await run("truncate", ["-s", "4M", file]);
    const start = (): Program => new Program("nbdkit", ["-f", "-U", socket, "file", file]);
    let server = start();
    let restarted = Promise.resolve();
    const device = await connect(`nbd+unix:///?socket=${socket}`, options);
    context.after(async () => {
      await device.close().catch(() => {});
      await server.stop("SIGKILL");
    });
    await differential(
      device,
      chance((line) => context.diagnostic(line)),
      {
        operations: 1_200,
        workers: 16,
        lengthMax: 60_000,
        trimReadsZero: true,
        disturb: {
          every: 250,
          // One after another: a worker may come here before the one that came last is through.
          by: () => {
            restarted = restarted.then(async () => {
              await server.stop("SIGKILL");
              rmSync(socket, { force: true });
              server = start();
            });
            return restarted;
          },
        },
      },
    );
    assert.ok(device.figures.connectionsLost > 0);
  });

  test("images go in and out", async (context) => {
    const folder = tempFolder(context);
    const device = await nbdkit(context, ["memory", "32M"]);
    const image = join(folder, "image");
    await run("dd", ["if=/dev/urandom", `of=${image}`, "bs=1M", "count=5", "seek=3"]);
    await importFile(image, device, { targetIsZero: true, verify: true });
    await exportFile(device, join(folder, "back"), { verify: true });
    await run("cmp", ["-n", String(8 * MIB), image, join(folder, "back")]);
  });
});

describe("TLS, against nbdkit and qemu-nbd", () => {
  const openssl = (folder: string, ...args: string[]): Promise<string> => run("openssl", args, { cwd: folder });
  async function authority(scope: Scope): Promise<string> {
    const folder = tempFolder(scope);
    await openssl(
      folder,
      "req",
      "-x509",
      "-newkey",
      "rsa:2048",
      "-nodes",
      "-keyout",
      "ca-key.pem",
      "-out",
      "ca-cert.pem",
      "-days",
      "2",
      "-subj",
      "/CN=authority",
    );
    for (const who of ["server", "client"]) {
      await openssl(
        folder,
        "req",
        "-newkey",
        "rsa:2048",
        "-nodes",
        "-keyout",
        `${who}-key.pem`,
        "-out",
        `${who}.csr`,
        "-subj",
        `/CN=${who}`,
      );
      writeFileSync(join(folder, "names"), "subjectAltName=DNS:volumes.test,DNS:localhost,IP:127.0.0.1\n");
      await openssl(
        folder,
        "x509",
        "-req",
        "-in",
        `${who}.csr`,
        "-CA",
        "ca-cert.pem",
        "-CAkey",
        "ca-key.pem",
        "-CAcreateserial",
        "-days",
        "2",
        "-extfile",
        "names",
        "-out",
        `${who}-cert.pem`,
      );
    }
    return folder;
  }
  const denied = (error: unknown): boolean => error instanceof Refusal && error.code === "not-allowed";

  test("certificates: by address, by name, with and without trust", async (context) => {
    const pki = await authority(context);
    const port = await freePort();
    const server = started(context, "nbdkit", [
      "-f",
      "-i",
      "127.0.0.1",
      "-p",
      String(port),
      "--tls=require",
      "--tls-verify-peer",
      `--tls-certificates=${pki}`,
      "memory",
      "4M",
    ]);
    const uri = `nbds://127.0.0.1:${port}/?tls-certificates=${pki}`;
    const device = await opened(context, uri);
    assert.ok(device.features.tls);
    const data = new Uint8Array(3 * MIB).map((_, index) => index * 13);
    await device.write(0, data);
    assert.deepEqual(await device.read(0, data.length), data);
    await device.close();
    const byName = await connect(`${uri}&tls-hostname=volumes.test`, options);
    await byName.close();
    await assert.rejects(connect(`${uri}&tls-hostname=other.test`), denied);
    await assert.rejects(connect(`nbd://127.0.0.1:${port}/`), denied);
    // Without a certificate of ours, and with an authority that has not signed theirs.
    const other = await authority(context);
    await assert.rejects(connect(`nbds://127.0.0.1:${port}/?tls-certificates=${other}`), denied);
    const unchecked = await connect(`${uri}&tls-hostname=other.test&tls-verify-peer=0`, options);
    await unchecked.close();
    assert.equal(server.end, undefined);
  });

  test("pre-shared keys, over TCP and a Unix socket", async (context) => {
    const folder = tempFolder(context);
    const keys = join(folder, "keys.psk");
    writeFileSync(keys, `alice:${"0123456789abcdef".repeat(4)}\nbob:${"fedcba9876543210".repeat(4)}\n`);
    const device = await nbdkit(
      context,
      ["--tls=require", `--tls-psk=${keys}`, "memory", "4M"],
      {},
      `nbds+unix://alice@/?socket=SOCKET&tls-psk-file=${keys}`,
    );
    await device.write(0, new Uint8Array(MIB).fill(7));
    assert.ok((await device.read(0, MIB)).every((byte) => byte === 7));
    const wrong = join(folder, "wrong.psk");
    writeFileSync(wrong, `alice:${"00".repeat(32)}\n`);
    const port = await freePort();
    started(context, "nbdkit", [
      "-f",
      "-i",
      "127.0.0.1",
      "-p",
      String(port),
      "--tls=require",
      `--tls-psk=${keys}`,
      "memory",
      "4M",
    ]);
    const bob = await connect(`nbds://bob@127.0.0.1:${port}/?tls-psk-file=${keys}`, options);
    await bob.close();
    await assert.rejects(connect(`nbds://alice@127.0.0.1:${port}/?tls-psk-file=${wrong}`), denied);
    await assert.rejects(connect(`nbds://carol@127.0.0.1:${port}/?tls-psk-file=${keys}`), /no key for "carol"/);
  });

  test("TLS where the server has none is refused, and nothing is sent in the clear", async (context) => {
    const port = await freePort();
    started(context, "nbdkit", ["-f", "-i", "127.0.0.1", "-p", String(port), "memory", "1M"]);
    const plain = await connect(`nbd://127.0.0.1:${port}/`, options);
    await plain.close();
    const pki = await authority(context);
    await assert.rejects(
      connect(`nbds://127.0.0.1:${port}/?tls-certificates=${pki}`),
      (error) => error instanceof Refusal && error.code === "unsupported" && /tls-unsupported/.test(error.message),
    );
  });

  test("qemu-nbd with certificates", async (context) => {
    const pki = await authority(context);
    const folder = tempFolder(context);
    const port = await freePort();
    await run("qemu-img", ["create", "-q", "-f", "raw", join(folder, "disk"), "4M"]);
    started(context, "qemu-nbd", [
      "-t",
      "-f",
      "raw",
      "-b",
      "127.0.0.1",
      "-p",
      String(port),
      "--object",
      `tls-creds-x509,id=t,endpoint=server,verify-peer=on,dir=${pki}`,
      "--tls-creds",
      "t",
      join(folder, "disk"),
    ]);
    const device = await opened(context, `nbds://127.0.0.1:${port}/?tls-certificates=${pki}`);
    await device.write(4096, new Uint8Array(4096).fill(1));
    assert.ok((await device.read(4096, 4096)).every((byte) => byte === 1));
    await device.close();
  });
});

describe("qemu-nbd", () => {
  test("raw: everything at random", async (context) => {
    const folder = tempFolder(context);
    const [disk, socket] = [join(folder, "disk"), join(folder, "nbd")];
    await run("qemu-img", ["create", "-q", "-f", "raw", disk, "4M"]);
    started(context, "qemu-nbd", ["-t", "-e", "8", "-f", "raw", "--discard=unmap", "-k", socket, "-x", "raw", disk]);
    const device = await opened(context, `nbd+unix:///raw?socket=${socket}`);
    const copy = await differential(
      device,
      chance((line) => context.diagnostic(line)),
      {
        operations: 800,
        workers: 16,
        lengthMax: 150_000,
        trimReadsZero: false,
      },
    );
    assert.equal(copy.length, 4 * MIB);
    await device.close();
  });

  test("qcow2 over a backing file: the depth of each extent, as qemu-img map tells it", async (context) => {
    const folder = tempFolder(context);
    const path = (name: string): string => join(folder, name);
    const socket = path("nbd");
    await run("qemu-img", ["create", "-q", "-f", "qcow2", path("base"), "4M"]);
    await run("qemu-io", ["-c", "write -P 1 0 1M", path("base")]);
    await run("qemu-img", ["create", "-q", "-f", "qcow2", "-b", path("base"), "-F", "qcow2", path("top")]);
    await run("qemu-io", ["-c", "write -P 2 512k 128k", "-c", "write -z 2M 64k", path("top")]);
    started(context, "qemu-nbd", ["-t", "-e", "4", "-A", "-f", "qcow2", "-k", socket, path("top")]);
    const device = await opened(context, `nbd+unix:///?socket=${socket}`);
    assert.ok(device.features.depth && device.features.status);
    const KIB = 1024;
    assert.deepEqual(
      (await device.status(0, 3 * MIB)).map(({ offset, length, zero, depth }) => [
        offset / KIB,
        length / KIB,
        zero,
        depth,
      ]),
      [
        [0, 512, false, 2],
        [512, 128, false, 1],
        [640, 384, false, 2],
        [1024, 1024, true, 0],
        [2048, 64, true, 1],
        [2112, 960, true, 0],
      ],
    );
    assert.ok((await device.read(512 * KIB, 128 * KIB)).every((byte) => byte === 2));
    await device.close();
  });
});

describe("nbd-server", () => {
  test("everything at random, flush and FUA; an export that is not there", async (context) => {
    const folder = tempFolder(context);
    const port = await freePort();
    await run("truncate", ["-s", "4M", join(folder, "disk")]);
    writeFileSync(
      join(folder, "config"),
      `[generic]\nuser = root\ngroup = root\nport = ${port}\nlistenaddr = 127.0.0.1\nallowlist = true\n[disk]\nexportname = ${folder}/disk\nflush = true\nfua = true\ntrim = true\nsync = false\n`,
    );
    // With -d it would serve one client only; without, it goes into the background by itself.
    const pid = join(folder, "pid");
    await run("nbd-server", ["-C", join(folder, "config"), "-p", pid]);
    await until("in the background", () => existsSync(pid) && readFileSync(pid, "utf8").endsWith("\n"));
    const server = Number(readFileSync(pid, "utf8"));
    context.after(() => process.kill(server));
    const device = await opened(context, `nbd://127.0.0.1:${port}/disk`);
    await differential(
      device,
      chance((line) => context.diagnostic(line)),
      {
        operations: 500,
        workers: 8,
        lengthMax: 100_000,
        trimReadsZero: false,
      },
    );
    assert.deepEqual(
      (await list(`nbd://127.0.0.1:${port}`)).map(({ name }) => name),
      ["disk"],
    );
    await assert.rejects(connect(`nbd://127.0.0.1:${port}/other`), Refusal);
    await device.close();
  });
});
