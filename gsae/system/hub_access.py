"""Names on the Hugging Face hub, and why the hub refused one, in words. The token is the hub
client's own: HF_TOKEN, or what `hf auth login` kept; no call here or elsewhere overrides it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, errors, get_token, try_to_load_from_cache
from transformers.utils import logging as hf_logging


def split(name: str) -> tuple[str, str | None]:
    """`owner/name@revision` in its two parts; without a revision, or for a path that exists, the
    second is None.
    """
    if Path(name).exists():
        return name, None
    name, _, revision = name.partition("@")
    return name, revision or None


def commit(repo: str, revision: str | None = None) -> str | None:
    """The commit of a model's copy in the hub's cache; None for what is not from the hub."""
    if Path(repo).exists():
        return None
    path = try_to_load_from_cache(repo, "config.json", revision=revision)
    return Path(path).parent.name if isinstance(path, str) else None


def chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and those that led to it: libraries wrap the hub's own errors."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def why(error: BaseException, repo: str, kind: str = "model", revision: str | None = None) -> str:
    """What stood between us and a repository, and what to do about it.

    Tells apart: a gated repository, one that is not there or private, a revision that is not there,
    no token, a token without the right, offline mode, and no connection. `kind` is "model" or
    "dataset".
    """
    causes = list(chain(error))
    first = lambda *types: next((e for e in causes if isinstance(e, types)), None)
    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repo}"
    login = "log in with `hf auth login`, or set HF_TOKEN"
    if first(errors.GatedRepoError):
        token = "use a token of an account that has" if get_token() else f"then {login}"
        return f"{repo} is gated: accept its licence at {page}, {token}"
    if first(errors.RevisionNotFoundError):
        return f"{repo} has no such revision: those it has are listed at {page}/tree/main"
    if first(errors.RepositoryNotFoundError):
        token = "the token in use may not see it" if get_token() else login
        return (
            f"the hub has no {kind} {repo} that you may read: check the name at {page}; if it "
            f"is private, {token}"
        )
    if first(errors.LocalTokenNotFoundError):
        return f"no token was found, and {repo} needs one: {login}"
    if (refused := first(errors.HfHubHTTPError)) and refused.response.status_code in (401, 403):
        token = (
            "the token in use does not permit this: take one with write access"
            if get_token()
            else login
        )
        return f"the hub refused ({refused.response.status_code}); {token}"
    if constants.HF_HUB_OFFLINE and first(errors.LocalEntryNotFoundError, ConnectionError):
        option = (" --repo-type dataset" if kind == "dataset" else "") + (
            f" --revision {revision}" if revision else ""
        )
        return (
            f"offline mode is on (HF_HUB_OFFLINE) and {repo} is not in {constants.HF_HUB_CACHE}: "
            "unset HF_HUB_OFFLINE, "
            f"or run `hf download{option} {repo}` where there is a network and bring that folder "
            "along"
        )
    network = any(
        type(e).__module__.split(".")[0] in ("httpx", "httpx2", "requests") for e in causes
    )
    if network or first(errors.LocalEntryNotFoundError, ConnectionError, TimeoutError):
        return (
            f"the hub at {constants.ENDPOINT} could not be reached: check the network and the "
            "proxy, then try again"
        )
    return str(error)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bar over weights where nobody watches: it would end up in the pages of the
    book.
    """
    hide = not sys.stderr.isatty() and hf_logging.is_progress_bar_enabled()
    if hide:
        hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if hide:
            hf_logging.enable_progress_bar()
