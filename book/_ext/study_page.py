"""Put the rating pages of the blinded study and their key beside the built pages, made from
book/study as it is.
"""

from pathlib import Path

COLLECTED = Path(__file__).resolve().parents[1] / "study"


def publish(app, exception):
    if exception is not None or app.builder.format != "html":
        return
    from gsae.interpretability import published_study

    published_study.publish(COLLECTED, Path(app.outdir) / "_static" / "study")


def setup(app):
    app.connect("build-finished", publish)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
