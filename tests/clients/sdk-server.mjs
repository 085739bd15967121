// A server made with the official TypeScript package: over its standard input and output, or with `sse` over HTTP+SSE on a
// port that it prints.
import { createServer } from "node:http";
import { McpServer } from "@modelcontextprotocol/sdk/server/mcp.js";
import { SSEServerTransport } from "@modelcontextprotocol/sdk/server/sse.js";
import { StdioServerTransport } from "@modelcontextprotocol/sdk/server/stdio.js";
import { z } from "zod";

function made() {
  const server = new McpServer({ name: "sdk", version: "1" }, { capabilities: { logging: {} } });
  const annotations = { readOnlyHint: true };
  server.registerTool("echo", { inputSchema: { text: z.string() }, annotations }, async ({ text }) => ({
    content: [{ type: "text", text }],
  }));
  server.registerTool("slow", { inputSchema: {}, annotations }, async (_, { _meta, sendNotification }) => {
    for (let progress = 1; progress <= 3; progress++) {
      const params = { progressToken: _meta?.progressToken ?? 0, progress, total: 3 };
      await sendNotification({ method: "notifications/progress", params });
    }
    return { content: [{ type: "text", text: "done" }] };
  });
  server.registerTool("delete_file", { inputSchema: { path: z.string() } }, async () => ({ content: [] }));
  return server;
}

if (process.argv[2] === "sse") {
  const transports = new Map();
  const server = createServer(async (request, response) => {
    const url = new URL(request.url, "http://localhost");
    if (request.method === "GET") {
      const transport = new SSEServerTransport("/messages", response);
      transports.set(transport.sessionId, transport);
      return made().connect(transport);
    }
    return transports.get(url.searchParams.get("sessionId")).handlePostMessage(request, response);
  });
  server.listen(0, "127.0.0.1", () => console.log(server.address().port));
  process.stdin.resume().on("end", () => process.exit(0));
} else {
  await made().connect(new StdioServerTransport());
}
