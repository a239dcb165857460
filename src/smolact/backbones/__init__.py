"""SmolVLM, from pixels and tokens to hidden states, and the sources of its weights."""
