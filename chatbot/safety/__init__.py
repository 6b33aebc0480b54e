"""Fixed replies to people in crisis: folding of text, lists of phrases, and rules for a history."""

from chatbot.safety.phrases import Phrases, SafetyError
from chatbot.safety.rules import FOLDER, Fixed, Safety, default_safety, named_safety

__all__ = ["FOLDER", "Fixed", "Phrases", "Safety", "SafetyError", "default_safety", "named_safety"]
