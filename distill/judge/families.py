"""Model families by name: models of one family tend to like each other's answers.

Panickssery et al. 2024, "LLM Evaluators Recognize and Favor Their Own Generations".
"""

from __future__ import annotations

import re

# Family -> pattern in the lower-cased name, first match wins. A distilled model's answers are its
# teacher's kind, so DeepSeek stands before the models that DeepSeek's distillates are built on.
_PATTERNS = {
    "deepseek": r"deepseek",
    "claude": r"claude|anthropic",
    "gemini": r"gemini|gemma|palm-?2|learnlm",
    "llama": r"(?<!o)llama(?!file|[-_.]?cpp)|nemotron",
    "qwen": r"qwen|qwq|tongyi",
    "mistral": r"mistral|mixtral|ministral|magistral|codestral|devstral|pixtral",
    "gpt": r"chatgpt|\bgpt-?(3|4|5|oss)|\bo[134](-|:|$)|\bcodex|davinci",
    "grok": r"\bgrok",
    "cohere": r"cohere|\bcommand-(r|a|light|nightly)|\baya\b",
    "phi": r"\bphi-?\d",
    "nova": r"\bnova-(micro|lite|pro|premier)",
    "kimi": r"kimi|moonshot",
    "glm": r"\b(chat)?glm-?\d",
    "granite": r"granite",
    "olmo": r"\bolmo|\btulu",
    "smollm": r"smollm",
    "minimax": r"minimax",
}
FAMILIES = {family: re.compile(pattern) for family, pattern in _PATTERNS.items()}


def model_family(name: str) -> str | None:
    """Family of a judge or author by its name; `None` for programs and names nobody knows.

    Names are those of records: `litellm:anthropic/claude-sonnet-4`, `openai/gpt-5`, `verify`.
    """
    if name.startswith("program:"):
        return None
    lower = name.lower()
    return next((family for family, pattern in FAMILIES.items() if pattern.search(lower)), None)
