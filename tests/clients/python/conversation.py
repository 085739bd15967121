"""How a test drives a client: one step a line on standard input, what the client saw of it a line on standard output.

Nothing is judged here: the test that asks does that. `../conversation.mjs` is the same for the TypeScript clients.
"""

import json
import re
import sys
from contextlib import AsyncExitStack

import anyio


class Connection:
    """A client that is entered in a task of its own, so that one that breaks takes nothing else with it."""

    def __init__(self, group, enter):
        self.asks, self.to_do = anyio.create_memory_object_stream(1)
        self.answers, self.done = anyio.create_memory_object_stream(1)
        group.start_soon(self._live, enter)

    async def _live(self, enter):
        async with self.answers, self.to_do:
            try:
                async with AsyncExitStack() as stack:
                    client = await enter(stack)
                    await self.answers.send((client, None))
                    async for act in self.to_do:
                        await self.answers.send(await outcome(act))
            except BaseException as error:  # noqa: BLE001 - whatever it is, the test wants to hear of it
                if isinstance(error, anyio.get_cancelled_exc_class()):
                    raise
                try:
                    self.answers.send_nowait((None, error))
                except (anyio.WouldBlock, anyio.BrokenResourceError):
                    print(f"after the last step: {error!r}", file=sys.stderr)

    async def entered(self):
        return await self.heard()

    async def does(self, act):
        await self.asks.send(act)
        return await self.heard()

    async def heard(self):
        value, error = await self.done.receive()
        if error is not None:
            raise error
        return value

    def close(self):
        self.asks.close()


async def outcome(act):
    try:
        return await act(), None
    except Exception as error:  # noqa: BLE001
        return None, error


async def converse(steps, describe):
    async with anyio.create_task_group() as group:
        while line := await anyio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            step = json.loads(line)
            try:
                seen = await steps[step["do"]](step, group)
            except Exception as error:  # noqa: BLE001
                seen = told(error, describe)
            print(json.dumps({name: value for name, value in seen.items() if value is not None}), flush=True)
        group.cancel_scope.cancel()


def told(error, describe):
    """The innermost of nested exception groups, which is the cause."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return {"heard": "error", "error": type(error).__name__, "message": str(error), **describe(error)}


def answer(result, progress, is_error, meta):
    text = "".join(part.text for part in result.content)
    refusal = (meta or {}).get("guardian/refusal")
    return {"heard": "answer", "text": text, "isError": bool(is_error), "refusal": refusal, "progress": progress}


class Script:
    """A model without a mind: it makes the call of a step, and once more if the answer tells it a better argument's name."""

    def __init__(self, step):
        self.tool, self.arguments = step["tool"], step["arguments"]
        self.told = []

    def first(self):
        return self.tool, self.arguments

    def hears(self, text):
        """The next call, or None when the model is done."""
        self.told.append(text)
        advice = re.search(r"`(\w+)` is not an argument of .*did you mean `(\w+)`", text)
        if not advice or len(self.told) > 1:
            return None
        wrong, right = advice.groups()
        self.arguments = {right if name == wrong else name: value for name, value in self.arguments.items()}
        return self.first()

    def seen(self, progress=()):
        return {"heard": "model", "told": self.told, "progress": list(progress)}
