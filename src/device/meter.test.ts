import assert from "node:assert/strict";
import { test } from "node:test";
import { quantile } from "#base/histogram";
import { Meters } from "./meter.ts";

test("what is noted of a device and a kind is that one's alone, among hundreds", () => {
  const meters = new Meters();
  // The last one first: those before it have noted nothing yet.
  for (let device = 199; device >= 0; device--) meters.of(`v${199 - device}`);
  for (let device = 199; device >= 0; device--) {
    const meter = meters.of(`v${device}`);
    for (let count = 0; count <= device; count++) meter.note("read", 4096, 1 + device, "ok");
    if (device % 2 === 1) meter.note("flush", 0, 10, "medium");
  }
  for (let device = 0; device < 200; device++) {
    const meter = meters.byName.get(`v${device}`)!;
    const { count, sum, bytes, counts } = meter.measured("read")!;
    assert.deepEqual([count, bytes], [device + 1, 4096 * (device + 1)]);
    assert.equal(sum, (1 + device) * (device + 1));
    assert.ok(Math.abs(quantile(counts, 0.5) / (1 + device) - 1) < 0.26);
    assert.deepEqual(Object.keys(meter.operations()), device % 2 === 1 ? ["read", "flush"] : ["read"]);
    assert.equal(meter.errors.medium, device % 2 === 1 ? 1 : undefined);
    assert.equal(meter.measured("flush")?.bytes, device % 2 === 1 ? 0 : undefined);
  }
});
