/** Where io_uring is forbidden for real, as container runtimes do it: a seccomp filter that answers io_uring_setup(2). */
import assert from "node:assert/strict";
import { randomBytes } from "node:crypto";
import { join } from "node:path";
import { test } from "node:test";
import { TestClient } from "./support/nbd.ts";
import { Program, run, runAny } from "./support/program.ts";
import { ASHLAR } from "./support/server.ts";
import { cleanUp, freePort, MIB, tempFolder } from "./support/temp.ts";

/** Runs a command in which io_uring_setup fails with the error number of the first argument. */
const FORBID = `
import ctypes, os, struct, sys
def op(code, jt, jf, k): return struct.pack("HBBI", code, jt, jf, k)
IO_URING_SETUP = 425
program = (op(0x20, 0, 0, 0)                              # load the system call's number
    + op(0x15, 0, 1, IO_URING_SETUP)                      # is it this one?
    + op(0x06, 0, 0, 0x00050000 | int(sys.argv[1]))       # SECCOMP_RET_ERRNO
    + op(0x06, 0, 0, 0x7fff0000))                         # SECCOMP_RET_ALLOW
code = ctypes.create_string_buffer(program, len(program))
fprog = ctypes.create_string_buffer(struct.pack("HxxxxxxP", 4, ctypes.addressof(code)))
prctl = ctypes.CDLL(None, use_errno=True).prctl
assert prctl(38, 1, 0, 0, 0) == 0                         # PR_SET_NO_NEW_PRIVS
assert prctl(22, 2, fprog, 0, 0) == 0, ctypes.get_errno() # PR_SET_SECCOMP, SECCOMP_MODE_FILTER
os.execvp(sys.argv[2], sys.argv[2:])
`;
const PYTHON = "/usr/bin/python3";

for (const { name, errno, why } of [
  { name: "EPERM", errno: 1, why: /io_uring is forbidden here/ },
  { name: "ENOSYS", errno: 38, why: /this kernel has no io_uring/ },
])
  test(`where a filter answers io_uring with ${name}, the server runs on node and says why, and uring is refused`, async (t) => {
    const data = join(tempFolder(t), "data");
    const port = await freePort();
    const forbidden = ["-c", FORBID, String(errno), process.execPath, ASHLAR];
    const serve = [...forbidden, "serve", "--data", data, "--nbd", `127.0.0.1:${port}`, "--http", "off"];

    const refused = await runAny(PYTHON, [...serve, "--env", "uring"]);
    assert.notEqual(refused.status, 0);
    assert.match(refused.stderr, why);
    assert.match(refused.stderr, /--env auto/);

    const server = new Program(PYTHON, serve);
    cleanUp(t, async () => void (await server.stop("SIGKILL")));
    const ashlar = (...args: string[]) => run(PYTHON, [...forbidden, "--data", data, ...args]);
    await ashlar("status", "--wait", "30");
    const doctor = JSON.parse(await ashlar("doctor", "--json"));
    assert.match(JSON.stringify(doctor), /node/);
    assert.match(JSON.stringify(doctor), why);

    await ashlar("volume", "create", "db", "--size", "16M");
    const client = await TestClient.open(port, "db");
    const written = randomBytes(MIB);
    await client.write(MIB, written);
    await client.flush();
    assert.deepEqual(await client.read(MIB, MIB), written);
    await client.close();
    assert.equal(await server.stop("SIGTERM"), "exit status 0");
  });
