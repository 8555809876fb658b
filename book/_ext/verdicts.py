"""The directive `{verdicts}`: the table of claims, made from the committed evidence while the book
is built.
"""

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.util.docutils import SphinxDirective


class Verdicts(SphinxDirective):
    """Takes the scale, one word, as its only argument."""

    required_arguments = 1

    def run(self):
        from gsae import claims

        text = claims.markdown(self.arguments[0], prefix=self.prefix())
        container = nodes.container(classes=["verdicts"])
        lines = StringList(text.splitlines(), "gsae.claims.verdict_tables")
        self.state.nested_parse(lines, 0, container)
        return [container]

    def prefix(self) -> str:
        """Way from this page's folder to the root, where the table's links start."""
        return "../" * self.env.docname.count("/")


def setup(app):
    app.add_directive("verdicts", Verdicts)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
