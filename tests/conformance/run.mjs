// Runs the published conformance suites and prints their results as sorted JSON, one `scenario/check` a line. What a check
// said about a failure goes to standard error. It compares nothing: the test that runs it does.
//
//   node run.mjs server <suite> <url> [<scenario>]   a suite against a server
//   node run.mjs client [<ways>]                     the client scenarios; behind Guardian where `ways` says so:
//                                                    {"<version>/<scenario>": {"url": …, "relay": port}}, see client.mjs
//   node run.mjs learn <ways>                        the same without results, until Guardian has each scenario's tools
//   node run.mjs scenarios                           a list of the client scenarios, as `ways` has them
//
// CONFORMANCE_SERVER is the name of the server that must answer, that of our own fixture by default; CONFORMANCE_BEARER is the
// key to send, NODE_EXTRA_CA_CERTS the authority to trust. Needs Node 22 or later.

import { execFile } from "node:child_process";
import { mkdtemp, readdir, readFile, rm } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const here = (path) => fileURLToPath(new URL(path, import.meta.url));

const suites = {
  "0.1": ["conformance-0.1", ["--suite", "all"]],
  "0.2/2025-11-25": ["conformance-0.2", ["--requirements", "2025-11-25"]],
  "0.2/2026-07-28": ["conformance-0.2", ["--requirements", "2026-07-28"]],
};

const clientScenarios = [
  "2025-11-25/initialize",
  "2025-11-25/tools_call",
  "2025-11-25/elicitation-sep1034-client-defaults",
  "2025-11-25/sse-retry",
  "2025-11-25/json-schema-2020-12-preservation",
  "2026-07-28/tools_call",
  "2026-07-28/request-metadata",
  "2026-07-28/http-standard-headers",
  "2026-07-28/http-custom-headers",
  "2026-07-28/http-invalid-tool-headers",
  "2026-07-28/sep-2322-client-request-state",
  "2026-07-28/json-schema-ref-no-deref",
  "2026-07-28/json-schema-2020-12-preservation",
];

const [what, ...rest] = process.argv.slice(2);
if (what === "scenarios") {
  console.log(JSON.stringify(clientScenarios));
  process.exit(0);
}
if (what === "learn") {
  await Promise.all(Object.entries(JSON.parse(rest[0])).map(([named, way]) => judgeClient(named, way, { CONFORMANCE_LEARN: "1" })));
  process.exit(0);
}
const found = await { server: judgeServer, client: judgeClients }[what](...rest);
if (Object.keys(found).length === 0) throw new Error("the suite reported no check");
const lines = Object.entries(found).map(([check, status]) => `${JSON.stringify(check)}: ${JSON.stringify(status)}`);
console.log(`{\n${lines.sort().join(",\n")}\n}`);

async function judgeServer(suite, url, scenario) {
  await answers(url);
  const [release, all] = suites[suite];
  const version = suite.split("/")[1];
  const which = scenario ? ["--scenario", scenario, ...(version ? ["--spec-version", version] : [])] : all;
  const inject = process.env.CONFORMANCE_BEARER ? ["--import", pathToFileURL(here("inject.mjs")).href] : [];
  return reported("server", (out) =>
    run([...inject, cli(release), "server", "--url", url, ...which, "-o", out], { CONFORMANCE_URL: url }));
}

// Some checks of these suites pass without any server.
async function answers(url) {
  const capabilities = {};
  const clientInfo = { name: "probe", version: "1.0.0" };
  const params = { protocolVersion: "2025-11-25", capabilities, clientInfo };
  const answer = await fetch(url, {
    method: "POST",
    headers: {
      accept: "application/json, text/event-stream",
      "content-type": "application/json",
      ...(process.env.CONFORMANCE_BEARER && { authorization: `Bearer ${process.env.CONFORMANCE_BEARER}` }),
    },
    body: JSON.stringify({ jsonrpc: "2.0", id: 1, method: "initialize", params }),
  });
  const text = await answer.text();
  const name = process.env.CONFORMANCE_SERVER ?? "conformance-fixture";
  if (!answer.ok || !text.includes(`"${name}"`)) throw new Error(`no ${name} at ${url}: ${answer.status} ${text}`);
}

async function judgeClients(ways = "{}") {
  const found = {};
  for (const named of clientScenarios) {
    const checks = await judgeClient(named, JSON.parse(ways)[named]);
    for (const [check, status] of Object.entries(checks)) found[`${named.split("/")[0]}/${check}`] = status;
  }
  return found;
}

function judgeClient(named, way, env = {}) {
  const [version, scenario] = named.split("/");
  const command = `"${process.execPath}" "${here("client.mjs")}"`;
  const ask = ["client", "--command", command, "--scenario", scenario, "--spec-version", version];
  const through = way && { CONFORMANCE_THROUGH: way.url, CONFORMANCE_RELAY: way.relay };
  return reported("", (out) => run([cli("conformance-0.2"), ...ask, "-o", out], { ...through, ...env }));
}

function cli(release) {
  return here(`node_modules/${release}/dist/index.js`);
}

// A suite exits with an error when a check fails; the reports say more.
function run(args, env) {
  return new Promise((done) => {
    execFile(process.execPath, args, { env: { ...process.env, ...env }, maxBuffer: 1 << 28 }, (error, out, err) => {
      done(`${out}${err}`);
    });
  });
}

// The suite leaves one folder a scenario, `[server-]<scenario>-<time>`: an empty one if the scenario broke off. INFO is a log
// entry and not a result.
async function reported(kind, suite) {
  const out = await mkdtemp(join(tmpdir(), "conformance-"));
  try {
    const said = await suite(out);
    const found = {};
    for (const folder of await readdir(out)) {
      const scenario = folder.replace(/-\d{4}-\d\d-\d\dT[\d-]+Z$/, "").replace(kind && `${kind}-`, "");
      if ((await readdir(join(out, folder))).length === 0) continue;
      const checks = JSON.parse(await readFile(join(out, folder, "checks.json"), "utf8"));
      for (const { id, status, errorMessage } of checks.filter(({ status }) => status !== "INFO")) {
        const name = `${scenario}/${id}`;
        found[name] = found[name] ? [found[name], status].flat() : status;
        if (status !== "SUCCESS" && errorMessage) console.error(`${name}: ${status}: ${errorMessage}`);
      }
    }
    if (Object.keys(found).length === 0) console.error(said);
    return found;
  } finally {
    await rm(out, { recursive: true });
  }
}
