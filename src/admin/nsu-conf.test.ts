import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { Refusal } from "#base/refusal";
import { formatNsuConf, parseNsuConf } from "./nsu-conf.ts";

const TEXT = `HOST 10.0.0.7
  DATA_PORT = 10.1.1.1:10002(10)
  DATA_PORT = [2001:db8::1]:10002(12)
  UNIT unit_1
    LBA = unit0(0,25429823)
  UNIT unit_2
    LBA = unit1(0,1000)
    LBA = unit0(25429824,25429831)
    ACCESS = read-only
    ZERO = yes
    NUMBER = 5
`;

describe("nsu.conf", () => {
  it("is read and written as the text has it", () => {
    const hosts = parseNsuConf(TEXT);
    assert.equal(formatNsuConf(hosts), TEXT);
    assert.deepEqual(hosts[0]!.units[1]!.ranges[1], { drive: "unit0", first: 25429824, last: 25429831 });
    assert.deepEqual(hosts[0]!.dataPorts[1], { address: "2001:db8::1", port: 10002, socketsMax: 12 });
  });

  it("may have comments, empty lines, other spaces and line ends, and lower-case keywords", () => {
    const same = parseNsuConf(
      `# all\r\n\r\nhost   10.0.0.7 # this\r\n unit a\r\n\tLBA=d( 0 , 7 )`
        .replace("( 0 ,", "(0,")
        .replace(" 7 )", " 7)"),
    );
    assert.deepEqual(same[0]!.units[0]!.ranges, [{ drive: "d", first: 0, last: 7 }]);
    assert.deepEqual(parseNsuConf(""), []);
  });

  it("lets hosts share a unit, when it is the same one", () => {
    const one = "  UNIT a\n    LBA = d(0,7)\n";
    assert.equal(parseNsuConf(`HOST 10.0.0.1\n${one}HOST 10.0.0.2\n${one}`).length, 2);
  });

  const host = "HOST 10.0.0.1\n";
  const wrong: [string, string, RegExp][] = [
    ["a host that is no address", "HOST web1\n", /Line 1: "web1" is no IP address/],
    ["a host twice", `${host}${host}`, /Line 2: host 10.0.0.1 is there twice/],
    ["a unit before any host", "UNIT a\n", /Line 1: UNIT before the first HOST/],
    ["a unit without a place", `${host}UNIT a\nUNIT b\n  LBA = d(0,7)\n`, /Line 2: unit "a" has no LBA/],
    ["a last unit without a place", `${host}UNIT a\n`, /Line 2: unit "a" has no LBA/],
    ["a unit twice", `${host}UNIT a\n LBA = d(0,7)\nUNIT a\n`, /Line 4: unit "a" is there twice/],
    ["a name that is none", `${host}UNIT a b\n`, /Line 2: "a b" cannot be the name/],
    [
      "a range that ends before it begins",
      `${host}UNIT a\n LBA = d(8,7)\n`,
      /Line 3: the last sector, 7, comes before/,
    ],
    ["a range that is none", `${host}UNIT a\n LBA = d(0-7)\n`, /Line 3: "d\(0-7\)" is not DRIVE\(FIRST,LAST\)/],
    ["a negative sector", `${host}UNIT a\n LBA = d(-1,7)\n`, /Line 3: .* is not DRIVE/],
    [
      "a sector beyond 53 bits",
      `${host}UNIT a\n LBA = d(0,99999999999999999)\n`,
      /Line 3: a sector number does not fit/,
    ],
    ["no =", `${host}UNIT a\n LBA d(0,7)\n`, /Line 3: there is no =/],
    ["a place outside of a unit", `${host}LBA = d(0,7)\n`, /Line 2: LBA outside of a UNIT/],
    [
      "a port outside of a host's head",
      `${host}UNIT a\n LBA = d(0,7)\n DATA_PORT = 10.0.0.1:1(1)\n`,
      /Line 4: DATA_PORT belongs before/,
    ],
    ["a port without connections", `${host}DATA_PORT = 10.0.0.1:1\n`, /Line 2: .* is not ADDRESS:PORT\(CONNECTIONS\)/],
    ["a port beyond 65535", `${host}DATA_PORT = 10.0.0.1:70000(1)\n`, /Line 2: 70000 is no port/],
    ["no connections", `${host}DATA_PORT = 10.0.0.1:700(0)\n`, /Line 2: 0 connections/],
    ["access of another kind", `${host}UNIT a\n ACCESS = append\n`, /Line 3: "append" is neither/],
    ["zeroes that are neither", `${host}UNIT a\n ZERO = 1\n`, /Line 3: "1" is neither yes nor no/],
    ["a number that is none", `${host}UNIT a\n NUMBER = -1\n`, /Line 3: "-1" is no unit number/],
    [
      "a number twice",
      `${host}UNIT a\n LBA = d(0,7)\n NUMBER = 3\nUNIT b\n NUMBER = 3\n`,
      /Line 6: number 3 is there twice/,
    ],
    ["an unknown word", `${host}COLOUR = red\n`, /Line 2: "COLOUR" is unknown/],
    ["nonsense", "\u0000\u0001\n", /Line 1: /],
    [
      "an overlap in one host",
      `${host}UNIT a\n LBA = d(0,10)\nUNIT b\n LBA = d(10,20)\n`,
      /Line 5: unit "b" overlaps unit "a" of line 3 on d, sectors 10 to 10/,
    ],
    [
      "an overlap between hosts",
      `${host}UNIT a\n LBA = d(0,10)\nHOST 10.0.0.2\nUNIT b\n LBA = d(5,6)\n`,
      /Line 6: unit "b" overlaps/,
    ],
    [
      "an overlap of a unit with itself",
      `${host}UNIT a\n LBA = d(0,10)\n LBA = d(10,11)\n`,
      /Line 4: unit "a" overlaps unit "a" of line 3/,
    ],
    [
      "a shared unit that lies elsewhere",
      `${host}UNIT a\n LBA = d(0,7)\nHOST 10.0.0.2\nUNIT a\n LBA = d(0,15)\n`,
      /Line 6: unit "a" lies elsewhere than in line 3/,
    ],
  ];
  for (const [what, text, message] of wrong)
    it(`refuses ${what}, and says in which line`, () => {
      assert.throws(
        () => parseNsuConf(text),
        (error) => error instanceof Refusal && error.code === "bad-request" && message.test(error.message),
      );
    });
});
