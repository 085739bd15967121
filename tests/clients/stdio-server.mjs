// An MCP server that does what its tools' arguments say and writes down what reaches it. It speaks stdio or, with `sse`, the
// HTTP+SSE transport of 2024-11-05 on a port that it prints; with `sse elsewhere` its message URL has another origin.
import { spawn } from "node:child_process";
import { appendFileSync } from "node:fs";
import { createServer } from "node:http";
import { createInterface } from "node:readline";

const record = (line) => process.env.RECORD && appendFileSync(process.env.RECORD, `${JSON.stringify({ pid: process.pid, ...line })}\n`);
const text = (value) => ({ content: [{ type: "text", text: typeof value === "string" ? value : JSON.stringify(value) }] });
const tool = (name, properties = {}) => ({
  name,
  inputSchema: { type: "object", properties },
  annotations: { readOnlyHint: true },
});
const string = { type: "string" };
const TOOLS = [
  tool("echo", { text: string }),
  tool("env"),
  tool("hold", { name: string }),
  tool("release", { name: string }),
  tool("ask", { method: string }),
  tool("crash"),
  tool("garbage"),
  tool("flood"),
  tool("never"),
  tool("pid"),
  tool("child"),
  tool("notify"),
  tool("complain", { text: string }),
];
// With UNTYPED there is a tool whose arguments no policy can read.
if (process.env.UNTYPED) {
  const names = Array.from({ length: 9 }, (_, number) => `argument${number}`);
  TOOLS.push(tool("untyped", Object.fromEntries(names.map((name) => [name, { type: ["string", "integer"] }]))));
}
// With CONDITIONAL there are further tools, for clients that declare what they need.
const CONDITIONAL = { sampling: tool("compose"), roots: tool("folders") };
const held = new Map();

// One connection: `send` takes an object; `raw` takes bytes and exists only over stdio.
function conversation(send, raw) {
  const asked = new Map();
  const answer = (id, result) => send({ jsonrpc: "2.0", id, result });
  const note = (method, params) => send({ jsonrpc: "2.0", method, params });
  let next = 1;
  let capabilities = {};

  const calls = {
    echo: (id, { text: said }) => answer(id, text(said)),
    env: (id) => answer(id, text(process.env)),
    pid: (id) => answer(id, text(String(process.pid))),
    hold(id, { name }, token) {
      note("notifications/progress", { progressToken: token, progress: 1 });
      held.set(name, () => {
        note("notifications/progress", { progressToken: token, progress: 2 });
        answer(id, text(`held ${name}`));
      });
    },
    release(id, { name }) {
      const free = held.get(name);
      held.delete(name);
      answer(id, text(free ? "released" : "not held"));
      free?.();
    },
    ask(id, { method }) {
      const own = `s-${next++}`;
      asked.set(own, (message) => answer(id, text(message)));
      send({ jsonrpc: "2.0", id: own, method, params: {} });
    },
    crash: () => process.exit(3),
    garbage(id) {
      raw("Server listening on nothing\n\n{\"level\":30}\n{\"jsonrpc\":\"2.0\",\"id\":1,\"id\":2,\"result\":{}}\n\xff\xfe\n");
      answer(id, text("after garbage"));
    },
    flood: (id) => raw(`{"jsonrpc":"2.0","id":${id},"result":{"content":[{"type":"text","text":"${"x".repeat(100_000_000)}"}]}}\n`),
    never: () => {},
    child(id) {
      const child = spawn("sleep", ["1000"], { stdio: "ignore" });
      answer(id, text(String(child.pid)));
    },
    notify(id) {
      answer(id, text("notified"));
      note("notifications/message", { level: "info", data: "a line of the log" });
      note("notifications/progress", { progressToken: 999_999, progress: 1 });
      note("notifications/tools/list_changed");
    },
    complain(id, { text: said }) {
      process.stderr.write(`${said}\n`, () => answer(id, text("complained")));
    },
  };
  return (message) => {
    record({ message });
    const { id, method, params } = message;
    if (method === undefined) return asked.get(id)?.(message);
    if (id === undefined) return;
    switch (method) {
      case "initialize":
        capabilities = params.capabilities;
        return answer(id, {
          protocolVersion: params.protocolVersion,
          capabilities: { tools: { listChanged: true }, logging: {} },
          serverInfo: { name: "pipe", version: "1" },
        });
      case "ping":
        return answer(id, {});
      case "tools/list": {
        if (!process.env.CONDITIONAL) return answer(id, { tools: TOOLS });
        const more = Object.keys(CONDITIONAL).filter((name) => capabilities[name]);
        const list = () => answer(id, { tools: [...TOOLS, ...more.map((name) => CONDITIONAL[name])] });
        if (!capabilities.roots) return list();
        // It lists nothing before the client has answered.
        asked.set("before-the-list", list);
        return send({ jsonrpc: "2.0", id: "before-the-list", method: "roots/list" });
      }
      case "tools/call":
        return calls[params.name](id, params.arguments ?? {}, params._meta?.progressToken);
      default:
        return send({ jsonrpc: "2.0", id, error: { code: -32601, message: "no such method" } });
    }
  };
}

function stdio() {
  const raw = (bytes) => process.stdout.write(Buffer.from(bytes, "latin1"));
  const hear = conversation((message) => process.stdout.write(`${JSON.stringify(message)}\n`), raw);
  record({ begun: true });
  createInterface({ input: process.stdin }).on("line", (line) => hear(JSON.parse(line)));
}

function sse(elsewhere) {
  const streams = new Map();
  let count = 0;
  const server = createServer((request, response) => {
    const url = new URL(request.url, "http://localhost");
    record({ verb: request.method, path: url.pathname, headers: request.headers });
    if (request.method === "GET") {
      const name = String(++count);
      response.writeHead(200, { "content-type": "text/event-stream" });
      const place = elsewhere ? "http://127.0.0.2:9/messages" : `/messages?session=${name}`;
      response.write(`event: endpoint\ndata: ${place}\n\n`);
      const say = (message) => response.write(`event: message\ndata: ${JSON.stringify(message)}\n\n`);
      streams.set(name, conversation(say, () => response.destroy()));
      response.on("close", () => {
        record({ closed: name });
        streams.delete(name);
      });
      return;
    }
    let body = "";
    request.on("data", (piece) => (body += piece));
    request.on("end", () => {
      const hear = streams.get(url.searchParams.get("session"));
      response.writeHead(hear ? 202 : 404).end(hear ? "Accepted" : "no such session");
      hear?.(JSON.parse(body));
    });
  });
  server.listen(0, "127.0.0.1", () => console.log(server.address().port));
  process.stdin.resume().on("end", () => process.exit(0));
}

process.argv[2] === "sse" ? sse(process.argv[3] === "elsewhere") : stdio();
