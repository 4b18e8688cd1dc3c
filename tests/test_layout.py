"""Rules of the layout that import-linter cannot express."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PRODUCT = [
    *("api", "cli", "engine", "integrations", "migrations", "models", "observability", "realtime", "sandbox", "store", "tasks", "worker"),
    *("beat_schedule.py", "failpoints.py", "settings.py"),
]
MAX_LINES = 500
TASK_DECORATORS = {"task", "scheduled_job", "manual_job"}


def python_files(*names: str) -> list[Path]:
    paths = [ROOT / name for name in names]
    return sorted(file for path in paths for file in ([path] if path.is_file() else path.rglob("*.py")))


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """Yield every module that may be imported, `from package import name` counting as `package.name` too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def task_names(tree: ast.AST) -> Iterator[str]:
    """Yield the names given to `@app.task(name=…)`, `@scheduled_job(…)` and `@manual_job(…)`."""
    for node in ast.walk(tree):
        for decorator in getattr(node, "decorator_list", ()):
            if not isinstance(decorator, ast.Call):
                continue
            function = decorator.func
            called = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
            if called in TASK_DECORATORS:
                given = [*decorator.args[:1], *(keyword.value for keyword in decorator.keywords if keyword.arg == "name")]
                yield from (value.value for value in given if isinstance(value, ast.Constant) and isinstance(value.value, str))


def is_test_module(name: str) -> bool:
    return name.rpartition(".")[2].startswith("test_") and (ROOT / f"{name.replace('.', '/')}.py").is_file()


def test_no_module_imports_a_test_module():
    """Shared helpers belong into tests/support, a conftest, or a module that is not itself a test."""
    wrong: dict[str, list[str]] = {}
    for file in python_files("tests", "benchmarks"):
        names = set(imported_modules(ast.parse(file.read_text())))
        if tests := sorted(filter(is_test_module, names)):
            wrong[str(file.relative_to(ROOT))] = tests

    assert wrong == {}


@pytest.mark.parametrize("file", python_files("tasks"), ids=lambda file: file.stem)
def test_tasks_are_in_the_file_of_their_prefix(file: Path):
    assert {name.partition(".")[0] for name in task_names(ast.parse(file.read_text()))} <= {file.stem}


def test_the_check_of_prefixes_finds_the_tasks():
    names = {name for file in python_files("tasks") for name in task_names(ast.parse(file.read_text()))}

    assert {"turns.advance", "turns.sweep", "messages.receive", "secrets.reseal", "usage.audit"} <= names


def test_no_product_file_is_too_long():
    lengths = {str(file.relative_to(ROOT)): len(file.read_text().splitlines()) for file in python_files(*PRODUCT)}

    assert {name: lines for name, lines in lengths.items() if lines > MAX_LINES} == {}
