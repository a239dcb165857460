"""A policy of one's own, as a distribution that smolact finds by its entry point."""
