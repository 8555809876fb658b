"""Give an equation labelled `eq-6` the number (6), the paper's, wherever in the book it stands."""

import re

from docutils import nodes


def renumber(app, doctree):
    equations = app.env.get_domain("math").equations
    for node in doctree.findall(nodes.math_block):
        match = re.fullmatch(r"eq-(\d+)", node.get("label") or "")
        if match:
            number = int(match[1])
            node["number"] = number
            equations[node["label"]] = (app.env.docname, number)


def setup(app):
    app.connect("doctree-read", renumber)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
