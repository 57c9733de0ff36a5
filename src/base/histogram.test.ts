import assert from "node:assert/strict";
import { test } from "node:test";
import { BUCKET_COUNT, bucketStart, Histogram, quantile } from "./histogram.ts";

test("every value falls into the bucket that begins at or below it", () => {
  for (const micros of [0, 0.5, 1, 3.9, 4, 5, 7.99, 8, 15, 16, 1000, 1023, 1024, 999_999, 2 ** 26 - 1]) {
    const histogram = new Histogram();
    histogram.observe(micros / 1000);
    const index = histogram.counts.indexOf(1);
    assert.ok(bucketStart(index) * 1000 <= micros, `${micros} in ${index}`);
    assert.ok(bucketStart(index + 1) * 1000 > micros, `${micros} in ${index}`);
  }
});

test("values beyond the scale are counted in the last bucket, nonsense in the first", () => {
  const histogram = new Histogram();
  histogram.observe(1e12);
  histogram.observe(-1);
  assert.equal(histogram.counts[BUCKET_COUNT - 1], 1);
  assert.equal(histogram.counts[0], 1);
});

test("a quantile is right within a bucket", () => {
  const histogram = new Histogram();
  for (let i = 1; i <= 1000; i++) histogram.observe(i / 100);
  for (const part of [0.5, 0.9, 0.99]) {
    const found = quantile(histogram.counts, part);
    assert.ok(found >= part * 10 && found <= part * 10 * 1.26, `${part}: ${found}`);
  }
  assert.equal(quantile(new Float64Array(BUCKET_COUNT), 0.5), 0);
});
