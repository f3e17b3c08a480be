"""The embedded demo: a synthetic camera, adapted to and restored."""
