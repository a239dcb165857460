"""SmolVLA: a SmolVLM backbone and a flow-matching action expert."""
