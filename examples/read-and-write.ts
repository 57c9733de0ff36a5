// node dist/examples/read-and-write.js nbd://127.0.0.1:10809/demo
// Reads and writes a volume, at any offset and of any length. What was there is put back at the end.
import { connect, DeviceError, Refusal } from "ashlar";

const uri = process.argv[2] ?? "nbd://127.0.0.1:10809/demo";
try {
  const volume = await connect(uri);
  console.log(`${uri} has ${volume.size} bytes${volume.readOnly ? ", read-only" : ""}`);

  const message = new TextEncoder().encode("Dressed stone, cut so that the blocks fit.");
  const before = await volume.read(1000, message.length);
  await volume.write(1000, message);
  // From here on, no power cut takes it away.
  await volume.flush();
  console.log(new TextDecoder().decode(await volume.read(1000, message.length)));
  await volume.write(1000, before);

  let data = 0;
  for (const extent of await volume.status()) if (!extent.zero) data += extent.length;
  console.log(`${data} bytes of it hold data`);
  await volume.close();
} catch (error) {
  // A Refusal says why there is no connection, a DeviceError which operation failed, and how.
  if (!(error instanceof Refusal || error instanceof DeviceError)) throw error;
  console.error(error.message);
  process.exitCode = 1;
}
