/** The Linux 6.12 kernel's own NBD client: a file system over four connections, trimmed, killed and found whole. */
import assert from "node:assert/strict";
import test, { after, before } from "node:test";
import { Guest } from "../support/guest.ts";
import { run } from "../support/program.ts";
import { Server } from "../support/server.ts";
import { fileScope } from "../support/temp.ts";

const scope = fileScope();
let guest: Guest;
let server: Server;

before(async () => {
  server = await Server.start(scope, { tcp: true });
  await server.ashlar("volume", "create", "db", "--size", "512M");
  await server.ashlar("volume", "create", "old", "--size", "64M", "--block-size", "512");
  guest = await Guest.boot({ modules: ["nbd", "ext4"] });
});
after(() => guest?.stop());

const connect = (name: string, device = "/dev/nbd0") =>
  `nbd-client $HOST ${server.nbd} ${device} -N ${name} -C 4 -b 4096 -t 30`;

test("ext4 over four connections holds files, is trimmed, and fsck finds nothing", async () => {
  const output = await guest.run(
    `set -e
    ${connect("db")}
    cat /sys/block/nbd0/queue/{rotational,fua,discard_granularity}; blockdev --getsize64 /dev/nbd0
    mkfs.ext4 -q -E lazy_itable_init=0,lazy_journal_init=0 /dev/nbd0
    mkdir -p /mnt/db; mount /dev/nbd0 /mnt/db
    for i in 1 2 3 4; do dd if=/dev/urandom of=/mnt/db/$i bs=64k count=64 status=none & done; wait
    cp -r /etc /mnt/db/etc; sync; (cd /mnt/db; find . -type f | sort | xargs sha256sum > /run/sums)
    umount /mnt/db; mount /dev/nbd0 /mnt/db
    (cd /mnt/db; sha256sum --quiet -c /run/sums) && echo same
    rm /mnt/db/[1-4]; sync; fstrim -v /mnt/db
    umount /mnt/db; e2fsck -f -n /dev/nbd0; nbd-client -d /dev/nbd0`,
    300_000,
  );
  assert.match(output, /536870912/);
  assert.match(output, /^same$/m);
  assert.match(output, /trimmed/);
  const totals = JSON.parse(await run("nbdinfo", ["--map", "--totals", "--json", server.uri("db")]));
  const data = totals.find((each: { type: number }) => each.type === 0).size;
  assert.ok(data < 48 * 1024 * 1024, `${data} bytes are still data after the trim`);
});

test("what was synced before kill -9 of the server is there when the kernel comes back", async () => {
  await guest.run(
    `set -e
    ${connect("db")}
    mount /dev/nbd0 /mnt/db
    dd if=/dev/urandom of=/mnt/db/synced bs=64k count=32 status=none conv=fsync
    sha256sum /mnt/db/synced > /run/synced
    setsid sh -c 'while dd if=/dev/urandom of=/mnt/db/lost bs=64k count=32 status=none; do :; done' > /dev/null 2>&1 &
    echo $! > /run/writer
    sleep 2`,
    200_000,
  );
  await server.kill();
  // All of the writer's group ends before the volume is mounted again at the same place: it would hold that mount.
  await guest.run(
    `sleep 1; umount -l /mnt/db; nbd-client -d /dev/nbd0
    for i in $(seq 300); do kill -9 -$(cat /run/writer) 2> /dev/null || exit 0; sleep .2; done
    echo "the writer does not end"; exit 1`,
    120_000,
  );
  await server.restart();
  const output = await guest.run(
    `set -e
    ${connect("db", "/dev/nbd1")}
    e2fsck -f -p /dev/nbd1 || [ $? = 1 ]
    mount /dev/nbd1 /mnt/db; sha256sum -c /run/synced; umount /mnt/db
    e2fsck -f -n /dev/nbd1; nbd-client -d /dev/nbd1`,
    200_000,
  );
  assert.match(output, /synced: OK/);
});

test("a volume with 512-byte blocks is a disk with 512-byte sectors", async () => {
  const output = await guest.run(
    `set -e
    nbd-client $HOST ${server.nbd} /dev/nbd2 -N old -b 512
    cat /sys/block/nbd2/queue/logical_block_size
    dd if=/dev/urandom of=/run/sector bs=512 count=3 status=none
    dd if=/run/sector of=/dev/nbd2 bs=512 seek=7 oflag=direct status=none
    dd if=/dev/nbd2 bs=512 skip=7 count=3 iflag=direct status=none | cmp - /run/sector && echo same
    nbd-client -d /dev/nbd2`,
  );
  assert.match(output, /^512$/m);
  assert.match(output, /^same$/m);
});
