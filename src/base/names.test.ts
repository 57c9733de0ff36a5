import assert from "node:assert/strict";
import { test } from "node:test";
import { isName, NAME_LENGTH_MAX, parseSnapshotName } from "./names.ts";

test("names need no quoting anywhere", () => {
  for (const name of ["db", "0", "Vm-1.root_disk", "a".repeat(NAME_LENGTH_MAX)]) assert.ok(isName(name), name);
  for (const name of ["", ".", "..", "-x", "a/b", "a@b", "a b", "ä", "a\n", "a".repeat(NAME_LENGTH_MAX + 1)])
    assert.ok(!isName(name), JSON.stringify(name));
});

test("a snapshot's name has two parts", () => {
  assert.deepEqual(parseSnapshotName("db@monday"), { volume: "db", snapshot: "monday" });
  for (const name of ["db", "db@", "@x", "a@b@c", "db@/"])
    assert.throws(() => parseSnapshotName(name), { code: "bad-request" });
});
