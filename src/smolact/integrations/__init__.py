"""Integrations with other frameworks. Each module needs its framework; no other package of smolact needs these modules."""
