"""Alembic's environment: it migrates as turnline_owner, with short lock waits, one transaction per migration."""

from __future__ import annotations

from alembic import context
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import Connection, create_engine, text

from models import Base
from settings import get_settings

BEFORE_0_1_0 = {f"{number:04}" for number in range(1, 16)}  # squashed into 0016, which is now the first revision
ROLES = ("turnline_owner", "turnline_app", "turnline_maintenance")


def ensure_roles(connection: Connection) -> None:
    """Create the three roles if they are missing, and let this login become the owner.

    A database administrator may have created them beforehand; then this login needs no right to create roles.
    """
    have = set(connection.scalars(text("SELECT rolname FROM pg_roles WHERE rolname = ANY(:names)"), {"names": list(ROLES)}))
    for role in ROLES:
        if role not in have:
            # Two databases of one cluster may be migrated at once; the roles are the cluster's.
            connection.execute(
                text(
                    f"DO $$ BEGIN CREATE ROLE {role} NOLOGIN NOINHERIT NOSUPERUSER NOBYPASSRLS;"
                    " EXCEPTION WHEN duplicate_object OR unique_violation THEN NULL; END $$"
                )
            )
            if not connection.scalar(text("SELECT rolsuper FROM pg_roles WHERE rolname = current_user")):
                connection.execute(text(f"GRANT {role} TO CURRENT_USER WITH SET TRUE, INHERIT TRUE"))
    connection.execute(text("GRANT turnline_maintenance TO turnline_owner WITH INHERIT FALSE, SET TRUE"))
    connection.execute(text("GRANT USAGE, CREATE ON SCHEMA public TO turnline_owner WITH GRANT OPTION"))
    connection.commit()


def refuse_unknown_revision(revision: str | None) -> None:
    """Refuse a database at a revision that these migrations cannot upgrade, and say what to do.

    Raises:
        CommandError: the database is at a revision that is not among these.
    """
    known = {script.revision for script in ScriptDirectory.from_config(context.config).walk_revisions()}
    if revision is None or revision in known:
        return
    if revision in BEFORE_0_1_0:
        raise CommandError(f"This database is at revision {revision}, from before 0.1.0, and cannot be upgraded: create a new one.")
    raise CommandError(
        f"This database is at revision {revision}, which this version of Turnline does not know: run the version that made it."
    )


def run() -> None:
    """Run the requested migrations."""
    given = context.config.attributes.get("url") or get_settings().owner_database_url or get_settings().database_url
    if not given:
        raise SystemExit("DATABASE_URL is not set. Give it the Postgres to migrate, like postgresql://user:password@host:5432/database.")
    engine = create_engine(given.replace("postgresql://", "postgresql+psycopg://", 1))
    try:
        with engine.connect() as connection:
            ensure_roles(connection)
            connection.execute(text("SET ROLE turnline_owner"))
            # A migration waits briefly for a lock and fails, rather than queueing every turn behind itself.
            connection.execute(text("SET lock_timeout = '5s'"))
            connection.commit()
            context.configure(
                connection=connection,
                target_metadata=Base.metadata,
                compare_type=True,
                compare_server_default=False,
                transaction_per_migration=True,
            )
            refuse_unknown_revision(context.get_context().get_current_revision())
            connection.rollback()  # ends the transaction of the read above; each migration begins its own
            with context.begin_transaction():
                context.run_migrations()
    finally:
        engine.dispose()


run()
