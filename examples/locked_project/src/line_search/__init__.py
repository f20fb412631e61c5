"""Finds the lines of a text that come closest to a query, misspelt or not. The scoring kernel is pinned by commit."""

from line_search.search import Match, search

__all__ = ["Match", "search"]
