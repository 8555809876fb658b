"""Put MathJax beside the built pages, so that the book shows its mathematics without a network.

The files come from a pinned, hash-checked wheel (`gsae.system.wheels.mathjax`) and are not part of this repository.
"""

import shutil
from pathlib import Path


def copy(app, exception):
    if exception is not None or app.builder.format != "html":
        return
    from gsae.system import wheels

    target = Path(app.outdir) / "_static" / "mathjax"
    shutil.copytree(wheels.mathjax(), target, dirs_exist_ok=True)


def setup(app):
    app.connect("build-finished", copy)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
