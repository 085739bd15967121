// The inspector's command line: one process a step. See conversation.mjs; `mode` is its `--protocol-era`. With `sign_in`
// instead of a key it finds an authorization server itself, and the browser is $BROWSER.

import { spawn } from "node:child_process";
import { once } from "node:events";
import { createServer } from "node:net";
import { text } from "node:stream/consumers";
import { fileURLToPath } from "node:url";
import { answer, converse } from "./conversation.mjs";

const cli = fileURLToPath(new URL("node_modules/@modelcontextprotocol/inspector/clients/cli/build/index.js", import.meta.url));
let target;

// It opens $BROWSER though there is no terminal, and keeps tokens though there is no keyring.
const env = { ...process.env, MCP_AUTO_OPEN_ENABLED: "true", MCP_INSPECTOR_SECRET_STORE: "file" };

/** What the inspector itself says is wrong. */
class ToolError extends Error {}

async function inspects(...more) {
  const asked = [cli, ...target, ...more, "--format", "json", "--quiet"];
  const command = spawn(process.execPath, asked, { env, stdio: ["ignore", "pipe", "pipe"] });
  const ended = new Promise((done) => command.on("close", done));
  const [out, complaint, code] = await Promise.all([text(command.stdout), text(command.stderr), ended]);
  const said = out || complaint.split("\n").find((line) => line.startsWith("{"));
  const { result, error } = said ? JSON.parse(said) : {};
  if (result) return result;
  throw error ? new ToolError(error.message) : new Error(`exit code ${code}: ${complaint}`);
}

/** A port for the redirect of the browser. */
async function freePort() {
  const server = createServer().listen(0, "127.0.0.1");
  await once(server, "listening");
  const { port } = server.address();
  server.close();
  return port;
}

await converse({
  async connect({ url, key, mode }) {
    const credential = key
      ? ["--header", `Authorization: Bearer ${key}`, "--stored-auth-only"]
      : ["--callback-url", `http://127.0.0.1:${await freePort()}/oauth/callback`];
    target = ["--transport", "http", "--server-url", url, "--protocol-era", mode, ...credential];
    return { heard: "connected" };
  },

  async list() {
    const { tools } = await inspects("--method", "tools/list");
    return { heard: "tools", names: tools.map((tool) => tool.name) };
  },

  async call({ tool, arguments: given }) {
    const asked = ["--method", "tools/call", "--tool-name", tool, "--tool-args-json", JSON.stringify(given)];
    return answer(await inspects(...asked), []);
  },

  describe: () => ({}),
});
