"""Things of one kind, put together."""

from collections.abc import Callable, Hashable, Iterable


def groups(things: Iterable, key: Callable[..., Hashable]) -> list[list]:
    """Runs, or what else is given, with an equal key, in order of first appearance."""
    together: dict[Hashable, list] = {}
    for thing in things:
        together.setdefault(key(thing), []).append(thing)
    return list(together.values())
