// The AI SDK with @ai-sdk/mcp. See conversation.mjs; the model is script.mjs.

import { createMCPClient } from "@ai-sdk/mcp";
import { generateText, stepCountIs } from "ai";
import { MockLanguageModelV4 } from "ai/test";
import { converse } from "./conversation.mjs";
import { Script } from "./script.mjs";

let client, tools;

const usage = { inputTokens: { total: 1 }, outputTokens: { total: 1 } };

function model(script) {
  const doGenerate = async ({ prompt }) => {
    const last = prompt.at(-1);
    const turn = last.role === "tool" ? script.hears(told(last.content[0].output)) : script.first();
    const content = turn
      ? [{ type: "tool-call", toolCallId: `call-${prompt.length}`, toolName: turn.tool, input: JSON.stringify(turn.arguments) }]
      : [{ type: "text", text: "done" }];
    const unified = turn ? "tool-calls" : "stop";
    return { content, finishReason: { unified, raw: unified }, usage, warnings: [] };
  };
  return new MockLanguageModelV4({ doGenerate });
}

/** The text of a tool's result, in any of the shapes in which a model gets it. */
function told({ type, value }) {
  if (type === "content") return value.map((part) => part.text).join("");
  const parts = value?.content;
  return parts ? parts.map((part) => part.text).join("") : typeof value === "string" ? value : JSON.stringify(value);
}

await converse({
  async connect({ url, key }) {
    await client?.close();
    client = await createMCPClient({ transport: { type: "http", url, headers: { authorization: `Bearer ${key}` } } });
    tools = await client.tools();
    return { heard: "connected" };
  },

  async list() {
    return { heard: "tools", names: (await client.listTools()).tools.map((tool) => tool.name) };
  },

  async call(step) {
    const script = new Script(step);
    await generateText({ model: model(script), tools, prompt: "go on", stopWhen: stepCountIs(5), maxRetries: 0 });
    return script.seen();
  },

  describe: ({ code, data }) => ({ code, data }),
});
await client?.close();
