"""An agent of Pydantic AI. See conversation.py; the model is its `Script` in a `FunctionModel`."""

import anyio
from pydantic_ai import Agent
from pydantic_ai.mcp import MCPToolset
from pydantic_ai.messages import ModelResponse, RetryPromptPart, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import FunctionModel

from conversation import Connection, Script, converse

connection = None
toolset = None
progress = []


async def on_progress(step, _total, _message):
    progress.append(step)


async def connect(step, group):
    global connection, toolset
    if connection:
        connection.close()

    async def enter(stack):
        headers = {"Authorization": f"Bearer {step['key']}"}
        it = MCPToolset(step["url"], headers=headers, progress_handler=on_progress)
        return await stack.enter_async_context(it)

    connection = Connection(group, enter)
    toolset = await connection.entered()
    return {"heard": "connected"}


async def names(_step, _group):
    listed = await connection.does(toolset.list_tools)
    return {"heard": "tools", "names": [tool.name for tool in listed]}


async def call(step, _group):
    progress.clear()
    script = Script(step)

    def model(messages, _info):
        last = messages[-1].parts[-1]
        match last:
            case RetryPromptPart() | ToolReturnPart():
                turn = script.hears(last.model_response() if isinstance(last, RetryPromptPart) else last.model_response_str())
            case _:
                turn = script.first()
        return ModelResponse(parts=[ToolCallPart(*turn) if turn else TextPart("done")])

    agent = Agent(FunctionModel(model), toolsets=[toolset])
    await connection.does(lambda: agent.run("go on"))
    return script.seen(progress)


anyio.run(converse, {"connect": connect, "list": names, "call": call}, lambda _error: {})
