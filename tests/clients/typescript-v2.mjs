// The official TypeScript SDK, second line (@modelcontextprotocol/client). See conversation.mjs; `mode` is `legacy`,
// `auto` or a revision. With `sign_in` instead of a key it gets its token from the authorization server that Guardian names.

import { Client, StreamableHTTPClientTransport, UnauthorizedError } from "@modelcontextprotocol/client";
import { answer, converse } from "./conversation.mjs";
import { Provider } from "./sign-in.mjs";

let client, transport, provider;

function negotiation(mode) {
  return { mode: mode === "legacy" || mode === "auto" ? mode : { pin: mode } };
}

function open({ url, key, mode }) {
  client = new Client({ name: "guardian-test", version: "1.0.0" }, { versionNegotiation: negotiation(mode) });
  const credential = provider
    ? { authProvider: provider }
    : { requestInit: { headers: { authorization: `Bearer ${key}` } } };
  transport = new StreamableHTTPClientTransport(new URL(url), credential);
  return client.connect(transport);
}

/** The SDK leaves this to its host: pass the code to `finishAuth`, and repeat the failed step. */
async function signingIn(act) {
  try {
    return await act();
  } catch (error) {
    if (!provider || !(error instanceof UnauthorizedError)) throw error;
    await transport.finishAuth(provider.redirected());
    return act();
  }
}

await converse({
  async connect(step) {
    await client?.close();
    provider = step.sign_in ? new Provider() : undefined;
    await signingIn(() => open(step));
    const protocol = client.getNegotiatedProtocolVersion();
    return { heard: "connected", protocol, server: client.getServerVersion()?.name, scope: provider?.scope() };
  },

  async list() {
    return { heard: "tools", names: (await client.listTools()).tools.map((tool) => tool.name) };
  },

  async call({ tool, arguments: given, progress }) {
    const seen = [];
    const onprogress = progress ? (told) => seen.push(told.progress) : undefined;
    const result = await signingIn(() => client.callTool({ name: tool, arguments: given }, { onprogress }));
    return { ...answer(result, seen), scope: provider?.scope() };
  },

  // The text of a failed HTTP answer is in the message already.
  describe: ({ code, data, requiredScope }) => ({ code, data: data?.text ? undefined : data, status: data?.status, scope: requiredScope }),
});
await client?.close();
