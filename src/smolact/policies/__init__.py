"""What a policy is: SmolVLA, and whatever else maps observations and an instruction to actions."""
