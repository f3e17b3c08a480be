"""Quality measures, each under its own name."""
