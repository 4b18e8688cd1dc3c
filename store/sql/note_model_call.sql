-- Writes to usage_facts how a model call ended. If an ended call changes, it first takes back what was counted before.
-- Locks: none.
-- Callers: triggers model_calls_noted_new and model_calls_noted on model_calls.

CREATE OR REPLACE FUNCTION note_model_call() RETURNS trigger
LANGUAGE plpgsql AS $$
DECLARE
    v_agent uuid := (SELECT agent_id FROM sessions WHERE id = NEW.session_id AND counted);
BEGIN
    IF v_agent IS NOT NULL AND TG_OP = 'UPDATE' AND OLD.state <> 'reserved' THEN
        INSERT INTO usage_facts (workspace_id, agent_id, kind, n, "at", session_id, state, provider, model, cost_usd, unpriced,
            input_tokens, cached_input_tokens, cache_write_tokens, output_tokens, reasoning_tokens, took_ms, first_token_ms)
        VALUES (OLD.workspace_id, v_agent, 'model_call', -1, coalesce(OLD.settled_at, OLD.created_at), OLD.session_id, OLD.state,
            OLD.provider, OLD.model, coalesce(OLD.cost_usd, 0), OLD.state = 'settled' AND OLD.cost_usd IS NULL, OLD.input_tokens,
            OLD.cached_input_tokens, OLD.cache_write_tokens, OLD.output_tokens, OLD.reasoning_tokens, OLD.latency_ms, OLD.ttft_ms);
    END IF;
    IF v_agent IS NOT NULL AND NEW.state <> 'reserved' THEN
        INSERT INTO usage_facts (workspace_id, agent_id, kind, "at", session_id, state, provider, model, cost_usd, unpriced,
            input_tokens, cached_input_tokens, cache_write_tokens, output_tokens, reasoning_tokens, took_ms, first_token_ms)
        VALUES (NEW.workspace_id, v_agent, 'model_call', coalesce(NEW.settled_at, NEW.created_at), NEW.session_id, NEW.state,
            NEW.provider, NEW.model, coalesce(NEW.cost_usd, 0), NEW.state = 'settled' AND NEW.cost_usd IS NULL, NEW.input_tokens,
            NEW.cached_input_tokens, NEW.cache_write_tokens, NEW.output_tokens, NEW.reasoning_tokens, NEW.latency_ms, NEW.ttft_ms);
    END IF;
    RETURN NULL;
END $$;
