/** `ashlar attach --device` in a Linux 6.12 guest: the kernel's own disk over SCP, kept over kill -9 of the server. */
import assert from "node:assert/strict";
import test, { after, before } from "node:test";
import { AttachStage } from "../support/attached.ts";
import { Guest } from "../support/guest.ts";
import { ASHLAR } from "../support/server.ts";
import { fileScope } from "../support/temp.ts";

const scope = fileScope();
const LIMIT_MS = 300_000;
let stage: AttachStage;
let guest: Guest;
let attach = "";

before(async () => {
  stage = await AttachStage.make(scope, "256M");
  guest = await Guest.boot({ modules: ["nbd", "ext4"] });
  // The sockets of its software-emulated processor are not as quick as ours: what is measured elsewhere does not matter.
  attach = `${process.execPath} ${ASHLAR} attach $HOST:${stage.port} --host web --secret-file ${stage.secretFile} --device /dev/nbd0`;
});
after(() => guest?.stop());

const DETACHED = `
  for i in $(seq 300); do
    [ "$(blockdev --getsize64 /dev/nbd0)" = 0 ] && [ -z "$(ls /run/ashlar | grep -v attach.log)" ] && break; sleep 0.1
  done
  blockdev --getsize64 /dev/nbd0; ls /run/ashlar; echo "left: $(pgrep -f 'bin/attach.js|nbd-client' | wc -l)"`;

test("a unit is /dev/nbd0, with a file system on it, and gone when it is detached", { timeout: LIMIT_MS }, async () => {
  const output = await guest.run(
    `set -e
    ${attach}
    blockdev --getsize64 /dev/nbd0
    mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 /dev/nbd0
    mkdir -p /mnt/db; mount /dev/nbd0 /mnt/db
    for i in 1 2 3; do dd if=/dev/urandom of=/mnt/db/$i bs=64k count=32 status=none; done
    sync; (cd /mnt/db; sha256sum ? > /run/sums)
    umount /mnt/db; mount /dev/nbd0 /mnt/db; (cd /mnt/db; sha256sum --quiet -c /run/sums) && echo same
    umount /mnt/db; e2fsck -f -n /dev/nbd0
    ${process.execPath} ${ASHLAR} paths
    ${process.execPath} ${ASHLAR} detach /dev/nbd0
    ${DETACHED}`,
    LIMIT_MS,
  );
  assert.match(output, /^268435456$/m);
  assert.match(output, /^same$/m);
  assert.match(output, /version 2 as web/);
  assert.match(output, /^0\nattach.log\nleft: 0$/m);
});

test("the kernel sees a pause and no error when the server is killed and comes back", {
  timeout: LIMIT_MS,
}, async () => {
  await guest.run(
    `set -e
    dmesg -C; ${attach}; mount /dev/nbd0 /mnt/db
    (for i in $(seq 24); do dd if=/dev/urandom of=/mnt/db/more$i bs=64k count=16 status=none conv=fsync || echo failed; done; echo ended) > /run/writer 2>&1 &`,
    LIMIT_MS,
  );
  for (let kill = 0; kill < 3; kill++) {
    await guest.until("more files", `[ $(ls /mnt/db/more* | wc -l) -gt ${4 * kill + 2} ]`);
    await stage.server.kill();
    await new Promise((resolve) => setTimeout(resolve, 500));
    await stage.server.restart();
  }
  await guest.until("the writer's end", "grep -q ended /run/writer", LIMIT_MS);
  const output = await guest.run(
    `cat /run/writer; (cd /mnt/db; sha256sum --quiet -c /run/sums) && echo same
    umount /mnt/db; e2fsck -f -n /dev/nbd0 && echo clean; dmesg | grep -iE 'i/o error|ext4-fs error'; true`,
    LIMIT_MS,
  );
  assert.match(output, /^ended\nsame\n/);
  assert.match(output, /^clean$/m);
  assert.doesNotMatch(output, /failed|error/i);
});

test("kill -9 of the attachment gives the device back", { timeout: LIMIT_MS }, async () => {
  const output = await guest.run(
    `kill -9 $(ls /run/ashlar | grep -v attach.log)
    ${DETACHED}
    ${attach} && blockdev --getsize64 /dev/nbd0 && ${process.execPath} ${ASHLAR} detach`,
    LIMIT_MS,
  );
  assert.match(output, /^0\nattach.log\nleft: 0$/m);
  assert.match(output, /^268435456$/m);
});
