/** What `/metrics` tells: the server, its space, its lanes, every volume, and what each front did with it. */

import type { NbdFigures } from "#lane/messages";
import { PrometheusText } from "./prometheus.ts";
import type { Found } from "./registry.ts";
import type { Server } from "./server.ts";

export async function metricsOf(server: Server): Promise<string> {
  const text = new PrometheusText();
  const [volumes, snapshots, meters, lanes] = await Promise.all([
    server.registry.list("volume"),
    server.registry.list("snapshot"),
    server.lanes.ask("meters", undefined),
    server.laneStatus(),
  ]);
  text
    .family("ashlar_info", "gauge", "Always 1; what runs")
    .sample(1, { version: server.version, env: server.env.name });
  text.family("ashlar_up", "gauge", "1 while the server takes I/O").sample(server.state === "ready" ? 1 : 0);
  text
    .family("ashlar_start_time_seconds", "gauge", "When the server was started")
    .sample(server.started.getTime() / 1000);
  const { space } = server;
  text.family("ashlar_space_capacity_bytes", "gauge", "What volumes may take").sample(space.capacity);
  text.family("ashlar_space_used_bytes", "gauge", "What is taken").sample(space.used);
  text.family("ashlar_space_available_bytes", "gauge", "What is left").sample(space.available);
  text
    .family("ashlar_space_level", "gauge", "0: fine, 1: above the soft threshold, 2: above the hard one")
    .sample({ ok: 0, soft: 1, hard: 2 }[space.level]);
  text.family("ashlar_problems", "gauge", "Problems that are there now, by code");
  for (const { code, severity } of server.problems.list()) text.sample(1, { code, severity });
  writeLanes(text, lanes);
  writeVolumes(text, volumes, snapshots);
  const facts = meters.flatMap(({ reply }) => reply);
  text.family("ashlar_connections", "gauge", "Connections that have a volume or snapshot open");
  for (const { volume, front, connections } of facts) text.sample(connections, { volume, front });
  text.family("ashlar_operation_duration_seconds", "histogram", "From the arrival of a request to its answer");
  for (const { volume, front, operations } of facts)
    for (const [op, { counts, sum }] of Object.entries(operations)) text.histogram(counts, sum, { volume, front, op });
  text.family("ashlar_operation_bytes_total", "counter", "Bytes of operations that succeeded");
  for (const { volume, front, operations } of facts)
    for (const [op, { bytes }] of Object.entries(operations)) text.sample(bytes, { volume, front, op });
  text.family("ashlar_operation_errors_total", "counter", "Operations that did not succeed, by how they ended");
  for (const { volume, front, errors } of facts)
    for (const [status, count] of Object.entries(errors)) text.sample(count, { volume, front, status });
  await writeNbd(text, server);
  return text.toString();
}

/** What the NBD front counts of itself, beside what it did with each volume. */
async function writeNbd(text: PrometheusText, server: Server): Promise<void> {
  if (!server.fronts.some(({ name }) => name === "nbd")) return;
  // A lane that is just being replaced has no front yet; the next look will find it.
  const lanes = await server.lanes.ask("front.facts", { name: "nbd" }).catch(() => []);
  const figures = lanes.map(({ lane, reply }) => ({ lane, ...(reply as NbdFigures) }));
  text.family("ashlar_nbd_connections_accepted_total", "counter", "NBD connections that were accepted");
  for (const { lane, accepted } of figures) text.sample(accepted, { lane });
  text.family("ashlar_nbd_handshakes", "gauge", "NBD connections in the handshake");
  for (const { lane, handshaking } of figures) text.sample(handshaking, { lane });
  text.family("ashlar_nbd_waiting", "gauge", "NBD connections that wait for memory");
  for (const { lane, waiting } of figures) text.sample(waiting, { lane });
  text.family("ashlar_nbd_ends_total", "counter", "NBD connections that ended, by why");
  for (const { lane, ends } of figures)
    for (const [why, count] of Object.entries(ends)) text.sample(count, { lane, why });
  text.family("ashlar_nbd_received_bytes_total", "counter", "Bytes received in the transmission phase");
  for (const { lane, bytesIn } of figures) text.sample(bytesIn, { lane });
  text.family("ashlar_nbd_sent_bytes_total", "counter", "Bytes sent in the transmission phase");
  for (const { lane, bytesOut } of figures) text.sample(bytesOut, { lane });
}

function writeLanes(text: PrometheusText, lanes: Awaited<ReturnType<Server["laneStatus"]>>): void {
  type Lane = (typeof lanes)[number];
  const write = (name: string, kind: "gauge" | "counter", help: string, of: (lane: Lane) => number): void => {
    text.family(`ashlar_lane_${name}`, kind, help);
    for (const lane of lanes) text.sample(of(lane), { lane: lane.index });
  };
  write("up", "gauge", "1 while the lane runs", ({ state }) => (state === "running" ? 1 : 0));
  write("restarts_total", "counter", "How often the lane died and was replaced", ({ restarts }) => restarts);
  write("memory_used_bytes", "gauge", "Buffers of requests in flight", ({ memory }) => memory.used);
  write("memory_size_bytes", "gauge", "The limit on buffers of requests in flight", ({ memory }) => memory.size);
  write("cache_used_bytes", "gauge", "Blocks that were read lately, kept in memory", ({ cache }) => cache.used);
  write("cache_size_bytes", "gauge", "The limit on blocks kept in memory", ({ cache }) => cache.size);
  write("cache_hits_total", "counter", "Blocks of short reads that were in memory", ({ cache }) => cache.hits);
  const missed = "Blocks of short reads that were looked for in vain";
  write("cache_misses_total", "counter", missed, ({ cache }) => cache.misses);
}

function writeVolumes(text: PrometheusText, volumes: readonly Found[], snapshots: readonly Found[]): void {
  text.family("ashlar_volume_up", "gauge", "1 while the volume takes reads and writes");
  for (const { set, version } of volumes) text.sample(set.state === "online" ? 1 : 0, { volume: version.name });
  const kinds = ["provisioned", "mapped", "exclusive", "shared"] as const;
  for (const kind of kinds) {
    text.family(`ashlar_volume_${kind}_bytes`, "gauge", VOLUME_HELP[kind]);
    for (const { version } of [...volumes, ...snapshots]) text.sample(version.space[kind], { volume: version.name });
  }
  const sets = new Set([...volumes, ...snapshots].map(({ set }) => set));
  const parts = ["disk", "live", "reclaimable", "spare", "map"] as const;
  for (const part of parts) {
    text.family(`ashlar_set_${part}_bytes`, "gauge", SET_HELP[part]);
    for (const { uuid, space } of sets) text.sample(space[part], { set: uuid });
  }
  text.family("ashlar_checksum_errors_total", "counter", "Blocks that did not match their checksum");
  for (const { uuid, checksumErrors } of sets) text.sample(checksumErrors, { set: uuid });
}

const VOLUME_HELP = {
  provisioned: "What hosts see as the size",
  mapped: "Data, own and inherited",
  exclusive: "Data that only this version has",
  shared: "Data that other versions of the set have too",
} as const;
const SET_HELP = {
  disk: "What a version set takes on the disk",
  live: "Data of a version set that some version has",
  reclaimable: "Dead data of a version set, which cleaning gives back",
  spare: "Files kept for new segments and checkpoints",
  map: "Memory that says where each block of a version set is",
} as const;
