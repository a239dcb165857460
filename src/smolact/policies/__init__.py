"""Policies (SmolVLA, SmolAndFAST), which map observations and an instruction to actions."""
