"""A server as people write them: a few lines of FastMCP, and not an annotation."""

from mcp.server.fastmcp import FastMCP

server = FastMCP("notes")
notes: list[str] = []


@server.tool()
def add_note(text: str) -> str:
    """Keeps a note."""
    notes.append(text)
    return f"{len(notes)} notes"


@server.tool()
def forget_notes() -> str:
    """Forgets all notes."""
    notes.clear()
    return "0 notes"


server.run()
