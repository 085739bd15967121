// Loaded before a conformance suite (`node --import ./inject.mjs …`), which has no credentials and no https in places: adds
// CONFORMANCE_BEARER to every request to the origin of CONFORMANCE_URL. Node itself trusts the private authority
// (NODE_EXTRA_CA_CERTS). Nothing else of a request is changed.

import http from "node:http";
import https from "node:https";
import { syncBuiltinESMExports } from "node:module";
import { getGlobalDispatcher, setGlobalDispatcher } from "undici";

const target = new URL(process.env.CONFORMANCE_URL);
const authorization = `Bearer ${process.env.CONFORMANCE_BEARER}`;

// The suite's clients and most of its own requests.
const { fetch } = globalThis;
globalThis.fetch = (input, init) => {
  const headers = new Headers(init?.headers ?? input.headers);
  if (new URL(input.url ?? input).origin !== target.origin || headers.has("authorization")) return fetch(input, init);
  headers.set("authorization", authorization);
  return fetch(input, { ...init, headers });
};

// The rebinding scenario forges `Host` with undici.
const named = (headers) => Object.keys(headers ?? {}).some((name) => name.toLowerCase() === "authorization");
setGlobalDispatcher(
  getGlobalDispatcher().compose((dispatch) => (options, handler) => {
    const bare = String(options.origin) === target.origin && !Array.isArray(options.headers) && !named(options.headers);
    return dispatch(bare ? { ...options, headers: { ...options.headers, authorization } } : options, handler);
  }),
);

// The header scenarios use `http.request` for every address, to keep the spelling of header names.
const { request } = http;
http.request = (options, ...rest) => {
  if (options?.hostname !== target.hostname || String(options.port) !== target.port) return request(options, ...rest);
  const send = target.protocol === "https:" ? https.request : request;
  return send({ ...options, headers: { ...options.headers, authorization } }, ...rest);
};
syncBuiltinESMExports();
