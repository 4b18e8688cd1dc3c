-- What each role may do. turnline_owner owns everything and migrates.

GRANT USAGE ON SCHEMA public TO turnline_app, turnline_maintenance;
GRANT SELECT ON alembic_version TO turnline_app, turnline_maintenance;

-- turnline_app serves the API and the workers, each within one workspace (see the policies). An event is written once and never changed.
-- It inserts into usage_facts through triggers.
GRANT SELECT, INSERT ON users TO turnline_app;
GRANT SELECT, INSERT ON workspaces TO turnline_app;
GRANT UPDATE (updated_at, timezone, data_retention_days) ON workspaces TO turnline_app;
GRANT SELECT, INSERT ON permissions TO turnline_app;
GRANT SELECT, INSERT, UPDATE ON api_keys TO turnline_app;
GRANT SELECT, INSERT, UPDATE ON agents TO turnline_app;
GRANT SELECT, INSERT ON agent_snapshots TO turnline_app;
GRANT SELECT, INSERT, UPDATE ON tools TO turnline_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON tool_integrations TO turnline_app;
GRANT SELECT, INSERT ON tool_health_changes TO turnline_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON agent_tools TO turnline_app;
GRANT SELECT, INSERT, UPDATE ON sessions TO turnline_app;
GRANT SELECT, INSERT, UPDATE ON turns TO turnline_app;
GRANT SELECT, INSERT ON events TO turnline_app;
GRANT SELECT, INSERT, UPDATE ON model_calls TO turnline_app;
GRANT SELECT, INSERT, UPDATE ON tool_calls TO turnline_app;
GRANT SELECT, INSERT, UPDATE ON approvals TO turnline_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON budgets TO turnline_app;
GRANT SELECT, INSERT, UPDATE, DELETE ON budget_holds TO turnline_app;
GRANT SELECT, INSERT ON usage_facts TO turnline_app;
GRANT SELECT ON agent_rollups TO turnline_app;
GRANT SELECT ON model_rollups TO turnline_app;
GRANT SELECT ON tool_rollups TO turnline_app;
GRANT SELECT ON erasures TO turnline_app;
GRANT SELECT ON deletions TO turnline_app;

-- turnline_maintenance runs the scheduled jobs over all workspaces. It reads ids, states, counts and times, never what was said.
-- customer_id is the workspace's own id of a customer, by which it asks for an erasure.
GRANT SELECT (id, timezone, data_retention_days) ON workspaces TO turnline_maintenance;
GRANT SELECT (id, workspace_id, secret_sha256, revoked_at) ON api_keys TO turnline_maintenance;
GRANT SELECT (id, workspace_id, data_retention_days, total_sessions, total_messages, total_tokens_used, total_cost,
    average_session_duration, last_active_at)
    ON agents TO turnline_maintenance;
GRANT UPDATE (total_sessions, total_messages, total_tokens_used, total_cost, average_session_duration, last_active_at)
    ON agents TO turnline_maintenance;
GRANT SELECT (id, workspace_id, effect, use_count, success_rate, last_used_at, updated_at) ON tools TO turnline_maintenance;
GRANT UPDATE (use_count, success_rate, last_used_at) ON tools TO turnline_maintenance;
GRANT SELECT (id, workspace_id, tool_id, enabled, last_health_check, health_status, error_count, last_error, next_health_check)
    ON tool_integrations TO turnline_maintenance;
GRANT UPDATE (next_health_check) ON tool_integrations TO turnline_maintenance;
GRANT DELETE ON tool_health_changes TO turnline_maintenance;
GRANT SELECT (id, workspace_id, tool_id, integration_id, from_status, to_status, error, created_at)
    ON tool_health_changes TO turnline_maintenance;
GRANT SELECT (id, workspace_id, agent_id, tool_id, use_count, last_used_at) ON agent_tools TO turnline_maintenance;
GRANT UPDATE (use_count, last_used_at) ON agent_tools TO turnline_maintenance;
GRANT DELETE ON sessions TO turnline_maintenance;
GRANT SELECT (id, workspace_id, agent_id, customer_id, mode, status, satisfaction_score, average_response_time, next_offset, lease_fence,
    lease_owner, lease_until, event_count, message_count, tokens_used, input_tokens, cached_input_tokens, cache_write_tokens,
    output_tokens, reasoning_tokens, cost_usd, unpriced_calls, unknown_calls, started_at, last_activity_at, ended_at, created_at,
    quarantined_at, counted, deleting_at, held_at)
    ON sessions TO turnline_maintenance;
GRANT UPDATE (status, average_response_time, next_offset, lease_until, event_count, last_activity_at, ended_at, updated_at, counted,
    deleting_at)
    ON sessions TO turnline_maintenance;
GRANT DELETE ON turns TO turnline_maintenance;
GRANT SELECT (id, workspace_id, session_id, status, strategy, opened_at_offset, read_through_offset, attempts, writes, fence, not_before,
    rung_at, rings, cancel_requested_at, error_class, opened_at, started_at, claimed_at, settled_at, updated_at, place, cancel_reason,
    carried_s, granted_at)
    ON turns TO turnline_maintenance;
GRANT UPDATE (rung_at, rings, place) ON turns TO turnline_maintenance;
GRANT INSERT, DELETE ON events TO turnline_maintenance;
GRANT SELECT (session_id, "offset", id, workspace_id, kind, source, turn_id, tool_call_id, fence, created_at)
    ON events TO turnline_maintenance;
GRANT DELETE ON model_calls TO turnline_maintenance;
GRANT SELECT (turn_id, step, attempt, workspace_id, session_id, provider, model, state, input_tokens, cached_input_tokens,
    cache_write_tokens, output_tokens, reasoning_tokens, cost_usd, reserved_usd, ttft_ms, latency_ms, created_at, settled_at)
    ON model_calls TO turnline_maintenance;
GRANT DELETE ON tool_calls TO turnline_maintenance;
GRANT SELECT (session_id, tool_call_id, workspace_id, turn_id, step, position, tool_id, state, idempotency_key, attempts, latency_ms,
    created_at, settled_at)
    ON tool_calls TO turnline_maintenance;
GRANT DELETE ON approvals TO turnline_maintenance;
GRANT SELECT (id, workspace_id, session_id, turn_id, tool_call_id, tool_name, status, requested_at, expires_at, decided_at)
    ON approvals TO turnline_maintenance;
GRANT UPDATE (status, decided_at) ON approvals TO turnline_maintenance;
GRANT DELETE ON budgets TO turnline_maintenance;
GRANT SELECT (id, workspace_id, scope, scope_id, period, spent, reserved, day) ON budgets TO turnline_maintenance;
GRANT UPDATE (spent, reserved, updated_at) ON budgets TO turnline_maintenance;
GRANT DELETE ON budget_holds TO turnline_maintenance;
GRANT SELECT (turn_id, step, attempt, budget_id, workspace_id, amount, day) ON budget_holds TO turnline_maintenance;
GRANT SELECT, INSERT, UPDATE, DELETE ON usage_facts TO turnline_maintenance;
GRANT SELECT, INSERT, UPDATE, DELETE ON agent_rollups TO turnline_maintenance;
GRANT SELECT, INSERT, UPDATE, DELETE ON model_rollups TO turnline_maintenance;
GRANT SELECT, INSERT, UPDATE, DELETE ON tool_rollups TO turnline_maintenance;
GRANT SELECT, INSERT, UPDATE, DELETE ON audits TO turnline_maintenance;
GRANT SELECT, INSERT, UPDATE, DELETE ON workers TO turnline_maintenance;
GRANT SELECT, INSERT, UPDATE, DELETE ON job_runs TO turnline_maintenance;
GRANT SELECT, INSERT, UPDATE, DELETE ON erasures TO turnline_maintenance;
GRANT SELECT, INSERT, UPDATE, DELETE ON deletions TO turnline_maintenance;
