import assert from "node:assert/strict";
import { describe, it } from "node:test";
import { DRIVES_EMPTY, type DrivesState } from "#base/drives";
import { Refusal } from "#base/refusal";
import { RIGHTS_EMPTY, RIGHTS_LIMITS_DEFAULT, type RightsState } from "#base/rights";
import { createPartition, placePartition, removeDrive, removePartition, resizePartition } from "./drives.ts";
import { addHost, changeHost, forgetDevice, grant, removeHost, revoke } from "./rights-edits.ts";

const refuses = (code: string, what: () => unknown): void =>
  assert.throws(what, (error) => error instanceof Refusal && error.code === code);
const give = (state: RightsState, device: string, host: string, unit?: number): RightsState =>
  grant(state, { device, host, unit, access: "read-write" });
const unitOf = (state: RightsState, device: string): number | undefined =>
  state.grants.find((one) => one.device === device)?.unit;

describe("hosts", () => {
  it("share no credential, and have only those that make sense", () => {
    const state = addHost(RIGHTS_EMPTY, "a", { addresses: ["10.0.0.1"], iqns: ["iqn.2026-11.example:a"] });
    refuses("exists", () => addHost(state, "a", {}));
    refuses("exists", () => addHost(state, "b", { addresses: ["10.0.0.1"] }));
    refuses("exists", () => addHost(state, "b", { iqns: ["iqn.2026-11.example:a"] }));
    refuses("bad-request", () => addHost(state, "b", { addresses: ["web.example"] }));
    refuses("bad-request", () => addHost(state, "b", { iqns: ["web"] }));
    refuses("bad-request", () => addHost(state, "b c", {}));
    refuses("bad-request", () => addHost(state, "b", { chap: { user: "u", secret: "short" } }));
    refuses("bad-request", () => addHost(state, "b", { mutualChap: { user: "u", secret: "long enough secret" } }));
    const chap = { user: "u", secret: "long enough secret" };
    refuses("bad-request", () => addHost(state, "b", { chap, mutualChap: chap }));
    refuses("not-found", () => changeHost(state, "b", {}));
    assert.deepEqual(removeHost(give(state, "db", "a"), "a").grants, []);
  });
});

describe("unit numbers", () => {
  const host = addHost(RIGHTS_EMPTY, "a", {});

  it("are the lowest that no device of the host ever had", () => {
    let state = give(give(host, "x", "a"), "y", "a");
    assert.deepEqual([unitOf(state, "x"), unitOf(state, "y")], [0, 1]);
    state = revoke(state, "x", "a");
    state = give(state, "z", "a");
    assert.equal(unitOf(state, "z"), 2, "0 was x's, and is not given to another one");
    state = give(state, "x", "a");
    assert.equal(unitOf(state, "x"), 0, "x has its number back");
  });

  it("stay taken when their device is deleted, until somebody asks for exactly that number", () => {
    let state = forgetDevice(give(host, "x", "a"), "x");
    state = give(state, "y", "a");
    assert.equal(unitOf(state, "y"), 1);
    state = give(state, "z", "a", 0);
    assert.equal(unitOf(state, "z"), 0);
    refuses("exists", () => give(state, "w", "a", 0));
    refuses("bad-request", () => give(state, "w", "a", 99999));
  });

  it("are at most as many as the limit says", () => {
    let state = host;
    for (let unit = 0; unit < 16; unit++) state = give(state, `v${unit}`, "a");
    refuses("not-allowed", () => give(state, "v16", "a"));
    state = { ...state, limits: { ...state.limits, unitsPerHostMax: 17 } };
    assert.equal(unitOf(give(state, "v16", "a"), "v16"), 16);
    refuses("not-found", () => revoke(state, "nothing", "a"));
    refuses("not-found", () => give(state, "db", "nobody"));
  });
});

describe("partitions", () => {
  const drives: DrivesState = { ...DRIVES_EMPTY, drives: [{ name: "d", path: "/d", sectors: 2048 }] };
  const make = (state: DrivesState, name: string, size: number, zero = false) =>
    createPartition(state, RIGHTS_LIMITS_DEFAULT, { name, size, drive: undefined, zero });

  it("have sizes that fit, names of their own, and as many as the limit says", () => {
    const state = make(drives, "p", 4096);
    refuses("exists", () => make(state, "p", 4096));
    refuses("bad-request", () => make(state, "q", 4097));
    refuses("bad-request", () => make(state, "q", 0));
    refuses("bad-request", () => make(state, "q", 4096, true));
    refuses("full", () => make(state, "q", 2 ** 20));
    refuses("not-allowed", () =>
      createPartition(
        state,
        { partitionsMax: 1, unitsPerHostMax: 1 },
        { name: "q", size: 4096, drive: undefined, zero: false },
      ),
    );
    refuses("in-use", () => removeDrive(state, "d"));
    assert.deepEqual(removeDrive(removePartition(state, "p"), "d").drives, []);
  });

  it("grow and do not shrink", () => {
    const state = make(make(drives, "p", 4096), "q", 4096);
    const grown = resizePartition(state, "p", 12288);
    assert.deepEqual(grown.partitions[0]!.ranges, [
      { drive: "d", first: 0, last: 7 },
      { drive: "d", first: 16, last: 31 },
    ]);
    refuses("bad-request", () => resizePartition(grown, "p", 4096));
  });

  it("are placed only where nothing else is", () => {
    const state = make(drives, "p", 4096);
    const at = (first: number, last: number) => () =>
      placePartition(state, RIGHTS_LIMITS_DEFAULT, "q", [{ drive: "d", first, last }], false);
    refuses("exists", at(7, 20));
    refuses("bad-request", at(2000, 2048));
    refuses("bad-request", at(20, 10));
    assert.equal(at(8, 2047)().partitions.length, 2);
  });
});
