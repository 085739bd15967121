// mcp-remote, as a desktop program runs it: a server of its standard input and output. See conversation.mjs; `mode` is its
// `--protocol`. With `sign_in` instead of a key it finds an authorization server itself, and the browser is $BROWSER.

import { Client } from "@modelcontextprotocol/sdk/client/index.js";
import { StdioClientTransport } from "@modelcontextprotocol/sdk/client/stdio.js";
import { ProgressNotificationSchema } from "@modelcontextprotocol/sdk/types.js";
import { fileURLToPath } from "node:url";
import { answer, converse } from "./conversation.mjs";

const bridge = fileURLToPath(new URL("node_modules/mcp-remote/dist/proxy.js", import.meta.url));
let client;
let seen = [];

await converse({
  async connect({ url, key, mode }) {
    await client?.close();
    client = new Client({ name: "guardian-test", version: "1.0.0" });
    // The SDK's own handler forgets what arrives in one piece with the answer.
    client.setNotificationHandler(ProgressNotificationSchema, ({ params }) => void seen.push(params.progress));
    const credential = key ? ["--header", `Authorization:Bearer ${key}`] : [];
    const args = [bridge, url, "--transport", "http-only", "--protocol", mode, ...credential];
    await client.connect(new StdioClientTransport({ command: process.execPath, args, env: process.env, stderr: "inherit" }));
    return { heard: "connected", server: client.getServerVersion().name };
  },

  async list() {
    return { heard: "tools", names: (await client.listTools()).tools.map((tool) => tool.name) };
  },

  async call({ tool, arguments: given }) {
    seen = [];
    const result = await client.callTool({ name: tool, arguments: given }, undefined, { onprogress: () => {} });
    return answer(result, seen);
  },

  describe: ({ code, data }) => ({ code, data }),
});
await client?.close();
