// The client under test in the suite's client scenarios: the official client package, driven as each scenario requires.
//
//   MCP_CONFORMANCE_SCENARIO=… MCP_CONFORMANCE_PROTOCOL_VERSION=… node client.mjs <server url>
//
// With CONFORMANCE_THROUGH (Guardian's address) and CONFORMANCE_RELAY (the port configured for Guardian's server) it connects
// to Guardian, and relays that port to the scenario's server, whose own port changes with every run. With CONFORMANCE_LEARN
// it only stays until Guardian lists the server's tools, so that Guardian makes no such request in the run that counts.

import { connect, createServer } from "node:net";
import { setTimeout as pause } from "node:timers/promises";
import { Client, StreamableHTTPClientTransport } from "@modelcontextprotocol/client";

const {
  CONFORMANCE_BEARER: bearer,
  CONFORMANCE_LEARN: learn,
  CONFORMANCE_RELAY: relay,
  CONFORMANCE_THROUGH: through,
  MCP_CONFORMANCE_CONTEXT: context = "{}",
  MCP_CONFORMANCE_PROTOCOL_VERSION: version,
  MCP_CONFORMANCE_SCENARIO: scenario,
} = process.env;
const server = new URL(process.argv.at(-1));

// The calls that a scenario wants once the tools are known. An error is an outcome like any other: the suite checks it.
const calls = {
  initialize: () => [],
  "request-metadata": () => [],
  "json-schema-ref-no-deref": () => [],
  tools_call: () => [{ name: "add_numbers", arguments: { a: 5, b: 3 } }],
  "elicitation-sep1034-client-defaults": (tools) => tools.map(({ name }) => ({ name, arguments: {} })),
  "sse-retry": (tools) => tools.map(({ name }) => ({ name, arguments: {} })),
  "http-standard-headers": (tools) => tools.map(({ name }) => ({ name, arguments: {} })),
  "http-custom-headers": () => JSON.parse(context).toolCalls,
  "http-invalid-tool-headers": (tools) => tools.map(({ name }) => ({ name, arguments: { region: "us-west1" } })),
  "sep-2322-client-request-state": (tools) => tools.map(({ name }) => ({ name, arguments: {} })),
  "json-schema-2020-12-preservation": (tools) => {
    const [{ inputSchema: schema }] = tools.filter(({ name }) => name === "json_schema_2020_12_tool");
    return tools.filter(({ name }) => name !== "json_schema_2020_12_tool").map(({ name }) => ({ name, arguments: { schema } }));
  },
};

// After thirty seconds the suite ends the shell that this client runs in.
setTimeout(() => process.exit(1), 25_000).unref();
if (through) await relayTo(server);
const client = await connected(through ? new URL(through) : server, through && { authorization: `Bearer ${bearer}` });
await (learn ? stay() : use());
await client.close();
process.exit(0);

async function connected(url, headers = {}) {
  const client = new Client(
    { name: "conformance-client", version: "1.0.0" },
    {
      capabilities: { elicitation: { form: { applyDefaults: true } }, roots: { listChanged: true }, sampling: {} },
      versionNegotiation: { mode: version === "2026-07-28" ? "auto" : "legacy" },
    },
  );
  client.setRequestHandler("elicitation/create", ({ params }) => ({
    action: "accept",
    content: params.requestedSchema.properties.confirmed ? { confirmed: true } : {},
  }));
  await client.connect(new StreamableHTTPClientTransport(url, { requestInit: { headers } }));
  return client;
}

async function use() {
  const { resources, prompts } = client.getServerCapabilities();
  const { tools } = await client.listTools();
  for (const call of calls[scenario](tools)) await attempt(client.callTool(call));
  if (resources) {
    for (const { uri } of (await client.listResources()).resources) await attempt(client.readResource({ uri }));
  }
  if (prompts) {
    for (const { name } of (await client.listPrompts()).prompts) await attempt(client.getPrompt({ name }));
  }
}

async function stay() {
  const direct = await connected(server);
  const { tools } = await direct.listTools();
  if (calls[scenario](tools).length === 0) return;
  while ((await client.listTools()).tools.length === 0) await pause(100);
}

async function attempt(outcome) {
  try {
    console.log(JSON.stringify(await outcome));
  } catch (error) {
    console.error(String(error));
  }
}

function relayTo({ hostname, port }) {
  const relayed = createServer((one) => {
    const other = connect(Number(port), hostname);
    for (const [from, to] of [[one, other], [other, one]]) from.pipe(to).on("error", () => from.destroy());
    one.on("error", () => other.destroy()).on("close", () => other.destroy());
    other.on("error", () => one.destroy()).on("close", () => one.destroy());
  });
  return new Promise((listening) => relayed.listen(Number(relay), "127.0.0.1", listening));
}
