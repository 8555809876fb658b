"""Keep one copy of each inline script: sphinx-thebe adds its own twice, and the second one raises
in the browser.
"""


def drop_repeats(app, pagename, templatename, context, doctree):
    seen: set[str] = set()
    kept = []
    for script in context.get("script_files", []):
        body = getattr(script, "attributes", {}).get("body")
        if body is None or body not in seen:
            kept.append(script)
        if body is not None:
            seen.add(body)
    context["script_files"] = kept


def setup(app):
    app.connect("html-page-context", drop_repeats, priority=999)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
