/** QEMU as a differential tester: every read of a random history is compared with a reference file, byte by byte. */
import assert from "node:assert/strict";
import { join } from "node:path";
import test from "node:test";
import { run, runAny } from "../support/program.ts";
import { type Chance, chance } from "../support/random.ts";
import { Server } from "../support/server.ts";
import { MIB, tempFolder } from "../support/temp.ts";

const SIZE = 32 * MIB;
const ROUNDS = 6;
const OPERATIONS = 300;

/** A place and a length in sectors of `unit`: mostly small and crowded, so that operations overlap. */
function range(random: Chance, unit: number): { at: number; length: number } {
  const length = unit * (1 + (random.oneIn(10) ? random.below(1024) : random.below(32)));
  const area = random.oneIn(3) ? SIZE : SIZE / 16;
  const at = unit * random.below((area - unit) / unit);
  return { at, length: Math.min(length, SIZE - at) };
}

/** Reads and writes, as commands of qemu-io; several may be in flight at once. */
function readsAndWrites(random: Chance, unit: number): string[] {
  return Array.from({ length: OPERATIONS }, () => {
    const { at, length } = range(random, unit);
    const pattern = 1 + random.below(255);
    return random.pick([
      `write -P ${pattern} ${at} ${length}`,
      `write -f -P ${pattern} ${at} ${length}`,
      `writev -P ${pattern} ${at} ${length}`,
      `read ${at} ${length}`,
      `readv ${at} ${length}`,
      `aio_write -P ${pattern} ${at} ${length}\naio_flush`,
      "flush",
    ]);
  });
}

for (const blockSize of [512, 4096]) {
  test(`a random history reads the same as a reference file, with blocks of ${blockSize}`, async (t) => {
    const random = chance((line) => t.diagnostic(line));
    const server = await Server.start(t);
    const reference = join(tempFolder(t), "reference");
    await run("qemu-img", ["create", "-q", "-f", "raw", reference, String(SIZE)]);
    await server.ashlar("volume", "create", "db", "--size", String(SIZE), "--block-size", String(blockSize));
    const file = `raw.driver=raw,raw.file.driver=file,raw.file.filename=${reference}`;
    const volume = `driver=raw,test.file.driver=nbd,test.file.export=db,test.file.server.type=unix,test.file.server.path=${server.nbd}`;

    for (let round = 0; round < ROUNDS; round++) {
      const verified = await runAny("qemu-io", ["--image-opts", `driver=blkverify,test.${volume},${file}`], {
        input: `${readsAndWrites(random, blockSize).join("\n")}\nread 0 ${SIZE}\n`,
      });
      assert.equal(
        verified.status,
        0,
        `seed ${random.seed}, round ${round}:\n${verified.stderr}${verified.stdout.slice(-2000)}`,
      );

      // blkverify passes neither zeroes nor discards on: those are done on both sides, and then all is compared.
      // A discard may leave alone what it covers only in part of a block of 4 KiB (NBD proto.md, "NBD_CMD_TRIM").
      const zeroes = Array.from({ length: 40 }, () => {
        const how = random.pick(["write -z", "write -z -u", "discard"]);
        return { ...range(random, how === "discard" ? 4096 : blockSize), how };
      });
      const commands = (how: (own: string) => string) =>
        zeroes.map((each) => `${how(each.how)} ${each.at} ${each.length}`).join("\n");
      await run("qemu-io", ["-f", "raw", server.uri("db")], { input: commands((own) => own) });
      await run("qemu-io", ["-f", "raw", reference], { input: commands(() => "write -z") });
      const compared = await runAny("qemu-img", ["compare", "-f", "raw", "-F", "raw", reference, server.uri("db")]);
      assert.equal(compared.status, 0, `seed ${random.seed}, round ${round}: ${compared.stdout}`);

      if (round === 2) await server.ashlar("snapshot", "create", "db@middle");
      if (round === 3) {
        await server.kill();
        await server.restart();
      }
    }
  });
}
