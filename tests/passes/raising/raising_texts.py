"""Graphs as text, for tests of rules."""


def graph(inputs: str, *lines: str, y: str = "y") -> str:
    """A graph of the given inputs that returns y."""
    return "\n".join([f"def g({inputs}):", *(f"    {line}" for line in lines), f"    return {{'y': {y}}}"])
