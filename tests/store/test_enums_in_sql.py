"""Statuses, kinds and strategies in SQL are those of engine/enums.py."""

from __future__ import annotations

import re
from enum import StrEnum

import psycopg
import pytest
from sqlalchemy import CheckConstraint, Table

from engine import enums
from models import Base
from store import sql

# By column name: the enums whose values a column of this name may hold, in one table or another.
COLUMNS: dict[str, tuple[type[StrEnum], ...]] = {
    "status": (
        *(enums.TurnStatus, enums.SessionStatus, enums.ApprovalStatus, enums.AgentStatus),
        *(enums.HealthStatus, enums.ToolStatus),
    ),
    "state": (enums.ToolCallState, enums.ModelCallState, enums.TurnStatus, enums.SessionStatus),  # usage_facts has the last two
    "mode": (enums.SessionMode,),
    "strategy": (enums.Strategy,),
    "admission": (enums.Admission,),
    "effect": (enums.Effect,),
    "health_status": (enums.HealthStatus,),
    "scope": (enums.BudgetScope,),
    "unit": (enums.BudgetUnit,),
    "period": (enums.BudgetPeriod,),
    "reason": (enums.DeletionReason, enums.CancelReason),
    "source": (enums.Source,),
    "cancel_reason": (enums.CancelReason,),
}
NAME = r"(?:\w+\.)?(?:[pv]_)?(" + "|".join(sorted(COLUMNS, key=len, reverse=True)) + r")"
COMPARED = re.compile(r"\b" + NAME + r"\s*(?::?=|<>|IS (?:NOT )?DISTINCT FROM|(?:NOT )?IN)\s*('\w+'|\('[^)]*\))")
CASES = re.compile(r"\b" + NAME + r"\s*=\s*CASE\b(.*?)\bEND\b", re.S)
INDIRECT = re.compile(r"\bCASE " + NAME + r"\s((?:WHEN '\w+' .*?)+)\bEND\b", re.S)
LITERAL = re.compile(r"'(\w+)'")


def literals(text: str) -> list[tuple[str, str]]:
    """The (column name, value) pairs of a function's file."""
    found = [(match[1], value) for match in COMPARED.finditer(text) for value in LITERAL.findall(match[2])]
    found += [(match[1], value) for match in CASES.finditer(text) for value in re.findall(r"(?:THEN|ELSE) '(\w+)'", match[2])]
    return found + [(match[1], value) for match in INDIRECT.finditer(text) for value in re.findall(r"WHEN '(\w+)'", match[2])]


@pytest.mark.parametrize("name", sql.names())
def test_literals_of_a_function_are_enum_values(name: str):
    text = re.sub(r"--.*", "", sql.text(name))
    wrong = [(column, value) for column, value in literals(text) if not any(value in list(enum) for enum in COLUMNS[column])]
    assert wrong == []


def test_literals_are_found():
    text = "UPDATE t SET admission = CASE WHEN a THEN 'x' ELSE 'y' END WHERE t.status IN ('p', 'q') AND CASE mode WHEN 'm' THEN 1 END = 1"
    assert set(literals(text)) == {("admission", "x"), ("admission", "y"), ("status", "p"), ("status", "q"), ("mode", "m")}
    found = [pair for name in sql.names() for pair in literals(sql.text(name))]
    assert len(found) > 150
    assert {column for column, _ in found} >= {"status", "state", "mode", "strategy", "admission"}


def checks(table: Table) -> dict[str, set[str]]:
    """The values that the model's CHECKs allow, by constraint name."""
    found = [one for one in table.constraints if isinstance(one, CheckConstraint) and " IN (" in str(one.sqltext)]
    return {str(one.name): set(LITERAL.findall(str(one.sqltext))) for one in found}


def test_checks_of_a_migrated_database_are_those_of_the_models(database_url: str):
    with psycopg.connect(database_url) as db:
        rows = db.execute(
            "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint WHERE contype = 'c' AND connamespace = 'public'::regnamespace"
        )
        migrated = {name: set(re.findall(r"'(\w+)'::text", text)) for name, text in rows if "ANY" in text}
    models = {name: values for table in Base.metadata.tables.values() for name, values in checks(table).items()}
    assert models == migrated
    assert len(models) > 20
