/** Drives, partitions, hosts, rights and `nsu.conf` by the command line, on a server that runs. */
import assert from "node:assert/strict";
import { writeFileSync } from "node:fs";
import { join } from "node:path";
import { describe, it } from "node:test";
import { run, runAny } from "../support/program.ts";
import { ASHLAR, Server } from "../support/server.ts";
import { fileScope, MIB, tempFolder } from "../support/temp.ts";

const scope = fileScope();

interface Stage {
  readonly folder: string;
  ashlar(line: string): Promise<string>;
  // biome-ignore lint/suspicious/noExplicitAny: tests look into it and fail where it is not as they expect
  json(line: string): Promise<any>;
  /** What a command that must fail says. */
  refused(line: string): Promise<string>;
}

/** A server with two drives of 64 MiB. */
async function makeStage(): Promise<Stage> {
  const folder = tempFolder(scope);
  const server = await Server.start(scope);
  const args = (line: string): string[] => line.split(" ");
  const stage: Stage = {
    folder,
    ashlar: (line) => server.ashlar(...args(line)),
    json: async (line) => JSON.parse(await server.ashlar(...args(line), "--json")),
    refused: async (line) => {
      const ended = await runAny(process.execPath, [ASHLAR, "--data", server.data, ...args(line)]);
      assert.notEqual(ended.status, 0, `ashlar ${line}`);
      return ended.stderr;
    },
  };
  for (const name of ["disk0", "disk1"]) {
    await run("truncate", ["-s", String(64 * MIB), join(folder, name)]);
    await stage.ashlar(`drive add ${name} ${join(folder, name)}`);
  }
  return stage;
}

describe("drives, partitions and hosts by the command line", () => {
  let made: Promise<Stage> | undefined;
  const stage = (): Promise<Stage> => (made ??= makeStage());
  const placesOf = async ({ json }: Stage): Promise<Record<string, string>> =>
    Object.fromEntries(
      // biome-ignore lint/suspicious/noExplicitAny: as above
      (await json("partition ls")).partitions.map(({ name, ranges }: any) => [name, rangesText(ranges)]),
    );

  it("places partitions by best fit, over several drives if need be, and takes their space back", async () => {
    const s = await stage();
    await s.ashlar("partition create a --size 16M");
    await s.ashlar("partition create b --size 8M --drive disk0");
    await s.ashlar("partition create c --size 8M --drive disk0");
    await s.ashlar("partition rm b");
    // The hole between a and c is the smallest that holds it.
    await s.ashlar("partition create d --size 6M --zero");
    await s.ashlar("partition create wide --size 90M");
    assert.deepEqual(await placesOf(s), {
      a: "disk0(0,32767)",
      c: "disk0(49152,65535)",
      d: "disk0(32768,45055)",
      wide: "disk1(0,131071) + disk0(65536,118783)",
    });
    await s.ashlar("partition resize wide --size +6M");
    const { free, freeRanges } = await s.json("partition ls");
    assert.equal(free, 2 * MIB);
    assert.equal(rangesText(freeRanges), "disk0(45056,49151)");
    assert.match(await s.ashlar("partition ls"), /^0 +\(free\) +2 MiB +disk0\(45056,49151\)/m);
    assert.match(await s.refused("partition create e --size 3M"), /2 MiB are free/);
    assert.match(await s.refused("partition resize wide --size 1M"), /would cut off data/);
    assert.match(await s.refused("drive rm disk1"), /Partition "wide" lies on drive "disk1"/);
  });

  it("gives hosts units with rights of their own, as many as the limits say", async () => {
    const s = await stage();
    await s.ashlar("host add web --address 10.0.0.7 --address fd00::7");
    await s.ashlar("host add db --address 10.0.0.8");
    assert.match(await s.refused("host add other --address 10.0.0.8"), /10\.0\.0\.8/);
    assert.match(await s.ashlar("host secret web"), /^[0-9a-f]{64}\n$/);
    await s.ashlar("volume create vol --size 8M");
    await s.ashlar("grant a web");
    await s.ashlar("grant a db --read-only --unit 5");
    await s.ashlar("grant vol web");
    const grants = (await s.json("host show db")).grants;
    assert.deepEqual(grants, [{ device: "a", host: "db", unit: 5, access: "read-only" }]);
    assert.match(await s.refused("grant c web --unit 0"), /Unit 0 of "web" is "a"/);
    assert.match(await s.refused("grant nothing web"), /no volume, snapshot or partition "nothing"/);
    assert.match(await s.refused("grant c nobody"), /no host "nobody"/);
    await s.ashlar("limits --units-per-host 2 --partitions 4");
    assert.match(await s.refused("grant c web"), /2/);
    assert.match(await s.refused("partition create e --size 1M"), /4/);
    await s.ashlar("limits --units-per-host 16 --partitions 100");
    await s.ashlar("grant c web");
    await s.ashlar("revoke c web");
    assert.match(await s.refused("revoke c web"), /not granted/);
    await s.ashlar("host rm db");
    assert.match(await s.refused("host show db"), /no host "db"/);
  });

  it("writes an nsu.conf from which another server becomes the same", async () => {
    const s = await stage();
    await s.ashlar("host add db --address 10.0.0.8");
    await s.ashlar("grant a db --read-only --unit 5");
    await s.ashlar("grant d db");
    const text = await s.ashlar("nsu export");
    assert.match(text, /^# "vol" of web is a volume/m);
    assert.match(text, /UNIT d\n {4}LBA = disk0\(32768,45055\)\n {4}ZERO = yes\n/);
    assert.match(text, /UNIT a\n {4}LBA = disk0\(0,32767\)\n {4}ACCESS = read-only\n {4}NUMBER = 5\n/);
    const other = await makeStage();
    const file = join(other.folder, "nsu.conf");
    writeFileSync(file, text);
    await other.ashlar(`nsu import ${file}`);
    const withoutRemarks = text.replace(/^#.*\n/gm, "");
    assert.equal(await other.ashlar("nsu export"), withoutRemarks);
    // It is all there already.
    await other.ashlar(`nsu import ${file}`);
    assert.equal(await other.ashlar("nsu export"), withoutRemarks);
    const wrong: readonly (readonly [line: string, message: RegExp])[] = [
      ["LBA = disk0(100,200)", /Line 4: disk0\(100,200\) overlaps partition "a"/],
      ["LBA = disk1(131000,131072)", /Line 4: .* does not lie on drive "disk1", which has sectors 0 to 131071/],
      ["LBA = disk9(0,7)", /Line 4: There is no drive "disk9"/],
      ["ZERO = yes", /Line 2: unit "x" has no LBA/],
    ];
    for (const [line, message] of wrong) {
      writeFileSync(file, `HOST 10.0.0.9\n  UNIT x\n    ACCESS = read-only\n    ${line}\n`);
      assert.match(await other.refused(`nsu import ${file}`), message);
    }
    assert.equal(await other.ashlar("nsu export"), withoutRemarks, "something was changed by what was refused");
  });
});

function rangesText(ranges: readonly { drive: string; first: number; last: number }[]): string {
  return ranges.map(({ drive, first, last }) => `${drive}(${first},${last})`).join(" + ");
}
