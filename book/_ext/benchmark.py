"""The directive `{benchmark}`: the newest record of `make bench` as tables and a figure, made as
the book is built.
"""

import os
import sys
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "book" / "evidence" / "bench"


class Benchmark(SphinxDirective):
    def run(self):
        from benchmarks import tables

        record = tables.newest(RECORDS)
        if record is None:
            return self.parsed(["No measurement is on record yet; `make bench` makes one."])
        text = [tables.headline(record), ""]
        for title, table in tables.tables(record).items():
            folded = title.endswith(("other shapes", "TFLOP/s"))
            heading = f":::{{dropdown}} {title}" if folded else f"**{title}**"
            end = ":::" if folded else ""
            text += [heading, "", *tables.markdown(table).splitlines(), end, ""]
        return [*self.parsed(text[:2]), self.drawn(record), *self.parsed(text[2:])]

    def parsed(self, lines: list[str]) -> list[nodes.Node]:
        container = nodes.container(classes=["benchmark"])
        self.state.nested_parse(StringList(lines, "benchmarks.tables"), 0, container)
        return [container]

    def drawn(self, record: dict) -> nodes.Node:
        """The figure as a file beside the built pages, so that nothing generated lies among the
        sources.
        """
        from benchmarks import tables

        path = Path(self.env.doctreedir).parent / "benchmark" / "throughput.svg"
        path.parent.mkdir(parents=True, exist_ok=True)
        tables.figure(record).savefig(path)
        page = Path(self.env.doc2path(self.env.docname))
        uri = Path(os.path.relpath(path, page.parent)).as_posix()
        image = nodes.image(uri=uri, alt=tables.alt(record))
        image["classes"] += ["dark-light"]
        figure = nodes.figure("", image)
        caption = "Training throughput against the size of the stack; dashed, the machine's limit."
        figure += nodes.caption("", caption)
        return figure


def setup(app):
    sys.path.append(str(ROOT))  # the folder `benchmarks` is not installed with the package
    app.add_directive("benchmark", Benchmark)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
