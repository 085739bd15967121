// How a test drives a client: one step a line on standard input, what the client saw of it a line on standard output.
//
//   {"do":"connect","url":…,"key":…,"mode":…}   {"do":"list"}   {"do":"call","tool":…,"arguments":…,"progress":true}
//
// A client implements `connect`, `list`, `call` and `describe(error)`. Nothing is asserted here: the test does that.

import { createInterface } from "node:readline";

export async function converse(client) {
  for await (const line of createInterface({ input: process.stdin })) {
    const step = JSON.parse(line);
    let seen;
    try {
      seen = await client[step.do](step);
    } catch (error) {
      seen = { heard: "error", error: error.constructor.name, message: error.message, ...client.describe(error) };
    }
    console.log(JSON.stringify(seen));
  }
}

/** The parts of a tool's result that a test looks at. */
export function answer(result, progress) {
  const text = result.content.map((part) => part.text).join("");
  return { heard: "answer", text, isError: result.isError ?? false, refusal: result._meta?.["guardian/refusal"], progress };
}
