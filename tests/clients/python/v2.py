"""The official Python SDK, second line (mcp 2.x). See conversation.py; `mode` is `legacy`, `auto` or a revision.

With `sign_in` instead of a key it gets its token from the authorization server it is told of.
"""

from urllib.parse import parse_qs, urlsplit

import anyio
import httpx2
from mcp import Client
from mcp.client.auth import OAuthClientProvider
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.auth import AuthorizationCodeResult, OAuthClientMetadata
from mcp_types import Implementation

from conversation import Connection, answer, converse

connection = None
client = None
host = None


class Host:
    """The part of OAuth that the SDK leaves to its host, kept in memory. The user consents; the browser is one request."""

    tokens = None
    information = None
    redirect = None

    async def get_tokens(self):
        return self.tokens

    async def set_tokens(self, tokens):
        self.tokens = tokens

    async def get_client_info(self):
        return self.information

    async def set_client_info(self, information):
        self.information = information

    async def visit(self, url):
        async with httpx2.AsyncClient(follow_redirects=False) as browser:
            answer = await browser.get(url)
        self.redirect = parse_qs(urlsplit(answer.headers["location"]).query)

    async def came_back(self):
        given = {name: self.redirect[name][0] for name in ("code", "state", "iss")}
        return AuthorizationCodeResult(**given)

    def provider(self, url):
        about = OAuthClientMetadata(
            client_name="guardian-test",
            redirect_uris=["http://localhost/callback"],
            token_endpoint_auth_method="none",
        )
        return OAuthClientProvider(url, about, self, self.visit, self.came_back)

    def scope(self):
        return self.tokens.scope if self.tokens else None


async def connect(step, group):
    global connection, client, host
    if connection:
        connection.close()
    host = Host() if step.get("sign_in") else None

    async def enter(stack):
        if host:
            credential = {"auth": host.provider(step["url"])}
        else:
            credential = {"headers": {"Authorization": f"Bearer {step['key']}"}}
        patience = httpx2.Timeout(30)
        http = await stack.enter_async_context(httpx2.AsyncClient(**credential, timeout=patience))
        transport = streamable_http_client(step["url"], http_client=http)
        info = Implementation(name="guardian-test", version="1.0.0")
        return await stack.enter_async_context(
            Client(transport, mode=step["mode"], client_info=info, read_timeout_seconds=10)
        )

    connection = Connection(group, enter)
    client = await connection.entered()
    server = client.server_info
    return {
        "heard": "connected",
        "protocol": client.protocol_version,
        "server": server.name if server else None,
        "scope": host.scope() if host else None,
    }


async def names(_step, _group):
    listed = await connection.does(client.list_tools)
    return {"heard": "tools", "names": [tool.name for tool in listed.tools]}


async def call(step, _group):
    seen = []

    async def on_progress(progress, _total, _message):
        seen.append(progress)

    async def act():
        watching = on_progress if step.get("progress") else None
        return await client.call_tool(step["tool"], step["arguments"], progress_callback=watching)

    result = await connection.does(act)
    return {**answer(result, seen, result.is_error, result.meta), "scope": host.scope() if host else None}


def describe(error):
    return {"code": getattr(error, "code", None), "data": getattr(error, "data", None)}


anyio.run(converse, {"connect": connect, "list": names, "call": call}, describe)
