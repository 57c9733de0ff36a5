/** A flame graph from a V8 CPU profile, as one SVG without scripts: the width is time, hovering tells the rest. */

export interface CallFrame {
  readonly functionName: string;
  readonly url: string;
  readonly lineNumber: number;
}
export interface CpuProfile {
  readonly nodes: readonly {
    readonly id: number;
    readonly callFrame: CallFrame;
    readonly children?: readonly number[];
  }[];
  /** Microseconds, monotonic. */
  readonly startTime: number;
  readonly samples: readonly number[];
  readonly timeDeltas: readonly number[];
}

/** A function on a stack: its own time and that of all it called, in microseconds. */
export interface Frame {
  readonly name: string;
  readonly url: string;
  self: number;
  total: number;
  readonly children: Map<string, Frame>;
}

/** Adds up the samples taken within [from, to] (microseconds on the profile's clock) into one tree. */
export function collect(profile: CpuProfile, from: number, to: number): Frame {
  const parents = new Map<number, number>();
  const frames = new Map<number, CallFrame>();
  for (const node of profile.nodes) {
    frames.set(node.id, node.callFrame);
    for (const child of node.children ?? []) parents.set(child, node.id);
  }
  const root: Frame = { name: "(root)", url: "", self: 0, total: 0, children: new Map() };
  let at = profile.startTime;
  for (const [index, id] of profile.samples.entries()) {
    const delta = profile.timeDeltas[index]!;
    at += delta;
    if (at < from || at > to || delta <= 0) continue;
    const stack: CallFrame[] = [];
    for (let node: number | undefined = id; node !== undefined; node = parents.get(node)) stack.push(frames.get(node)!);
    root.total += delta;
    let frame = root;
    // The outermost is the profile's own root.
    for (const call of stack.reverse().slice(1)) {
      const name = call.functionName === "" ? "(anonymous)" : call.functionName;
      const key = `${name} ${call.url}:${call.lineNumber}`;
      let child = frame.children.get(key);
      if (child === undefined) {
        child = { name, url: call.url, self: 0, total: 0, children: new Map() };
        frame.children.set(key, child);
      }
      child.total += delta;
      frame = child;
    }
    frame.self += delta;
  }
  return root;
}

const WIDTH = 1400;
const ROW = 17;
const WIDTH_MIN = 0.6;

/** Draws a tree; `title` stands above it, `color` gives each function's colour. */
export function drawFlame(root: Frame, title: string, color: (frame: Frame) => string): string {
  const boxes: string[] = [];
  let depthMax = 0;
  const draw = (frame: Frame, x: number, depth: number) => {
    const width = (frame.total / root.total) * WIDTH;
    if (width < WIDTH_MIN) return;
    depthMax = Math.max(depthMax, depth);
    const share = ((100 * frame.total) / root.total).toFixed(1);
    const own = ((100 * frame.self) / root.total).toFixed(1);
    const where = frame.url.replace(/^.*\/dist\//, "");
    const label = width > 40 ? escaped(frame.name).slice(0, Math.floor(width / 6.5)) : "";
    boxes.push(
      `<g><title>${escaped(frame.name)} ${escaped(where)}: ${share} %, itself ${own} %</title>` +
        `<rect x="${x.toFixed(1)}" y="${depth * ROW + 30}" width="${Math.max(width - 0.5, 0.3).toFixed(1)}" height="${ROW - 1}" fill="${color(frame)}"/>` +
        `<text x="${(x + 2).toFixed(1)}" y="${depth * ROW + 42}">${label}</text></g>`,
    );
    let childX = x;
    for (const child of [...frame.children.values()].sort((a, b) => b.total - a.total)) {
      draw(child, childX, depth + 1);
      childX += (child.total / root.total) * WIDTH;
    }
  };
  draw(root, 0, 0);
  const height = (depthMax + 1) * ROW + 40;
  return (
    `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" font-family="monospace" font-size="11">` +
    `<rect width="100%" height="100%" fill="#fff"/><text x="4" y="18" font-size="14">${escaped(title)}</text>\n${boxes.join("\n")}\n</svg>\n`
  );
}

const escaped = (text: string) => text.replaceAll("&", "&amp;").replaceAll("<", "&lt;").replaceAll(">", "&gt;");
