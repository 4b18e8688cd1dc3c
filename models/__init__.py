"""The tables, one class each, without queries. Importing this package registers every table on `Base.metadata`."""

from models.access import ApiKeyRow, PermissionRow, UserRow, WorkspaceRow
from models.agent import AgentRow, AgentSnapshotRow
from models.approval import ApprovalRow
from models.audit import AuditRow, WorkerRow
from models.base import Base
from models.budget import BudgetHoldRow, BudgetRow
from models.deletion import DeletionRow, ErasureRow
from models.event import EventRow
from models.job_run import JobRunRow
from models.ledger import ModelCallRow
from models.rollup import AgentRollupRow, ModelRollupRow, ToolRollupRow, UsageFactRow
from models.session import SessionRow
from models.tool import AgentToolRow, ToolHealthChangeRow, ToolIntegrationRow, ToolRow
from models.tool_call import ToolCallRow
from models.turn import TurnRow

__all__ = [
    "AgentRollupRow",
    "AgentRow",
    "AgentSnapshotRow",
    "AgentToolRow",
    "ApiKeyRow",
    "ApprovalRow",
    "AuditRow",
    "Base",
    "BudgetHoldRow",
    "BudgetRow",
    "DeletionRow",
    "ErasureRow",
    "EventRow",
    "JobRunRow",
    "ModelCallRow",
    "ModelRollupRow",
    "PermissionRow",
    "SessionRow",
    "ToolCallRow",
    "ToolHealthChangeRow",
    "ToolIntegrationRow",
    "ToolRollupRow",
    "ToolRow",
    "TurnRow",
    "UsageFactRow",
    "UserRow",
    "WorkerRow",
    "WorkspaceRow",
]
