"""Limits on the length of files and functions and on the number of parameters."""

import ast
from collections.abc import Iterator

from tests.architecture.source import FOLDER, modules

FILE_LINES = 400
FUNCTION_LINES = 40
PARAMETERS = 7
FAMILY_LINES = 2000  # of all published families, read and written, with the opening and saving of their files

# Functions with more parameters, and why.
MANY_PARAMETERS = {
    "data/torch_dataset.py make_dataloader": "public since 0.1.0, with the arguments of torch's DataLoader",
    "model/gpt.py forward": "the one call of a model: tokens, where they stand, the cache, and what is returned",
}


def functions(tree: ast.Module) -> Iterator[tuple[str, ast.FunctionDef | ast.AsyncFunctionDef]]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name, node


def lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function from `def` to its last line, docstring and nested functions included."""
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def parameters(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Number of parameters without `self` and `cls`; `*args` and `**kwargs` count as one each."""
    arguments = function.args
    named = [argument.arg for argument in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)]
    return len([name for name in named if name not in ("self", "cls")]) + bool(arguments.vararg) + bool(arguments.kwarg)


def largest(sizes: dict[str, int]) -> str:
    """The ten largest, for readers of the output (pytest -rP)."""
    ranked = sorted(sizes.items(), key=lambda item: -item[1])
    return "\n".join(f"{size:5} {name}" for name, size in ranked[:10])


def test_files_are_short() -> None:
    sizes = {path: len((FOLDER / path).read_text().splitlines()) for path in modules()}
    print(largest(sizes))
    assert {path for path, size in sizes.items() if size > FILE_LINES} == set()


def test_families_of_published_models_stay_short() -> None:
    sizes = {
        path: len((FOLDER / path).read_text().splitlines()) for path in modules() if path.startswith("pretrained/")
    }
    print(largest(sizes))
    assert 0 < sum(sizes.values()) < FAMILY_LINES


def test_functions_are_short() -> None:
    sizes = {f"{path} {name}": lines(node) for path, tree in modules().items() for name, node in functions(tree)}
    print(largest(sizes))
    assert {name for name, size in sizes.items() if size > FUNCTION_LINES} == set()


def test_functions_have_few_parameters() -> None:
    sizes = {f"{path} {name}": parameters(node) for path, tree in modules().items() for name, node in functions(tree)}
    print(largest(sizes))
    assert {name for name, size in sizes.items() if size > PARAMETERS} == set(MANY_PARAMETERS)


def test_counts_of_lines_and_parameters() -> None:
    code = """
class A:
    def outer(self, a, /, b, *rest, c=1, **kwargs):
        \"\"\"One.

        Two.\"\"\"
        def inner():
            return a
        return inner()
"""
    found = {name: (lines(node), parameters(node)) for name, node in functions(ast.parse(code))}
    assert found == {"outer": (7, 5), "inner": (2, 0)}
