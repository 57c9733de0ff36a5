/**
 * The fronts that a server can have, for the command line, the configuration file and the settings. How a front serves
 * is in `#lane/fronts`; a new one is a line here and a line there.
 */
export interface FrontKind {
  readonly port: number;
  /** Where it listens when nothing is said: an address, or "off". */
  readonly addressDefault: string;
  readonly title: string;
  /** It can continue under TLS. */
  readonly tls: boolean;
  /** Hosts prove who they are without TLS, too; and their secrets are keys of TLS, with or without certificates. */
  readonly hasSecrets?: boolean;
  /** It may listen at several addresses, "ADDR:PORT,ADDR:PORT". */
  readonly several?: boolean;
  /** Switches of its own: flag to what it does. They reach the front as options, in camel case. */
  readonly switches?: Readonly<Record<string, string>>;
}

export const FRONTS: Readonly<Record<string, FrontKind>> = {
  nbd: { port: 10809, addressDefault: "127.0.0.1:10809", title: "NBD", tls: true },
  scp: {
    port: 10001,
    addressDefault: "off",
    title: "SCP",
    tls: true,
    hasSecrets: true,
    several: true,
    switches: { "scp-any-source-port": "accept SCP hosts from ports at and above 1024, too" },
  },
  iscsi: { port: 3260, addressDefault: "off", title: "iSCSI", tls: false, several: true },
};
