// The server that the conformance suites are run against: every tool, resource and prompt they ask for, both eras on one
// endpoint, built from the official server package. Loopback only; the suites see it directly and through Guardian.
//
//   node server.mjs
//
// Prints `{"url":"http://127.0.0.1:PORT/mcp"}` once it listens, and ends with SIGTERM or when its standard input closes.

import { randomBytes, randomUUID } from "node:crypto";
import { createServer } from "node:http";
import { setTimeout as pause } from "node:timers/promises";
import { localhostHostValidation, localhostOriginValidation, toNodeHandler } from "@modelcontextprotocol/node";
import {
  createMcpHandler,
  createRequestStateCodec,
  fromJsonSchema,
  inputRequired,
  inputResponse,
  isInitializeRequest,
  isLegacyRequest,
  McpServer,
  ResourceTemplate,
  WebStandardStreamableHTTPServerTransport,
} from "@modelcontextprotocol/server";
import { EXTENSION, jobTools, withTasks } from "./tasks.mjs";

// A red pixel, and 44 bytes of header that make a WAV without a sample.
const PNG = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mP8z8DwHwAFBQIAX8jx0gAAAABJRU5ErkJggg==";
const WAV = "UklGRiQAAABXQVZFZm10IBAAAAABAAEAQB8AAEAfAAABAAgAZGF0YQAAAAA=";

// ---- definitions for both eras

const states = createRequestStateCodec({ key: randomBytes(32), ttlSeconds: 600 });

function conformanceServer(changed) {
  const server = new McpServer(
    { name: "conformance-fixture", version: "1.0.0" },
    {
      capabilities: { completions: {}, extensions: { [EXTENSION]: {} }, logging: {}, resources: { subscribe: true } },
      requestState: { verify: states.verify },
    },
  );
  for (const [name, { description, inputSchema, run }] of Object.entries(tools)) {
    server.registerTool(name, { description, inputSchema }, (given, ctx) => run(given, ctx, { server, changed }));
  }
  for (const [name, { description, inputSchema, run }] of Object.entries(jobTools)) {
    server.registerTool(name, { description, inputSchema: fromJsonSchema(inputSchema) }, run);
  }
  for (const [name, { description, argsSchema, render }] of Object.entries(prompts)) {
    // The package calls a prompt that has no arguments with the context alone.
    server.registerPrompt(name, { description, argsSchema }, argsSchema ? render : (ctx) => render({}, ctx));
  }
  addResources(server);
  server.server.setRequestHandler("completion/complete", ({ params }) => {
    const values = ["paris", "park", "party"].filter((value) => value.startsWith(params.argument.value));
    return { completion: { values, total: values.length, hasMore: false } };
  });
  return server;
}

const text = (text) => ({ content: [{ type: "text", text }] });
const image = { type: "image", data: PNG, mimeType: "image/png" };
const object = (properties = {}, rest = {}) => ({ type: "object", properties, ...rest });
const required = (properties) => object(properties, { required: Object.keys(properties) });
const string = { type: "string" };

const tool = (description, run, schema = object()) => ({ description, run, inputSchema: fromJsonSchema(schema) });

// ---- tools

const tools = {
  // The first tool of the list has no arguments, because a scenario calls it without any.
  test_simple_text: tool("One text", () => text("This is a simple text response for testing.")),

  test_image_content: tool("One image", () => ({ content: [image] })),

  test_audio_content: tool("One sound", () => ({ content: [{ type: "audio", data: WAV, mimeType: "audio/wav" }] })),

  test_embedded_resource: tool("One embedded resource", () => ({
    content: [
      embedded("test://embedded-resource", "text/plain", "This is an embedded resource content."),
    ],
  })),

  test_multiple_content_types: tool("A text, an image and a resource", () => ({
    content: [
      { type: "text", text: "Multiple content types test:" },
      image,
      embedded("test://mixed-content-resource", "application/json", JSON.stringify({ test: "data", value: 123 })),
    ],
  })),

  test_tool_with_logging: tool("Logs three times on its way", async (_, ctx) => {
    await ctx.mcpReq.log("info", "Tool execution started");
    await pause(50);
    await ctx.mcpReq.log("info", "Tool processing data");
    await pause(50);
    await ctx.mcpReq.log("info", "Tool execution completed");
    return text("Tool with logging executed successfully");
  }),

  test_logging_tool: tool("Logs once, if the request asks for logs", async (_, ctx) => {
    await ctx.mcpReq.log("info", "This is heard only by who asked for it");
    return text("Logged");
  }),

  test_tool_with_progress: tool("Reports its progress three times", async (_, ctx) => {
    const progressToken = ctx.mcpReq._meta?.progressToken;
    for (const progress of [0, 50, 100]) {
      if (progress > 0) await pause(50);
      if (progressToken !== undefined) {
        await ctx.mcpReq.notify({ method: "notifications/progress", params: { progressToken, progress, total: 100 } });
      }
    }
    return text(String(progressToken));
  }),

  test_error_handling: tool("Always fails", () => {
    throw new Error("This tool intentionally returns an error for testing");
  }),

  test_reconnection: tool("Ends its stream before it answers, so that the client has to come back", async (_, ctx) => {
    await pause(50);
    ctx.http?.closeSSE?.();
    await pause(100);
    return text("Reconnection test completed successfully");
  }),

  test_x_mcp_header: tool(
    "Has a parameter that is mirrored in a header",
    ({ region }) => text(`Region: ${region}`),
    required({ region: { ...string, "x-mcp-header": "Region" } }),
  ),

  greet: tool("Greets", ({ name }) => text(`Hello, ${name}!`), required({ name: string })),

  test_trigger_tool_change: tool("Announces that the tools have changed", (_, _ctx, { changed }) => {
    changed.tools();
    return text("Tools changed");
  }),

  test_trigger_prompt_change: tool("Announces that the prompts have changed", (_, _ctx, { changed }) => {
    changed.prompts();
    return text("Prompts changed");
  }),

  json_schema_2020_12_tool: tool(
    "Has an input schema with what only JSON Schema 2020-12 has",
    (given) => text(JSON.stringify(given)),
    {
      $schema: "https://json-schema.org/draft/2020-12/schema",
      type: "object",
      $defs: { address: { $anchor: "addressDef", ...object({ street: string, city: string }) } },
      properties: {
        name: string,
        address: { $ref: "#/$defs/address" },
        contactMethod: { ...string, enum: ["phone", "email"] },
        phone: string,
        email: string,
      },
      allOf: [{ anyOf: [{ required: ["phone"] }, { required: ["email"] }] }],
      if: { properties: { contactMethod: { const: "phone" } }, required: ["contactMethod"] },
      then: { required: ["phone"] },
      else: { required: ["email"] },
      additionalProperties: false,
    },
  ),

  test_sampling: tool(
    "Asks the client's model",
    asking(
      ({ prompt }) => ({ answer: sample(prompt, 100) }),
      ({ answer }) => text(`LLM response: ${answer.result.content.text}`),
    ),
    required({ prompt: string }),
  ),

  test_elicitation: tool(
    "Asks the client's user",
    asking(
      ({ message }) => ({
        answer: form(message, required({
          username: { ...string, description: "User's response" },
          email: { ...string, description: "User's email address" },
        })),
      }),
      ({ answer }) => text(`User response: ${outcome(answer)}`),
    ),
    required({ message: string }),
  ),

  test_elicitation_sep1034_defaults: tool(
    "Asks with a default for each kind of field",
    asking(
      () => ({
        answer: form("Please review", object({
          name: { ...string, default: "John Doe" },
          age: { type: "integer", default: 30 },
          score: { type: "number", default: 95.5 },
          status: { ...string, enum: ["active", "inactive", "pending"], default: "active" },
          verified: { type: "boolean", default: true },
        })),
      }),
      ({ answer }) => text(`Elicitation completed: ${outcome(answer)}`),
    ),
  ),

  test_elicitation_sep1330_enums: tool(
    "Asks with each kind of choice",
    asking(
      () => ({
        answer: form("Please choose", object({
          untitledSingle: { ...string, enum: ["option1", "option2", "option3"] },
          titledSingle: { ...string, oneOf: titled("First Option", "Second Option", "Third Option") },
          legacyEnum: {
            ...string,
            enum: ["opt1", "opt2", "opt3"],
            enumNames: ["Option One", "Option Two", "Option Three"],
          },
          untitledMulti: { type: "array", items: { ...string, enum: ["option1", "option2", "option3"] } },
          titledMulti: { type: "array", items: { anyOf: titled("First Choice", "Second Choice", "Third Choice") } },
        })),
      }),
      ({ answer }) => text(`Elicitation completed: ${outcome(answer)}`),
    ),
  ),

  test_missing_capability: tool(
    "Cannot do without sampling",
    asking(() => ({ answer: sample("Anything", 10) }), () => text("Sampled")),
  ),

  test_streaming_elicitation: tool(
    "Reports progress, then asks the client's user",
    async (given, ctx, room) => {
      const progressToken = ctx.mcpReq._meta?.progressToken;
      if (progressToken !== undefined) {
        await ctx.mcpReq.notify({ method: "notifications/progress", params: { progressToken, progress: 1 } });
      }
      return asking(() => ({ answer: form("Continue?", required({ ok: { type: "boolean" } })) }), () => text("Done"))(
        given, ctx, room,
      );
    },
  ),

  test_input_required_result_elicitation: tool(
    "Asks for a name",
    asking(() => ({ user_name: nameForm("What is your name?") }), ({ user_name }) => text(greeting(user_name))),
  ),

  test_input_required_result_sampling: tool(
    "Asks the client's model one question",
    asking(
      () => ({ capital_question: sample("What is the capital of France?", 100) }),
      ({ capital_question }) => text(capital_question.result.content.text),
    ),
  ),

  test_input_required_result_list_roots: tool(
    "Asks for the client's roots",
    asking(() => ({ client_roots: inputRequired.listRoots() }), ({ client_roots }) => text(rooted(client_roots))),
  ),

  test_input_required_result_request_state: tool("Asks with a state that must come back", stateful("confirm")),

  test_input_required_result_tampered_state: tool("Asks with a state that must not be tampered with", stateful("confirm")),

  test_input_required_result_multiple_inputs: tool(
    "Asks three things at once",
    asking(
      () => ({
        user_name: nameForm("What is your name?"),
        greeting: sample("Generate a greeting", 50),
        client_roots: inputRequired.listRoots(),
      }),
      ({ user_name, client_roots }) => text(`${greeting(user_name)} ${rooted(client_roots)}`),
      { asked: "three things" },
    ),
  ),

  test_input_required_result_multi_round: tool("Asks for a name, then for a colour", async (given, ctx, room) => {
    const known = ctx.mcpReq.requestState();
    if (known?.name === undefined) {
      const name = asking(
        () => ({ step1: nameForm("Step 1: What is your name?") }),
        async ({ step1 }) => colour(await states.mint({ round: 2, name: step1.content?.name ?? "" })),
        { round: 1 },
      );
      return name(given, ctx, room);
    }
    const answer = inputResponse(ctx.mcpReq.inputResponses, "step2");
    if (answer.kind === "missing") return colour(await states.mint(known));
    return text(`${known.name} likes ${answer.content?.color}`);
  }),

  test_input_required_result_capabilities: tool("Asks only what the client can answer", (given, ctx, room) => {
    const can = room.server.server.getClientCapabilities() ?? {};
    const questions = {
      ...(can.sampling && { sampled: sample("Anything", 10) }),
      ...(can.elicitation && { elicited: nameForm("What is your name?") }),
      ...(can.roots && { rooted: inputRequired.listRoots() }),
    };
    return asking(() => questions, () => text("Answered"))(given, ctx, room);
  }),
};

function embedded(uri, mimeType, text) {
  return { type: "resource", resource: { uri, mimeType, text } };
}

// ---- asking the client: the same handler serves a session's server requests and the modern `input_required`

// Repeats the requests until all are answered, then finishes with the answers.
function asking(questions, conclude, state) {
  return async (given, ctx) => {
    const inputRequests = questions(given);
    const answers = Object.fromEntries(
      Object.keys(inputRequests).map((key) => [key, inputResponse(ctx.mcpReq.inputResponses, key)]),
    );
    if (Object.values(answers).every(({ kind }) => kind !== "missing")) return conclude(answers);
    return inputRequired({ inputRequests, ...(state && { requestState: await states.mint(state) }) });
  };
}

function stateful(key) {
  const questions = () => ({ [key]: form("Please confirm", required({ ok: { type: "boolean" } })) });
  return async (given, ctx) => {
    const proved = ctx.mcpReq.requestState()?.asked === key;
    const conclude = () => text(proved ? "state-ok" : "the state did not come back");
    return asking(questions, conclude, { asked: key })(given, ctx);
  };
}

const form = (message, requestedSchema) => inputRequired.elicit({ message, requestedSchema });
const nameForm = (message) => form(message, required({ name: string }));
const colour = (requestState) =>
  inputRequired({
    inputRequests: { step2: form("Step 2: What is your favorite color?", required({ color: string })) },
    requestState,
  });
const sample = (text, maxTokens) =>
  inputRequired.createMessage({ messages: [{ role: "user", content: { type: "text", text } }], maxTokens });
const titled = (...titles) => titles.map((title, at) => ({ const: `value${at + 1}`, title }));

const outcome = ({ action, content }) => `action=${action}, content=${JSON.stringify(content ?? {})}`;
const greeting = ({ content }) => `Hello, ${content?.name}!`;
const rooted = ({ roots }) => `Roots: ${roots.map(({ uri }) => uri).join(" ")}`;

// ---- prompts

const user = (content) => ({ role: "user", content });
const say = (text) => user({ type: "text", text });
const prompt = (description, render, args) => ({ description, render, argsSchema: args && fromJsonSchema(required(args)) });

const prompts = {
  test_simple_prompt: prompt("One message", () => ({ messages: [say("This is a simple prompt for testing.")] })),

  test_prompt_with_arguments: prompt(
    "Repeats its arguments",
    ({ arg1, arg2 }) => ({ messages: [say(`Prompt with arguments: arg1='${arg1}', arg2='${arg2}'`)] }),
    { arg1: { ...string, description: "First test argument" }, arg2: { ...string, description: "Second test argument" } },
  ),

  test_prompt_with_embedded_resource: prompt(
    "Embeds a resource",
    ({ resourceUri }) => ({
      messages: [
        user(embedded(resourceUri, "text/plain", "Embedded resource content for testing.")),
        say("Please process the embedded resource above."),
      ],
    }),
    { resourceUri: { ...string, description: "URI of the resource to embed" } },
  ),

  test_prompt_with_image: prompt("Has an image", () => ({
    messages: [user(image), say("Please analyze the image above.")],
  })),

  test_input_required_result_prompt: prompt(
    "Asks the client's user for a context",
    asking(
      () => ({ user_context: form("What context should the prompt use?", required({ context: string })) }),
      ({ user_context }) => ({ messages: [say(`Context: ${user_context.content?.context}`)] }),
    ),
  ),
};

// ---- resources

function addResources(server) {
  const add = (name, uri, description, mimeType, content) =>
    server.registerResource(name, uri, { description, mimeType }, ({ href }, variables) => ({
      contents: [{ uri: href, mimeType, ...content(variables) }],
    }));
  add("static-text", "test://static-text", "A text", "text/plain", () => ({
    text: "This is the content of the static text resource.",
  }));
  add("static-binary", "test://static-binary", "An image", "image/png", () => ({ blob: PNG }));
  add("watched-resource", "test://watched-resource", "A text to subscribe to", "text/plain", () => ({
    text: "Watched resource content",
  }));
  const template = new ResourceTemplate("test://template/{id}/data", { list: undefined });
  add("template", template, "A text for each id", "application/json", ({ id }) => ({
    text: JSON.stringify({ id, templateTest: true, data: `Data for ID: ${id}` }),
  }));
  // No resource ever changes, so a subscription needs no state.
  server.server.setRequestHandler("resources/subscribe", () => ({}));
  server.server.setRequestHandler("resources/unsubscribe", () => ({}));
}

// ---- 2026-07-28: a fresh server for each request

const modern = createMcpHandler(
  () => conformanceServer({ tools: () => modern.notify.toolsChanged(), prompts: () => modern.notify.promptsChanged() }),
  { legacy: "reject" },
);

// ---- up to 2025-11-25: one server per session

const sessions = new Map();

async function legacy(request) {
  const id = request.headers.get("mcp-session-id");
  if (id !== null) {
    return sessions.get(id)?.handleRequest(request) ?? refuse(404, -32001, "Session not found");
  }
  const opening = request.method === "POST" && isInitializeRequest(await request.clone().json().catch(() => null));
  if (!opening) return refuse(400, -32000, "Bad Request: Mcp-Session-Id header is required");
  const transport = new WebStandardStreamableHTTPServerTransport({
    sessionIdGenerator: randomUUID,
    eventStore: eventStore(),
    retryInterval: 500,
    onsessioninitialized: (id) => void sessions.set(id, transport),
    onsessionclosed: (id) => void sessions.delete(id),
  });
  const server = conformanceServer({
    tools: () => server.sendToolListChanged(),
    prompts: () => server.sendPromptListChanged(),
  });
  await server.connect(transport);
  return transport.handleRequest(request);
}

function refuse(status, code, message) {
  return Response.json({ jsonrpc: "2.0", error: { code, message }, id: null }, { status });
}

// Keeps a session's events, so that a broken stream can be resumed.
function eventStore() {
  const events = [];
  return {
    async storeEvent(stream, message) {
      return `${stream}_${events.push({ stream, message }) - 1}`;
    },
    async getStreamIdForEventId(id) {
      return events[position(id)]?.stream;
    },
    async replayEventsAfter(id, { send }) {
      const { stream } = events[position(id)];
      for (const [at, event] of events.entries()) {
        // A priming event has no message.
        if (at > position(id) && event.stream === stream && event.message.jsonrpc) {
          await send(`${stream}_${at}`, event.message);
        }
      }
      return stream;
    },
  };
}

const position = (id) => Number(id.slice(id.lastIndexOf("_") + 1));

// ---- the endpoint

const answer = toNodeHandler(
  { fetch: async (request) => ((await isLegacyRequest(request)) ? legacy(request) : withTasks(request, modern.fetch)) },
  { onerror: (error) => console.error(error) },
);
const knownHost = localhostHostValidation();
const knownOrigin = localhostOriginValidation();

const listener = createServer((request, response) => {
  if (!knownHost(request, response) || !knownOrigin(request, response)) return;
  if (new URL(request.url, "http://localhost").pathname !== "/mcp") {
    response.writeHead(404).end();
    return;
  }
  void answer(request, response);
});

listener.listen(0, "127.0.0.1", () => {
  console.log(JSON.stringify({ url: `http://127.0.0.1:${listener.address().port}/mcp` }));
});

process.on("SIGTERM", () => process.exit(0));
process.stdin.resume().on("end", () => process.exit(0));
