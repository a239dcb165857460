"""Doors to other frameworks; each module needs its framework, and nothing else of smolact needs these modules."""
