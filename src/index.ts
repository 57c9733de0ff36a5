/** The library: `import { connect, serve } from "ashlar"`. docs/library.md shows how. */
export { Refusal } from "#base/refusal";
export type { Status } from "#base/status";
export type { Log } from "#env/env";
export { type ConnectOptions, connect, list, type RemoteFeatures, type RemoteHandle } from "./library/connect.ts";
export { connectScp, type ScpConnection, type ScpConnectOptions } from "./library/connect-scp.ts";
export {
  type CopyOptions,
  type CopyProgress,
  type CopyResult,
  type ExportOptions,
  exportFile,
  type ImportOptions,
  importFile,
} from "./library/copy.ts";
export { DeviceError } from "./library/device-error.ts";
export { type DiscoverOptions, discover } from "./library/discover-scp.ts";
export type { DeviceHandle, ExtentInfo, WriteOptions, ZeroOptions } from "./library/handle.ts";
export { type Served, type ServeOptions, serve } from "./library/serve.ts";
export { serverTls } from "./library/tls-files.ts";
export type { UserDevice } from "./library/user-device.ts";
