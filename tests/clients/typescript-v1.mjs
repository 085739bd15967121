// The official TypeScript SDK, first line (@modelcontextprotocol/sdk). See conversation.mjs.

import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StreamableHTTPClientTransport } from "@modelcontextprotocol/sdk/client/streamableHttp.js";
import { answer, converse } from "./conversation.mjs";

let client;

await converse({
  async connect({ url, key }) {
    await client?.close();
    client = new Client({ name: "guardian-test", version: "1.0.0" });
    const transport = new StreamableHTTPClientTransport(new URL(url), {
      requestInit: { headers: { authorization: `Bearer ${key}` } },
    });
    await client.connect(transport);
    return { heard: "connected", protocol: transport.protocolVersion, server: client.getServerVersion().name };
  },

  async list() {
    return { heard: "tools", names: (await client.listTools()).tools.map((tool) => tool.name) };
  },

  async call({ tool, arguments: given, progress }) {
    const seen = [];
    const onprogress = progress ? (told) => seen.push(told.progress) : undefined;
    const result = await client.callTool({ name: tool, arguments: given }, undefined, { onprogress });
    return answer(result, seen);
  },

  describe: ({ code, data }) => ({ code, data }),
});
await client?.close();
