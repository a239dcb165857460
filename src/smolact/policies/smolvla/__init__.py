"""SmolVLA: a SmolVLM that reads, and a flow-matching expert that acts."""
