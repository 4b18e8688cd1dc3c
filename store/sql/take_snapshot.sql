-- Stores the agent and its tools as they are now, under the SHA-256 of their content, and returns that digest. The same content is
-- stored once.
-- Locks: none, except that inserting the same snapshot twice at once waits for the first insert.
-- Callers: claim_turn.

CREATE OR REPLACE FUNCTION take_snapshot(p_workspace uuid, p_agent uuid, OUT digest text)
LANGUAGE plpgsql AS $$
DECLARE
    v_version integer;
    v_snapshot jsonb;
BEGIN
    SELECT a.version, jsonb_build_object(
        'agent', jsonb_build_object('id', a.id, 'version', a.version, 'model_provider', a.model_provider, 'model_name', a.model_name,
            'temperature', a.temperature, 'max_tokens', a.max_tokens, 'name', a.name, 'system_prompt', a.system_prompt,
            'conversation_style', a.conversation_style),
        'tools', coalesce((SELECT jsonb_agg(jsonb_build_object('id', tl.id, 'name', tl.name, 'description', tl.description,
                'parameters', tl.parameters, 'return_schema', tl.return_schema, 'usage_guidelines', tl.usage_guidelines,
                'effect', tl.effect, 'approval', coalesce(at.configuration->>'approval', CASE tl.effect WHEN 'unsafe' THEN 'required'
                                                                                             ELSE 'never' END))
                ORDER BY at.priority DESC, tl.name)
            FROM agent_tools at JOIN tools tl ON tl.id = at.tool_id
            WHERE at.agent_id = a.id AND at.enabled AND tl.enabled), '[]'))
    INTO v_version, v_snapshot
    FROM agents a WHERE a.id = p_agent;
    digest := encode(sha256(convert_to(v_snapshot::text, 'UTF8')), 'hex');
    IF NOT EXISTS (SELECT 1 FROM agent_snapshots k WHERE k.agent_id = p_agent AND k.digest = take_snapshot.digest) THEN
        INSERT INTO agent_snapshots (agent_id, digest, workspace_id, version, snapshot)
        VALUES (p_agent, take_snapshot.digest, p_workspace, v_version, v_snapshot) ON CONFLICT DO NOTHING;
    END IF;
END $$;
