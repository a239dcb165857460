"""Benchmark suites of the field, with LeRobot's observations, seeds and success: Meta-World, ALOHA and LIBERO."""
