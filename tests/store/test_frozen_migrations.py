"""Migrations are frozen, and a new one is added to the manifest."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from migrations import freeze

SQL = "sql/0017_more/functions/turn_upper.sql"


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A small directory of migrations, frozen."""
    for name, text in (("versions/0017_more.py", "revision = '0017'\n"), (SQL, "SELECT 1;\n")):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert freeze.freeze(tmp_path) == [SQL, "versions/0017_more.py"]
    return tmp_path


def test_migrations_match_manifest():
    wrong = freeze.differences().sentences()
    assert not wrong, " ".join([*wrong, freeze.ADVICE])


def test_freeze_appends_new_file(copy):
    before = (copy / freeze.MANIFEST).read_text()
    (copy / "versions/0018_new.py").write_text("revision = '0018'\n")
    assert freeze.differences(copy).sentences() == ["versions/0018_new.py is not in frozen.sha256."]

    assert freeze.freeze(copy) == ["versions/0018_new.py"]

    after = (copy / freeze.MANIFEST).read_text()
    assert after.startswith(before)
    assert after.count("\n") == before.count("\n") + 1
    assert freeze.differences(copy).sentences() == []
    assert freeze.freeze(copy) == []


@pytest.mark.parametrize(("change", "sentence"), [("edit", f"{SQL} was edited."), ("delete", f"{SQL} was deleted.")])
def test_changed_file_is_named_and_refused(copy, change, sentence):
    before = (copy / freeze.MANIFEST).read_text()
    (copy / "versions/0018_new.py").write_text("revision = '0018'\n")
    if change == "edit":
        (copy / SQL).write_text("SELECT 2;\n")
    else:
        shutil.rmtree(copy / "sql")

    assert sentence in freeze.differences(copy).sentences()
    with pytest.raises(ValueError, match=sentence.replace(".", r"\.")):
        freeze.freeze(copy)
    assert (copy / freeze.MANIFEST).read_text() == before
