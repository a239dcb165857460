"""SmolAndFAST: a SmolVLM2 that generates actions as tokens."""
