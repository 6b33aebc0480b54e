"""闲聊 without torch: replies of a weights file that `xianliao-export --to lite` wrote."""

from xianliao_lite.bot import Bot, LiteError, Reply

__all__ = ["Bot", "LiteError", "Reply"]
__version__ = "0.1.0"
