"""A LangChain agent with langchain-mcp-adapters, on one session. See conversation.py; the model is its `Script`."""

import anyio
from langchain.agents import create_agent
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_mcp_adapters.callbacks import Callbacks
from langchain_mcp_adapters.client import MultiServerMCPClient
from langchain_mcp_adapters.tools import load_mcp_tools

from conversation import Connection, Script, converse

connection = None
tools = None
progress = []


async def on_progress(step, _total, _message, _context):
    progress.append(step)


async def connect(step, group):
    global connection, tools
    if connection:
        connection.close()

    async def enter(stack):
        headers = {"Authorization": f"Bearer {step['key']}"}
        server = {"transport": "streamable_http", "url": step["url"], "headers": headers}
        callbacks = Callbacks(on_progress=on_progress)
        session = await stack.enter_async_context(MultiServerMCPClient({"it": server}).session("it"))
        return await load_mcp_tools(session, callbacks=callbacks, server_name="it")

    connection = Connection(group, enter)
    tools = await connection.entered()
    return {"heard": "connected"}


async def names(_step, _group):
    return {"heard": "tools", "names": [tool.name for tool in tools]}


class Model(BaseChatModel):
    script: Script
    model_config = {"arbitrary_types_allowed": True}

    @property
    def _llm_type(self):
        return "script"

    def bind_tools(self, _tools, **_kwargs):
        return self

    def _generate(self, messages, stop=None, run_manager=None, **kwargs):
        last = messages[-1]
        turn = self.script.hears(last.text) if isinstance(last, ToolMessage) else self.script.first()
        calls = [{"name": turn[0], "args": turn[1], "id": f"call-{len(messages)}"}] if turn else []
        return ChatResult(generations=[ChatGeneration(message=AIMessage("" if turn else "done", tool_calls=calls))])


async def call(step, _group):
    progress.clear()
    script = Script(step)
    agent = create_agent(Model(script=script), tools)
    await connection.does(lambda: agent.ainvoke({"messages": [("user", "go on")]}))
    return script.seen(progress)


def describe(error):
    inner = getattr(error, "error", None)
    return {"code": getattr(inner, "code", None)}


anyio.run(converse, {"connect": connect, "list": names, "call": call}, describe)
