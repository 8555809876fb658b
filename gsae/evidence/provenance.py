"""Where a number comes from: the commit of the code, whether the tree was clean, versions, device
and time.
"""

import json
import platform
import subprocess
import sys
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]


class EvidenceError(RuntimeError):
    """A run file that is damaged, edited, or may not be written."""


def git(*words: str) -> str:
    """A git command's output in the checkout; empty outside one."""
    try:
        return subprocess.run(
            ["git", "-C", str(CHECKOUT), *words], capture_output=True, text=True
        ).stdout.strip()
    except OSError:
        return ""


def commit() -> str:
    """The commit of the code that runs: the repository's, or the one that pip installed; empty
    where not known.
    """
    if (CHECKOUT / "pyproject.toml").exists():
        return git("rev-parse", "HEAD")
    try:
        origin = json.loads(distribution("gsae").read_text("direct_url.json") or "{}")
    except PackageNotFoundError:
        return ""
    return origin.get("vcs_info", {}).get("commit_id", "")


def dirty() -> bool:
    """Whether the tree differs from its commit, evidence and the study's latents themselves
    aside.
    """
    changed = (CHECKOUT / "pyproject.toml").exists() and git(
        "status", "--porcelain", "--", ".", ":!book/evidence", ":!book/study"
    )
    return bool(changed) or not commit()


def require_clean() -> None:
    """Raise EvidenceError where results could not be traced to a commit."""
    if dirty():
        raise EvidenceError(
            "the tree has uncommitted changes, so its results could not be traced to a commit: "
            "commit them, or run "
            "from a clean `git worktree add ../sweep`; --force writes them marked as dirty"
        )


@cache
def _start() -> tuple[str, bool]:
    return commit(), dirty()


def provenance(device: str, seconds: float, corpus: dict, lm: str) -> dict:
    """Where a run came from: commit, versions, device, seconds, date, hashes of text and language
    model.
    """
    names = ("torch", "transformers", "transformer-lens", "numpy")
    versions = {"python": platform.python_version()}
    for name in names:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    at_commit, is_dirty = _start()
    named = Path(sys.argv[0]).name in ("gsae", "__main__.py")
    return {
        "commit": at_commit,
        "dirty": is_dirty,
        "versions": versions,
        "device": device,
        "seconds": round(seconds, 1),
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "corpus": corpus,
        "lm": lm,
        "command": " ".join(["gsae", *sys.argv[1:]]) if named else "gsae.run",
    }
