"""Live streams: sources and sinks by URI, the threads between them, the deadline ladder, statistics."""
