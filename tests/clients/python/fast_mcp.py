"""FastMCP's client. See conversation.py; `mode` is as for v2.py. With `sign_in` instead of a key it finds an authorization
server itself, and the browser is $BROWSER.

A refusal reaches its user as it does by default: as an exception with the text of the tool's result.
"""

import anyio
from fastmcp import Client
from fastmcp.client.transports import StreamableHttpTransport

from conversation import Connection, converse

connection = None
client = None


async def connect(step, group):
    global connection, client
    if connection:
        connection.close()

    async def enter(stack):
        headers = {} if step.get("sign_in") else {"Authorization": f"Bearer {step['key']}"}
        auth = "oauth" if step.get("sign_in") else None
        transport = StreamableHttpTransport(step["url"], headers=headers, auth=auth)
        return await stack.enter_async_context(Client(transport, mode=step["mode"], timeout=10))

    connection = Connection(group, enter)
    client = await connection.entered()
    server = client.server_info
    return {"heard": "connected", "protocol": client.protocol_version, "server": server.name if server else None}


async def names(_step, _group):
    listed = await connection.does(client.list_tools)
    return {"heard": "tools", "names": [tool.name for tool in listed]}


async def call(step, _group):
    seen = []

    async def on_progress(progress, _total, _message):
        seen.append(progress)

    async def act():
        return await client.call_tool(step["tool"], step["arguments"], progress_handler=on_progress)

    result = await connection.does(act)
    text = "".join(part.text for part in result.content)
    return {"heard": "answer", "text": text, "isError": result.is_error, "progress": seen}


def describe(error):
    return {"code": getattr(error, "code", None), "data": getattr(error, "data", None)}


anyio.run(converse, {"connect": connect, "list": names, "call": call}, describe)
