def register_third_party_plugins() -> None:
    """No plugins."""
