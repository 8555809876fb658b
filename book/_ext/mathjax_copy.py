"""Put MathJax beside the built pages, so that the book shows its mathematics without a network.

The files come from a pinned, hash-checked wheel and are not part of this repository.
"""

import shutil
from pathlib import Path

from gsae.system import files, wheels


def mathjax() -> Path:
    """A folder to copy as `_static/mathjax`: the script, its fonts at the path it expects, and its
    licence.
    """

    def make(folder: Path) -> None:
        source = wheels.fetch("django-static-mathjax")
        script = next(source.rglob("tex-mml-chtml.js"))
        shutil.copy(script, folder)
        shutil.copytree(script.parent / "output", folder / "output")
        for licence in source.rglob("*LICENSE*"):
            shutil.copy(licence, folder)

    return wheels.once(files.cache_dir() / "mathjax", make)


def copy(app, exception):
    if exception is not None or app.builder.format != "html":
        return
    target = Path(app.outdir) / "_static" / "mathjax"
    shutil.copytree(mathjax(), target, dirs_exist_ok=True)


def setup(app):
    app.connect("build-finished", copy)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
