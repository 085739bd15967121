// What the official TypeScript client sees of Guardian: the list, then each call of the plan, in order.
//
//   NODE_EXTRA_CA_CERTS=ca.pem node allowed-refused.mjs <url> <key> '[{"tool":"…","arguments":{…}}, …]'
//
// Prints one JSON object. It does not judge: the test that runs it does.

import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";

const [url, key, plan] = process.argv.slice(2);

const client = new Client({ name: "guardian-test", version: "1.0.0" });
const transport = new StreamableHTTPClientTransport(new URL(url), {
  requestInit: { headers: { authorization: `Bearer ${key}` } },
});

async function call({ tool, arguments: given }) {
  try {
    const result = await client.callTool({ name: tool, arguments: given });
    return { tool, verdict: "answered", isError: result.isError ?? false, content: result.content };
  } catch (error) {
    return { tool, verdict: "refused", code: error.code, message: error.message, data: error.data };
  }
}

await client.connect(transport);
const seen = {
  server: client.getServerVersion(),
  protocol: transport.protocolVersion,
  tools: (await client.listTools()).tools.map((tool) => tool.name),
  calls: [],
};
for (const step of JSON.parse(plan)) {
  seen.calls.push(await call(step));
}
await transport.terminateSession().catch(() => {});
await client.close();
console.log(JSON.stringify(seen));
