/**
 * `nsu.conf` (WO 02/15018 appendix D): which host has which units at which places of which drives. Text in, text out;
 * what it means for the server is in `routes/drive.ts`. Errors name their line.
 *
 *   HOST 10.1.1.7
 *     DATA_PORT = 10.1.1.1:10002(10)
 *     UNIT unit_1
 *       LBA = disk0(0,25429823)
 *
 * Ours, beyond the text: several LBA lines make up a unit in their order, `ACCESS = read-only`, `ZERO = yes` (zeroed
 * before its first access) and `NUMBER = 5` (where units do not count from 0) in a unit, comments with `#`, and IPv6
 * addresses in brackets.
 */
import { isIP } from "node:net";
import type { SectorRange } from "#base/drives";
import { isName } from "#base/names";
import { Refusal } from "#base/refusal";
import type { Access, DataPortRecord } from "#base/rights";

export interface NsuUnit {
  readonly name: string;
  readonly line: number;
  readonly ranges: SectorRange[];
  /** The lines that the ranges stand in. */
  readonly rangeLines: number[];
  access: Access;
  zero: boolean;
  /** Undefined: the lowest that the host has not had yet. */
  number: number | undefined;
}
export interface NsuHost {
  readonly address: string;
  readonly line: number;
  readonly dataPorts: DataPortRecord[];
  readonly units: NsuUnit[];
}

/** A unit to be written: `number` only where it does not follow from the order. */
export type NsuUnitText = Pick<NsuUnit, "name" | "ranges" | "access" | "zero" | "number">;
export interface NsuHostText extends Pick<NsuHost, "address" | "dataPorts"> {
  readonly units: readonly NsuUnitText[];
}

const LINES_MAX = 100_000;
const IN_UNIT = ["LBA", "ACCESS", "ZERO", "NUMBER"];

/** @throws Refusal bad-request with the number of the line */
export function parseNsuConf(text: string): NsuHost[] {
  const hosts: NsuHost[] = [];
  const lines = text.split(/\r?\n/);
  if (lines.length > LINES_MAX) throw at(LINES_MAX, "more lines than that make no sense");
  let host: NsuHost | undefined;
  let unit: NsuUnit | undefined;
  const endUnit = (): void => {
    if (unit !== undefined && unit.ranges.length === 0) throw at(unit.line, `unit "${unit.name}" has no LBA`);
    unit = undefined;
  };
  lines.forEach((raw, index) => {
    const line = index + 1;
    const words = raw.replace(/#.*$/, "").trim();
    if (words === "") return;
    const [keyword = "", rest = ""] = split(words);
    if (keyword === "HOST") {
      endUnit();
      if (isIP(rest) === 0) throw at(line, `"${rest}" is no IP address of a host`);
      if (hosts.some((one) => one.address === rest)) throw at(line, `host ${rest} is there twice`);
      hosts.push((host = { address: rest, line, dataPorts: [], units: [] }));
    } else if (host === undefined) {
      throw at(line, `${keyword} before the first HOST`);
    } else if (keyword === "DATA_PORT") {
      if (unit !== undefined) throw at(line, "DATA_PORT belongs before the units");
      host.dataPorts.push(parseDataPort(valueAfter(rest, line), line));
    } else if (keyword === "UNIT") {
      endUnit();
      if (!isName(rest)) throw at(line, `"${rest}" cannot be the name of a unit`);
      if (host.units.some((one) => one.name === rest)) throw at(line, `unit "${rest}" is there twice`);
      unit = { name: rest, line, ranges: [], rangeLines: [], access: "read-write", zero: false, number: undefined };
      host.units.push(unit);
    } else if (unit === undefined) {
      throw at(line, IN_UNIT.includes(keyword) ? `${keyword} outside of a UNIT` : `"${keyword}" is unknown`);
    } else if (keyword === "LBA") {
      unit.ranges.push(parseRange(valueAfter(rest, line), line));
      unit.rangeLines.push(line);
    } else if (keyword === "ACCESS") {
      const access = valueAfter(rest, line);
      if (access !== "read-only" && access !== "read-write")
        throw at(line, `"${access}" is neither read-only nor read-write`);
      unit.access = access;
    } else if (keyword === "ZERO") {
      const zero = valueAfter(rest, line);
      if (zero !== "yes" && zero !== "no") throw at(line, `"${zero}" is neither yes nor no`);
      unit.zero = zero === "yes";
    } else if (keyword === "NUMBER") {
      const number = valueAfter(rest, line);
      if (!/^\d{1,9}$/.test(number)) throw at(line, `"${number}" is no unit number`);
      unit.number = Number(number);
      if (host.units.some((one) => one !== unit && one.number === unit?.number))
        throw at(line, `number ${number} is there twice`);
    } else throw at(line, `"${keyword}" is unknown`);
  });
  endUnit();
  checkOverlaps(hosts);
  return hosts;
}

export function formatNsuConf(hosts: readonly NsuHostText[], remarks: readonly string[] = []): string {
  const lines: string[] = remarks.map((remark) => `# ${remark}`);
  for (const { address, dataPorts, units } of hosts) {
    lines.push(`HOST ${address}`);
    for (const { address: server, port, socketsMax } of dataPorts)
      lines.push(`  DATA_PORT = ${server.includes(":") ? `[${server}]` : server}:${port}(${socketsMax})`);
    for (const { name, ranges, access, zero, number } of units) {
      lines.push(`  UNIT ${name}`);
      for (const { drive, first, last } of ranges) lines.push(`    LBA = ${drive}(${first},${last})`);
      if (access === "read-only") lines.push("    ACCESS = read-only");
      if (zero) lines.push("    ZERO = yes");
      if (number !== undefined) lines.push(`    NUMBER = ${number}`);
    }
  }
  return lines.map((line) => `${line}\n`).join("");
}

/** Units of several hosts may be the same one, by name and place; anything else that overlaps is a mistake. */
function checkOverlaps(hosts: readonly NsuHost[]): void {
  const known = new Map<string, NsuUnit>();
  const taken: { range: SectorRange; line: number; unit: NsuUnit }[] = [];
  for (const unit of hosts.flatMap(({ units }) => units)) {
    const same = known.get(unit.name);
    if (same !== undefined) {
      if (JSON.stringify(same.ranges) === JSON.stringify(unit.ranges)) continue;
      throw at(unit.rangeLines[0]!, `unit "${unit.name}" lies elsewhere than in line ${same.rangeLines[0]}`);
    }
    known.set(unit.name, unit);
    for (const [index, range] of unit.ranges.entries()) {
      const line = unit.rangeLines[index]!;
      const other = taken.find(
        (one) => one.range.drive === range.drive && one.range.first <= range.last && range.first <= one.range.last,
      );
      if (other !== undefined)
        throw at(
          line,
          `unit "${unit.name}" overlaps unit "${other.unit.name}" of line ${other.line} on ${range.drive}, ` +
            `sectors ${Math.max(range.first, other.range.first)} to ${Math.min(range.last, other.range.last)}`,
        );
      taken.push({ range, line, unit });
    }
  }
}

function split(words: string): [string, string] {
  const match = /^([A-Za-z_]+)\s*(.*)$/.exec(words);
  return match === null ? [words, ""] : [match[1]!.toUpperCase(), match[2]!.trim()];
}

function valueAfter(rest: string, line: number): string {
  if (!rest.startsWith("=")) throw at(line, "there is no =");
  return rest.slice(1).trim();
}

function parseDataPort(text: string, line: number): DataPortRecord {
  const match = /^(?:\[([^\]]+)\]|([^:\s]+)):(\d+)\((\d+)\)$/.exec(text);
  const address = match?.[1] ?? match?.[2] ?? "";
  const port = Number(match?.[3]);
  const socketsMax = Number(match?.[4]);
  if (match === null || isIP(address) === 0) throw at(line, `"${text}" is not ADDRESS:PORT(CONNECTIONS)`);
  if (port < 1 || port > 65535) throw at(line, `${port} is no port`);
  if (socketsMax < 1 || socketsMax > 1024) throw at(line, `${socketsMax} connections make no sense`);
  return { address, port, socketsMax };
}

function parseRange(text: string, line: number): SectorRange {
  const match = /^([^\s(]+)\((\d+)\s*,\s*(\d+)\)$/.exec(text);
  const drive = match?.[1] ?? "";
  const [first, last] = [Number(match?.[2]), Number(match?.[3])];
  if (match === null || !isName(drive)) throw at(line, `"${text}" is not DRIVE(FIRST,LAST)`);
  if (!Number.isSafeInteger(first) || !Number.isSafeInteger(last))
    throw at(line, "a sector number does not fit into 53 bits");
  if (last < first) throw at(line, `the last sector, ${last}, comes before the first, ${first}`);
  return { drive, first, last };
}

export const at = (line: number, message: string): Refusal =>
  new Refusal("bad-request", `Line ${line}: ${message}`, "docs/protocols/scp.md has the syntax. Nothing was changed.");
