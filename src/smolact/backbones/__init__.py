"""SmolVLM, from pixels and tokens to hidden states, and where its weights come from."""
