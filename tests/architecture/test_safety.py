"""No file, config or checkpoint can make the package run code that it names or carries."""

import ast
from pathlib import Path

import pytest

from tests.architecture.source import imports, modules

UNSAFE_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
UNSAFE_BUILTINS = {"eval", "exec", "compile", "__import__"}
UNSAFE_IMPORTS = {
    "torch.load",
    "builtins.eval",
    "builtins.exec",
}  # an alias would hide the calls
HYDRA_CALLS = {"instantiate", "get_class", "get_method", "get_object"}  # from a string to an object
UNSAFE_CALLS = HYDRA_CALLS | {"unsafe_load", "full_load", "UnsafeLoader"}
IMPORT_BY_NAME = "importlib.import_module"
# Imports of user plugins and of files of the package; the name never comes from a config or a checkpoint.
IMPORTERS_BY_NAME = {"core/registry.py", "core/former_modules.py", "__init__.py"}


def constant(call: ast.Call, keyword: str) -> object:
    """The literal value of a keyword argument, None when absent or computed."""
    values = (item.value for item in call.keywords if item.arg == keyword)
    return next((value.value for value in values if isinstance(value, ast.Constant)), None)


def unsafe_call(path: str, call: ast.Call) -> str | None:
    """The reason why a call may run foreign code, or None."""
    name = ast.unparse(call.func)
    last = name.rpartition(".")[2]
    if name in UNSAFE_BUILTINS or last in UNSAFE_CALLS:
        return f"{name}()"
    if name == "torch.load" and constant(call, "weights_only") is not True:
        return "torch.load() without weights_only=True"
    if last == "load" and constant(call, "allow_pickle"):
        return f"{name}() with allow_pickle"
    if name == "yaml.load" and "SafeLoader" not in ast.unparse(call):
        return "yaml.load() without a SafeLoader"
    if last == "import_module" and path not in IMPORTERS_BY_NAME:
        return f"{name}()"
    return None


def unsafe(path: str, tree: ast.Module) -> list[str]:
    """One sentence for each place where a file could run foreign code."""
    found = []
    for line, name in imports(path, tree):
        parts = set(name.split("."))
        if parts & (UNSAFE_MODULES | UNSAFE_CALLS) or name in UNSAFE_IMPORTS:
            found.append(f"{path}:{line} imports {name}")
        if name == IMPORT_BY_NAME and path not in IMPORTERS_BY_NAME:
            found.append(f"{path}:{line} imports {name}")
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (reason := unsafe_call(path, node)):
            found.append(f"{path}:{node.lineno} calls {reason}")
    return found


def test_the_package_runs_no_foreign_code() -> None:
    found = [sentence for path, tree in modules().items() for sentence in unsafe(path, tree)]
    assert not found, "\n".join(found)


def test_no_config_names_code(root: Path) -> None:
    configs = sorted((root / "conf").rglob("*.yaml"))
    assert configs
    naming = [str(path.relative_to(root)) for path in configs if "_target_" in path.read_text()]
    assert not naming, naming


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "def f():\n    from joblib import load",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "torch.load(path, weights_only=flag)",
        "from torch import load",
        "np.load(path, allow_pickle=True)",
        "eval(text)",
        "exec(text)",
        "__import__(name)",
        "hydra.utils.instantiate(cfg)",
        "from hydra.utils import instantiate",
        "yaml.load(stream, Loader=yaml.Loader)",
        "importlib.import_module(name)",
        "from importlib import import_module",
    ],
)
def test_foreign_code_is_reported(code: str) -> None:
    assert unsafe("data/corpus.py", ast.parse(code))


@pytest.mark.parametrize(
    "code",
    [
        "model.eval()",
        "torch.compile(model)",
        "re.compile(pattern)",
        "torch.load(path, weights_only=True)",
        "np.load(path)",
        "yaml.load(stream, Loader=yaml.SafeLoader)",
        "json.load(stream)",
    ],
)
def test_ordinary_code_is_accepted(code: str) -> None:
    assert not unsafe("data/corpus.py", ast.parse(code))
