/**
 * Linux 6.12 with open-iscsi as it is: mutual CHAP and digests, two portals under dm-multipath with ALUA, a file system,
 * fio, sg3-utils, growth, and the server killed and restarted under I/O.
 */
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { after, before, describe, it } from "node:test";
import { Capture } from "#test/support/capture";
import { Guest } from "#test/support/guest";
import { until } from "#test/support/program";
import { Server } from "#test/support/server";
import { freePort, tempFolder } from "#test/support/temp";

const INITIATOR = "iqn.2024-01.test.guest:1";
const SECRET = "in-secret-16byte";
const MUTUAL = "out-secret-16byt";
/** More than mkfs needs, and less than mkfs and fio together. */
const FIO_COMMANDS = 1500;
/** The guest runs without help from the processor: on a busy machine, what takes seconds elsewhere takes minutes. */
const SCRIPT_MS_MAX = 300_000;

describe("a Linux initiator", { timeout: 1_200_000 }, () => {
  let server: Server;
  let guest: Guest;
  let capture: Capture;
  let iqn = "";
  const ports: number[] = [];
  const cleaning: (() => void | Promise<void>)[] = [];
  const scope = { after: (clean: () => void | Promise<void>) => void cleaning.push(clean) };

  before(async () => {
    const folder = tempFolder(scope);
    ports.push(await freePort(), await freePort());
    server = await Server.start(scope, { args: ["--iscsi", ports.map((port) => `127.0.0.1:${port}`).join(",")] });
    capture = await Capture.start(scope, ports);
    writeFileSync(join(folder, "in"), SECRET);
    writeFileSync(join(folder, "out"), MUTUAL);
    await server.ashlar("volume", "create", "db", "--size", "256M", "--block-size", "512");
    await server.ashlar("volume", "create", "copy", "--size", "64M", "--block-size", "512");
    const chap = ["--chap-user", "guest", "--chap-secret-file", join(folder, "in")];
    const mutual = ["--mutual-user", "ashlar", "--mutual-secret-file", join(folder, "out")];
    await server.ashlar("host", "add", "guest", "--iqn", INITIATOR, ...chap, ...mutual);
    await server.ashlar("grant", "db", "guest", "--unit", "0");
    await server.ashlar("grant", "copy", "guest", "--unit", "1");
    iqn = (await server.json("target", "show")).iqn;
    guest = await Guest.boot({ modules: ["iscsi_tcp", "sd_mod", "dm-multipath", "ext4"] });
    scope.after(() => guest.stop());
  });
  after(async () => {
    for (const clean of cleaning.reverse()) await clean();
  });

  it("logs in over two portals with mutual CHAP and digests; multipath sees one disk with two ALUA paths", async () => {
    const records = ports.map(
      (port) => `iscsiadm -m node -T ${iqn} -p $HOST:${port},1 -o new >/dev/null
        for setting in auth.authmethod=CHAP auth.username=guest auth.password=${SECRET} auth.username_in=ashlar auth.password_in=${MUTUAL}; do
          iscsiadm -m node -T ${iqn} -p $HOST:${port},1 -o update -n node.session.\${setting%%=*} -v \${setting#*=}; done
        for digest in Header Data; do
          iscsiadm -m node -T ${iqn} -p $HOST:${port},1 -o update -n node.conn[0].iscsi.\${digest}Digest -v CRC32C; done
        iscsiadm -m node -T ${iqn} -p $HOST:${port},1 -o update -n node.session.timeo.replacement_timeout -v 60
        iscsiadm -m node -T ${iqn} -p $HOST:${port},1 -l || exit 1`,
    );
    const output = await guest.run(
      `
      modprobe crc32c_generic; modprobe scsi_dh_alua; modprobe dm-round-robin; modprobe dm-service-time
      mkdir -p /run/lock/iscsi /etc/iscsi; echo InitiatorName=${INITIATOR} > /etc/iscsi/initiatorname.iscsi
      pgrep iscsid >/dev/null || (iscsid -f >/run/iscsid.log 2>&1 &) ; sleep 2
      ${records.join("\n")}
      udevadm settle; sleep 2
      printf 'defaults {\\n find_multipaths no\\n user_friendly_names no\\n no_path_retry queue\\n}\\n' > /etc/multipath.conf
      multipathd >/run/multipathd.log 2>&1; sleep 5
      iscsiadm -m session -P 2 | grep -E 'Digest|CHAP|username' | sort | uniq -c
      multipath -ll
      ls -l /dev/disk/by-id`,
      SCRIPT_MS_MAX,
    );
    assert.match(output, /HeaderDigest: CRC32C/);
    assert.match(output, /DataDigest: CRC32C/);
    assert.match(output, /alua/);
    assert.match(output, /ASHLAR,\s*VOLUME/);
    assert.match(output, /wwn-0x602a51a/);
    const sessions = (await server.json("sessions")).filter(({ kind }: { kind: string }) => kind === "normal");
    assert.equal(sessions.length, 2);
  });

  it("sg3-utils find what they ask for", async () => {
    const output = await guest.run(
      `
      D=$(readlink -f /dev/disk/by-path/*lun-0 | head -1); C=$(readlink -f /dev/disk/by-path/*lun-1 | head -1)
      echo D=$D C=$C
      sg_rtpg -d $D && echo RTPG_OK
      sg_vpd -p bl $D | grep -i 'atomic\\|unmap' ; sg_vpd -p lbpv $D
      dd if=/dev/zero of=/run/two bs=512 count=2 2>/dev/null; printf new | dd of=/run/two bs=512 seek=1 conv=notrunc 2>/dev/null
      dd if=/dev/zero of=$D bs=64k count=16 oflag=direct 2>/dev/null
      sg_compare_and_write --in=/run/two --lba=0 --num=1 --xferlen=1024 $D && echo CAW_OK
      sg_compare_and_write --in=/run/two --lba=0 --num=1 --xferlen=1024 $D 2>&1 | grep -qi miscompare && echo MISCOMPARE_OK
      sg_unmap --lba=8 --num=8 --force $D && echo UNMAP_OK
      sg_write_same --in=/dev/zero --lba=64 --num=64 --xferlen=512 $D && echo SAME_OK
      sg_xcopy if=$D of=$C count=128 bs=512 >/run/xcopy 2>&1 && echo XCOPY_OK || cat /run/xcopy
      sg_get_lba_status --lba=0 $D | head -3
      sg_persist -n -o -G -S 0xabc $D && sg_persist -n -o -R -K 0xabc -T 5 $D && sg_persist -n -i -r $D && sg_persist -n -o -L -K 0xabc -T 5 $D && sg_persist -n -o -G -K 0xabc -S 0 $D && echo PERSIST_OK`,
      SCRIPT_MS_MAX,
    );
    for (const done of ["RTPG_OK", "CAW_OK", "MISCOMPARE_OK", "UNMAP_OK", "SAME_OK", "XCOPY_OK", "PERSIST_OK"])
      assert.ok(output.includes(done), `${done}\n${output}`);
  });

  it("fence_scsi keeps a fenced node from writing, and the operator lets it in again", async () => {
    // Two nodes of a cluster, told apart by the portal that each of them comes by.
    const output = await guest.run(
      `
      F=$(command -v fence_scsi); R=\${F%/usr/sbin/fence_scsi}
      mkdir -p /run/py /run/cluster; touch /run/py/pycurl.py
      export PYTHONPATH=/run/py:$R/usr/share/fence:$R/usr/lib/python3/dist-packages
      set -- $(ls /dev/disk/by-path/*lun-1 | sort); A=$(readlink -f $1); B=$(readlink -f $2)
      write() { dd if=/dev/zero of=$1 bs=4k count=1 oflag=direct 2>/dev/null && echo $2_WRITES || echo $2_REFUSED; }
      $F -o on -n b -k b2 -d $B || exit 1
      $F -o on -n a -k a1 -d $A || exit 1
      sg_persist -n -i -k $A; sg_persist -n -i -r $A
      write $A a; write $B b
      $F -o off -n b -k b2 -d $A || exit 1
      $F -o status -n b -k b2 -d $A || echo B_IS_OFF
      write $A a; write $B b`,
      SCRIPT_MS_MAX,
    );
    assert.match(output, /0xa1\b/);
    assert.match(output, /0xb2\b/);
    assert.match(output, /Write Exclusive, registrants only/);
    assert.match(output, /B_IS_OFF/);
    const writes = [...output.matchAll(/\b[ab]_(?:WRITES|REFUSED)/g)].map(([word]) => word);
    assert.deepEqual(writes, ["a_WRITES", "b_WRITES", "a_WRITES", "b_REFUSED"], output);
    const [reserved] = await server.json("reservations");
    assert.equal(reserved.volume, "copy");
    assert.match(await server.ashlar("reservations", "clear", "copy"), new RegExp(INITIATOR.replaceAll(".", "\\.")));
    const free = await guest.run(
      "dd if=/dev/zero of=$(ls /dev/disk/by-path/*lun-1 | sort | tail -1) bs=4k count=1 oflag=direct && echo FREE",
    );
    assert.match(free, /FREE/);
  });

  it("tshark finds nothing malformed in all of it", { timeout: 300_000 }, async () => {
    await capture.check({ messages: 500 });
  });

  it("carries a file system through fio, growth, and a killed server", { timeout: 600_000 }, async () => {
    const inLoad = await Capture.start(scope, ports);
    const writing = guest.run(
      `
      M=/dev/mapper/$(multipath -ll | awk '/dm-/ && /ASHLAR/ {print $1; exit}'); echo M=$M; multipath -ll $M
      mkfs.ext4 -q -F $M && mkdir -p /run/m && mount $M /run/m || exit 1
      fio --name=v --directory=/run/m --size=24M --rw=randwrite --bs=4k --iodepth=8 --ioengine=libaio --direct=1 --verify=crc32c --do_verify=1 --time_based=0 --output=/run/fio.log; S=$?; tail -3 /run/fio.log
      sync; umount /run/m; e2fsck -fn $M; echo FSCK=$? FIO=$S; [ $S = 0 ]`,
      SCRIPT_MS_MAX,
    );
    const commands = async (): Promise<number> =>
      (await server.json("sessions")).reduce((sum: number, one: { commands: number }) => sum + one.commands, 0);
    const before = await commands();
    await until("fio is under way", async () => (await commands()) > before + FIO_COMMANDS, 200_000);
    await server.kill();
    await server.restart();
    const output = await writing;
    assert.match(output, /FSCK=0 FIO=0/);
    await server.ashlar("volume", "resize", "db", "--size", "384M");
    const grown = await guest.run(`
      D=$(readlink -f /dev/disk/by-path/*lun-0 | head -1)
      for try in $(seq 60); do
        iscsiadm -m session --rescan >/dev/null 2>&1
        [ $(blockdev --getsize64 $D) = 402653184 ] && echo GROWN && break; sleep 1; done`);
    assert.match(grown, /GROWN/);
    await inLoad.check({ messages: 500 });
  });
});
