// node dist/examples/copy-with-progress.js nbd://127.0.0.1:10809/demo disk.img
// Saves a volume as a sparse image: only data travels, and the file has its name only once it is whole.
import { connect, exportFile, Refusal } from "ashlar";

const [uri = "nbd://127.0.0.1:10809/demo", file = "disk.img"] = process.argv.slice(2);
const stop = new AbortController();
process.once("SIGINT", () => stop.abort());

try {
  const volume = await connect(uri);
  const result = await exportFile(volume, file, {
    signal: stop.signal,
    resume: true,
    verify: true,
    onProgress: ({ phase, done, total }) => {
      if (process.stderr.isTTY && total) process.stderr.write(`\r${phase} ${Math.floor((100 * done) / total)} %  `);
    },
  });
  console.log(`${file}: ${result.size} bytes, of which ${result.written} were written in ${result.elapsedMs | 0} ms`);
  await volume.close();
} catch (error) {
  if (!(error instanceof Refusal)) throw error;
  console.error(`${error.message}${error.hint === undefined ? "" : `. ${error.hint}`}`);
  process.exitCode = 1;
}
