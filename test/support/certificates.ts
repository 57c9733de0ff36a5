/** A certificate authority for one test, and what it signs, as files in a folder and as text. Made with openssl. */
import { readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";
import { run } from "./program.ts";

export interface Certificates {
  /** Has ca-cert.pem, client-cert.pem and client-key.pem, as libnbd and QEMU look for them. */
  readonly folder: string;
  readonly ca: string;
  readonly cert: string;
  readonly key: string;
  readonly client: { readonly cert: string; readonly key: string };
  /** A certificate of the server whose days are over. */
  expired(): Promise<{ cert: string; key: string }>;
}

/** The server's certificate is for localhost and 127.0.0.1; the client's has the common name `client`. */
export async function makeCertificates(folder: string, client: string): Promise<Certificates> {
  const at = (name: string) => join(folder, name);
  const text = (name: string) => readFileSync(at(name), "utf8");
  const curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
  await run("openssl", [
    ...["req", "-x509", ...curve, "-days", "2", "-subj", "/CN=Ashlar test CA"],
    ...["-keyout", at("ca-key.pem"), "-out", at("ca-cert.pem")],
  ]);
  for (const [who, subject, extensions] of [
    ["server", "localhost", "subjectAltName=DNS:localhost,IP:127.0.0.1\nextendedKeyUsage=serverAuth\n"],
    ["client", client, "extendedKeyUsage=clientAuth\n"],
  ] as const) {
    writeFileSync(at(`${who}.ext`), extensions);
    await run("openssl", [
      ...["req", ...curve, "-subj", `/CN=${subject}`],
      ...["-keyout", at(`${who}-key.pem`), "-out", at(`${who}.csr`)],
    ]);
    await run("openssl", [
      ...["x509", "-req", "-in", at(`${who}.csr`), "-CA", at("ca-cert.pem"), "-CAkey", at("ca-key.pem")],
      ...["-CAcreateserial", "-days", "2", "-extfile", at(`${who}.ext`), "-out", at(`${who}-cert.pem`)],
    ]);
  }
  return {
    folder,
    ca: text("ca-cert.pem"),
    cert: text("server-cert.pem"),
    key: text("server-key.pem"),
    client: { cert: text("client-cert.pem"), key: text("client-key.pem") },
    expired: async () => {
      // Only `openssl ca` signs for days that are over.
      writeFileSync(at("index.txt"), "");
      writeFileSync(at("serial"), "7001\n");
      writeFileSync(
        at("ca.cnf"),
        `[ca]\ndefault_ca = c\n[c]\ndatabase = ${at("index.txt")}\nserial = ${at("serial")}\nnew_certs_dir = ${folder}\n` +
          "default_md = sha256\npolicy = p\n[p]\ncommonName = supplied\n",
      );
      await run("openssl", [
        ...[
          "ca",
          "-batch",
          "-notext",
          "-config",
          at("ca.cnf"),
          "-cert",
          at("ca-cert.pem"),
          "-keyfile",
          at("ca-key.pem"),
        ],
        ...["-in", at("server.csr"), "-out", at("old-cert.pem"), "-extfile", at("server.ext")],
        ...["-startdate", "20200101000000Z", "-enddate", "20200201000000Z"],
      ]);
      return { cert: text("old-cert.pem"), key: text("server-key.pem") };
    },
  };
}
