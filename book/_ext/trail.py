"""The pages of evidence: the directives `{evidence}` (claim by claim) and `{sweep} NAME`, and a
page for each sweep.

What they say is made by gsae.claims.evidence_page from the committed evidence while the book is
built. Pages of sweeps are written to book/sweeps, which git ignores, before the table of contents
is read: a new experiment has its page by itself.
"""

import os
import shutil
from pathlib import Path

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective

SCALE = "cpu"


class Page(SphinxDirective):
    """Text and figures as nodes."""

    def prefix(self) -> str:
        """Way from this page's folder to the root of the book."""
        return "../" * self.env.docname.count("/")

    def parsed(self, text: str, into: nodes.Element) -> nodes.Element:
        self.state.nested_parse(StringList(text.splitlines(), "gsae.claims.evidence_page"), 0, into)
        return into

    def section(self, anchor: str, title: str, text: str) -> nodes.Element:
        section = nodes.section(ids=[anchor], names=[anchor])
        section += nodes.title("", title)
        self.state.document.note_explicit_target(section)
        return self.parsed(text, section)


class Evidence(Page):
    def run(self):
        from gsae.claims import evidence_page

        sections = evidence_page.sections(SCALE, self.prefix())
        return [self.section(anchor, title, text) for anchor, (title, text) in sections.items()]


class Sweep(Page):
    """Takes the name of an experiment."""

    required_arguments = 1

    def run(self):
        from gsae.claims import evidence_page

        (name,) = self.arguments
        cells = evidence_page.sweep(name, SCALE)
        return [self.cell(name, place, runs) for place, runs in cells.items()]

    def cell(self, name: str, place: tuple, runs) -> nodes.Element:
        """The runs on one site: figures, then the files."""
        from gsae.claims import evidence_page
        from gsae.evidence import run_files
        from gsae.figures import sweeps as sweep_figures

        lm, site, layer = place
        anchor = f"sweep-{name}-{lm}-{site}-{layer}".replace("_", "-")
        section = self.section(anchor, f"{lm}, {site}, layer {layer}", "")
        if len(run_files.done(runs)):
            for kind, (draw, shows) in sweep_figures.FIGURES.items():
                file = f"{anchor}-{kind}.svg".replace("/", "-")
                section += self.drawn(file, draw(runs), shows, sweep_figures.alt(runs, shows))
        files = evidence_page.files([runs])
        return self.parsed(evidence_page.behind(files, f"{self.prefix()}_static/evidence"), section)

    def drawn(self, name: str, figure, shows: str, alt: str) -> nodes.Node:
        """A figure as a file beside the built pages, so that nothing drawn lies among the
        sources.
        """
        path = Path(self.env.doctreedir).parent / "sweeps" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path)
        page = Path(self.env.doc2path(self.env.docname))
        uri = Path(os.path.relpath(path, page.parent)).as_posix()
        image = nodes.image(uri=uri, alt=alt, loading="lazy")
        image["classes"] += ["dark-light"]
        # Without a caption, and so without a number: the figure is no chapter's.
        return nodes.figure("", image, nodes.legend("", nodes.paragraph("", shows)))


def write_pages(app, config):
    """One page a sweep, as short as can be; pages of sweeps that are no more are removed."""
    from gsae.claims import evidence_page
    from gsae.experiments import sweeps

    folder = Path(app.srcdir) / "book" / "sweeps"
    folder.mkdir(exist_ok=True)
    pages = {folder / f"{name}.md": name for name in evidence_page.with_pages(SCALE)}
    for old in set(folder.glob("*.md")) - set(pages):
        old.unlink()
    for page, name in pages.items():
        title = name.replace("_", " ")
        about = " ".join(sweeps.EXPERIMENTS[name].__doc__.split())
        page.write_text(f"# {title}\n\n{about}\n\n```{{sweep}} {name}\n```\n")


def copy_files(app, exception):
    """The run files beside the built pages, so that a reader without a network can open them."""
    if exception is None and app.builder.format == "html":
        from gsae.evidence import run_files

        target = Path(app.outdir) / "_static" / "evidence"
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(run_files.root(SCALE).parent, target, ignore=shutil.ignore_patterns(".*"))


def setup(app):
    app.connect("config-inited", write_pages)
    app.connect("build-finished", copy_files)
    app.add_directive("evidence", Evidence)
    app.add_directive("sweep", Sweep)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
