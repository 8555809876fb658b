"""Measures of the package's code, room by room: what makes it hard to read, and what it takes.

`python tests/measures.py` prints them; `test_measures.py` holds them. Lines bind nothing: thin is what is not there.
"""

import ast
import io
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "gsae"
FUNCTION, FILE, COLUMNS = 50, 300, 100  # lines of a function and of a file, columns of a line
CORE = ("saes", "training", "lm")  # where the paper's method is
COMMENTS = 20  # comment lines in 1,000 there
TELL_NOTHING = {"found", "of", "said", "here", "own", "some"}
COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)


def rooms() -> dict[str, list[Path]]:
    """Room -> its files; the files beside the rooms are under "gsae"."""
    found: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        found.setdefault(path.parent.name, []).append(path)
    return found


def place(path: Path, node: ast.AST, name: str = "") -> str:
    return f"{path.relative_to(ROOT)}:{node.lineno} {name}".strip()


def nodes(path: Path, *kinds: type) -> list[ast.AST]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds)]


def long_functions(path: Path) -> list[str]:
    functions = nodes(path, ast.FunctionDef, ast.AsyncFunctionDef)
    lines = {node: node.end_lineno - node.lineno + 1 for node in functions}
    return [
        place(path, node, f"{node.name}: {n} lines") for node, n in lines.items() if n > FUNCTION
    ]


def nested_comprehensions(path: Path) -> list[str]:
    outer = nodes(path, *COMPREHENSIONS)
    return [
        place(path, node)
        for node in outer
        if any(isinstance(n, COMPREHENSIONS) and n is not node for n in ast.walk(node))
    ]


def inner_walruses(path: Path) -> list[str]:
    """Assignments inside an expression, but where they are the whole condition of an `if` or a
    `while`.
    """
    tree = ast.parse(path.read_text())
    conditions = {n.test for n in ast.walk(tree) if isinstance(n, ast.If | ast.While)}
    inside = [n for n in ast.walk(tree) if isinstance(n, ast.NamedExpr) and n not in conditions]
    return [place(path, node) for node in inside]


def long_lines(path: Path) -> list[str]:
    lines = enumerate(path.read_text().splitlines(), 1)
    return [f"{path.relative_to(ROOT)}:{number}" for number, line in lines if len(line) > COLUMNS]


def long_file(path: Path) -> list[str]:
    count = len(path.read_text().splitlines())
    return [f"{path.relative_to(ROOT)}: {count} lines"] if count > FILE else []


def comment_lines(path: Path) -> int:
    """Lines that have a comment, those that speak to a tool left out."""
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    return sum(not comment.startswith(("# fmt:", "# noqa", "# type:")) for comment in comments)


def top_level_names(path: Path) -> set[str]:
    names = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {
                n.id for target in targets for n in ast.walk(target) if isinstance(n, ast.Name)
            }
    return {name for name in names if not name.startswith("__")}


def names_of_nothing(path: Path) -> list[str]:
    """Variables and arguments whose name tells nothing of what they hold."""
    stored = [n for n in nodes(path, ast.Name) if isinstance(n.ctx, ast.Store)]
    named = {node: node.id for node in stored} | {n: n.arg for n in nodes(path, ast.arg)}
    return [place(path, node, name) for node, name in named.items() if name in TELL_NOTHING]


def defined_twice(files: list[Path]) -> list[str]:
    """Top-level names that two modules of one room define."""
    where: dict[str, list[str]] = {}
    for path in files:
        for name in top_level_names(path):
            where.setdefault(name, []).append(path.name)
    return [
        f"{name}: {', '.join(paths)}" for name, paths in sorted(where.items()) if len(paths) > 1
    ]


PER_FILE = {
    f"functions above {FUNCTION} lines": long_functions,
    "comprehensions inside comprehensions": nested_comprehensions,
    "walruses inside an expression": inner_walruses,
    f"lines above {COLUMNS} columns": long_lines,
    f"files above {FILE} lines": long_file,
    "variables whose name tells nothing": names_of_nothing,
}


def broken() -> dict[str, list[str]]:
    """Measure -> the places that break it."""
    files = [path for paths in rooms().values() for path in paths]
    found = {
        name: [p for path in files for p in measure(path)] for name, measure in PER_FILE.items()
    }
    twice = [f"{room}: {name}" for room, paths in rooms().items() for name in defined_twice(paths)]
    return found | {"names defined in two modules of a room": twice}


def comment_rate(room: str) -> float:
    """Comment lines in 1,000 lines of a room."""
    counts = Counter()
    for path in rooms()[room]:
        counts += Counter(lines=len(path.read_text().splitlines()), comments=comment_lines(path))
    return 1000 * counts["comments"] / counts["lines"]


def main() -> None:
    print(f"{'room':18} files  lines  comments in 1,000")
    for room, paths in rooms().items():
        lines = sum(len(path.read_text().splitlines()) for path in paths)
        print(f"{room:18} {len(paths):5} {lines:6} {comment_rate(room):9.0f}")
    for name, places in broken().items():
        print(f"{len(places)} {name}" + "".join(f"\n    {one}" for one in places))


if __name__ == "__main__":
    main()
