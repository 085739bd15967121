"""An agent of the OpenAI Agents SDK. See conversation.py; the model is its `Script`."""

import json

import anyio
from agents import Agent, Model, ModelResponse, Runner, Usage, set_tracing_disabled
from agents.mcp import MCPServerStreamableHttp
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage, ResponseOutputText

from conversation import Connection, Script, converse

set_tracing_disabled(True)
connection = None
server = None


async def connect(step, group):
    global connection, server
    if connection:
        connection.close()

    async def enter(stack):
        params = {"url": step["url"], "headers": {"Authorization": f"Bearer {step['key']}"}}
        it = MCPServerStreamableHttp(params, name="it", cache_tools_list=True, client_session_timeout_seconds=10)
        return await stack.enter_async_context(it)

    connection = Connection(group, enter)
    server = await connection.entered()
    return {"heard": "connected"}


async def names(_step, _group):
    listed = await connection.does(server.list_tools)
    return {"heard": "tools", "names": [tool.name for tool in listed]}


class Scripted(Model):
    def __init__(self, script):
        self.script = script

    async def get_response(self, system_instructions, input, *_args, **_kwargs):
        given = input if isinstance(input, list) else [{}]
        last = given[-1]
        outcome = last.get("type") == "function_call_output"
        turn = self.script.hears(told(last["output"])) if outcome else self.script.first()
        if turn:
            name = f"call-{len(given)}"
            said = ResponseFunctionToolCall(
                type="function_call", call_id=name, name=turn[0], arguments=json.dumps(turn[1])
            )
        else:
            text = ResponseOutputText(type="output_text", text="done", annotations=[])
            said = ResponseOutputMessage(id="m", type="message", role="assistant", status="completed", content=[text])
        return ModelResponse(output=[said], usage=Usage(), response_id=None)

    def stream_response(self, *_args, **_kwargs):
        raise NotImplementedError


def told(output):
    return output if isinstance(output, str) else "".join(part["text"] for part in output)


async def call(step, _group):
    script = Script(step)
    agent = Agent(name="it", model=Scripted(script), mcp_servers=[server])
    await connection.does(lambda: Runner.run(agent, "go on", max_turns=5))
    return script.seen()


anyio.run(converse, {"connect": connect, "list": names, "call": call}, lambda _error: {})
