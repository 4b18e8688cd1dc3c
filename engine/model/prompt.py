"""The model's input: the agent's instructions, then the history."""

from __future__ import annotations

from engine.enums import Role
from engine.turn.context import ModelRequest, PromptMessage, TurnContext
from engine.turn.state import TurnState

STYLES = {
    "casual": "Write the way people talk: relaxed and plain.",
    "professional": "Write politely and to the point.",
    "technical": "Be exact; name the terms, units and limits that matter.",
    "friendly": "Be warm and encouraging.",
}


def instructions(name: str, system_prompt: str | None, conversation_style: str) -> str:
    """Return the system message of an agent. It has no secrets and no customer's text."""
    return "\n\n".join(part for part in (f"You are {name}.", system_prompt, STYLES.get(conversation_style)) if part)


def model_request(state: TurnState, context: TurnContext) -> ModelRequest:
    """Return the next model call of a turn."""
    return ModelRequest(
        model_provider=context.model_provider,
        model_name=context.model_name,
        messages=(PromptMessage(Role.SYSTEM, context.instructions), *state.prompt()),
        tools=tuple(tool for tool in context.tools if tool.offered),
        temperature=context.temperature,
        max_tokens=context.max_tokens,
    )
