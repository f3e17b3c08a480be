"""Face restorers: the compact edge family, and loading of weights."""
