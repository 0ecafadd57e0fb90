"""Files and functions stay short enough to be read in one go."""

import ast

from tests.architecture.source import FOLDER, modules

# The house aims at 300 and 40 lines; what is longer has a reason, and here is where reasons end.
FILE_LINES = 400
FUNCTION_LINES = 60


def functions(tree: ast.Module) -> dict[str, int]:
    """Lines of every function, from `def` to its last line, without decorators and docstring."""
    lengths = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            docstring = node.body[0] if ast.get_docstring(node) is not None else None
            prose = docstring.end_lineno - docstring.lineno + 1 if docstring else 0
            lengths[f"{node.lineno} {node.name}"] = node.end_lineno - node.lineno + 1 - prose
    return lengths


def longest(lengths: dict[str, int]) -> str:
    """The ten longest, for who reads the output (pytest -rP)."""
    ranked = sorted(lengths.items(), key=lambda item: -item[1])
    return "\n".join(f"{lines:5} {name}" for name, lines in ranked[:10])


def test_files_are_short() -> None:
    lengths = {path: len((FOLDER / path).read_text().splitlines()) for path in modules()}
    print(longest(lengths))
    assert max(lengths.values()) <= FILE_LINES


def test_functions_are_short() -> None:
    lengths = {f"{path}:{name}": lines for path, tree in modules().items() for name, lines in functions(tree).items()}
    print(longest(lengths))
    assert max(lengths.values()) <= FUNCTION_LINES


def test_the_docstring_is_not_counted_and_nesting_is() -> None:
    prose = ['    """One.', "", '    Two."""']
    code = ["def outer(a):", *prose, "    def inner():", "        return a", "    return inner()"]
    assert functions(ast.parse("\n".join(code))) == {"1 outer": 4, "5 inner": 2}
