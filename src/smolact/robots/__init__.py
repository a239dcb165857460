"""Robots and teleoperators: the interface, a simulated robot, and adapters of LeRobot's drivers."""
