// The tasks extension of 2026-07-28, which the official server package lacks: the tools that the suite runs as tasks, and the
// methods on tasks. Everything else is passed to the package's own handler.

import { randomUUID } from "node:crypto";
import { setTimeout as pause } from "node:timers/promises";
import { inputRequired } from "@modelcontextprotocol/server";

export const EXTENSION = "io.modelcontextprotocol/tasks";
const CAPABILITIES = "io.modelcontextprotocol/clientCapabilities";

const text = (text) => ({ content: [{ type: "text", text }] });
const question = (message, name, type) =>
  inputRequired.elicit({
    message,
    requestedSchema: { type: "object", properties: { [name]: { type } }, required: [name] },
  });

// The work of each of these tools as a task.
const jobs = {
  slow_compute: async ({ seconds = 0, label = "" }) => {
    await pause(seconds * 1000, undefined, { ref: false });
    return text(`Computed ${label}`);
  },
  failing_job: async () => {
    await pause(200);
    return { ...text("This job always fails"), isError: true };
  },
  protocol_error_job: async () => {
    await pause(200);
    throw new Error("This job breaks");
  },
  confirm_delete: async ({ filename }, task) => {
    const { confirm } = await task.ask({ confirm: question(`Delete ${filename}?`, "confirm", "boolean") });
    return text(confirm.action === "accept" ? `Deleted ${filename}` : `Kept ${filename}`);
  },
  multi_input: async (_, task) => {
    const answers = await task.ask({
      first: question("The first?", "name", "string"),
      second: question("The second?", "name", "string"),
    });
    return text(Object.values(answers).map(({ content }) => content?.name).join(" and "));
  },
  test_tool_with_task: async ({ user_name }) => text(`Hello, ${user_name.content?.name}!`),
};

// Answered before there is a task, in `input_required` rounds.
const settledBefore = { test_tool_with_task: () => ({ user_name: question("What is your name?", "name", "string") }) };
// This tool runs at once for clients without tasks; the others need a client with tasks.
const needless = "slow_compute";

// The definitions for `tools/list`.
export const jobTools = Object.fromEntries(
  Object.entries(jobs).map(([name, job]) => [
    name,
    { description: `Runs as a task: ${name}`, inputSchema: { type: "object" }, run: name === needless ? job : unable },
  ]),
);

function unable() {
  throw new Error("only clients with the tasks extension can call this");
}

class Task {
  id = randomUUID();
  status = "working";
  createdAt = new Date().toISOString();
  lastUpdatedAt = this.createdAt;
  outcome = {};
  pending = {};

  constructor(job, given) {
    job(given, this).then(
      (result) => this.become("completed", { result: { resultType: "complete", ...result } }),
      ({ message }) => this.become("failed", { error: { code: -32603, message } }),
    );
  }

  become(status, outcome = {}) {
    if (["completed", "failed", "cancelled"].includes(this.status)) return;
    Object.assign(this, { status, outcome, lastUpdatedAt: new Date().toISOString() });
  }

  ask(questions) {
    this.pending = questions;
    this.answers = {};
    this.become("input_required");
    return new Promise((answered) => (this.answered = answered));
  }

  answer(responses) {
    for (const [key, response] of Object.entries(responses)) {
      if (!(key in this.pending)) continue;
      this.answers[key] = response;
      delete this.pending[key];
    }
    if (this.status !== "input_required" || Object.keys(this.pending).length > 0) return;
    this.become("working");
    this.answered(this.answers);
  }

  get envelope() {
    const { id, status, createdAt, lastUpdatedAt } = this;
    return { taskId: id, status, createdAt, lastUpdatedAt, ttlMs: 600_000, pollIntervalMs: 100 };
  }

  get detail() {
    const asks = this.status === "input_required" && { inputRequests: this.pending };
    return { resultType: "complete", ...this.envelope, ...asks, ...this.outcome };
  }
}

const tasks = new Map();

const asked = {
  "tasks/get": (task) => task.detail,
  "tasks/update": (task, { inputResponses }) => {
    task.answer(inputResponses);
    return { resultType: "complete" };
  },
  "tasks/cancel": (task) => {
    task.become("cancelled");
    return { resultType: "complete" };
  },
};

export async function withTasks(request, next) {
  const message = request.method === "POST" ? await request.clone().json().catch(() => null) : null;
  const { id, method, params } = message ?? {};
  const job = method === "tools/call" && jobs[params?.name];
  if (!job && !(method in asked)) return next(request);
  const named = { method, name: params.name ?? params.taskId };
  if (request.headers.get("mcp-method") !== named.method || request.headers.get("mcp-name") !== named.name) {
    return refuse(400, id, { code: -32020, message: "the header fields do not mirror the body" });
  }
  if (!params._meta?.[CAPABILITIES]?.extensions?.[EXTENSION]) {
    if (params.name === needless) return next(request);
    const data = { requiredCapabilities: { extensions: { [EXTENSION]: {} } } };
    return refuse(400, id, { code: -32021, message: "the tasks extension is needed", data });
  }
  return job ? begin(id, job, params) : tell(id, method, params);
}

function begin(id, job, { name, arguments: given = {}, inputResponses }) {
  const inputRequests = settledBefore[name]?.();
  const settled = Object.keys(inputRequests ?? {}).every((key) => inputResponses?.[key]);
  if (!settled) return reply(id, { resultType: "input_required", inputRequests });
  const task = new Task(job, { ...given, ...(inputRequests && inputResponses) });
  tasks.set(task.id, task);
  return reply(id, { resultType: "task", ...task.envelope });
}

function tell(id, method, params) {
  const task = tasks.get(params.taskId);
  if (!task) return refuse(200, id, { code: -32602, message: "Task not found" });
  return reply(id, asked[method](task, params));
}

function reply(id, result) {
  return Response.json({ jsonrpc: "2.0", id, result });
}

function refuse(status, id, error) {
  return Response.json({ jsonrpc: "2.0", id, error }, { status });
}
