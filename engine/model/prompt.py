"""The model's input: the agent's instructions, then the history."""

from __future__ import annotations

from engine.turn.context import Brief, ModelRequest, PromptMessage, Role
from engine.turn.state import TurnState

STYLES = {
    "casual": "Write the way people talk: relaxed and plain.",
    "professional": "Write politely and to the point.",
    "technical": "Be exact; name the terms, units and limits that matter.",
    "friendly": "Be warm and encouraging.",
}


def instructions(name: str, system_prompt: str | None, conversation_style: str) -> str:
    """The system message of an agent. Holds no secret and nothing a customer wrote."""
    return "\n\n".join(part for part in (f"You are {name}.", system_prompt, STYLES.get(conversation_style)) if part)


def model_request(state: TurnState, brief: Brief) -> ModelRequest:
    """The next model call of a turn."""
    return ModelRequest(
        model_provider=brief.model_provider,
        model_name=brief.model_name,
        messages=(PromptMessage(Role.SYSTEM, brief.instructions), *state.prompt()),
        tools=tuple(tool for tool in brief.tools if tool.offered),
        temperature=brief.temperature,
        max_tokens=brief.max_tokens,
    )
