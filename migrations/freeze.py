"""Detects edited migrations: `frozen.sha256` holds the SHA-256 of every file under `versions` and `sql`.

`python -m migrations.freeze` adds new files to it and never changes a line. To edit a migration that is not merged yet, remove its lines
by hand and add them again.
"""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent
MANIFEST = "frozen.sha256"  # in the format of sha256sum: `cd migrations && sha256sum -c frozen.sha256` checks them too
ADVICE = "Migrations are frozen: add a new one; to record a new file run `python -m migrations.freeze`."


@dataclass(frozen=True)
class Differences:
    """The files that differ from the manifest, by their paths under `migrations`."""

    edited: list[str]
    deleted: list[str]
    new: list[str]

    def sentences(self) -> list[str]:
        """Return one sentence for each file."""
        return [
            *(f"{name} was edited." for name in self.edited),
            *(f"{name} was deleted." for name in self.deleted),
            *(f"{name} is not in {MANIFEST}." for name in self.new),
        ]


def differences(root: Path = ROOT) -> Differences:
    """Compare the files under `root` with its manifest."""
    listed, found = _listed(root), _found(root)
    return Differences(
        edited=sorted(name for name in listed.keys() & found.keys() if listed[name] != found[name]),
        deleted=sorted(listed.keys() - found.keys()),
        new=sorted(found.keys() - listed.keys()),
    )


def freeze(root: Path = ROOT) -> list[str]:
    """Add new files to the manifest and return their names.

    Raises:
        ValueError: a listed file was edited or deleted. The manifest is left as it is.
    """
    wrong = differences(root)
    if wrong.edited or wrong.deleted:
        raise ValueError(" ".join([*Differences(wrong.edited, wrong.deleted, []).sentences(), ADVICE]))
    found = _found(root)
    with (root / MANIFEST).open("a", encoding="utf-8") as manifest:
        manifest.writelines(f"{found[name]}  {name}\n" for name in wrong.new)
    return wrong.new


def _listed(root: Path) -> dict[str, str]:
    manifest = root / MANIFEST
    lines = manifest.read_text(encoding="utf-8").splitlines() if manifest.exists() else []
    return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}


def _found(root: Path) -> dict[str, str]:
    files = [*(root / "versions").rglob("*.py"), *(path for path in (root / "sql").rglob("*") if path.is_file())]
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


if __name__ == "__main__":
    try:
        for added in freeze():
            print(f"Added {added}.")
    except ValueError as error:
        sys.exit(str(error))
