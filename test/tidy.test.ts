/**
 * The source says of itself what no compiler checks: who imports whom, which names are banned where and why, how specs
 * are cited, what nobody uses. A rule that is broken names the file, the line, and the reason for the rule.
 */
import assert from "node:assert/strict";
import { readdirSync, readFileSync } from "node:fs";
import { join } from "node:path";
import { suite, test } from "node:test";

interface Source {
  readonly path: string;
  /** The first folder under `src`, or `sim`, `test`, `bench`, `examples`. */
  readonly layer: string;
  readonly text: string;
  /** Without comments and strings' content, line by line, for rules about names. */
  readonly code: readonly string[];
  readonly imports: readonly string[];
}

/** ARCHITECTURE.md, "Layers": what each may import beside itself. A path stands for one file of a layer. */
const LAYERS: Readonly<Record<string, readonly string[]>> = {
  base: [],
  env: ["base"],
  device: ["base", "env/env"],
  wire: ["base"],
  proto: ["base", "wire", "env/story-line"],
  store: ["base", "env/env", "device"],
  scsi: ["base", "env/env", "device", "wire"],
  target: ["base", "env/env", "env/story-line", "device", "wire", "proto", "scsi", "store"],
  initiator: ["base", "env/env", "env/story-line", "device", "wire", "proto"],
  lane: ["base", "env", "device", "wire", "proto", "store", "scsi", "target", "initiator"],
  library: ["base", "env", "device", "wire", "proto", "target", "initiator"],
  admin: [
    "base",
    "env/env",
    "env/uring/remains",
    "env/flock",
    "env/libc",
    "store/drive-set",
    "store/drive-space",
    "lane",
  ],
  attach: ["base", "env", "device", "wire", "proto", "target", "initiator", "library"],
  cli: ["attach", "base", "env", "device", "proto", "initiator", "library", "target", "wire", "admin", "lane"],
};
/** Composition roots and entry points: they may import everything, and nothing imports them. */
const ROOTS = ["bin", "index"];
/** Layers of the data plane, in which only `Env` has time, chance, sockets and files. */
const DATA_PLANE = ["proto", "wire", "store", "target", "scsi", "initiator", "device", "base"];

const BANNED: readonly { readonly name: RegExp; readonly reason: string; readonly layers?: readonly string[] }[] = [
  { name: /\bDate\b(?!\()/, reason: "dates come from env.clock.date(), so that a simulated run has them too" },
  { name: /\bperformance\.now\b/, reason: "time comes from env.clock.now()" },
  { name: /\b(setTimeout|setInterval|setImmediate|queueMicrotask)\b/, reason: "a machine waits with env.clock.alarm" },
  { name: /\bMath\.random\b/, reason: "chance comes from env.random, so that a seed decides" },
  { name: /\bcrypto\.random\w+/, reason: "chance comes from env.random" },
  { name: /\bprocess\./, reason: "the data plane knows no process" },
  { name: /\b(async|await|Promise)\b/, reason: "a promise is a microtask per step, which no simulator can order" },
  { name: /\b(WeakRef|FinalizationRegistry)\b/, reason: "the garbage collector's time is nobody's seed" },
  { name: /\b(Intl|toLocale\w+)\b/, reason: "what it prints depends on the machine" },
];
/** Files with leave to break a rule, and why. */
const EXEMPT: Readonly<Record<string, string>> = {
  "src/wire/iscsi/bhs.ts": "the eight bytes of a LUN are one field of several forms (SAM-5 §4.7)",
  "src/base/task.ts": "turns a task into a promise, for the edges",
};

const sources = ["src", "sim", "test", "bench", "examples"].flatMap((folder) => [...walk(folder)]);
const product = sources.filter(({ path }) => path.startsWith("src/") && !path.endsWith(".test.ts"));

suite("the source", () => {
  test("imports only downwards", () => {
    const wrong: string[] = [];
    for (const { path, layer, imports } of product) {
      if (ROOTS.includes(layer)) continue;
      const allowed = LAYERS[layer];
      assert.ok(allowed !== undefined, `${path}: the layer "${layer}" is not in the table`);
      for (const target of imports) {
        const [, to, rest = ""] = /^#([^/]+)\/(.*)$/.exec(target) ?? [];
        if (to === undefined) continue;
        if (to === layer) wrong.push(`${path}: inside a layer, imports are relative (${target})`);
        else if (!allowed.includes(to) && !allowed.includes(`${to}/${rest}`))
          wrong.push(`${path}: ${layer} may not import ${target}`);
      }
    }
    assert.deepEqual(wrong, []);
  });

  test("goes across layers by name, and not by climbing", () => {
    const wrong = product.flatMap(({ path, imports }) => {
      const depth = path.split("/").length - 3;
      return imports
        .filter(
          (target) => target.startsWith("../") && !target.includes("/bin/") && target.split("../").length - 1 > depth,
        )
        .map((target) => `${path}: ${target}`);
    });
    assert.deepEqual(wrong, []);
  });

  test("has no loop between layers", () => {
    const order = Object.keys(LAYERS);
    for (const [layer, allowed] of Object.entries(LAYERS))
      for (const below of allowed.map((name) => name.split("/")[0]!))
        assert.ok(order.indexOf(below) < order.indexOf(layer), `${layer} and ${below} may import each other`);
  });

  test("of the data plane takes time, chance, sockets and files from Env alone", () => {
    const wrong: string[] = [];
    for (const { path, layer, code, imports } of product) {
      if (!DATA_PLANE.includes(layer) || path in EXEMPT) continue;
      for (const target of imports) if (target.startsWith("node:")) wrong.push(`${path}: imports ${target}`);
      for (const [index, line] of code.entries())
        for (const { name, reason, layers } of BANNED)
          if ((layers === undefined || layers.includes(layer)) && name.test(line))
            wrong.push(`${path}:${index + 1}: ${name.exec(line)![0]}: ${reason}`);
    }
    assert.deepEqual(wrong, []);
  });

  test("reads and writes wire formats through layouts and not by offsets typed in", () => {
    const wrong = product
      .filter(({ layer }) => layer === "wire")
      .flatMap(({ path, code }) =>
        code.flatMap((line, index) =>
          /\b[gs]et(Ui|I)nt(8|16|32)\(at \+ [1-9]/.test(line) && !/\(at\).*\(at \+ 4\)/.test(line) && !(path in EXEMPT)
            ? [`${path}:${index + 1}: ${line.trim()}`]
            : [],
        ),
      );
    assert.deepEqual(wrong, []);
  });

  test("has native code and sockets in env, and nowhere else under the control plane", () => {
    const wrong = product
      .filter(({ layer }) => !["env", "bin", "admin", "cli", "library", "attach"].includes(layer))
      .flatMap(({ path, imports }) =>
        imports
          .filter((target) => target === "koffi" || /^node:(net|tls|fs|dgram)/.test(target))
          .map((target) => `${path}: ${target}`),
      );
    assert.deepEqual(wrong, []);
  });

  test("has no default exports, and no doors that only lead on", () => {
    const wrong = product.flatMap(({ path, text }) => {
      if (/^export default/m.test(text)) return [`${path}: default export`];
      const lines = text
        .replace(/\/\*[\s\S]*?\*\//g, "")
        .split("\n")
        .filter((line) => /\S/.test(line) && !/^\s*\/\//.test(line));
      const barrel =
        path !== "src/index.ts" && lines.length > 0 && lines.every((line) => /^export .* from |^export \* /.test(line));
      return barrel ? [`${path}: it only exports what others have`] : [];
    });
    assert.deepEqual(wrong, []);
  });

  test("has no file that nobody imports", () => {
    const used = new Set(
      sources.flatMap((source) => source.imports.map((target) => resolveImport(source.path, target))),
    );
    const dynamic = sources.map(({ text }) => text).join("\n");
    const alone = product.filter(({ path }) => {
      if (path.startsWith("src/bin/") || path === "src/index.ts") return false;
      const name = path.replace(/^src\//, "").replace(/\.ts$/, "");
      return !used.has(path) && !dynamic.includes(`"#${name}"`) && !dynamic.includes(`/${name.split("/").pop()}.ts"`);
    });
    assert.deepEqual(
      alone.map(({ path }) => path),
      [],
    );
  });

  test("has no export that nobody uses", () => {
    const words = new Map<string, number>();
    for (const { text } of sources)
      for (const word of new Set(text.match(/\b[A-Za-z_]\w+\b/g) ?? [])) words.set(word, (words.get(word) ?? 0) + 1);
    const alone = product.flatMap(({ path, text }) => {
      // Tables of a specification's codes are complete, whether all of them are used or not.
      if (path === "src/index.ts" || /\/(codes|abi)\.ts$/.test(path)) return [];
      const names = [...text.matchAll(/^export (?:async )?(?:const|function\*?|class|enum|let) (\w+)/gm)].map(
        (match) => match[1]!,
      );
      return names
        .filter((name) => words.get(name) === 1 && (text.match(new RegExp(`\\b${name}\\b`, "g"))?.length ?? 0) === 1)
        .map((name) => `${path}: ${name}`);
    });
    assert.deepEqual(alone, []);
  });

  test("begins every file with what it is", () => {
    const silent = product.filter(
      ({ text }) => !/^(#!.*\n)?\/\*\*/.test(text) && !/^(import[\s\S]*?;\n)*\n*\/\*\*/.test(text),
    );
    assert.deepEqual(
      silent.map(({ path }) => path).filter((path) => !path.startsWith("src/admin/routes/")),
      [],
    );
  });

  test("cites specifications in one form", () => {
    const wrong = product.flatMap(({ path, text }) =>
      [...text.matchAll(/(?<!")RFC ?\d+[^\n]{0,12}/g)]
        .map(([citation]) => citation)
        .filter((citation) => !/^RFC \d{3,5}(?! ?(section|Section|sec\.|chapter))/.test(citation))
        .map((citation) => `${path}: "${citation}" is written RFC 7143 §11.2.1`),
    );
    assert.deepEqual(wrong, []);
  });

  test("says for which issue a TODO waits", () => {
    const wrong = sources
      .filter(({ path }) => path !== "test/tidy.test.ts")
      .flatMap(({ path, text }) =>
        text
          .split("\n")
          .flatMap((line, index) => (/\b(TODO|FIXME|XXX)\b(?!\(#\d+\))/.test(line) ? [`${path}:${index + 1}`] : [])),
      );
    assert.deepEqual(wrong, []);
  });

  test("tells the path of what a file was, or of the sandbox it was made in, nowhere", () => {
    const wrong = sources
      .filter(({ path }) => path !== "test/tidy.test.ts")
      .flatMap(({ path, text }) =>
        text
          .split("\n")
          .flatMap((line, index) => (/\.\.\/shared|\/work\/|helpers\.md/.test(line) ? [`${path}:${index + 1}`] : [])),
      );
    assert.deepEqual(wrong, []);
  });

  test("lists its layers in ARCHITECTURE.md as they are", () => {
    const text = readFileSync("ARCHITECTURE.md", "utf8");
    for (const layer of Object.keys(LAYERS))
      assert.ok(text.includes(`src/${layer}`), `ARCHITECTURE.md lacks src/${layer}`);
  });
});

function* walk(folder: string): Iterable<Source> {
  for (const entry of readdirSync(folder, { withFileTypes: true })) {
    const path = `${folder}/${entry.name}`;
    if (entry.isDirectory()) yield* walk(path);
    else if (path.endsWith(".ts")) {
      const text = readFileSync(path, "utf8");
      const [top = "", second = ""] = path.split("/");
      yield {
        path,
        layer: top === "src" ? second.replace(/\.ts$/, "") : top,
        text,
        code: stripped(text),
        imports: [...text.matchAll(/\b(?:from|import)\s*\(?\s*"([^"]+)"/g)].map((match) => match[1]!),
      };
    }
  }
}

/** The lines without comments and without what stands in quotes. */
function stripped(text: string): string[] {
  return text
    .replace(/\/\*[\s\S]*?\*\//g, (comment) => comment.replace(/[^\n]/g, " "))
    .split("\n")
    .map((line) => line.replace(/"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'|`(?:[^`\\]|\\.)*`/g, '""').replace(/\/\/.*$/, ""));
}

function resolveImport(from: string, target: string): string {
  if (target.startsWith("#")) {
    const name = target.slice(1);
    return /^(sim|test)\//.test(name) ? `${name}.ts` : `src/${name}.ts`;
  }
  return target.startsWith(".") ? join(from, "..", target) : target;
}
