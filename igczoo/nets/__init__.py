"""What the papers define, and nothing else: one file a family, in the order data flows."""
import timm  # noqa: F401  first: importing it has `igczoo.registry` imported, which needs this room whole
