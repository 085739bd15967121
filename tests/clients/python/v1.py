"""The official Python SDK, first line (mcp 1.x). See conversation.py."""

from datetime import timedelta

import anyio
from mcp import ClientSession
from mcp.client.streamable_http import streamablehttp_client
from mcp.types import Implementation

from conversation import Connection, answer, converse

connection = None
session = None


async def connect(step, group):
    global connection, session
    if connection:
        connection.close()

    async def enter(stack):
        headers = {"Authorization": f"Bearer {step['key']}"}
        read, write, _ = await stack.enter_async_context(streamablehttp_client(step["url"], headers=headers))
        info = Implementation(name="guardian-test", version="1.0.0")
        patience = timedelta(seconds=10)
        client = ClientSession(read, write, client_info=info, read_timeout_seconds=patience)
        entered = await stack.enter_async_context(client)
        return entered, await entered.initialize()

    connection = Connection(group, enter)
    session, offered = await connection.entered()
    return {"heard": "connected", "protocol": offered.protocolVersion, "server": offered.serverInfo.name}


async def names(_step, _group):
    listed = await connection.does(session.list_tools)
    return {"heard": "tools", "names": [tool.name for tool in listed.tools]}


async def call(step, _group):
    seen = []

    async def on_progress(progress, _total, _message):
        seen.append(progress)

    async def act():
        watching = on_progress if step.get("progress") else None
        return await session.call_tool(step["tool"], step["arguments"], progress_callback=watching)

    result = await connection.does(act)
    return answer(result, seen, result.isError, result.meta)


def describe(error):
    inner = getattr(error, "error", None)
    return {"code": getattr(inner, "code", None), "data": getattr(inner, "data", None)}


anyio.run(converse, {"connect": connect, "list": names, "call": call}, describe)
