"""Video sources and sinks."""
