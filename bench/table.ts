/** What a run found: printed as it comes, and kept as JSON and Markdown with the machine and the commit. */
import { mkdirSync, readFileSync, writeFileSync } from "node:fs";
import { cpus, totalmem } from "node:os";
import { join } from "node:path";
import { run } from "#test/support/program";

export interface Table {
  readonly title: string;
  /** How it was measured, in a sentence or two. */
  readonly method: string;
  readonly columns: readonly string[];
  readonly rows: readonly (readonly string[])[];
  /** The numbers behind it. */
  readonly data: unknown;
}

export interface Machine {
  readonly date: string;
  readonly commit: string;
  readonly processor: string;
  readonly cores: number;
  readonly memoryGib: number;
  readonly kernel: string;
  readonly node: string;
  readonly fileSystem: string;
}

/** Where this run happens. A commit with local changes ends in "+". */
export async function describeMachine(folder: string): Promise<Machine> {
  const git = (...args: string[]) => run("git", args).catch(() => "");
  const dirty = (await git("status", "--porcelain", "--untracked-files=no")).trim() === "" ? "" : "+";
  return {
    date: new Date().toISOString().slice(0, 16).replace("T", " "),
    commit: `${(await git("rev-parse", "--short=10", "HEAD")).trim() || "unknown"}${dirty}`,
    processor: cpus()[0]?.model.trim() ?? "unknown",
    cores: cpus().length,
    memoryGib: Math.round(totalmem() / 2 ** 30),
    kernel: readFileSync("/proc/sys/kernel/osrelease", "latin1").trim(),
    node: process.version,
    fileSystem: (await run("stat", ["-f", "-c", "%T", folder])).trim(),
  };
}

export function formatTable({ title, method, columns, rows }: Table): string {
  const line = (cells: readonly string[]) => `| ${cells.join(" | ")} |`;
  const rule = line(columns.map((_, index) => (index === 0 ? "---" : "---:")));
  return `### ${title}\n\n${method}\n\n${[line(columns), rule, ...rows.map(line)].join("\n")}\n`;
}

/** Writes `NAME.json` and `NAME.md`; returns the path of the latter. */
export function keep(folder: string, name: string, machine: Machine, tables: readonly Table[]): string {
  mkdirSync(folder, { recursive: true });
  writeFileSync(join(folder, `${name}.json`), `${JSON.stringify({ machine, tables }, null, 1)}\n`);
  const where = `${machine.processor}, ${machine.cores} cores, ${machine.memoryGib} GiB, Linux ${machine.kernel}, Node ${machine.node}, ${machine.fileSystem}`;
  const head = `# Measured at ${machine.commit}, ${machine.date} UTC\n\n${where}. Made by \`npm run bench\`.\n`;
  const path = join(folder, `${name}.md`);
  writeFileSync(path, [head, ...tables.map(formatTable)].join("\n"));
  return path;
}
