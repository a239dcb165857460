"""SmolAndFAST: SmolVLM2 that writes its actions as tokens."""
