"""Names on the Hugging Face hub, and why the hub refused one, in words. The token is the hub
client's own: HF_TOKEN, or what `hf auth login` kept; no call here or elsewhere overrides it."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, errors, get_token, try_to_load_from_cache


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
    return (
        refusal(causes, repo, kind)
        or missing_connection(causes, repo, kind, revision)
        or str(error)
    )


def first(causes: Sequence[BaseException], *types: type[BaseException]) -> BaseException | None:
    return next((cause for cause in causes if isinstance(cause, types)), None)


def refusal(causes: Sequence[BaseException], repo: str, kind: str) -> str | None:
    """Why the hub did not give what it was asked for; None where it did not refuse."""
    page = f"{constants.ENDPOINT}/{'datasets/' if kind == 'dataset' else ''}{repo}"
    login = "log in with `hf auth login`, or set HF_TOKEN"
    if first(causes, errors.GatedRepoError):
        token = "use a token of an account that has" if get_token() else f"then {login}"
        return f"{repo} is gated: accept its licence at {page}, {token}"
    if first(causes, errors.RevisionNotFoundError):
        return f"{repo} has no such revision: those it has are listed at {page}/tree/main"
    if first(causes, errors.RepositoryNotFoundError):
        token = "the token in use may not see it" if get_token() else login
        return (
            f"the hub has no {kind} {repo} that you may read: check the name at {page}; if it "
            f"is private, {token}"
        )
    if first(causes, errors.LocalTokenNotFoundError):
        return f"no token was found, and {repo} needs one: {login}"
    answer = first(causes, errors.HfHubHTTPError)
    if answer is not None and answer.response.status_code in (401, 403):
        weak = "the token in use does not permit this: take one with write access"
        token = weak if get_token() else login
        return f"the hub refused ({answer.response.status_code}); {token}"
    return None


def missing_connection(
    causes: Sequence[BaseException], repo: str, kind: str, revision: str | None
) -> str | None:
    """Why the hub was not asked, or did not answer; None where it did."""
    if constants.HF_HUB_OFFLINE and first(causes, errors.LocalEntryNotFoundError, ConnectionError):
        options = " --repo-type dataset" if kind == "dataset" else ""
        options += f" --revision {revision}" if revision else ""
        return (
            f"offline mode is on (HF_HUB_OFFLINE) and {repo} is not in {constants.HF_HUB_CACHE}: "
            f"unset HF_HUB_OFFLINE, or run `hf download{options} {repo}` where there is a network "
            "and bring that folder along"
        )
    libraries = {type(cause).__module__.split(".")[0] for cause in causes}
    by_a_client = bool(libraries & {"httpx", "httpx2", "requests"})
    unreachable = (errors.LocalEntryNotFoundError, ConnectionError, TimeoutError)
    if by_a_client or first(causes, *unreachable):
        return (
            f"the hub at {constants.ENDPOINT} could not be reached: check the network and the "
            "proxy, then try again"
        )
    return None


@contextmanager
def without_progress_bar() -> Iterator[None]:
    """No progress bar over weights where nobody watches: it would end up in the pages of the
    book.
    """
    from transformers.utils import logging as hf_logging  # loads slowly

    hide = not sys.stderr.isatty() and hf_logging.is_progress_bar_enabled()
    if hide:
        hf_logging.disable_progress_bar()
    try:
        yield
    finally:
        if hide:
            hf_logging.enable_progress_bar()
